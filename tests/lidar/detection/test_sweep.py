"""Augmentation moves points and boxes as one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidar.detection.boxes import Boxes3D
from lidar.detection.sweep import LabelledSweep, move_boxes
from lidar.transforms import RotateScaleFlip
from mwsis.core.errors import DataError
from mwsis.core.geometry import points_in_boxes3d
from mwsis.core.instances import PointLabels
from tests.data.frames_for_tests import random_frame
from tests.lidar.detection.scenes import points_within, random_boxes, sweep_of


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_points_stay_in_their_boxes(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(6, generator)
    sweep = sweep_of(boxes, generator)
    moved = sweep.moved(RotateScaleFlip(180, 0.2).draw(generator))
    before = points_in_boxes3d(sweep.xyz, boxes.boxes3d)
    after = points_in_boxes3d(moved.xyz, moved.gt_boxes.boxes3d)
    assert int((before != after).sum()) <= 2  # round-off at a face
    assert torch.equal(moved.gt_boxes.labels, boxes.labels)


@pytest.mark.parametrize(("flips", "front"), [((1, 1), (3, 1)), ((-1, 1), (-3, 1)), ((1, -1), (3, -1))])
def test_a_mirrored_heading_points_the_mirrored_way(flips, front):
    matrix = torch.diag(torch.tensor([*map(float, flips), 1.0]))
    box = torch.tensor([[0.0, 0, 0, 4, 2, 1.5, math.atan2(1, 3)]])
    yaw = float(move_boxes(box, matrix)[0, 6])
    assert (math.cos(yaw), math.sin(yaw)) == pytest.approx(tuple(side / math.sqrt(10) for side in front), abs=1e-6)


def test_scaling_scales_sides_and_places():
    box = move_boxes(torch.tensor([[10.0, 0, 1, 4, 2, 1.5, 0.3]]), torch.eye(3) * 1.1)
    torch.testing.assert_close(box, torch.tensor([[11.0, 0, 1.1, 4.4, 2.2, 1.65, 0.3]]))


def test_cropping_drops_points_and_boxes_outside_and_unseen_boxes_go():
    generator = torch.Generator().manual_seed(0)
    boxes = Boxes3D(
        torch.tensor([[0.0, 0, 1, 4, 2, 1.5, 0], [12.0, 0, 1, 4, 2, 1.5, 0], [5.0, 5, 1, 1, 1, 1, 0]]),
        torch.tensor([0, 0, 1]),
    )
    sweep = sweep_of(boxes[torch.tensor([0, 1])], generator)
    sweep = LabelledSweep(sweep.frame_id, sweep.xyz, sweep.point_feats, sweep.gt, boxes)
    cropped = sweep.cropped((-10.0, -10, -2, 10, 10, 4))
    assert bool((cropped.xyz[:, :2].abs() <= 10).all())
    assert len(cropped.xyz) == len(cropped.gt) == len(cropped.point_feats)
    assert cropped.gt_boxes.boxes3d[:, 0].tolist() == [0, 5]
    assert cropped.with_seen_boxes().gt_boxes.boxes3d[:, 0].tolist() == [0]
    assert bool(points_in_boxes3d(points_within(boxes.boxes3d[0], 9, generator), boxes.boxes3d[:1]).all())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 30))
def test_seen_boxes_are_those_that_hold_a_point(seed, count):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, generator)
    xyz = (torch.rand(200, 3, generator=generator) * 2 - 1) * torch.tensor([14.0, 14, 2])
    unknown = torch.full((200,), -1)
    sweep = LabelledSweep("frame", xyz, torch.zeros(200, 2), PointLabels(unknown, unknown), boxes)
    expected = boxes[points_in_boxes3d(xyz, boxes.boxes3d).any(0)]
    assert torch.equal(sweep.with_seen_boxes().gt_boxes.boxes3d, expected.boxes3d)


def test_a_frame_without_ground_truth_is_refused():
    with pytest.raises(DataError, match="no ground truth; fine-tuning needs frames with given labels"):
        LabelledSweep.of(random_frame(0).without_truth())
