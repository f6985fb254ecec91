import json

import pytest
import torch
from PIL import Image

from camera.point_to_mask.export import write_boxes, write_masks
from camera.point_to_mask.instances_from_semantics import PointMasks
from camera.point_to_mask.points import ImagePoints, PointedImage
from mwsis.core.errors import DataError
from mwsis.core.instances import MaskSet
from mwsis.data.coco import CocoSource
from mwsis.data.given_masks import MaskFile
from mwsis.evaluation.coco_masks import json_masks

NAMES = ("Vehicle", "Pedestrian")
CATEGORIES = [{"id": 3, "name": "car"}, {"id": 5, "name": "person"}]
CLASSES = [{"Vehicle": ["car"]}, {"Pedestrian": ["person"]}]


def made(folder, semantic_source="wsss"):
    """Two masks and a made-up square on one image, nothing on another."""
    points = ImagePoints(torch.tensor([[8.0, 9.0], [30.0, 12.0], [20.0, 20.0]]), torch.tensor([0, 1, 0]))
    none = ImagePoints(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    images = [
        PointedImage(41, "one.png", 48, 32, points, (7, 8, 9), (3, 5, 3)),
        PointedImage(42, "two.png", 16, 16, none, (), ()),
    ]
    id_map = torch.full((32, 48), -1)
    id_map[4:20, 2:14], id_map[8:16, 25:40] = 0, 1
    id_map[10, 3:9] = -1
    masks = MaskSet.from_id_map(id_map, torch.arange(2))
    boxes = torch.cat([masks.crop_boxes, torch.tensor([[0, 0, 48, 32]])])
    masks = MaskSet.from_crops(32, 48, boxes, [masks.crop(0), masks.crop(1), torch.ones(32, 48)])
    empty = MaskSet.from_crops(16, 16, torch.zeros(0, 4), [])
    found = [
        PointMasks(masks, torch.tensor([0.9, 0.75, 0.5]), torch.tensor([0.9, 0.75, 0.0])),
        PointMasks(empty, torch.zeros(0), torch.zeros(0)),
    ]
    write_masks(folder / "masks.json", images, found, NAMES, semantic_source, json_masks)
    write_boxes(folder / "boxes.json", images, found, CATEGORIES)
    for image in images:
        Image.new("RGB", (image.width, image.height)).save(folder / image.file_name)
    return found[0], id_map


def source(folder):
    return CocoSource(folder, {"train": "boxes.json"}, {"train": "."}, CLASSES)


def test_a_training_gets_boxes_and_masks_of_these_files(tmp_path):
    _, id_map = made(tmp_path)
    frame = source(tmp_path).read("train/41")
    assert frame.truth is None  # boxes alone
    labels = frame.cameras[0].labels
    assert labels.boxes.tolist() == [[2, 4, 14, 20], [25, 8, 40, 16], [0, 0, 48, 32]]
    assert labels.labels.tolist() == [0, 1, -1]
    assert labels.ignore.tolist() == [False, False, True]  # nothing is learned from a made-up square
    given = MaskFile(tmp_path / "masks.json", NAMES, allow_truth=False).of(frame)[0]
    assert given.weight.tolist() == pytest.approx([0.9, 0.75, 0.0])
    for index in range(2):
        assert torch.equal(given.masks.dense(index), id_map == index)


def test_what_an_annotation_says(tmp_path):
    made(tmp_path)
    rows = json.loads((tmp_path / "masks.json").read_text())["annotations"]
    assert [row["id"] for row in rows] == [7, 8, 9]
    assert [row["mask_source"] for row in rows] == ["p2seg"] * 3
    assert [row["semantic_source"] for row in rows] == ["wsss"] * 3
    assert [row["score"] for row in rows] == pytest.approx([0.9, 0.75, 0.5])
    assert [row["mask_weight"] for row in rows] == pytest.approx([0.9, 0.75, 0.0])
    assert [row["area"] for row in rows] == [16 * 12 - 6, 8 * 15, 32 * 48]
    assert rows[1]["point"] == [30.0, 12.0]
    assert len(json.loads((tmp_path / "masks.json").read_text())["images"]) == 2


def test_masks_from_ground_truth_maps_are_tagged_and_kept_from_training(tmp_path):
    made(tmp_path, "gt")
    rows = json.loads((tmp_path / "masks.json").read_text())["annotations"]
    assert {(row["mask_source"], row["semantic_source"]) for row in rows} == {("gt", "gt")}
    with pytest.raises(DataError, match=r"needs data\.supervision=masks"):
        MaskFile(tmp_path / "masks.json", NAMES, allow_truth=False)
    frame = source(tmp_path).read("train/41")
    given = MaskFile(tmp_path / "masks.json", NAMES, allow_truth=True).of(frame)[0]
    assert given.weight.tolist() == pytest.approx([0.9, 0.75, 0.0])
