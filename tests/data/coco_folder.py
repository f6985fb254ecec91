"""A tiny folder in COCO's layout: three training images, two validation images, seven categories, one crowd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.data.frames_for_tests import png

WIDTH, HEIGHT = 64, 48
CATEGORIES = {"person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "bus": 6, "train": 7, "truck": 8}
SETTINGS: dict[str, Any] = {
    "annotations": {"train": "instances_train2017.json", "val": "instances_val2017.json"},
    "images": {"train": "train2017", "val": "val2017"},
}
CROWD_COLUMNS = (40, 44)
"""The crowd is all of these columns, the second exclusive."""


def annotation(image: int, category: str, box: list[float], **more: Any) -> dict[str, Any]:
    """Return an object that fills its box."""
    x, y, width, height = box
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    entry = {"image_id": image, "category_id": CATEGORIES[category], "bbox": box, "area": width * height}
    return {**entry, "iscrowd": 0, "segmentation": [polygon], **more}


def crowd(image: int) -> dict[str, Any]:
    """Return people without number, as run lengths."""
    first, last = (column * HEIGHT for column in CROWD_COLUMNS)
    rle = {"size": [HEIGHT, WIDTH], "counts": [first, last - first, WIDTH * HEIGHT - last]}
    return annotation(image, "person", [40, 0, 4, 48], iscrowd=1, segmentation=rle)


def instances(image_ids: list[int]) -> dict[str, Any]:
    """Return the content of an annotation file; the first image has a car, a person beyond the border and a crowd."""
    annotations = [
        annotation(image_ids[0], "car", [10, 5, 20, 20]),
        annotation(image_ids[0], "person", [-4, 30, 12, 40]),
        crowd(image_ids[0]),
        annotation(image_ids[0], "bicycle", [64, 10, 5, 5]),
        annotation(image_ids[-1], "truck", [20.5, 10.5, 30.0, 25.0]),
    ]
    for number, entry in enumerate(annotations, 1):
        entry["id"] = number
    return {
        "images": [
            {"id": number, "file_name": f"{number:012d}.png", "width": WIDTH, "height": HEIGHT} for number in image_ids
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in CATEGORIES.items()],
    }


def coco_folder(root: Path) -> Path:
    """Write the folder and return it."""
    for split, image_ids in (("train2017", [11, 12, 13]), ("val2017", [21, 22])):
        (root / split).mkdir(parents=True)
        for number in image_ids:
            (root / split / f"{number:012d}.png").write_bytes(png(WIDTH, HEIGHT, number))
        (root / f"instances_{split}.json").write_text(json.dumps(instances(image_ids)))
    return root
