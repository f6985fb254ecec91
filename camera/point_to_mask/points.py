"""One point per object: where it comes from, and what happens when whoever clicked it was not exact.

A COCO file is read for its points alone. Boxes are not looked at unless the configuration allows their centres, masks
never. What becomes of the points is `instances_from_semantics.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mwsis.core.errors import ConfigError, DataError
from mwsis.data.classes import class_groups, labels_by_category
from mwsis.data.coco_json import POINTS, supervision_of

__all__ = ["POINT_KINDS", "ImagePoints", "PointedImage", "drifted", "read_categories", "read_points"]

POINT_KINDS = ("annotated", "box_centre")
"""Which points may be used: those of the file alone, or where it has none also the centre of the box."""


@dataclass(frozen=True, eq=False)
class ImagePoints:
    """The objects of one image, a point and a class each.

    Attributes:
        xy: (M, 2) float32, pixels, u = column and v = row, pixel centres at +0.5.
        labels: (M,) int64, class from 0.
    """

    xy: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.xy.shape == (len(self.labels), 2)
        assert self.xy.dtype == torch.float32
        assert self.labels.dtype == torch.int64

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> list[int]:
        """The classes that are present, ascending: the image-level label."""
        return sorted(set(self.labels.tolist()))


@dataclass(frozen=True, eq=False)
class PointedImage:
    """An image of the file and its points.

    Attributes:
        id: COCO's.
        file_name: under the folder of images.
        width, height: pixels.
        points: all inside the image.
        ids: COCO's, of the annotation of each point.
        categories: COCO's, of each point.
    """

    id: int | str
    file_name: str
    width: int
    height: int
    points: ImagePoints
    ids: tuple[int | str, ...]
    categories: tuple[int, ...]


class _Found(NamedTuple):
    xy: list[float]
    label: int
    id: int | str
    category: int


def drifted(xy: Tensor, sigma: float, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return points moved at random, kept inside the image.

    Args:
        xy: (M, 2) float32, pixels.
        sigma: standard deviation along each axis, pixels; 0 moves nothing.
        size: height and width of the image.
        generator: 2 M numbers are used up.

    Source: P2Seg (ICLR 2024), robustness to points that are not in the middle of their objects.
    """
    moved = xy + sigma * torch.randn(xy.shape, generator=generator)
    highest = torch.tensor([size[1], size[0]], dtype=xy.dtype).nextafter(torch.zeros(2))
    return moved.clamp(min=0).minimum(highest)


def read_points(
    path: str | Path, classes: Sequence[str | Mapping[str, Sequence[str]]] | None, kind: str
) -> tuple[tuple[str, ...], tuple[PointedImage, ...]]:
    """Read the points of a COCO file; an annotation has ``"point": [x, y]`` beside its category.

    Crowds and categories of no class are left out, and where images say what they are labelled with
    (`mwsis.data.coco_json`) all that do not say points.

    Args:
        path: the JSON file.
        classes: in the order of the labels, as in `mwsis.data.coco.CocoSource`; None takes every category.
        kind: one of `POINT_KINDS`; with ``box_centre`` an annotation without a point has that of its box, cut off at
            the borders of the image, and is left out when nothing of the box is inside.

    Returns:
        The names of the classes, and the images in the file's order; an image may have no points.

    Raises:
        ConfigError: an unknown kind, or no classes.
        DataError: the file is missing or malformed, lists no image, or an annotation has no usable point.
    """
    if kind not in POINT_KINDS:
        raise ConfigError(f"points: expected one of {', '.join(POINT_KINDS)}, got '{kind}'")
    path = Path(path)
    content = _content(path)
    listed = sorted(content["categories"], key=lambda one: one.get("id", 0))
    known = {one["name"]: one["id"] for one in listed if "name" in one}
    groups = {name: (name,) for name in known} if classes is None else class_groups(classes)
    label_of = labels_by_category(known, groups, path)
    images = {str(_entry(one, "id", path, place)): one for place, one in enumerate(content["images"])}
    if not images:
        raise DataError(f"{path}: images: expected at least one, got none")
    found: dict[str, list[_Found]] = {name: [] for name in _with_points(images, path)}
    for place, one in enumerate(content["annotations"]):
        where = f"{path}: annotations[{place}]"
        image, category = str(one.get("image_id")), one.get("category_id")
        if image not in images:
            raise DataError(f"{where}: image_id: no image {image} in 'images'")
        if image not in found or category not in label_of or one.get("iscrowd", 0):
            continue
        xy = _point(one, images[image], kind, where)
        if xy is not None:
            found[image].append(_Found(xy, label_of[category], one.get("id", place), category))
    return tuple(groups), tuple(_image(images[name], rows, path) for name, rows in found.items())


def read_categories(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Return the categories of a COCO file, as it has them."""
    return tuple(_content(path)["categories"])


def _content(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a COCO file with points") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error}); copy the file again") from None
    for key in ("images", "annotations", "categories"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: {key}: expected a list of entries, as in COCO's instances files")
    return content


def _with_points(images: dict[str, dict[str, Any]], path: Path) -> list[str]:
    """Return the ids of the images to be read: those that say points, or all where none says anything."""
    said = {name: supervision_of(entry, f"{path}: image {name}") for name, entry in images.items()}
    if not any(said.values()):
        return list(images)
    chosen = [name for name, supervision in said.items() if supervision == POINTS]
    if not chosen:
        raise DataError(f'{path}: images: expected at least one with "supervision": "points", got none')
    return chosen


def _entry(entry: dict[str, Any], name: str, path: Path, place: int) -> Any:
    if name not in entry:
        raise DataError(f"{path}: images[{place}]: {name}: expected a value, got none")
    return entry[name]


def _image(entry: dict[str, Any], found: list[_Found], path: Path) -> PointedImage:
    name, width, height = (entry.get(key) for key in ("file_name", "width", "height"))
    if not isinstance(name, str) or not all(isinstance(side, int) and side > 0 for side in (width, height)):
        raise DataError(f"{path}: image {entry['id']}: expected file_name, and width and height of 1 or more")
    assert isinstance(width, int) and isinstance(height, int)  # noqa: PT018
    xy = torch.tensor([one.xy for one in found], dtype=torch.float32).reshape(-1, 2)
    labels = torch.tensor([one.label for one in found], dtype=torch.int64)
    ids, categories = tuple(one.id for one in found), tuple(one.category for one in found)
    return PointedImage(entry["id"], name, width, height, ImagePoints(xy, labels), ids, categories)


def _point(entry: dict[str, Any], image: dict[str, Any], kind: str, where: str) -> list[float] | None:
    width, height = image.get("width", 0), image.get("height", 0)
    if entry.get("point") is not None:
        x, y = _numbers(entry["point"], 2, f"{where}: point")
        if not (0 <= x < width and 0 <= y < height):
            raise DataError(f"{where}: point: expected x, y inside the image of {width} x {height}, got {[x, y]}")
        return [x, y]
    if kind != "box_centre":
        raise DataError(f"{where}: point: expected [x, y], got none; boxes are looked at with points=box_centre only")
    x, y, across, down = _numbers(entry.get("bbox"), 4, f"{where}: bbox")
    x1, x2 = (min(max(value, 0.0), float(width)) for value in (x, x + across))
    y1, y2 = (min(max(value, 0.0), float(height)) for value in (y, y + down))
    return [(x1 + x2) / 2, (y1 + y2) / 2] if x1 < x2 and y1 < y2 else None


def _numbers(value: Any, count: int, where: str) -> list[float]:
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in value)
    ):
        raise DataError(f"{where}: expected {count} numbers, got {json.dumps(value, default=str)[:80]}")
    return [float(one) for one in value]
