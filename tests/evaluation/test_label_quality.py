from __future__ import annotations

import pytest
import torch

from mwsis.core.frame import CameraView, FrameTruth, PixelMap
from mwsis.core.geometry import CameraModel
from mwsis.core.instances import BACKGROUND, IGNORE, Boxes2D
from mwsis.evaluation.label_quality import LabelQuality

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")


def camera(labels: list[int]) -> CameraView:
    model = CameraModel(100, 50, torch.ones(4).double(), torch.zeros(5).double(), torch.eye(4).double())
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(len(labels), 1)
    classes = torch.tensor(labels, dtype=torch.int64)
    return CameraView("FRONT", model, b"", Boxes2D(boxes, classes, classes < 0))


def scene() -> tuple[FrameTruth, PixelMap, tuple[CameraView, ...]]:
    """Points 0-9: object 7 (0-7 in camera 0, 6-9 in camera 1); 10-15: object 8 in camera 1; 16-19: object 9, small."""
    instance_ids = torch.tensor([7] * 10 + [8] * 6 + [9] * 4 + [-1] * 4)
    semantic = torch.tensor([0] * 10 + [1] * 6 + [2] * 4 + [BACKGROUND] * 2 + [IGNORE] * 2)
    slots = torch.full((24, 2), -1, dtype=torch.int8)
    slots[:8, 0], slots[8:20, 0], slots[6:8, 1], slots[20:, 0] = 0, 1, 1, 0
    truth = FrameTruth(
        semantic,
        instance_ids,
        torch.zeros(0, 7),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        (torch.tensor([7, -1]), torch.tensor([7, 8, 9, -1])),
        (None, None),
    )
    return truth, PixelMap(torch.zeros(24, 2, 2), slots), (camera([0, -1]), camera([0, 1, 2, 1]))


def pairs(box_points: dict[int, list[int]]) -> torch.Tensor:
    rows = [(point, box) for box, points in box_points.items() for point in points]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)


def test_scores_per_object():
    quality = LabelQuality(CLASSES)
    # box 0: object 7 in camera 0 has 8 points; box 2: the same in camera 1 has 4, too few; box 3: object 8 has 6;
    # box 4: object 9 has 4, too few; boxes 1 and 5: no known object.
    labelled = {0: [0, 1, 2, 3, 4, 5, 20, 21, 22, 23], 1: [0], 2: [6, 7], 3: [10, 11, 12], 4: [16], 5: [13]}
    quality.add("boxes", *scene(), pairs(labelled))
    vehicle, pedestrian = quality.rows()
    assert (vehicle["method"], vehicle["class"], vehicle["objects"]) == ("boxes", "Vehicle", 1)
    assert vehicle["point_iou"] == pytest.approx(6 / 10)  # 20, 21 are background; 22, 23 are ignored
    assert vehicle["precision"] == pytest.approx(6 / 8)
    assert vehicle["recall"] == pytest.approx(6 / 8)
    assert (pedestrian["class"], pedestrian["point_iou"], pedestrian["precision"]) == ("Pedestrian", 0.5, 1)


def test_means_are_per_object_and_pooled_is_not():
    quality = LabelQuality(CLASSES)
    quality.add("rings", *scene(), pairs({0: list(range(8))}))
    quality.add("rings", *scene(), pairs({0: [20, 21]}))
    both = quality.rows()[0]
    assert (both["objects"], both["point_iou"], both["recall"], both["precision"]) == (2, 0.5, 0.5, 0.5)
    assert both["pooled_iou"] == pytest.approx(8 / (8 + 10))


def test_an_object_nobody_labelled_counts_as_zero():
    quality = LabelQuality(CLASSES)
    quality.add("rings", *scene(), pairs({0: list(range(8))}))
    quality.add("none", *scene(), pairs({}))
    rows = quality.rows()
    assert [(row["method"], row["class"]) for row in rows] == [
        ("rings", "Vehicle"),
        ("rings", "Pedestrian"),
        ("none", "Vehicle"),
        ("none", "Pedestrian"),
    ]
    names = ("objects", "point_iou", "precision", "recall", "pooled_iou")
    assert [rows[2][name] for name in names] == [1, 0, 0, 0, 0]


def test_perfect_labels_score_one():
    quality = LabelQuality(CLASSES)
    perfect = pairs({0: list(range(8)), 3: list(range(10, 16))})
    quality.add("boxes", *scene(), perfect)
    for row in quality.rows():
        assert (row["point_iou"], row["precision"], row["recall"], row["pooled_iou"]) == (1, 1, 1, 1)


def test_a_frame_without_boxes():
    truth, pixels, _ = scene()
    bare = FrameTruth(
        truth.semantic_labels,
        truth.instance_ids,
        truth.boxes3d,
        truth.box3d_labels,
        truth.box3d_ids,
        (torch.zeros(0, dtype=torch.int64),) * 2,
        (None, None),
    )
    quality = LabelQuality(CLASSES)
    quality.add("boxes", bare, pixels, (camera([]), camera([])), pairs({}))
    assert quality.rows() == []


def test_the_interval_holds_the_mean_and_narrows_with_more_objects():
    quality = LabelQuality(CLASSES)
    widths = []
    for count in (2, 40):
        for number in range(count):
            quality.add(f"{count}", *scene(), pairs({0: list(range(number % 7 + 1))}))
        (row,) = (row for row in quality.rows() if row["method"] == f"{count}" and row["class"] == "Vehicle")
        low, high = row["point_iou_95"]
        assert low <= row["point_iou"] <= high
        widths.append(high - low)
    assert 0 < widths[1] < 0.2
    assert quality.rows() == quality.rows()
