"""A tiny data set whose images say what they are labelled with, and masks made of its points; every object is a block.

Images 1 and 2 have masks, 3 and 4 boxes, 5, 6 and 7 points. Of 5 both objects have a mask in `point_masks`, of 6 one of
two, of 7 none. All annotations have box, point and mask, so that a leak would find something.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.data.frames_for_tests import png

WIDTH, HEIGHT = 96, 64
SUPERVISION = {1: "masks", 2: "masks", 3: "boxes", 4: "boxes", 5: "points", 6: "points", 7: "points"}
OBJECTS = [("car", [8, 10, 30, 24]), ("person", [52, 20, 26, 32])]
MADE = {5: [[10, 12, 26, 20], [54, 22, 22, 28]], 6: [[9, 11, 28, 22]]}
"""x, y, width, height of the masks made of points."""
CLASSES = [{"Vehicle": ["car"]}, {"Pedestrian": ["person"]}]
NAMES = ("Vehicle", "Pedestrian")
Change = Callable[[dict[str, Any]], object]


def block(box: list[int]) -> dict[str, Any]:
    """Return a filled box as run lengths."""
    x, y, width, height = box
    column = [height, HEIGHT - height]
    counts = [x * HEIGHT + y, *(column * width)[:-1]]
    return {"size": [HEIGHT, WIDTH], "counts": [*counts, WIDTH * HEIGHT - sum(counts)]}


def mixed_folder(root: Path, *changes: Change) -> Path:
    """Write the data set, its training annotations changed, and return its folder."""
    (root / "images").mkdir(parents=True)
    for number in (*SUPERVISION, 21):
        (root / "images" / f"{number}.png").write_bytes(png(WIDTH, HEIGHT, number))
    train = content(list(SUPERVISION))
    for image in train["images"]:
        image["supervision"] = SUPERVISION[image["id"]]
    for change in changes:
        change(train)
    (root / "train.json").write_text(json.dumps(train))
    (root / "val.json").write_text(json.dumps(content([21])))
    return root


def content(image_ids: list[int]) -> dict[str, Any]:
    """Return an annotation file; annotation 10 k + 1 and 10 k + 2 are of image k."""
    images = [{"id": one, "file_name": f"{one}.png", "width": WIDTH, "height": HEIGHT} for one in image_ids]
    annotations = [
        {
            "id": 10 * one + place,
            "image_id": one,
            "category_id": place,
            "bbox": box,
            "point": [box[0] + 9.5, box[1] + 8.0],
            "segmentation": block(box),
        }
        for one in image_ids
        for place, (_, box) in enumerate(OBJECTS, 1)
    ]
    categories = [{"id": place, "name": name} for place, (name, _) in enumerate(OBJECTS, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def point_masks(path: Path, source: str = "p2seg") -> Path:
    """Write masks made of points, as tools/points.py does, with weight .5; a square of weight 0 where none is."""
    made = content([number for number, said in SUPERVISION.items() if said == "points"])
    for image_id in (5, 6, 7):
        rows = [one for one in made["annotations"] if one["image_id"] == image_id]
        boxes = MADE.get(image_id, [])
        for one, box in zip(rows, [*boxes, [0, 0, 64, 64], [0, 0, 64, 64]], strict=False):
            trusted = box in boxes
            one |= {"bbox": box, "segmentation": block(box), "mask_weight": 0.5 * trusted, "iscrowd": int(not trusted)}
            one["mask_source"] = source
    made["categories"] = [{"id": place, "name": name} for place, name in enumerate(NAMES, 1)]
    path.write_text(json.dumps(made))
    return path


def masks_filled(kind: str) -> Change:
    """Return a change that makes the masks of all images of a kind the whole image, and the boxes of points too."""

    def change(train: dict[str, Any]) -> None:
        for one in train["annotations"]:
            if SUPERVISION[one["image_id"]] == kind:
                one["segmentation"] = block([0, 0, WIDTH, HEIGHT])
                if kind == "points":
                    one["bbox"] = [0, 0, 5, 5]

    return change


def entry(place: int, kind: str = "annotations", **values: Any) -> Change:
    """Return a change of one entry; a value None takes the field away."""

    def change(train: dict[str, Any]) -> None:
        for name, value in values.items():
            train[kind][place].pop(name, None)
            if value is not None:
                train[kind][place][name] = value

    return change
