"""Class IoU of LiDAR points, from label arrays.

Serves predictions and label-only methods alike. Not here: instances (`point_instances.py`), scores per 2D box
(`label_quality.py`) and Waymo's files and classes (`waymo_segmentation.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mwsis.core.instances import IGNORE

__all__ = ["PointSemanticEvaluator"]


class PointSemanticEvaluator:
    """Adds up a confusion matrix over the classes and background.

    Args:
        class_names: the classes, in the order of the labels.
        absent_is_right: a class that has neither true nor predicted points scores 1, and the mean is over all classes,
            as Waymo's tool does.

    Example:
        >>> evaluator = PointSemanticEvaluator(("Vehicle", "Pedestrian"))
        >>> evaluator.add(torch.tensor([0, 0, -2, -2]), torch.tensor([0, -2, -2, -1]))
        >>> evaluator.compute()["iou/Vehicle"]
        0.5
    """

    def __init__(self, class_names: Sequence[str], absent_is_right: bool = False) -> None:
        self.class_names = tuple(class_names)
        self.absent_is_right = absent_is_right
        size = len(self.class_names) + 1
        self.confusion = torch.zeros(size, size, dtype=torch.int64)
        """(C+1, C+1) int64, true class by row, predicted class by column, background last; points."""

    def add(self, predicted_labels: Tensor, gt_labels: Tensor) -> None:
        """Record one frame.

        Args:
            predicted_labels: (N,) int64, class, `BACKGROUND`, or `IGNORE`, which counts as background (no class given).
            gt_labels: (N,) int64, class, `BACKGROUND` or `IGNORE`; ignored points are left out.
        """
        assert predicted_labels.shape == gt_labels.shape
        background = len(self.class_names)
        scored = gt_labels != IGNORE
        row, column = (
            torch.where(labels >= 0, labels, torch.full_like(labels, background))[scored]
            for labels in (gt_labels, predicted_labels)
        )
        counts = torch.bincount(row * (background + 1) + column, minlength=(background + 1) ** 2)
        self.confusion += counts.reshape(background + 1, background + 1).cpu()

    def compute(self) -> dict[str, float]:
        """Score everything recorded so far.

        Returns:
            ``iou/<class>``, NaN for a class with neither true nor predicted points; ``miou``, the mean over the classes
            that have true points (background is no class), NaN where there are none. With ``absent_is_right`` nothing
            is NaN and every class is in the mean.
        """
        right = self.confusion.diagonal()[:-1].double()
        true, predicted = self.confusion.sum(1)[:-1], self.confusion.sum(0)[:-1]
        iou = right / (true + predicted - right)
        counted = true > 0
        if self.absent_is_right:
            iou, counted = iou.nan_to_num(nan=1.0), torch.ones_like(counted)
        scores = {"miou": float(iou[counted].mean())}
        return scores | {f"iou/{name}": float(value) for name, value in zip(self.class_names, iou, strict=True)}
