"""AP from label arrays equals pycocotools on 1 x N masks."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mwsis.core.instances import BACKGROUND, IGNORE, PointInstances, PointLabels
from mwsis.evaluation.point_instances import PointInstanceEvaluator

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")


def random_frame(seed: int, num_points: int = 400, crowded: bool = False) -> tuple[PointInstances, PointLabels]:
    """Blocks of points as objects; predictions are the same blocks with moved ends, split and dropped ones."""
    rng = np.random.default_rng(seed)
    num_blocks = 160 if crowded else 14
    cuts = np.sort(rng.choice(np.arange(1, num_points), num_blocks - 1, replace=False))
    block = np.searchsorted(cuts, np.arange(num_points), side="right")
    classes = np.array([0, 1, 2, BACKGROUND, IGNORE]) if not crowded else np.array([0, 0, 0, 1, BACKGROUND])
    label = classes[rng.integers(0, 5, num_blocks)]
    semantic = label[block]
    instance = np.where(semantic >= 0, block + 100, -1)
    moved = np.searchsorted(cuts + rng.integers(-6, 7, len(cuts)), np.arange(num_points), side="right")
    found = np.where(rng.random(num_blocks) < 0.85, np.arange(num_blocks), -1)[np.clip(moved, 0, num_blocks - 1)]
    found_label = np.where(rng.random(num_blocks) < 0.8, np.maximum(label, 0), 2)
    scores = np.round(rng.random(num_blocks), 1)  # many equal scores
    ids = torch.from_numpy(found)
    labels = torch.from_numpy(found_label)
    predicted = PointInstances(
        torch.where(ids >= 0, labels[ids.clamp(min=0)], BACKGROUND), ids, labels, torch.from_numpy(scores).float()
    )
    return predicted, PointLabels(torch.from_numpy(semantic), torch.from_numpy(instance))


def with_pycocotools(frames: list[tuple[PointInstances, PointLabels]], thresholds: np.ndarray) -> np.ndarray:
    """Return (thresholds, classes) AP, -1 without objects."""
    images, annotations, found = [], [], []
    for image_id, (predicted, gt) in enumerate(frames, start=1):
        kept = gt.semantic_labels != IGNORE
        ids, semantic = gt.instance_ids[kept], gt.semantic_labels[kept]
        images.append({"id": image_id, "height": 1, "width": int(kept.sum())})

        def rle(mask: torch.Tensor) -> dict:
            return coco_mask.encode(np.asfortranarray(mask.numpy()[None].astype(np.uint8)))

        for label in range(len(CLASSES)):
            for instance in ids[(semantic == label) & (ids >= 0)].unique().tolist():
                mask = (ids == instance) & (semantic == label)
                row = {"image_id": image_id, "category_id": label + 1, "segmentation": rle(mask), "iscrowd": 0}
                annotations.append(row | {"id": len(annotations) + 1, "area": int(mask.sum())})
        for index, (label, score) in enumerate(zip(predicted.labels.tolist(), predicted.scores.tolist())):
            mask = predicted.instance_ids[kept] == index
            if mask.any():
                row = {"image_id": image_id, "category_id": label + 1, "segmentation": rle(mask), "score": score}
                found.append(row)
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.params.iouThrs = thresholds
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 2].mean(1)


@pytest.mark.parametrize("crowded", [False, True])
def test_equals_pycocotools(crowded: bool):
    frames = [random_frame(seed, 2000 if crowded else 400, crowded) for seed in range(3 if crowded else 8)]
    evaluator = PointInstanceEvaluator(CLASSES)
    for predicted, gt in frames:
        evaluator.add(predicted, gt)
    scores = evaluator.compute()
    table = with_pycocotools(frames, np.linspace(0.5, 0.95, 10))
    valid = (table > -1).all(0)
    assert valid[:2].all()
    assert 0.05 < scores["instance_ap"] < 0.9
    assert scores["instance_ap"] == pytest.approx(table[:, valid].mean(), abs=1e-12)
    assert scores["instance_ap50"] == pytest.approx(table[0, valid].mean(), abs=1e-12)
    loose = with_pycocotools(frames, np.array([0.25]))
    assert scores["instance_ap25"] == pytest.approx(loose[0, valid].mean(), abs=1e-12)
    for label in np.flatnonzero(valid):
        assert scores[f"instance_ap/{CLASSES[label]}"] == pytest.approx(table[:, label].mean(), abs=1e-12)
        assert scores[f"instance_ap50/{CLASSES[label]}"] == pytest.approx(table[0, label], abs=1e-12)
    if crowded:  # the cut at 100 instances a frame and class was exercised
        assert max(int((predicted.labels == 2).sum()) for predicted, _ in frames) < 100
        assert max(int((predicted.labels == 0).sum()) for predicted, _ in frames) > 90


def test_only_the_best_hundred_of_a_class_count():
    ids = torch.arange(150)
    predicted = PointInstances(torch.zeros(150).long(), ids, torch.zeros(150).long(), torch.linspace(1, 0, 150))
    gt = PointLabels(torch.zeros(150).long(), ids)
    evaluator = PointInstanceEvaluator(CLASSES)
    evaluator.add(predicted, gt)
    table = with_pycocotools([(predicted, gt)], np.linspace(0.5, 0.95, 10))
    assert evaluator.compute()["instance_ap/Vehicle"] == pytest.approx(table[:, 0].mean(), abs=1e-12)
    assert evaluator.compute()["instance_ap/Vehicle"] == pytest.approx(67 / 101)


def test_ignored_points_are_left_out_on_both_sides():
    gt = PointLabels(torch.tensor([0, 0, IGNORE, IGNORE, IGNORE]), torch.tensor([3, 3, -1, 3, -1]))
    found_ids = torch.tensor([0, 0, 0, 0, 1])
    predicted = PointInstances(torch.zeros(5).long(), found_ids, torch.zeros(2).long(), torch.tensor([0.5, 0.9]))
    evaluator = PointInstanceEvaluator(CLASSES)
    evaluator.add(predicted, gt)
    scores = evaluator.compute()
    assert scores["instance_ap"] == pytest.approx(1)  # the better scored one lies on ignored points only
    assert math.isnan(scores["instance_ap50/Cyclist"])
    assert scores["num_objects"] == 1


def test_an_id_that_spans_two_classes_is_two_objects():
    gt = PointLabels(torch.tensor([0, 0, 1, 1]), torch.tensor([3, 3, 3, 3]))
    predicted = PointInstances(gt.semantic_labels, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1]), torch.ones(2))
    evaluator = PointInstanceEvaluator(CLASSES)
    evaluator.add(predicted, gt)
    assert evaluator.compute()["num_objects"] == 2
    assert evaluator.compute()["instance_ap"] == pytest.approx(1)


def test_nothing_predicted_and_nothing_there():
    none = PointInstances(torch.full((4,), BACKGROUND), torch.full((4,), -1), torch.zeros(0).long(), torch.zeros(0))
    evaluator = PointInstanceEvaluator(CLASSES)
    assert math.isnan(evaluator.compute()["instance_ap"])
    evaluator.add(none, PointLabels(torch.full((4,), BACKGROUND), torch.full((4,), -1)))
    assert math.isnan(evaluator.compute()["instance_ap"])
    evaluator.add(none, PointLabels(torch.zeros(4).long(), torch.tensor([1, 1, 2, -1])))
    scores = evaluator.compute()
    assert (scores["instance_ap"], scores["instance_ap25"], scores["num_objects"]) == (0, 0, 2)
