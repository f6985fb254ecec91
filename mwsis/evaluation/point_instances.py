"""Instance average precision of LiDAR points straight from label arrays: COCO's numbers without masks or run lengths.

A point carries at most one predicted and one true instance, so one bincount gives all overlaps of a frame. Not here:
which objects count in which row (`instance_bins.py`), semantic IoU (`point_semantics.py`) and camera masks
(`coco_masks.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mwsis.core.instances import IGNORE, PointInstances, PointLabels
from mwsis.core.segment_ops import segment_median
from mwsis.evaluation.instance_bins import ALL, BINS, COCO_SIZES, ROWS, Bin, in_bins

__all__ = ["PointInstanceEvaluator"]

Array = np.ndarray[Any, Any]

THRESHOLDS: Array = np.concatenate([[0.25], np.linspace(0.5, 0.95, 10)])
"""IoU 0.25 for `instance_ap25`, then COCO's ten."""
AT_25, AT_50, AT_75, COCO = 0, 1, 6, slice(1, None)
"""Positions among the thresholds."""
RECALLS: Array = np.linspace(0, 1, 101)
RECALL_LIMITS = (1, 10, 100)
MAX_DETECTIONS = RECALL_LIMITS[-1]
"""Best-scored instances kept per frame and class, as COCO does."""
RIGHT, WRONG, UNCOUNTED = 1, 0, -1


@dataclass(frozen=True)
class _Tally:
    """One class in one frame; those of many frames are joined in the order of the frames.

    Attributes:
        scores: (D,) of the kept instances, best first.
        outcome: (bins, thresholds, D) int8, `RIGHT`, `WRONG` or `UNCOUNTED`.
        num_objects: (bins,) true objects that count.
    """

    scores: Array
    outcome: Array
    num_objects: Array


@dataclass(frozen=True)
class _Ranking:
    """One class over all frames.

    Attributes:
        place: (D,) how many of its own frame score better than each instance; instances by score, best first.
        outcome: (bins, thresholds, D) int8, same order.
        num_objects: (bins,) true objects that count.
    """

    place: Array
    outcome: Array
    num_objects: Array


class PointInstanceEvaluator:
    """Collects predicted instances frame by frame and scores them at the end.

    Args:
        class_names: the classes, in the order of the labels.

    Example:
        >>> gt = PointLabels(torch.tensor([0, 0, 0, -2]), torch.tensor([5, 5, 5, -1]))
        >>> ids = torch.tensor([0, 0, 0, -1])
        >>> found = PointInstances(gt.semantic_labels, ids, torch.tensor([0]), torch.tensor([0.8]))
        >>> evaluator = PointInstanceEvaluator(("Vehicle",))
        >>> evaluator.add(found, gt, torch.tensor([11.0, 12.0, 13.0, 40.0]))
        >>> round(evaluator.compute()["instance_ap"], 6)
        1.0
        >>> [(row["bin"], row["class"], row["objects"]) for row in evaluator.rows()][::2]
        [('0-15 m', 'Vehicle', 1), ('<20 points', 'Vehicle', 1)]
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._tallies: list[list[_Tally]] = [[] for _ in self.class_names]

    def add(self, predicted: PointInstances, gt: PointLabels, distances: Tensor | None = None) -> None:
        """Record one frame.

        Args:
            predicted: what was found, (N,) points, any device.
            gt: true labels of the same points. A true object is one instance id within one class (an id that spans two
                classes is two objects). Points whose true class is `IGNORE` are left out on both sides, and so is a
                predicted instance that has no other points.
            distances: (N,) float, metres in the ground plane; without them the frame is in no row by distance. An
                object is as far as its median point (of an even number the nearer one).
        """
        assert len(predicted.instance_ids) == len(gt)
        assert distances is None or len(distances) == len(gt)
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
        near = None if distances is None else distances[scored]
        found_in = in_bins(found_size, _medians(near, found_ids, num_found))
        object_in = in_bins(object_size, _medians(near, object_ids, num_objects))
        labels, scores = predicted.labels.cpu().numpy(), predicted.scores.double().cpu().numpy()
        true_labels = object_labels.cpu().numpy()
        for label, tallies in enumerate(self._tallies):
            mine = np.flatnonzero((labels == label) & (found_size > 0))
            best = mine[np.argsort(-scores[mine], kind="stable")[:MAX_DETECTIONS]]
            objects = np.flatnonzero(true_labels == label)
            outcome = _match(iou[np.ix_(best, objects)], found_in[:, best], object_in[:, objects])
            tallies.append(_Tally(scores[best], outcome, object_in[:, objects].sum(1)))

    def compute(self) -> dict[str, float]:
        """Score everything recorded so far.

        Returns:
            ``instance_ap`` (mean over IoU 0.50:0.05:0.95 and classes), ``instance_ap50``, ``instance_ap75``,
            ``instance_ap25``; ``instance_ap_small``, ``_medium``, ``_large``: of objects with at most 1,024 points, at
            most 9,216, more; ``instance_ar1``, ``instance_ar10``, ``instance_ar100``: share of the objects found by the
            so many best instances of a frame and class, mean over IoU and classes; ``instance_ap/<class>``,
            ``instance_ap50/<class>``; NaN where no object exists, and such classes are left out of the means;
            ``num_objects``.

        Source: COCO detection evaluation (greedy matching by score, 101-point interpolated precision, at most 100
        instances a frame and class, area ranges in points), as MWSIS scores LiDAR instances; IoU 0.25 is ours.
        """
        rankings = [_ranked(tallies) for tallies in self._tallies]
        table = np.stack([_average_precision(ranking, ALL) for ranking in rankings])  # (C, thresholds)
        mean = _mean_of_present(table)
        scores = {"instance_ap": mean[COCO].mean()}
        scores |= {"instance_ap50": mean[AT_50], "instance_ap75": mean[AT_75], "instance_ap25": mean[AT_25]}
        for size in COCO_SIZES:
            ranges = np.stack([_average_precision(ranking, size) for ranking in rankings])
            scores[f"instance_ap_{size.name}"] = _mean_of_present(ranges)[COCO].mean()
        for limit in RECALL_LIMITS:
            recalls = np.stack([_recall(ranking, limit) for ranking in rankings])
            scores[f"instance_ar{limit}"] = _mean_of_present(recalls)[COCO].mean()
        scores |= {f"instance_ap/{name}": row[COCO].mean() for name, row in zip(self.class_names, table, strict=True)}
        scores |= {f"instance_ap50/{name}": row[AT_50] for name, row in zip(self.class_names, table, strict=True)}
        return {name: float(score) for name, score in scores.items()} | {
            "num_objects": sum(int(ranking.num_objects[BINS.index(ALL)]) for ranking in rankings)
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the scores by distance and by number of points; bins and classes without objects have no row.

        An object outside the bin may be found without gain or loss, and so may an instance outside the bin be wrong.

        Returns:
            One row per bin and class, and one per bin of class ``mean``: ``bin``, ``class``, ``objects``,
            ``instance_ap``, ``instance_ap50``.

        Source: the way COCO scores its area ranges, *generalised* to other limits and to distances.
        """
        rankings = [_ranked(tallies) for tallies in self._tallies]
        rows = []
        for one in ROWS:
            table = np.stack([_average_precision(ranking, one) for ranking in rankings])
            counts = [int(ranking.num_objects[BINS.index(one)]) for ranking in rankings]
            named = [*zip(self.class_names, counts, table, strict=True), ("mean", sum(counts), _mean_of_present(table))]
            rows += [_row(one, name, count, scores) for name, count, scores in named if count]
        return rows


def _row(one: Bin, name: str, num_objects: int, precision: Array) -> dict[str, Any]:
    scores = {"instance_ap": float(precision[COCO].mean()), "instance_ap50": float(precision[AT_50])}
    return {"bin": one.name, "class": name, "objects": num_objects, **scores}


def _objects(gt: PointLabels, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the true object of each point, counted from 0 (-1 none), and the class of each object."""
    belongs = (gt.semantic_labels >= 0) & (gt.instance_ids >= 0)
    name = gt.instance_ids[belongs] * num_classes + gt.semantic_labels[belongs]
    objects, index = torch.unique(name, return_inverse=True)
    object_ids = torch.full_like(gt.instance_ids, -1)
    object_ids[belongs] = index
    return object_ids, objects % num_classes


def _medians(distances: Tensor | None, ids: Tensor, count: int) -> Array:
    """Return (count,) the median distance of the points of each id; NaN without distances."""
    if distances is None:
        return np.full(count, np.nan)
    belongs = ids >= 0
    medians: Array = segment_median(distances[belongs], ids[belongs], count).cpu().numpy()
    return medians


def _match(iou: Array, found_in: Array, object_in: Array) -> Array:
    """Return (bins, thresholds, D) int8: what each instance, best first, comes to in each bin.

    Each takes its best overlap at or above the threshold among the true objects that are still free, of equal ones the
    last, as COCO does; but one outside the bin only when none inside is to be had. What takes an object outside the bin
    does not count, nor does what takes none and lies outside itself.

    Args:
        iou: (D, G) of instances and true objects.
        found_in: (bins, D) bool, the bins of the instances.
        object_in: (bins, G) bool, the bins of the objects.
    """
    num_bins, num_objects = object_in.shape
    floors = np.minimum(THRESHOLDS, 1 - 1e-10)
    untaken = np.where(found_in, WRONG, UNCOUNTED).astype(np.int8)
    outcome = np.repeat(untaken[:, None], len(floors), axis=1)
    free = np.ones((num_bins, len(floors), num_objects), dtype=bool)
    reached = iou >= floors[0]
    for found in np.flatnonzero(reached.any(1)):
        near = np.flatnonzero(reached[found])
        near = near[np.argsort(iou[found, near], kind="stable")]
        fits = free[:, :, near] & (iou[found, near] >= floors[:, None])
        wish = np.arange(1, len(near) + 1) + len(near) * object_in[:, None, near]
        best = (fits * wish).argmax(2)
        one, threshold = np.nonzero(fits.any(2))
        taken = near[best[one, threshold]]
        free[one, threshold, taken] = False
        outcome[one, threshold, found] = np.where(object_in[one, taken], RIGHT, UNCOUNTED)
    return outcome


def _ranked(tallies: Sequence[_Tally]) -> _Ranking:
    """Return the instances of all frames; those of equal scores in the order of the frames."""
    none = np.zeros((len(BINS), len(THRESHOLDS), 0), dtype=np.int8)
    scores = np.concatenate([np.zeros(0), *(tally.scores for tally in tallies)])
    order = np.argsort(-scores, kind="stable")
    place = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(tally.scores)) for tally in tallies)])
    outcome = np.concatenate([none, *(tally.outcome for tally in tallies)], axis=2)
    num_objects = sum((tally.num_objects for tally in tallies), np.zeros(len(BINS), np.int64))
    return _Ranking(place[order], outcome[:, :, order], num_objects)


def _average_precision(ranking: _Ranking, one: Bin) -> Array:
    """Return (thresholds,) mean interpolated precision of one class in one bin, NaN without objects."""
    index = BINS.index(one)
    if not ranking.num_objects[index]:
        return np.full(len(THRESHOLDS), np.nan)
    right, wrong = ((ranking.outcome[index] == kind).cumsum(1) for kind in (RIGHT, WRONG))
    recall = right / ranking.num_objects[index]
    precision = right / (right + wrong + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.array([_at_recalls(row, envelope[t]) for t, row in enumerate(recall)])


def _at_recalls(recall: Array, envelope: Array) -> float:
    reached = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(envelope, 0.0)[reached].mean())


def _recall(ranking: _Ranking, limit: int) -> Array:
    """Return (thresholds,) share of the objects of one class that the ``limit`` best of a frame find, NaN without."""
    index = BINS.index(ALL)
    if not ranking.num_objects[index]:
        return np.full(len(THRESHOLDS), np.nan)
    kept = ranking.outcome[index][:, ranking.place < limit]
    return (kept == RIGHT).sum(1) / ranking.num_objects[index]


def _mean_of_present(table: Array) -> Array:
    """Return the mean over the rows (classes) that are not NaN, NaN without any."""
    present = ~np.isnan(table[:, 0])
    return table[present].mean(0) if present.any() else np.full(table.shape[1], np.nan)
