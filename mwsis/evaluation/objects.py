"""Objects one by one: the points a network gave to each true object, beside those of the labels it was trained from.

Both are counted by `label_quality.py`, with the same 2D boxes as objects; average precision, where confident mistakes
cost too, is in `point_instances.py`. The worst objects are drawn by `mwsis.report.label_pictures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion.spatial_labels import claimed_pairs
from mwsis.core.frame import Frame
from mwsis.core.instances import BACKGROUND, IGNORE
from mwsis.evaluation.label_quality import LabelQuality, ObjectScore, box_columns
from mwsis.evaluation.predictions import FramePrediction

__all__ = ["ObjectQuality", "WorstObject", "label_pairs", "predicted_pairs"]

NUM_WORST = 6
"""Objects kept to be drawn: what a reader looks at."""


@dataclass(frozen=True, eq=False)
class WorstObject:
    """An object that a network found badly, with all that is needed to draw it.

    Attributes:
        frame: with ground truth.
        pairs: (P, 2) int64, the (point, box) pairs of all objects found in the frame.
        score: of the object.
    """

    frame: Frame
    pairs: Tensor
    score: ObjectScore


class ObjectQuality:
    """Scores a teacher's LiDAR instances object by object, and the labels of the same frames; keeps the worst objects.

    Args:
        class_names: the classes, in the order of the labels.
        num_worst: so many frames are held in memory, at most.
    """

    def __init__(self, class_names: Sequence[str], num_worst: int = NUM_WORST) -> None:
        self.class_names = tuple(class_names)
        self.num_worst = num_worst
        self._quality = LabelQuality(class_names)
        self._worst: list[WorstObject] = []

    def add(self, prediction: FramePrediction) -> None:
        """Record what was found in one frame; nothing without LiDAR predictions or without ground truth."""
        frame = prediction.frame
        if prediction.points is None or frame.truth is None:
            return
        pairs = predicted_pairs(prediction)
        self._quality.add("teacher", frame, pairs)
        self._quality.add("labels", frame, label_pairs(prediction))
        alone = LabelQuality(self.class_names)
        alone.add("teacher", frame, pairs)
        found: dict[int, WorstObject] = {}
        instance = box_columns(frame)[2].tolist()
        for score in alone.objects("teacher"):  # the worst first; an object that several cameras show is one
            found.setdefault(instance[score.box], WorstObject(frame, pairs, score))
        both = sorted([*self._worst, *found.values()], key=lambda one: (one.score.point_iou, -one.score.points))
        self._worst = both[: self.num_worst]

    def rows(self) -> dict[str, list[dict[str, Any]]] | None:
        """Return `LabelQuality.rows` of ``teacher`` and ``labels`` by ``range`` and ``hidden``; None: no objects."""
        rows = {by: self._quality.rows(by) for by in ("range", "hidden")}
        return rows if rows["range"] else None

    def worst(self) -> list[WorstObject]:
        """Return the teacher's worst objects so far, the worst first: by point IoU, of equals by more points."""
        return list(self._worst)


def predicted_pairs(prediction: FramePrediction) -> Tensor:
    """Return the points that a network gave to each true object, as if they were labels of its 2D boxes.

    An object gets the instance of its class with the largest IoU with it, of those that serve it; an instance serves
    the one object of its class with which its own IoU is largest (of equals the lower id). Instances that touch no
    object of their class serve none, so what was found where nothing is does not count here.

    Args:
        prediction: with LiDAR instances and ground truth. IoU is over the points the network saw whose true class is
            known.

    Returns:
        (P, 2) int64, (point, box) pairs: row of the frame and index of the box, counted on over the cameras. The points
        of an object are paired with every 2D box of it; those that no camera shows are left out, since no label could
        have them either.
    """
    found, gt = prediction.points, prediction.gt_points
    assert found is not None, "no LiDAR instances"
    assert gt is not None, "no ground truth"
    known = gt.semantic_labels != IGNORE
    gt, found_ids, point = gt[known], found.instance_ids[known], prediction.point_index[known]
    object_ids, object_of = torch.unique(gt.instance_ids.where(gt.semantic_labels >= 0, -1), return_inverse=True)
    iou = _overlaps(found_ids, object_of, len(found.labels), len(object_ids))
    object_labels = torch.full_like(object_ids, BACKGROUND).scatter_reduce(0, object_of, gt.semantic_labels, "amax")
    iou = iou.where((found.labels[:, None] == object_labels) & (object_ids >= 0), 0.0)
    if not iou.numel():
        return torch.zeros(0, 2, dtype=torch.int64)
    best, serves = iou.max(1)
    iou = iou.where(torch.arange(len(object_ids)) == serves[:, None], 0.0)
    chosen = (iou.argmax(0)[serves] == torch.arange(len(iou))) & (best > 0)
    given = (found_ids >= 0) & prediction.frame.pixels.in_any_image[point]
    given[given.clone()] = chosen[found_ids[given]]
    owner = object_ids[serves[found_ids[given]]]
    row, box = (owner[:, None] == box_columns(prediction.frame)[2]).nonzero().T
    return torch.stack([point[given][row], box], 1)


def label_pairs(prediction: FramePrediction) -> Tensor:
    """Return the (P, 2) int64 pairs (row of the frame, 2D box) of the labels made from the frame's 2D boxes."""
    point, box = claimed_pairs(prediction.pseudo).T
    return torch.stack([prediction.point_index[point], box], 1)


def _overlaps(found_ids: Tensor, object_of: Tensor, num_found: int, num_objects: int) -> Tensor:
    """Return (K, M) float64, the IoU of each instance with each object, from what each point belongs to (-1 none)."""
    counts = torch.bincount((found_ids + 1) * num_objects + object_of, minlength=(num_found + 1) * num_objects)
    table = counts.reshape(num_found + 1, num_objects).double()
    overlap = table[1:]
    return overlap / (overlap.sum(1, keepdim=True) + table.sum(0) - overlap).clamp(min=1)
