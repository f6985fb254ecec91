"""Pasted objects: from labelled sweeps alone, on the ground, in nobody's way."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidar.detection.boxes import Boxes3D
from lidar.detection.object_bank import ObjectBank
from mwsis.core.boxes3d import bev_iou
from mwsis.core.geometry import points_in_boxes3d
from mwsis.core.instances import BACKGROUND
from tests.lidar.detection.scenes import random_boxes, sweep_of


def apart(boxes):
    """Return the boxes that do not touch an earlier one."""
    overlap = bev_iou(boxes.boxes3d, boxes.boxes3d).tril(-1) > 0
    return boxes[~overlap.any(1)]


def bank_and_sweep(seed, ground=0.0):
    generator = torch.Generator().manual_seed(seed)
    sources = [sweep_of(apart(random_boxes(10, generator)), generator, f"source {index}") for index in range(3)]
    target = sweep_of(apart(random_boxes(3, generator, ground=ground)), generator, "target", ground=ground)
    return sources, ObjectBank(sources, 3), target, generator


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_pasted_objects_keep_clear_of_all_others_and_hold_their_own_points(seed):
    _, bank, target, generator = bank_and_sweep(seed)
    pasted = bank.paste(target, (5, 5, 5), generator)
    boxes = pasted.gt_boxes.boxes3d
    assert torch.equal(boxes[: len(target.gt_boxes)], target.gt_boxes.boxes3d)
    new = slice(len(target.gt_boxes), None)
    overlap = bev_iou(boxes, boxes)
    assert float((overlap - overlap.diag().diag()).triu(1)[:, new].max()) < 1e-12  # round-off of either order
    assert len(pasted.xyz) == len(pasted.gt) == len(pasted.point_feats)
    inside = points_in_boxes3d(pasted.xyz, boxes)[:, new]
    labels, ids = pasted.gt.semantic_labels, pasted.gt.instance_ids
    for column, label in enumerate(pasted.gt_boxes.labels[new].tolist()):
        assert set(labels[inside[:, column]].tolist()) == {label}
        assert len(set(ids[inside[:, column]].tolist())) == 1
    objects = ids[ids >= 0].unique()
    assert len(objects) == len(boxes)
    counts = torch.bincount(pasted.gt_boxes.labels, minlength=3)
    before = torch.bincount(target.gt_boxes.labels, minlength=3)
    assert bool((counts <= before.clamp(min=5)).all())


def test_objects_stand_on_the_ground_of_the_sweep_they_come_into():
    _, bank, target, generator = bank_and_sweep(1, ground=1.5)
    pasted = bank.paste(target, (9, 9, 9), generator)
    new = pasted.gt_boxes.boxes3d[len(target.gt_boxes) :]
    assert len(new) >= 5
    bottom = new[:, 2] - new[:, 5] / 2
    torch.testing.assert_close(bottom, torch.full_like(bottom, 1.5), rtol=0, atol=0.08)


def test_objects_come_from_the_given_sweeps_alone_and_all_of_these():
    sources, bank, _, _ = bank_and_sweep(2)
    kept = [one for objects in bank.objects for one in objects]
    assert {one.frame_id for one in kept} == {"source 0", "source 1", "source 2"}
    assert len(kept) == sum(len(sweep.gt_boxes) for sweep in sources)
    assert [len(objects) for objects in bank.objects] == [
        sum(int((sweep.gt_boxes.labels == label).sum()) for sweep in sources) for label in range(3)
    ]


def test_what_is_known_to_be_road_is_not_part_of_an_object():
    generator = torch.Generator().manual_seed(0)
    box = Boxes3D(torch.tensor([[0.0, 0, 0.75, 6, 6, 1.6, 0]]), torch.tensor([0]))  # it reaches into the ground
    sweep = sweep_of(box, generator, points_each=20, num_ground=2000)
    road = points_in_boxes3d(sweep.xyz, box.boxes3d)[:, 0] & (sweep.gt.semantic_labels == BACKGROUND)
    assert int(road.sum()) > 50
    assert len(ObjectBank([sweep], 3).objects[0][0].xyz) == 20


def test_objects_of_few_points_are_left_out():
    generator = torch.Generator().manual_seed(0)
    sweep = sweep_of(random_boxes(4, generator), generator, points_each=4)
    assert ObjectBank([sweep], 3).objects == [[], [], []]


def test_an_object_is_not_pasted_onto_itself():
    sources, bank, _, generator = bank_and_sweep(3)
    alone = ObjectBank(sources[:1], 3)
    assert alone.paste(sources[0], (50, 50, 50), generator) is sources[0]
    assert bank.paste(sources[0], (0, 0, 0), generator) is sources[0]


def test_the_generator_decides():
    _, bank, target, _ = bank_and_sweep(4)
    one, same, other = (bank.paste(target, (3, 3, 3), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.xyz, same.xyz)
    assert one.gt_boxes.boxes3d.shape != other.gt_boxes.boxes3d.shape or not torch.equal(
        one.gt_boxes.boxes3d, other.gt_boxes.boxes3d
    )
