from __future__ import annotations

import json
from pathlib import Path

import pytest

from mwsis.core.errors import DataError
from mwsis.data.box_import import coco_boxes, listed_images, yolo_boxes
from tests.data.frames_for_tests import png

NAMES = ["car", "person", "dog"]
CLASSES = {"car": "Vehicle", "person": "Pedestrian"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("front/a/1.png", "front/a/2.png", "rear/a/1.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(40, 20))
    return tmp_path


def yolo(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / "labels" / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "labels"


def test_images_are_listed_with_their_sizes(folder: Path) -> None:
    images = listed_images(folder / "images")
    assert [one["file_name"] for one in images] == ["front/a/1.png", "front/a/2.png", "rear/a/1.png"]
    assert {(one["width"], one["height"]) for one in images} == {(40, 20)}
    with pytest.raises(DataError, match="no images"):
        listed_images(folder / "labels")
    (folder / "images" / "front" / "b.jpg").write_bytes(b"?")
    with pytest.raises(DataError, match=r"b\.jpg: expected a PNG or JPEG"):
        listed_images(folder / "images")


def test_yolo(folder: Path) -> None:
    labels = yolo(folder, front__a__1="0 0.5 0.5 0.25 0.5\n\n1 1 1 0.1 0.1\n2 0.5 0.5 1 1\n", rear__a__1="")
    content, problems = yolo_boxes(labels, NAMES, listed_images(folder / "images"), CLASSES)
    assert problems.sentences() == []
    assert [one["name"] for one in content["categories"]] == ["Vehicle", "Pedestrian"]
    assert [(one["image_id"], one["category_id"]) for one in content["annotations"]] == [(1, 1), (1, 2)]
    assert content["annotations"][0]["bbox"] == [15.0, 5.0, 10.0, 10.0]
    assert content["annotations"][1]["bbox"] == pytest.approx([38.0, 19.0, 4.0, 2.0])
    assert len(content["images"]) == 3


def test_every_mistake_of_yolo_is_said(folder: Path) -> None:
    lines = "3 .5 .5 .1 .1,0 .5 .5 .1,0 .5 .5 .1 x,0 1.5 .5 .1 .1,0 .5 .5 0 .1,0.5 .5 .5 .1 .1,0 .5 .5 .1 nan"
    labels = yolo(folder, front__a__1=lines.replace(",", "\n"), front__a__9="")
    _, problems = yolo_boxes(labels, NAMES, listed_images(folder / "images"), CLASSES)
    said = problems.sentences()
    for line, words in enumerate(
        (
            "class: expected 0 to 2 (car, person, dog), got 3",
            "expected class, x, y, width, height, got '0 .5 .5 .1'",
            "expected class, x, y, width, height, got '0 .5 .5 .1 x'",
            "x: expected a share of the image, above 0 and at most 1, got 1.5",
            "width: expected a share of the image, above 0 and at most 1, got 0",
            "class: expected 0 to 2 (car, person, dog), got 0.5",
            "expected class, x, y, width, height, got '0 .5 .5 .1 nan'",
        )
    ):
        assert said[line] == f"{labels}/front/a/1.txt: line {line + 1}: {words}"
    assert said[7:] == [f"{labels}/front/a/9.txt: no image has this name with another suffix"]


def coco(folder: Path, *names: str, width: int = 40) -> Path:
    images = [{"id": 10 + i, "file_name": name, "width": width, "height": 20} for i, name in enumerate(names)]
    annotations = [
        {"id": 5, "image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1, "object_id": 4},
        {"id": 6, "image_id": 10, "category_id": 7, "bbox": [1, 2, 3, 4]},
    ]
    categories = [{"id": 3, "name": "car"}, {"id": 7, "name": "dog"}]
    path = folder / "old.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_coco_with_other_names(folder: Path) -> None:
    images = listed_images(folder / "images")
    content, problems = coco_boxes(coco(folder, "dump/rear/a/1.png", "2.png"), images, {"car": "Vehicle"})
    assert problems.sentences() == []
    kept = {"id": 1, "image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 1, "object_id": 4}
    assert content["annotations"] == [kept]
    assert content["categories"] == [{"id": 1, "name": "Vehicle"}]
    path = coco(folder, "dump/rear/a/1.png", "2.png")
    path.write_text(path.read_text().replace('"height"', '"supervision": "boxes", "height"', 1))
    content, _ = coco_boxes(path, images, {"car": "Vehicle"})
    assert [one.get("supervision") for one in content["images"]] == [None, None, "boxes"]


def test_every_mistake_of_coco_is_said(folder: Path) -> None:
    images = listed_images(folder / "images")
    _, problems = coco_boxes(coco(folder, "1.png", "3.png", "2.png", width=41), images, {"cat": "Vehicle"})
    said = problems.sentences()
    assert "categories: no 'cat'; did you mean 'car'?" in said[0]
    assert "image 10: file_name: expected one image that '1.png' may be, got 2, such as front/a/1.png" in said[1]
    assert "image 11: file_name: expected one image that '3.png' may be, got none" in said[2]
    assert "image 12: width, height: expected 40 x 20, as the file is, got 41 x 20" in said[3]
    path = coco(folder, "rear/a/1.png")
    path.write_text(path.read_text().replace('"height"', '"supervision": "points", "height"'))
    path.write_text(path.read_text().replace('"iscrowd": 1', '"point": [1, 1]').replace("4]}", '4], "point": [1, 1]}'))
    assert (
        "supervision: expected boxes or masks, got points" in coco_boxes(path, images, {"car": "A"})[1].sentences()[0]
    )
    path = coco(folder, "rear/a/1.png")
    path.write_text(path.read_text().replace("[1, 2, 3, 4]", "[1]"))
    assert len(coco_boxes(path, images, {"car": "Vehicle"})[1]) == 2
