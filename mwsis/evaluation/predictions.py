"""What a model found in a frame, and the scores of a split; models themselves are never seen here.

`coco_masks.py`, `masked_points.py`, `point_instances.py` and `point_semantics.py` hold the arithmetic, `protocols.py`
what counts as truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mwsis.core.frame import Frame
from mwsis.core.instances import IGNORE, Detections, PointInstances, PointLabels
from mwsis.evaluation.coco_masks import CocoMaskEvaluator
from mwsis.evaluation.masked_points import MaskedPointEvaluator
from mwsis.evaluation.point_instances import PointInstanceEvaluator
from mwsis.evaluation.point_semantics import PointSemanticEvaluator
from mwsis.evaluation.protocols import OURS, Protocol

__all__ = ["FramePrediction", "SplitScores"]


@dataclass(frozen=True, eq=False)
class FramePrediction:
    """What one segmentor found in one frame.

    Attributes:
        frame: with its ground truth, for scoring and pictures.
        pseudo: (M,) the labels made from 2D boxes, on the points the network saw.
        point_index: (M,) int64, rows of those points in the frame.
        detections: per camera, recorded pixels; None without a camera branch.
        points: instances on those points; None without a LiDAR branch.
    """

    frame: Frame
    pseudo: PointLabels
    point_index: Tensor
    detections: list[Detections] | None
    points: PointInstances | None

    @property
    def gt_points(self) -> PointLabels | None:
        """Ground truth on the points the network saw."""
        if self.frame.truth is None:
            return None
        return PointLabels(self.frame.truth.semantic_labels, self.frame.truth.instance_ids)[self.point_index]

    def on_all_points(self, semantic_labels: Tensor, instance_ids: Tensor) -> PointLabels:
        """Return (M,) labels of the points the network saw as labels of all points; the others are `IGNORE`."""
        num_points = len(self.frame.points)
        labels = PointLabels(torch.full((num_points,), IGNORE), torch.full((num_points,), -1))
        labels.semantic_labels[self.point_index] = semantic_labels
        labels.instance_ids[self.point_index] = instance_ids
        return labels


class SplitScores:
    """Scores a split frame by frame; predictions need not be kept.

    Args:
        class_names: the classes, in the order of the labels.
        protocol: what counts as ground truth.
    """

    def __init__(self, class_names: tuple[str, ...], protocol: Protocol = OURS) -> None:
        self.protocol = protocol
        self._masks = CocoMaskEvaluator(class_names)
        self._masked_points = MaskedPointEvaluator()
        self._instances = PointInstanceEvaluator(class_names)
        self._semantics = PointSemanticEvaluator(class_names)
        self._has_masks = self._has_points = False

    def add(self, prediction: FramePrediction) -> None:
        """Record what was found in one frame; frames without ground truth do not count."""
        truth = prediction.frame.truth
        if truth is None:
            return
        if prediction.points is not None:
            self._has_points = True
            scored = self.protocol.scored_points(prediction.frame, prediction.point_index)
            gt, found = self.protocol.point_labels(truth)[prediction.point_index[scored]], prediction.points
            found = replace(
                found, semantic_labels=found.semantic_labels[scored], instance_ids=found.instance_ids[scored]
            )
            x, y, _ = prediction.frame.points.xyz[prediction.point_index[scored]].unbind(1)
            self._instances.add(found, gt, torch.hypot(x, y))
            self._semantics.add(found.semantic_labels, gt.semantic_labels)
        if prediction.detections is None:
            return
        self._masked_points.add(prediction.detections, prediction.frame)
        for detections, image in zip(prediction.detections, truth.images, strict=True):
            if image is not None:
                self._has_masks = True
                self._masks.add(detections, self.protocol.image_truth(image))

    def compute(self) -> dict[str, Any]:
        """Score everything recorded so far.

        Returns:
            ``camera`` and ``lidar``: a number or None by name of the score; ``lidar_rows``: LiDAR instances by distance
            from the vehicle frame's vertical axis and by number of points. None for a branch that cannot be scored.
        """
        masks = {**(self._masks.compute() if self._has_masks else {}), **self._masked_points.compute()}
        points = {**self._instances.compute(), **self._semantics.compute()} if self._has_points else None
        return {
            "camera": _without_nan(masks) if masks else None,
            "lidar": None if points is None else _without_nan(points),
            "lidar_rows": self._instances.rows() if self._has_points else None,
        }


def _without_nan(scores: dict[str, float]) -> dict[str, float | None]:
    """Return the scores with None where there was nothing to score; JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}
