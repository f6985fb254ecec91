"""What a model found in a frame, and the scores of a split; models themselves are never seen here.

`coco_masks.py`, `point_instances.py` and `point_semantics.py` hold the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mwsis.core.frame import Frame
from mwsis.core.instances import Detections, PointInstances, PointLabels
from mwsis.evaluation.coco_masks import CocoMaskEvaluator
from mwsis.evaluation.point_instances import PointInstanceEvaluator
from mwsis.evaluation.point_semantics import PointSemanticEvaluator

__all__ = ["FramePrediction", "score"]


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


def score(
    predictions: Sequence[FramePrediction], class_names: tuple[str, ...]
) -> dict[str, dict[str, float | None] | None]:
    """Return ``{"camera": ..., "lidar": ...}`` against ground truth; None for a branch that cannot be scored."""
    masks = CocoMaskEvaluator(class_names)
    instances = PointInstanceEvaluator(class_names)
    semantics = PointSemanticEvaluator(class_names)
    has_masks = has_points = False
    for prediction in predictions:
        truth = prediction.frame.truth
        if truth is None:
            continue
        if prediction.points is not None and prediction.gt_points is not None:
            has_points = True
            instances.add(prediction.points, prediction.gt_points)
            semantics.add(prediction.points.semantic_labels, prediction.gt_points.semantic_labels)
        for found, image in zip(prediction.detections or [], truth.images, strict=False):
            if image is not None:
                has_masks = True
                masks.add(found, image)
    return {
        "camera": _without_nan(masks.compute()) if has_masks else None,
        "lidar": _without_nan({**instances.compute(), **semantics.compute()}) if has_points else None,
    }


def _without_nan(scores: dict[str, float]) -> dict[str, float | None]:
    """Return the scores with None where there was nothing to score; JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}
