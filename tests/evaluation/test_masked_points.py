"""Masks judged by LiDAR points: hand-made frames, and a loop over points on random ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mwsis.core.instances import BACKGROUND, IGNORE, Boxes2D, Detections, MaskSet
from mwsis.evaluation.masked_points import MaskedPointEvaluator, in_mask
from tests.data.frames_for_tests import random_frame


def detections(boxes, masks, scores=None):
    found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores = torch.ones(len(found)) if scores is None else torch.tensor(scores)
    return Detections(found, torch.zeros(len(found), dtype=torch.int64), scores, masks)


def one_camera(uv, semantic, instance, boxes, box_ids, ignore=None):
    """Return a frame whose points lie at ``uv`` of its only camera."""
    frame = random_frame(0, len(uv))
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    ignored = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore)
    labels = Boxes2D(boxes, torch.zeros(len(boxes), dtype=torch.int64), ignored)
    camera_index = torch.full((len(uv), 2), -1, dtype=torch.int8)
    camera_index[:, 1] = 0
    pixel_uv = torch.zeros(len(uv), 2, 2)
    pixel_uv[:, 1] = torch.as_tensor(uv, dtype=torch.float32)
    return replace(
        frame,
        cameras=(replace(frame.cameras[0], labels=labels),),
        pixels=replace(frame.pixels, pixel_uv=pixel_uv, camera_index=camera_index),
        truth=replace(
            frame.truth,
            semantic_labels=torch.as_tensor(semantic),
            instance_ids=torch.as_tensor(instance),
            box_instance_ids=(torch.tensor(box_ids),),
            images=(None,),
        ),
    )


def test_by_hand():
    # six points of object 7 in columns 0-5 of row 0, two others behind them in row 1, one unknown point
    uv = [[column + 0.5, 0.5] for column in range(6)] + [[1.5, 1.5], [2.5, 1.5], [3.5, 1.5]]
    semantic, instance = [0] * 6 + [BACKGROUND] * 2 + [IGNORE], [7] * 6 + [-1] * 3
    frame = one_camera(uv, semantic, instance, [[0, 0, 6, 2]], [7])
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0], mask[1, 1] = True, True  # four of the object's points and one other
    masks = MaskSet.from_crops(*size(frame), torch.tensor([[0, 0, 4, 2]]), [mask])
    evaluator = MaskedPointEvaluator()
    evaluator.add([detections([[0, 0, 6, 2]], masks)], frame)
    scores = evaluator.compute()
    assert scores["matched_point_iou"] == pytest.approx(4 / 7)
    assert scores["matched_box_point_iou"] == pytest.approx(6 / 8)
    assert (scores["num_point_matched"], scores["num_point_objects"]) == (1, 1)


def test_objects_without_a_found_box_count_as_objects_only():
    uv = [[column + 0.5, 0.5] for column in range(6)]
    frame = one_camera(uv, [0] * 6, [7] * 6, [[0, 0, 6, 2]], [7])
    masks = MaskSet.from_crops(*size(frame), torch.tensor([[20, 20, 26, 22]]), [torch.ones(2, 6)])
    evaluator = MaskedPointEvaluator()
    assert evaluator.compute() == {}
    evaluator.add([detections([[20, 20, 26, 22]], masks)], frame)
    scores = evaluator.compute()
    assert (scores["num_point_matched"], scores["num_point_objects"]) == (0, 1)
    assert scores["matched_point_iou"] != scores["matched_point_iou"]


@pytest.mark.parametrize(("points", "ignore"), [(4, False), (6, True)])
def test_few_points_and_ignored_boxes_are_no_objects(points, ignore):
    uv = [[column + 0.5, 0.5] for column in range(points)]
    frame = one_camera(uv, [0] * points, [7] * points, [[0, 0, 6, 2]], [7], [ignore])
    masks = MaskSet.from_crops(*size(frame), torch.tensor([[0, 0, 6, 2]]), [torch.ones(2, 6)])
    evaluator = MaskedPointEvaluator()
    evaluator.add([detections([[0, 0, 6, 2]], masks)], frame)
    assert evaluator.compute() == {}


def size(frame):
    return frame.cameras[0].camera.height, frame.cameras[0].camera.width


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_loop_over_points(seed):
    generator = torch.Generator().manual_seed(seed)
    uv = torch.rand(80, 2, generator=generator) * 12
    instance = torch.randint(-1, 3, (80,), generator=generator)
    semantic = torch.where(torch.rand(80, generator=generator) < 0.1, IGNORE, 0)
    boxes = [[0, 0, 6, 12], [5, 0, 12, 6], [4, 4, 12, 12]]
    frame = one_camera(uv, semantic, instance, boxes, [2, 0, 1])
    crops = [torch.rand(y2 - y1, x2 - x1, generator=generator) < 0.5 for x1, y1, x2, y2 in boxes]
    masks = MaskSet.from_crops(*size(frame), torch.tensor(boxes), crops)
    evaluator = MaskedPointEvaluator()
    evaluator.add([detections(boxes, masks, [0.9, 0.8, 0.7])], frame)
    ious = []
    for box, wanted in enumerate([2, 0, 1]):
        dense = masks.dense(box)
        held = {p for p in range(80) if semantic[p] != IGNORE and dense[int(uv[p, 1]), int(uv[p, 0])]}
        own = {p for p in range(80) if semantic[p] != IGNORE and instance[p] == wanted}
        ious.append(len(held & own) / len(held | own))
        assert in_mask(masks, box, uv).tolist() == [bool(dense[int(v), int(u)]) for u, v in uv.tolist()]
    assert evaluator.compute()["matched_point_iou"] == pytest.approx(sum(ious) / 3)
