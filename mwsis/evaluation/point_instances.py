"""Instance average precision of LiDAR points straight from label arrays: COCO's numbers without masks or run lengths.

A point carries at most one predicted and one true instance, so one bincount gives all overlaps of a frame. Not here:
semantic IoU (`point_semantics.py`) and camera masks (`coco_masks.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mwsis.core.instances import IGNORE, PointInstances, PointLabels

__all__ = ["PointInstanceEvaluator"]

Array = np.ndarray[Any, Any]

THRESHOLDS: Array = np.concatenate([[0.25], np.linspace(0.5, 0.95, 10)])
"""IoU 0.25 for `instance_ap25`, then COCO's ten."""
RECALLS: Array = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100
"""Best-scored instances kept per frame and class, as COCO does."""


@dataclass
class _Tally:
    """One class over all frames: scores of the kept instances, their hits per threshold, number of objects."""

    scores: list[Array]
    hits: list[Array]
    num_objects: int = 0


class PointInstanceEvaluator:
    """Collects predicted instances frame by frame and scores them at the end.

    Args:
        class_names: the classes, in the order of the labels.

    Example:
        >>> gt = PointLabels(torch.tensor([0, 0, 0, -2]), torch.tensor([5, 5, 5, -1]))
        >>> ids = torch.tensor([0, 0, 0, -1])
        >>> found = PointInstances(gt.semantic_labels, ids, torch.tensor([0]), torch.tensor([0.8]))
        >>> evaluator = PointInstanceEvaluator(("Vehicle",))
        >>> evaluator.add(found, gt)
        >>> round(evaluator.compute()["instance_ap"], 6)
        1.0
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._tallies = [_Tally([], []) for _ in self.class_names]

    def add(self, predicted: PointInstances, gt: PointLabels) -> None:
        """Record one frame.

        Args:
            predicted: what was found, (N,) points, any device.
            gt: true labels of the same points. A true object is one instance id within one class (an id that spans two
                classes is two objects). Points whose true class is `IGNORE` are left out on both sides, and so is a
                predicted instance that has no other points.
        """
        assert len(predicted.instance_ids) == len(gt)
        scored = gt.semantic_labels != IGNORE
        found_ids = predicted.instance_ids[scored]
        object_ids, object_labels = _objects(gt[scored], len(self.class_names))
        num_found, num_objects = len(predicted.labels), len(object_labels)
        pair = (found_ids + 1) * (num_objects + 1) + object_ids + 1
        counts = torch.bincount(pair, minlength=(num_found + 1) * (num_objects + 1))
        table = counts.reshape(num_found + 1, num_objects + 1).cpu().numpy()
        found_size, object_size = table.sum(1)[1:], table.sum(0)[1:]
        overlap = table[1:, 1:]
        iou = overlap / np.maximum(found_size[:, None] + object_size[None] - overlap, 1)
        labels, scores = predicted.labels.cpu().numpy(), predicted.scores.double().cpu().numpy()
        true_labels = object_labels.cpu().numpy()
        for label, tally in enumerate(self._tallies):
            mine = np.flatnonzero((labels == label) & (found_size > 0))
            best = mine[np.argsort(-scores[mine], kind="stable")[:MAX_DETECTIONS]]
            objects = np.flatnonzero(true_labels == label)
            tally.scores.append(scores[best])
            tally.hits.append(_match(iou[np.ix_(best, objects)]))
            tally.num_objects += len(objects)

    def compute(self) -> dict[str, float]:
        """Score everything recorded so far.

        Returns:
            ``instance_ap`` (mean over IoU 0.50:0.05:0.95 and classes), ``instance_ap50``, ``instance_ap25``,
            ``instance_ap/<class>``, ``instance_ap50/<class>``; NaN where no object exists, and such classes are left
            out of the means; ``num_objects``.

        Source: COCO detection evaluation (greedy matching by score, 101-point interpolated precision, at most 100
        instances a frame and class, no area ranges), as MWSIS scores LiDAR instances; IoU 0.25 is ours.
        """
        table = np.stack([_average_precision(tally) for tally in self._tallies])  # (C, thresholds)
        present = np.array([tally.num_objects > 0 for tally in self._tallies])
        mean = table[present].mean(0) if present.any() else np.full(len(THRESHOLDS), np.nan)
        scores = {"instance_ap": mean[1:].mean(), "instance_ap50": mean[1], "instance_ap25": mean[0]}
        scores |= {f"instance_ap/{name}": row[1:].mean() for name, row in zip(self.class_names, table, strict=True)}
        scores |= {f"instance_ap50/{name}": row[1] for name, row in zip(self.class_names, table, strict=True)}
        return {name: float(score) for name, score in scores.items()} | {
            "num_objects": sum(tally.num_objects for tally in self._tallies)
        }


def _objects(gt: PointLabels, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the true object of each point, counted from 0 (-1 none), and the class of each object."""
    belongs = (gt.semantic_labels >= 0) & (gt.instance_ids >= 0)
    name = gt.instance_ids[belongs] * num_classes + gt.semantic_labels[belongs]
    objects, index = torch.unique(name, return_inverse=True)
    object_ids = torch.full_like(gt.instance_ids, -1)
    object_ids[belongs] = index
    return object_ids, objects % num_classes


def _match(iou: Array) -> Array:
    """Return (thresholds, D) bool: which instances, best first, take a true object that is still free.

    Each takes its best overlap at or above the threshold; of equal ones the last, as COCO does.
    """
    num_found, num_objects = iou.shape
    hits = np.zeros((len(THRESHOLDS), num_found), dtype=bool)
    if not num_objects:
        return hits
    floors = np.minimum(THRESHOLDS, 1 - 1e-10)
    free = np.ones((len(THRESHOLDS), num_objects), dtype=bool)
    rows = np.arange(len(THRESHOLDS))
    for found in np.flatnonzero(iou.max(1) >= floors[0]):
        candidates = np.where(free, iou[found][None], -1.0)
        best = num_objects - 1 - candidates[:, ::-1].argmax(1)
        taken = candidates[rows, best] >= floors
        hits[taken, found] = True
        free[rows[taken], best[taken]] = False
    return hits


def _average_precision(tally: _Tally) -> Array:
    """Return (thresholds,) mean interpolated precision of one class, NaN without objects."""
    if not tally.num_objects:
        return np.full(len(THRESHOLDS), np.nan)
    scores, hits = np.concatenate(tally.scores), np.concatenate(tally.hits, 1)
    order = np.argsort(-scores, kind="stable")
    right = hits[:, order].cumsum(1).astype(float)
    recall = right / tally.num_objects
    precision = right / (np.arange(1, len(scores) + 1) + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.array([_at_recalls(row, envelope[t]) for t, row in enumerate(recall)])


def _at_recalls(recall: Array, envelope: Array) -> float:
    reached = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(envelope, 0.0)[reached].mean())
