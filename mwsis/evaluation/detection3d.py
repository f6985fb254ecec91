"""Average precision of 3D boxes as Waymo defines it, with and without headings (AP, APH), from arrays.

The evaluator takes detections and true boxes frame by frame and knows no model. Which file or data set they come from
is not its business: `waymo_detection.py` reads Waymo's own files, `kitti_detection.py` scores as KITTI does. Overlaps
are in `mwsis/core/boxes3d.py`; the slow twin is tests/reference/detection3d.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mwsis.core.boxes3d import iou_3d
from mwsis.core.frame import require

__all__ = ["WAYMO_MIN_IOU", "DetectionEvaluator3D", "Detections3D", "Objects3D", "point_levels"]

Array = np.ndarray[Any, Any]

WAYMO_MIN_IOU = {"Vehicle": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
"""Least `iou_3d` of a match, by class."""
CUTOFFS: Array = np.append(np.arange(100) * 0.01, 1.0).astype(np.float32)
"""Detections count from these scores on; one point of the curve each."""
RECALL_STEP = 0.05
"""Over wider gaps between two recalls precision is held, not interpolated."""
GAP_SLACK = 1e-6
LEVELS = (1, 2)
RANGES = (("all", 0.0, math.inf), ("0-30 m", 0.0, 30.0), ("30-50 m", 30.0, 50.0), (">50 m", 50.0, math.inf))
"""Of box centres from the origin of the vehicle frame."""
FEW_POINTS = 5
SMALLEST_SIDE = 0.01
"""metres; a box with a side no longer than this overlaps nothing."""
IOU_UNITS = 1_000_000
"""The assignment maximises the sum of overlaps in so many whole parts."""


@dataclass(frozen=True, eq=False)
class Detections3D:
    """Boxes that were found in one frame.

    Attributes:
        frame_id: the frame's name in its data set.
        boxes3d: (D, 7) float32, centre xyz, length, width, height (metres, vehicle frame), yaw (rad, about +z).
        labels: (D,) int64, class index.
        scores: (D,) float32 in [0, 1].
        unlabelled: (D,) bool, in a zone that nobody labelled, so never wrong; None = none is.
    """

    frame_id: str
    boxes3d: Tensor
    labels: Tensor
    scores: Tensor
    unlabelled: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes3d)
        require(self.boxes3d, f"{self.frame_id}: boxes3d", (count, 7), torch.float32)
        require(self.labels, f"{self.frame_id}: labels", (count,), torch.int64)
        require(self.scores, f"{self.frame_id}: scores", (count,), torch.float32)
        if self.unlabelled is not None:
            require(self.unlabelled, f"{self.frame_id}: unlabelled", (count,), torch.bool)

    def __len__(self) -> int:
        return len(self.boxes3d)


@dataclass(frozen=True, eq=False)
class Objects3D:
    """The true boxes of one frame.

    Attributes:
        frame_id: the frame's name in its data set.
        boxes3d: (G, 7) float32, as in `Detections3D`.
        labels: (G,) int64, class index.
        levels: (G,) int64, 1 easy, 2 hard, 0 not an object to be found; see `point_levels`.
    """

    frame_id: str
    boxes3d: Tensor
    labels: Tensor
    levels: Tensor

    def __post_init__(self) -> None:
        count = len(self.boxes3d)
        require(self.boxes3d, f"{self.frame_id}: boxes3d", (count, 7), torch.float32)
        require(self.labels, f"{self.frame_id}: labels", (count,), torch.int64)
        require(self.levels, f"{self.frame_id}: levels", (count,), torch.int64)

    def __len__(self) -> int:
        return len(self.boxes3d)


def point_levels(num_points: Tensor, marked: Tensor | None = None) -> Tensor:
    """Return the difficulty of objects, (G,) int64: 2 up to 5 LiDAR points, 1 with more, 0 without any.

    Args:
        num_points: (G,) int, LiDAR points in each true box.
        marked: (G,) int64, the level that a person gave, 0 none; it comes before the number of points.

    Source: Waymo Open Dataset, ``compute_detection_metrics_main.cc``.
    """
    levels = 2 - (num_points > FEW_POINTS).long()
    if marked is not None:
        levels = torch.where(marked > 0, marked, levels)
    return torch.where(num_points > 0, levels, 0)


class DetectionEvaluator3D:
    """Collects detections frame by frame and scores them at the end.

    Args:
        class_names: the classes, in the order of the labels.
        min_ious: least overlap of a match, by class; default: Waymo's.
        overlap: of (D, 7) and (G, 7) boxes, (D, G); `bev_iou` scores from above (Waymo's TYPE_2D).

    Example:
        >>> car = torch.tensor([[10.0, 0, 0, 4, 2, 1.5, 0]])
        >>> found = Detections3D("0", car, torch.tensor([0]), torch.tensor([0.9]))
        >>> gt = Objects3D("0", car, torch.tensor([0]), torch.tensor([1]))
        >>> evaluator = DetectionEvaluator3D(("Vehicle",))
        >>> evaluator.add(found, gt)
        >>> round(evaluator.compute()["aph_l2/Vehicle"], 6)
        1.0
    """

    def __init__(
        self,
        class_names: Sequence[str],
        min_ious: Sequence[float] | None = None,
        overlap: Callable[[Tensor, Tensor], Tensor] = iou_3d,
    ) -> None:
        self.class_names = tuple(class_names)
        given = [WAYMO_MIN_IOU[name] for name in class_names] if min_ious is None else min_ious
        assert len(given) == len(self.class_names), "one least overlap per class expected"
        self._min_ious = np.array(given, dtype=np.float32)
        self._overlap = overlap
        self._tallies = [[_Tally() for _ in RANGES] for _ in self.class_names]

    def add(self, found: Detections3D, gt: Objects3D) -> None:
        """Record one frame.

        Args:
            found: what was found.
            gt: what is there; an object of the harder level may be found without loss at the easier one.
        """
        assert found.frame_id == gt.frame_id, f"detections of {found.frame_id}, objects of {gt.frame_id}"
        counted = gt.levels > 0
        theirs, levels, their_labels = gt.boxes3d[counted], _plain(gt.levels[counted]), _plain(gt.labels[counted])
        overlap = self._overlap(found.boxes3d, theirs)
        iou = _plain(torch.where(_solid(found.boxes3d)[:, None] & _solid(theirs), overlap, 0).float())
        agreement = _heading_agreement(found.boxes3d[:, None, 6], theirs[:, 6])
        labels, reach = _plain(found.labels), np.searchsorted(CUTOFFS, _plain(found.scores), side="right")
        wrong = np.ones(len(found), bool) if found.unlabelled is None else ~_plain(found.unlabelled)
        distance, their_distance = _distance(found.boxes3d), _distance(theirs)
        for label, tallies in enumerate(self._tallies):
            for (_, low, high), tally in zip(RANGES, tallies, strict=True):
                mine = np.flatnonzero((labels == label) & (distance >= low) & (distance < high))
                objects = np.flatnonzero((their_labels == label) & (their_distance >= low) & (their_distance < high))
                table = np.ix_(mine, objects)
                weight = (iou[table] * np.float32(IOU_UNITS)).astype(np.int64)
                weight[iou[table] < self._min_ious[label]] = 0
                tally.add(_matches(weight, reach[mine]), reach[mine], wrong[mine], levels[objects], agreement[table])

    def compute(self) -> dict[str, float]:
        """Score everything recorded so far.

        Returns:
            ``ap_l1``, ``aph_l1``, ``ap_l2``, ``aph_l2``: means over the classes that have objects; the same with
            ``/<class>``; NaN where no object of the level or an easier one exists; ``num_objects``.

        Source: Waymo Open Dataset, ``metrics/detection_metrics.cc``, ``metrics_utils.cc`` and
        ``compute_detection_metrics_main.cc``: Hungarian matching within class and range at 101 score cutoffs, heading
        accuracy as the weight of APH, a found object of level 2 counts at level 1 as well. *Corrected*: a class
        without objects has no score there and is left out of the mean, where Waymo's tool prints 0; overlaps are exact,
        where the tool can find none between boxes that are the same but for rounding.
        """
        scores: dict[str, float] = {}
        for level in LEVELS:
            values = [tallies[0].scores(level) for tallies in self._tallies]
            for column, name in enumerate((f"ap_l{level}", f"aph_l{level}")):
                present = [pair[column] for pair in values if not math.isnan(pair[column])]
                scores[name] = sum(present) / len(present) if present else math.nan
                for class_name, pair in zip(self.class_names, values, strict=True):
                    scores[f"{name}/{class_name}"] = pair[column]
        return scores | {"num_objects": sum(tallies[0].num_objects(2) for tallies in self._tallies)}

    def rows(self) -> list[dict[str, Any]]:
        """Return the scores by class, range and level; where there is no object there is no row.

        Returns:
            Rows of ``class``, ``range`` (``all``, ``0-30 m``, ``30-50 m``, ``>50 m``), ``level``, ``objects``, ``ap``,
            ``aph``. Detections and objects meet only within a range, as in Waymo's tool.
        """
        return [
            {"class": name, "range": title, "level": level, "objects": tally.num_objects(level)}
            | dict(zip(("ap", "aph"), tally.scores(level), strict=True))
            for name, tallies in zip(self.class_names, self._tallies, strict=True)
            for (title, _, _), tally in zip(RANGES, tallies, strict=True)
            for level in LEVELS
            if tally.num_objects(level)
        ]


@dataclass(frozen=True)
class _Matches:
    """Pairs that the assignment makes, and from which cutoff on up to which: pairs change where a detection drops out.

    Attributes:
        found, objects: (M,) rows.
        first, stop: (M,) cutoffs ``first`` to ``stop - 1``.
    """

    found: Array
    objects: Array
    first: Array
    stop: Array


class _Tally:
    """Counts of one class within one range at every cutoff."""

    def __init__(self) -> None:
        self._right, self._heading, self._wrong = (np.zeros(len(CUTOFFS)) for _ in range(3))
        self._hits = np.zeros((len(LEVELS), len(CUTOFFS)))
        self._objects = np.zeros(len(LEVELS), np.int64)

    def add(self, matches: _Matches, reach: Array, may_be_wrong: Array, levels: Array, agreement: Array) -> None:
        """Count one frame: (D,) detections, (G,) objects, (D, G) agreement of headings."""
        matched = (matches.first, matches.stop)
        weight = agreement[matches.found, matches.objects]
        self._right += _over_cutoffs(np.ones(len(weight)), *matched)
        self._heading += _over_cutoffs(weight, *matched)
        self._wrong += _over_cutoffs(may_be_wrong, np.zeros_like(reach), reach)
        self._wrong -= _over_cutoffs(may_be_wrong[matches.found], *matched)
        for row, level in enumerate(LEVELS):
            self._hits[row] += _over_cutoffs(levels[matches.objects] <= level, *matched)
            self._objects[row] += int((levels <= level).sum())

    def num_objects(self, level: int) -> int:
        return int(self._objects[LEVELS.index(level)])

    def scores(self, level: int) -> tuple[float, float]:
        """Return AP and APH, NaN without objects."""
        row = LEVELS.index(level)
        if not self._objects[row]:
            return math.nan, math.nan
        missed = self._objects[row] - self._hits[row]
        recall = self._right / np.maximum(self._right + missed, 1)
        claimed = np.maximum(self._right + self._wrong, 1)
        return _area(self._right / claimed, recall), _area(self._heading / claimed, recall)


def _plain(tensor: Tensor) -> Array:
    array: Array = tensor.cpu().numpy()
    return array


def _distance(boxes: Tensor) -> Array:
    distance: Array = boxes[:, :3].double().norm(dim=1).cpu().numpy()
    return distance


def _solid(boxes: Tensor) -> Tensor:
    return (boxes[:, 3:6] > SMALLEST_SIDE).all(1)


def _heading_agreement(yaw: Tensor, true_yaw: Tensor) -> Array:
    """Return 1 for equal headings to 0 for opposite ones."""
    apart = torch.remainder(yaw.double() - true_yaw.double() + math.pi, 2 * math.pi) - math.pi
    return _plain((1 - apart.abs() / math.pi).clamp(0, 1))


def _over_cutoffs(amount: Array, first: Array, stop: Array) -> Array:
    """Return (cutoffs,) sums of amounts that each count from one cutoff on to before another."""
    change = np.zeros(len(CUTOFFS) + 1)
    np.add.at(change, first, amount)
    np.subtract.at(change, stop, amount)
    total: Array = change[:-1].cumsum()
    return total


def _matches(weight: Array, reach: Array) -> _Matches:
    """Return the assignments of largest weight at every cutoff.

    Whatever is not linked through pairs of positive weight is assigned on its own; most pairs stand alone and are
    assigned at all cutoffs that the detection reaches.

    Args:
        weight: (D, G) int64, 0 = no match.
        reach: (D,) number of cutoffs that each detection's score reaches.
    """
    row, column = np.nonzero(weight)
    alone = (np.bincount(row)[row] == 1) & (np.bincount(column)[column] == 1)
    found, objects = [row[alone]], [column[alone]]
    first, stop = [np.zeros(int(alone.sum()), np.int64)], [reach[row[alone]]]
    for rows, columns in _parts(row[~alone], column[~alone], weight.shape):
        steps = np.unique(np.append(reach[rows], 0))
        for low, high in pairwise(steps):
            active = rows[reach[rows] >= high]
            table = weight[np.ix_(active, columns)]
            i, j = linear_sum_assignment(table, maximize=True)
            real = table[i, j] > 0
            found.append(active[i[real]])
            objects.append(columns[j[real]])
            first.append(np.full(int(real.sum()), low))
            stop.append(np.full(int(real.sum()), high))
    return _Matches(*(np.concatenate(parts) for parts in (found, objects, first, stop)))


def _parts(row: Array, column: Array, shape: tuple[int, ...]) -> list[tuple[Array, Array]]:
    """Return the rows and columns of each connected part of a table, given where it is not zero."""
    if not len(row):
        return []
    graph = coo_array((np.ones(len(row)), (row, column + shape[0])), shape=(sum(shape),) * 2)
    _, part = connected_components(graph, directed=False)
    return [
        (np.unique(row[part[row] == number]), np.unique(column[part[row] == number])) for number in np.unique(part[row])
    ]


def _area(precision: Array, recall: Array) -> float:
    """Return the area under a precision-recall curve.

    At each recall the best precision there or further right. Between two recalls: held at the right one's in steps of
    `RECALL_STEP` while the gap is wider, straight over the rest. Left of the least positive recall it is held.

    Source: Waymo Open Dataset, ``metrics_utils.cc``, ``ComputeMeanAveragePrecision``.
    """
    recalls, where = np.unique(np.append(recall, 0.0), return_inverse=True)
    best = np.zeros(len(recalls))
    np.maximum.at(best, where[:-1], precision)
    best = np.maximum.accumulate(best[::-1])[::-1]
    if len(best) == 1:
        return 0.0
    best[0] = best[1]
    gap = np.diff(recalls)
    held = np.ceil((gap - RECALL_STEP - GAP_SLACK) / RECALL_STEP).clip(0) * RECALL_STEP
    return float((held * best[1:] + (gap - held) * (best[1:] + best[:-1]) / 2).sum())
