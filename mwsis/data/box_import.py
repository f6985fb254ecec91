"""2D boxes of other tools as the `boxes.json` of one's own recordings: YOLO's text files, COCO with other names.

YOLO: a text file per image, ``class x_centre y_centre width height`` a line, in shares of the
image, and the names of the classes in order. COCO: an annotation file whose ``file_name`` lead to the same images by
their last parts. Command: `tools/boxes.py`. What comes out is read by `custom/boxes.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mwsis.core.errors import DataError, closest_name
from mwsis.data.coco_json import POINTS, explain_instances
from mwsis.data.image_files import IMAGE_SUFFIXES, size_of_image_file
from mwsis.data.problems import Problems, finite, read_json

__all__ = ["coco_boxes", "listed_images", "yolo_boxes"]

SLACK = 1e-6
"""What rounding may add to shares of an image."""


def listed_images(folder: Path) -> list[dict[str, Any]]:
    """Return COCO's entry of every image under a folder, by name.

    Raises:
        DataError: there is none, or one of them cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{folder}: no images; expected files such as CAMERA/000042.jpg")
    entries = []
    for number, path in enumerate(paths, 1):
        width, height = size_of_image_file(path)
        name = path.relative_to(folder).as_posix()
        entries.append({"id": number, "file_name": name, "width": width, "height": height})
    return entries


def yolo_boxes(
    labels: Path, names: Sequence[str], images: Sequence[Mapping[str, Any]], classes: Mapping[str, str]
) -> tuple[dict[str, Any], Problems]:
    """Return COCO's content made of YOLO's text files, and what is wrong with these.

    Args:
        labels: folder of the files, called like the images of `listed_images` but for the suffix; an image without a
            file shows no object, as YOLO has it.
        names: of YOLO's classes, in their order.
        images: entries of the images.
        classes: what each name becomes; names that become nothing are left out.
    """
    problems, categories = Problems(), _categories(classes)
    annotations: list[dict[str, Any]] = []
    files = {path.relative_to(labels).as_posix() for path in labels.rglob("*.txt")}
    for image in images:
        name = f"{image['file_name'].rpartition('.')[0]}.txt"
        if name not in files:
            continue
        files.discard(name)
        for number, line in enumerate((labels / name).read_text("utf-8", "replace").splitlines(), 1):
            where = f"{labels / name}: line {number}"
            found = problems.collect(_yolo_line, line, names, image, where, kind="lines") if line.strip() else None
            if found is not None and classes.get(found[0]):
                category = categories[classes[found[0]]]
                annotations.append(_annotation(len(annotations) + 1, image["id"], category, found[1]))
    for name in sorted(files):
        problems.add(f"{labels / name}: no image has this name with another suffix", "files without an image")
    return _content(images, annotations, categories), problems


def coco_boxes(
    path: Path, images: Sequence[Mapping[str, Any]], classes: Mapping[str, str]
) -> tuple[dict[str, Any], Problems]:
    """Return COCO's content with categories and files renamed, and what is wrong with the old one.

    Boxes, masks, crowds and ``object_id`` stay. An image is found by the end of its path: ``x/front/7.jpg`` is
    ``front/7.jpg``.

    Args:
        path: the annotation file.
        images: entries of the images that are there.
        classes: what each category becomes; those that become nothing are left out.
    """
    problems = Problems()
    explain_instances(path, problems)
    if len(problems):
        return {}, problems
    old = read_json(path)
    name_of = {one["id"]: one["name"] for one in old["categories"]}
    for name in classes:
        if name not in name_of.values():
            problems.add(f"{path}: categories: no '{name}'{closest_name(name, name_of.values())} (classes=...)")
    called: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for image in images:
        called[Path(image["file_name"]).name].append(image)
    image_of = {str(one["id"]): _same_image(one, called, path, problems) for one in old["images"]}
    if len(problems):
        return {}, problems
    said = {found["id"]: one for one in old["images"] if (found := image_of[str(one["id"])]) and "supervision" in one}
    images = [{**one, "supervision": said[one["id"]]["supervision"]} if one["id"] in said else one for one in images]
    categories = _categories(classes)
    annotations: list[dict[str, Any]] = []
    for one in old["annotations"]:
        found, new_name = image_of[str(one["image_id"])], classes.get(name_of[one["category_id"]])
        if found is not None and new_name:
            kept = {key: one[key] for key in ("segmentation", "iscrowd", "object_id") if one.get(key)}
            row = _annotation(len(annotations) + 1, found["id"], categories[new_name], one["bbox"])
            annotations.append({**row, **kept})
    return _content(images, annotations, categories), problems


def _same_image(
    entry: Mapping[str, Any], called: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, problems: Problems
) -> Mapping[str, Any] | None:
    """Return the one image whose name the end of a ``file_name`` is, or which the ``file_name`` is the end of."""
    wanted, where = Path(entry["file_name"]), f"{path}: image {entry['id']}"
    if entry.get("supervision") == POINTS:
        problems.add(f"{where}: supervision: expected boxes or masks, got points", "images with points")
        return None
    same = [one for one in called.get(wanted.name, ()) if _ends_alike(wanted.parts, Path(one["file_name"]).parts)]
    if len(same) != 1:
        found = "none" if not same else f"{len(same)}, such as {same[0]['file_name']} and {same[1]['file_name']}"
        expected = f"expected one image that '{entry['file_name']}' may be"
        problems.add(f"{where}: file_name: {expected}, got {found}", "names of files")
        return None
    if (entry["width"], entry["height"]) != (same[0]["width"], same[0]["height"]):
        there, got = (f"{one['width']} x {one['height']}" for one in (same[0], entry))
        problems.add(f"{where}: width, height: expected {there}, as the file is, got {got}", "sizes of images")
    return same[0]


def _ends_alike(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    shared = min(len(one), len(other))
    return one[-shared:] == other[-shared:]


def _yolo_line(line: str, names: Sequence[str], image: Mapping[str, Any], where: str) -> tuple[str, list[float]]:
    """Return the name of the class and x, y, width, height in pixels."""
    words = line.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != 5 or not all(map(finite, numbers)):
        raise DataError(f"{where}: expected class, x, y, width, height, got '{line.strip()[:80]}'")
    label, x, y, width, height = numbers
    if label not in range(len(names)):
        raise DataError(f"{where}: class: expected 0 to {len(names) - 1} ({', '.join(names)}), got {words[0]}")
    for name, value in zip(("x", "y", "width", "height"), numbers[1:], strict=True):
        if not (-SLACK if name in "xy" else 0) < value + (name in "xy") * SLACK <= 1 + 2 * SLACK:
            raise DataError(f"{where}: {name}: expected a share of the image, above 0 and at most 1, got {value:g}")
    size = image["width"], image["height"]
    return names[int(label)], [(x - width / 2) * size[0], (y - height / 2) * size[1], width * size[0], height * size[1]]


def _categories(classes: Mapping[str, str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(filter(None, classes.values())), 1)}


def _annotation(number: int, image: int, category: int, bbox: Sequence[float]) -> dict[str, Any]:
    rounded = [round(value, 3) for value in bbox]
    return {"id": number, "image_id": image, "category_id": category, "bbox": rounded, "iscrowd": 0}


def _content(
    images: Sequence[Mapping[str, Any]], annotations: list[dict[str, Any]], categories: Mapping[str, int]
) -> dict[str, Any]:
    named = [{"id": number, "name": name} for name, number in categories.items()]
    return {"images": list(images), "annotations": annotations, "categories": named}
