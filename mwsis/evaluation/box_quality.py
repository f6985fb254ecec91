"""How well 3D boxes fitted to labelled points cover the boxes that people drew.

An object counts where labels are scored, too (`label_quality.py`): a 2D box of a known object with at least 5 points in
its image. Needs no training. Overlaps are in `mwsis/core/boxes3d.py`, average precision is that of `detection3d.py`
from above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lidar.boxes_from_instances import FittedBoxes
from mwsis.core.boxes3d import bev_iou, iou_3d
from mwsis.core.frame import Frame
from mwsis.evaluation.detection3d import DetectionEvaluator3D, Detections3D, Objects3D
from mwsis.evaluation.label_quality import MIN_OBJECT_POINTS, box_columns, true_pairs

__all__ = ["BoxQuality"]

NUM_BINS = 10
"""Of the histograms: overlaps 0 to .1, to .2, ... 1."""
MIN_IOUS = (0.5, 0.3)


class BoxQuality:
    """Scores fitted boxes object by object.

    Args:
        class_names: the classes, in the order of the labels.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._overlaps: list[Tensor] = []
        self._precision = {
            least: DetectionEvaluator3D(class_names, [least] * len(self.class_names), bev_iou) for least in MIN_IOUS
        }

    def add(self, frame: Frame, fitted: FittedBoxes) -> None:
        """Record one frame.

        Args:
            frame: with ground truth.
            fitted: boxes of objects whose ``instance_ids`` are indices of 2D boxes, counted over the cameras.
        """
        truth = frame.truth
        assert truth is not None, "boxes are scored against ground truth"
        _, label, instance = box_columns(frame)
        num_points = torch.bincount(true_pairs(frame)[:, 1], minlength=len(label))
        scored = (instance >= 0) & (label >= 0) & (num_points >= MIN_OBJECT_POINTS)
        wanted = torch.isin(truth.box3d_ids, instance[scored]) & (truth.box3d_ids >= 0)
        gt, gt_labels, gt_ids = truth.boxes3d[wanted], truth.box3d_labels[wanted], truth.box3d_ids[wanted]
        of_object = instance[fitted.instance_ids]
        mine = of_object[:, None] == gt_ids
        overlaps = [torch.where(mine, iou(fitted.boxes3d, gt), 0) for iou in (bev_iou, iou_3d)]
        best = [table.amax(0) if len(table) else torch.zeros(len(gt)) for table in overlaps]
        self._overlaps.append(torch.stack([gt_labels.float(), mine.any(0).float(), *best], 1).double())
        unlabelled = ~torch.isin(of_object, gt_ids)
        found = Detections3D(frame.frame_id, fitted.boxes3d, fitted.labels, fitted.scores, unlabelled)
        levels = torch.ones(len(gt), dtype=torch.int64)
        for evaluator in self._precision.values():
            evaluator.add(found, Objects3D(frame.frame_id, gt, gt_labels, levels))

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per class that has objects.

        Returns:
            ``class``, ``objects``; ``boxes``: objects that have a fitted box; ``bev_iou``, ``iou_3d``: mean over the
            objects of the best overlap with a box fitted for them, 0 without one; ``bev_iou_counts``,
            ``iou_3d_counts``: objects by overlap in tenths; ``ap_bev_50``, ``ap_bev_30``: average precision from above
            at least overlap .5 and .3, a box fitted for anything else counts on neither side unless it meets an object.

        Source: Waymo's average precision (`DetectionEvaluator3D`) at other overlaps; the rest is ours.
        """
        table = torch.cat([torch.zeros(0, 4, dtype=torch.float64), *self._overlaps])
        precisions = {least: evaluator.compute() for least, evaluator in self._precision.items()}
        rows = []
        for label, name in enumerate(self.class_names):
            of_class = table[table[:, 0] == label]
            if not len(of_class):
                continue
            row: dict[str, Any] = {"class": name, "objects": len(of_class), "boxes": int(of_class[:, 1].sum())}
            for column, key in ((2, "bev_iou"), (3, "iou_3d")):
                row |= {key: float(of_class[:, column].mean()), f"{key}_counts": _histogram(of_class[:, column])}
            rows.append(row | {f"ap_bev_{100 * least:.0f}": precisions[least][f"ap_l1/{name}"] for least in MIN_IOUS})
        return rows


def _histogram(overlaps: Tensor) -> list[int]:
    bins = (overlaps * NUM_BINS).floor().long().clamp(max=NUM_BINS - 1)
    return torch.bincount(bins, minlength=NUM_BINS).tolist()
