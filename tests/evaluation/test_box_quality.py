"""Scores of fitted 3D boxes: by hand, and on real frames."""

from __future__ import annotations

import warnings

import pytest
import torch

from fusion.label_methods import LABEL_METHODS
from lidar.boxes_from_instances import USUAL_SIZES, FittedBoxes, fit_boxes3d
from mwsis.data.kitti import KittiSource
from mwsis.evaluation.box_quality import BoxQuality
from tests.evaluation.test_label_quality import CLASSES, make_frame
from tests.fusion.test_spatial_labels import kitti_mini

CAR, FAR_CAR = [10.0, 0, 0, 4, 2, 1.5, 0], [30.0, 5, 0, 4, 2, 1.5, 0]


def frame(points_of=(6, 6), objects=((3, 4),), boxes=((0, 0),)):
    """Two cars, instances 3 and 4, with so many points in the image of the first camera."""
    ids = torch.cat([torch.full((count,), name) for count, name in zip(points_of, (3, 4), strict=True)])
    slots = torch.full((len(ids), 2), -1, dtype=torch.int8)
    slots[:, 0] = 0
    xyz = torch.zeros(len(ids), 3)
    return make_frame(xyz, slots, torch.zeros_like(ids), ids, {3: CAR, 4: FAR_CAR}, boxes, objects)


def fitted(rows, ids, scores=None):
    count = len(rows)
    return FittedBoxes(
        torch.tensor(rows, dtype=torch.float32).reshape(-1, 7),
        torch.zeros(count, dtype=torch.int64),
        torch.tensor(scores or [0.9] * count).float(),
        torch.tensor(ids, dtype=torch.int64),
        torch.full((count,), 6),
    )


def only_row(one, boxes):
    quality = BoxQuality(CLASSES)
    quality.add(one, boxes)
    (row,) = quality.rows()
    return row


def test_the_true_boxes_score_1():
    row = only_row(frame(), fitted([CAR, FAR_CAR], [0, 1]))
    assert (row["class"], row["objects"], row["boxes"]) == ("Vehicle", 2, 2)
    assert [row[key] for key in ("bev_iou", "iou_3d", "ap_bev_50", "ap_bev_30")] == pytest.approx([1, 1, 1, 1])
    assert row["bev_iou_counts"] == row["iou_3d_counts"] == [0] * 9 + [2]


def test_a_shifted_box_a_missing_one():
    """Half a length along: 1/3 from above; half the height up as well: shared 1/4 of 8 x 1.5, 1/7 in space."""
    shifted = [CAR[0] + 2, 0, 0.75, *CAR[3:]]
    row = only_row(frame(), fitted([shifted], [0]))
    assert (row["objects"], row["boxes"]) == (2, 1)
    assert row["bev_iou"] == pytest.approx(1 / 6)
    assert row["iou_3d"] == pytest.approx(1 / 14)
    assert row["bev_iou_counts"] == [1, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert row["iou_3d_counts"] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert (row["ap_bev_50"], row["ap_bev_30"]) == pytest.approx((0, 0.5))


def test_a_box_on_another_object_covers_nothing():
    row = only_row(frame(), fitted([FAR_CAR], [0]))
    assert row["bev_iou"] == 0
    assert row["ap_bev_30"] == pytest.approx(0.5)  # to a detector's score it is a car that was found


def test_objects_with_few_points_and_their_boxes_count_on_neither_side():
    row = only_row(frame(points_of=(6, 4)), fitted([CAR, [50.0, 0, 0, 4, 2, 1.5, 0]], [0, 1], [0.5, 0.9]))
    assert (row["objects"], row["boxes"]) == (1, 1)
    assert row["ap_bev_50"] == pytest.approx(1)


def test_a_false_alarm_costs_precision():
    row = only_row(frame(), fitted([CAR, [50.0, 0, 0, 4, 2, 1.5, 0]], [0, 1], [0.5, 0.9]))
    assert row["ap_bev_50"] == pytest.approx(0.25)


def test_ignored_2d_boxes_have_no_objects_and_no_frames_no_rows():
    assert BoxQuality(CLASSES).rows() == []
    quality = BoxQuality(CLASSES)
    quality.add(frame(boxes=((-1, -1),)), fitted([], []))
    assert quality.rows() == []


@pytest.mark.real_data
def test_fitted_boxes_cover_real_cars():
    """Most cars of ten real frames are met by half; measured: mean .70 from above, 17 of 20 at least .5."""
    if not kitti_mini().is_dir():
        pytest.skip(f"no KITTI frames at {kitti_mini()}; set MWSIS_SHARED")
    source, quality = KittiSource(kitti_mini()), BoxQuality(CLASSES)
    method = LABEL_METHODS["spg_default"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for frame_id in source.frame_ids("all"):
            one = source.read(frame_id)
            pseudo = method.recipe(one, method.segments(one), (0.6, 0.1, 0.4))
            quality.add(one, fit_boxes3d(one.points.xyz, pseudo, USUAL_SIZES["kitti"]))
    cars = quality.rows()[0]
    assert cars["objects"] == cars["boxes"] == 20
    assert cars["bev_iou"] > 0.6
    assert sum(cars["bev_iou_counts"][5:]) >= 14
