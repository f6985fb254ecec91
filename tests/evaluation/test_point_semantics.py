from __future__ import annotations

import math

import pytest
import torch

from mwsis.core.instances import BACKGROUND, IGNORE
from mwsis.evaluation.point_semantics import PointSemanticEvaluator

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")


def test_equals_counting_over_frames():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.tensor([0, 1, 2, BACKGROUND, IGNORE])
    frames = [kinds[torch.randint(0, 5, (2, 300), generator=generator)] for _ in range(3)]
    evaluator = PointSemanticEvaluator(CLASSES)
    for predicted, gt in frames:
        evaluator.add(predicted, gt)
    predicted, gt = torch.cat(frames, 1)
    predicted, gt = predicted[gt != IGNORE], gt[gt != IGNORE]
    wanted = [
        float(((predicted == c) & (gt == c)).sum() / ((predicted == c) | (gt == c)).sum()) for c in range(len(CLASSES))
    ]
    scores = evaluator.compute()
    assert [scores[f"iou/{name}"] for name in CLASSES] == pytest.approx(wanted)
    assert scores["miou"] == pytest.approx(sum(wanted) / 3)
    assert int(evaluator.confusion.sum()) == len(gt)


def test_mean_over_classes_that_occur():
    evaluator = PointSemanticEvaluator(CLASSES)
    evaluator.add(torch.tensor([0, 1, IGNORE]), torch.tensor([0, BACKGROUND, 0]))
    scores = evaluator.compute()
    assert scores["iou/Vehicle"] == 0.5  # a point without a label is a miss
    assert scores["iou/Pedestrian"] == 0  # predicted, but no true point: not in the mean
    assert math.isnan(scores["iou/Cyclist"])
    assert scores["miou"] == 0.5
    assert math.isnan(PointSemanticEvaluator(CLASSES).compute()["miou"])


def test_absent_classes_are_right_on_request():
    """Waymo's rule: a class that nobody has scores 1, one that is only predicted 0, and all are in the mean."""
    evaluator = PointSemanticEvaluator(CLASSES, absent_is_right=True)
    evaluator.add(torch.tensor([0, 1, IGNORE]), torch.tensor([0, BACKGROUND, 0]))
    scores = evaluator.compute()
    assert [scores[f"iou/{name}"] for name in CLASSES] == [0.5, 0, 1]
    assert scores["miou"] == 0.5
    assert PointSemanticEvaluator(CLASSES, absent_is_right=True).compute()["miou"] == 1
