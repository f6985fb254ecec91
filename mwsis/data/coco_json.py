"""COCO's annotation files: read once per process, checked entry by entry, polygons kept as arrays.

Every mistake is one sentence with file, entry and field. Frames are made of this in `coco.py`. The only file besides
`mwsis.evaluation.coco_masks` that imports pycocotools: a polygon's pixels are what pycocotools says they are.

Beyond COCO, an entry of ``images`` may have ``"supervision": "boxes" | "points" | "masks"``: what a person gave of its
objects. With masks every annotation has a segmentation; with points each but crowds has ``"point": [x, y]``, and its
``bbox``, which may be missing, is never looked at. An image that does not say has boxes; all such images of a file have
masks, or none. An annotation may have an ``object_id``, a whole number that names the object in all cameras of a frame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

from mwsis.core.errors import DataError, closest_name
from mwsis.data.problems import Problems

__all__ = [
    "BOXES",
    "MASKS",
    "POINTS",
    "Annotation",
    "Instances",
    "ListedImage",
    "Rle",
    "decoded_mask",
    "explain_instances",
    "read_instances",
    "supervision_of",
]

BOXES, POINTS, MASKS = "boxes", "points", "masks"
"""What the objects of an image can be labelled with."""
FILES_KEPT = 4
FARTHEST = 10
"""Times the image's longer side: polygons may leave the image, but pycocotools cannot follow them anywhere."""
Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True)
class ListedImage:
    """One entry of ``images``; ``id`` is COCO's, as text, ``supervision`` None where it does not say."""

    id: str
    file_name: str
    width: int
    height: int
    supervision: str | None = field(default=None, repr=False)  # fingerprints of files that do not say stay as they are


@dataclass(frozen=True, eq=False)
class Rle:
    """Run lengths of zeros, ones, zeros, ... down the columns.

    Attributes:
        counts: (R,) int64, adding up to the image's pixels.
    """

    counts: Array


@dataclass(frozen=True, eq=False)
class Annotation:
    """One entry of ``annotations``.

    Attributes:
        id: COCO's, as text.
        category: id of its category.
        bbox: x, y, width, height, pixels; None in an image with points.
        crowd: a region of many objects.
        segmentation: polygons, each (2 V,) float64 x1 y1 x2 y2 ... in pixels; run lengths; or None.
        object_id: names the object in all cameras of a frame; None where the file does not say.
    """

    id: str
    category: int
    bbox: tuple[float, float, float, float] | None
    crowd: bool
    segmentation: tuple[Array, ...] | Rle | None
    object_id: int | None = None

    def feed(self, digest: Any) -> None:
        """Add everything that decides frames to a `hashlib` digest."""
        shape = self.segmentation
        arrays = (shape.counts,) if isinstance(shape, Rle) else shape or ()
        facts = (self.category, self.bbox, self.crowd, type(shape).__name__, [len(array) for array in arrays])
        digest.update(repr(facts).encode())
        if self.object_id is not None:
            digest.update(f"object {self.object_id}".encode())
        for array in arrays:
            digest.update(array.tobytes())


@dataclass(frozen=True, eq=False)
class Instances:
    """An annotation file.

    Attributes:
        path: the file.
        images: in its order.
        index: place of an image among ``images``, by id.
        annotations: by id of the image, in the file's order.
        categories: id by name, in the order of ids.
        has_masks: whether every annotation of the images that do not say what they have has a segmentation; otherwise
            none has.
    """

    path: Path
    images: tuple[ListedImage, ...]
    index: dict[str, int]
    annotations: dict[str, list[Annotation]]
    categories: dict[str, int]
    has_masks: bool

    def has_truth(self, image: ListedImage) -> bool:
        """Return whether the objects of an image have boxes and masks, to be scored against."""
        if image.supervision in (None, MASKS):
            return self.has_masks or image.supervision == MASKS
        rows = self.annotations[image.id]
        return image.supervision == BOXES and bool(rows) and all(one.segmentation is not None for one in rows)


@lru_cache(maxsize=FILES_KEPT)
def read_instances(path: Path, size: int, mtime_ns: int) -> Instances:
    """Return what an annotation file says.

    Args:
        path: the file.
        size: of the file, bytes; with ``mtime_ns`` it tells a changed file from one that was read before.
        mtime_ns: when it was last changed, nanoseconds.

    Raises:
        DataError: it is no JSON or lacks an entry, or an entry contradicts another or its own image.

    Source: COCO's data format page.
    """
    content = _content(path)
    images = tuple(_image(entry, f"{path}: images[{i}]") for i, entry in enumerate(content["images"]))
    index = {image.id: place for place, image in enumerate(images)}
    if len(index) != len(images):
        twice = next(image.id for place, image in enumerate(images) if index[image.id] != place)
        raise DataError(f"{path}: images: expected different ids, got {twice} twice")
    categories = _categories(content["categories"], path)
    annotations: dict[str, list[Annotation]] = {image.id: [] for image in images}
    known = frozenset(categories.values())
    for place, entry in enumerate(content["annotations"]):
        where = f"{path}: annotations[{place}]"
        image_id = str(_field(entry, "image_id", (int, str), where))
        if image_id not in index:
            raise DataError(f"{where}: image_id: no image {image_id} in 'images'")
        annotations[image_id].append(_annotation(entry, images[index[image_id]], known, where))
    unsaid = (image.id for image in images if image.supervision is None)
    has_masks = _all_or_none((one for image_id in unsaid for one in annotations[image_id]), path)
    return Instances(path, images, index, annotations, categories, has_masks)


def explain_instances(path: Path, problems: Problems) -> None:
    """Find everything that is wrong with an annotation file, entry by entry and field by field.

    Args:
        path: the file.
        problems: takes the sentences; none means that `read_instances` reads the file.
    """
    content = problems.collect(_content, path)
    if content is None:
        return
    categories = problems.collect(_categories, content["categories"], path)
    images: dict[str, ListedImage | None] = {}
    for place, entry in enumerate(content["images"]):
        where = f"{path}: images[{place}]"
        image = problems.collect(_image, entry, where, kind="images")
        image_id = str(entry.get("id")) if isinstance(entry, dict) else ""
        if image is not None and image_id in images:
            problems.add(f"{where}: id: expected different ids, got {image_id} again", "images")
        images.setdefault(image_id, image)
    without = []
    for place, entry in enumerate(content["annotations"]):
        where = f"{path}: annotations[{place}]"
        image_id = str(problems.collect(_field, entry, "image_id", (int, str), where, kind="annotations"))
        if not isinstance(entry, dict) or entry.get("image_id") is None:
            continue
        if image_id not in images:
            problems.add(f"{where}: image_id: no image {image_id} in 'images'", "annotations")
        if categories is not None:
            problems.collect(_category, entry, frozenset(categories.values()), where, kind="annotations")
        problems.collect(_crowd, entry, where, kind="annotations")
        problems.collect(_object_id, entry, where, kind="annotations")
        if image := images.get(image_id):
            _explain_shape(entry, image, where, problems)
            without += [not entry.get("segmentation")] * (image.supervision is None)
    if len(set(without)) == 2 and not len(problems):
        problems.add(
            f"{path}: annotations: {sum(without)} have no segmentation, {len(without) - sum(without)} have one; "
            "expected one for each, or for none at all"
        )


def _explain_shape(entry: dict[str, Any], image: ListedImage, where: str, problems: Problems) -> None:
    if image.supervision == POINTS:
        problems.collect(_require_point, entry, image, where, kind="annotations")
    else:
        problems.collect(_bbox, entry, where, kind="annotations")
    problems.collect(_shape, entry, image, where, kind="annotations")


def decoded_mask(path: Path, annotation: Annotation, image: ListedImage) -> Array:
    """Return the pixels of an annotation that has a segmentation, (H, W) bool.

    Args:
        path: the annotation file, named in the error.
        annotation: of the image.
        image: gives the size.

    Raises:
        DataError: the polygons cannot be rasterised.
    """
    shape = annotation.segmentation
    assert shape is not None
    if isinstance(shape, Rle):
        ones = np.arange(len(shape.counts)) % 2 == 1
        return np.repeat(ones, shape.counts).reshape(image.width, image.height).T
    try:
        parts = coco_mask.frPyObjects([polygon.tolist() for polygon in shape], image.height, image.width)
        return coco_mask.decode(coco_mask.merge(parts)).astype(bool)
    except (ValueError, TypeError, MemoryError, OverflowError) as error:
        raise DataError(f"{path}: annotation {annotation.id}: segmentation: {error}") from None


def supervision_of(entry: dict[str, Any], where: str) -> str | None:
    """Return what an entry of ``images`` says that its objects are labelled with; None where it does not say.

    Raises:
        DataError: there are no such labels; ``where`` names the entry.
    """
    said, known = entry.get("supervision"), (BOXES, POINTS, MASKS)
    if said is not None and said not in known:
        raise DataError(f"{where}: supervision: got {json.dumps(said)[:80]}{closest_name(str(said), known)}")
    return said


# ---------------------------------------------------------------------------------------------------------------------
# Entries
# ---------------------------------------------------------------------------------------------------------------------


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes(), object_hook=_polygons_as_arrays)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error}); copy the file again") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: {key}: expected a list, as in COCO's instances files")
    if not content["images"]:
        raise DataError(f"{path}: images: expected at least one, got none")
    return content


def _polygons_as_arrays(entry: dict[str, Any]) -> dict[str, Any]:
    """Replace polygons as they are read: as lists of numbers, COCO's would take five times the memory."""
    polygons = entry.get("segmentation")
    if isinstance(polygons, list):
        try:
            entry["segmentation"] = [np.array(polygon, dtype=np.float64) for polygon in polygons]
        except (ValueError, TypeError):
            entry["segmentation"] = "malformed"
    return entry


def _field(entry: Any, name: str, kinds: tuple[type, ...], where: str) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise DataError(f"{where}: {name}: expected {expected}, got {json.dumps(value, default=str)[:80]}")
    return value


def _image(entry: Any, where: str) -> ListedImage:
    image_id, file_name = _field(entry, "id", (int, str), where), _field(entry, "file_name", (str,), where)
    width, height = (_field(entry, name, (int,), where) for name in ("width", "height"))
    if min(width, height) < 1:
        raise DataError(f"{where}: width, height: expected at least 1, got {width} and {height}")
    return ListedImage(str(image_id), file_name, width, height, supervision_of(entry, where))


def _categories(entries: Sequence[Any], path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for place, entry in enumerate(entries):
        where = f"{path}: categories[{place}]"
        name, category = _field(entry, "name", (str,), where), _field(entry, "id", (int,), where)
        if name in found or category in found.values():
            raise DataError(f"{where}: name, id: expected each once, got '{name}' and {category} again")
        found[name] = category
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _annotation(entry: Any, image: ListedImage, categories: frozenset[int], where: str) -> Annotation:
    category = _category(entry, categories, where)
    bbox = None if image.supervision == POINTS else _bbox(entry, where)
    crowd, object_id = _crowd(entry, where), _object_id(entry, where)
    shape = _shape(entry, image, where)
    if image.supervision == POINTS and not crowd:
        _require_point(entry, image, where)
    return Annotation(str(entry.get("id", "without id")), category, bbox, crowd, shape, object_id)


def _category(entry: Any, categories: frozenset[int], where: str) -> int:
    category: int = _field(entry, "category_id", (int,), where)
    if category not in categories:
        raise DataError(f"{where}: category_id: no category {category} in 'categories'")
    return category


def _crowd(entry: Any, where: str) -> bool:
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{where}: iscrowd: expected 0 or 1, got {crowd!r}")
    return bool(crowd)


def _object_id(entry: Any, where: str) -> int | None:
    if entry.get("object_id") is None:
        return None
    object_id: int = _field(entry, "object_id", (int,), where)
    if object_id < 0:
        raise DataError(f"{where}: object_id: expected 0 or more, got {object_id}")
    return object_id


def _shape(entry: Any, image: ListedImage, where: str) -> tuple[Array, ...] | Rle | None:
    shape = _segmentation(entry.get("segmentation"), image, f"{where}: segmentation")
    if image.supervision == MASKS and shape is None:
        raise DataError(f"{where}: segmentation: expected one, got none; image {image.id} says that it has masks")
    return shape


def _bbox(entry: Any, where: str) -> tuple[float, float, float, float]:
    bbox = _field(entry, "bbox", (list,), where)
    if len(bbox) != 4 or not _finite(bbox):
        raise DataError(f"{where}: bbox: expected x, y, width, height, got {json.dumps(bbox)[:80]}")
    x, y, width, height = map(float, bbox)
    return x, y, width, height


def _require_point(entry: Any, image: ListedImage, where: str) -> None:
    _field(entry, "id", (int, str), where)  # by which a mask made of the point is found
    point = entry.get("point")
    is_pair = isinstance(point, list) and len(point) == 2 and _finite(point)
    if not is_pair or not (0 <= point[0] < image.width and 0 <= point[1] < image.height):
        got = json.dumps(point, default=str)[:80]
        raise DataError(
            f"{where}: point: expected [x, y] inside the image, got {got}; image {image.id} says that it has points"
        )


def _finite(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _segmentation(value: Any, image: ListedImage, where: str) -> tuple[Array, ...] | Rle | None:
    if value is None or value == []:
        return None
    if isinstance(value, list):
        if not all(
            part.ndim == 1 and len(part) >= 6 and len(part) % 2 == 0 and np.isfinite(part).all() for part in value
        ):
            raise DataError(
                f"{where}: expected polygons of three or more x, y, got {[len(np.ravel(p)) for p in value]} numbers"
            )
        farthest = max(float(np.abs(part).max()) for part in value)
        limit = FARTHEST * max(image.height, image.width)
        if farthest > limit:
            raise DataError(f"{where}: expected pixels near the image, at most {limit}, got {farthest}")
        return tuple(value)
    if not isinstance(value, dict) or not isinstance(value.get("counts"), list | str):
        raise DataError(f"{where}: expected polygons, or run lengths with 'size' and 'counts'")
    size = [image.height, image.width]
    if value.get("size") != size:
        raise DataError(f"{where}: size: expected height and width {size} of image {image.id}, got {value.get('size')}")
    counts = _run_lengths(value["counts"])
    if counts is None or int(counts.sum()) != image.height * image.width:
        raise DataError(f"{where}: counts: expected run lengths that add up to {image.height * image.width} pixels")
    return Rle(counts)


def _run_lengths(counts: list[Any] | str) -> Array | None:
    """Return COCO's run lengths, compressed or not, as (R,) int64; None where they are malformed."""
    if isinstance(counts, str):
        return _uncompressed(counts)
    if not all(isinstance(count, int) and 0 <= count < 2**62 for count in counts):
        return None
    return np.array(counts, dtype=np.int64)


def _uncompressed(text: str) -> Array | None:
    """Decode COCO's compressed run lengths: numbers of five bits a character, from the fourth on as differences.

    Source: the format of pycocotools' compressed masks.
    """
    counts: list[int] = []
    number = shift = 0
    for code in (ord(character) - 48 for character in text):
        if not 0 <= code < 64:
            return None
        number |= (code & 31) << shift
        shift += 5
        if not code & 32:
            number -= (code & 16) << (shift - 4)  # the highest bit is the sign
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return np.array(counts, dtype=np.int64) if not shift and all(count >= 0 for count in counts) else None


def _all_or_none(annotations: Iterable[Annotation], path: Path) -> bool:
    lacking = {True: 0, False: 0}
    example = ""
    for annotation in annotations:
        without = annotation.segmentation is None
        lacking[without] += 1
        example = annotation.id if without else example
    if lacking[True] and lacking[False]:
        raise DataError(
            f"{path}: annotation {example}: segmentation: {lacking[True]} annotations have none, {lacking[False]} have "
            "one; expected one for each, or for none at all"
        )
    return lacking[False] > 0 or not lacking[True]
