"""How well a method that only labels points from 2D boxes recovers the object in each box.

Needs no training: it compares (point, box) pairs with the true object of each box. Pairs are made by
`fusion.spatial_labels`; this file only counts. Class IoU of whole frames is in `point_semantics.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mwsis.core.frame import CameraView, FrameTruth, PixelMap
from mwsis.core.instances import IGNORE

__all__ = ["LabelQuality"]

NUM_RESAMPLES = 1000
MIN_OBJECT_POINTS = 5
"""Objects with fewer true points in the camera's image are not scored: one point would decide. Our choice."""


class LabelQuality:
    """Scores label-only methods object by object.

    Args:
        class_names: the classes, in the order of the labels.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._counts: dict[str, list[Tensor]] = {}

    def add(
        self, method: str, truth: FrameTruth, pixels: PixelMap, cameras: Sequence[CameraView], pairs: Tensor
    ) -> None:
        """Record what one method labelled in one frame.

        An object is a 2D box, no ignored region, whose true instance is known and has at least 5 points in the image of
        the box's camera; those points are what the method should have labelled. Points of true class `IGNORE` count on
        neither side.

        Args:
            method: name of the method, first column of the rows.
            truth: true labels of the frame's N points; ``box_instance_ids`` names the instance of each box.
            pixels: which camera each point falls in.
            cameras: the frame's images; only their boxes are read.
            pairs: (P, 2) int64, (point, box) pairs that the method labelled, each once; boxes are counted over all
                cameras, objects and ignored regions alike.
        """
        box_camera, box_label, box_object = _boxes(truth, cameras)
        scored = truth.semantic_labels != IGNORE
        point, box = pairs[scored[pairs[:, 0]]].T
        in_image = (pixels.camera_index[point] == box_camera[box, None]).any(1)
        hit = in_image & (truth.instance_ids[point] == box_object[box])
        labelled = torch.bincount(box, minlength=len(box_label))
        shared = torch.bincount(box[hit], minlength=len(box_label))
        wanted = _object_points(pixels.camera_index[scored], truth.instance_ids[scored], box_camera, box_object)
        counted = (box_object >= 0) & (box_label >= 0) & (wanted >= MIN_OBJECT_POINTS)
        table = torch.stack([box_label, shared, labelled, wanted], 1)
        self._counts.setdefault(method, []).append(table[counted])

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per method and class that has objects, methods in the order they were first added.

        Returns:
            ``method``, ``class``, ``objects``; ``point_iou``, ``precision``, ``recall``: means over objects, where an
            object without labelled points has precision 0; ``point_iou_95``: low and high end of the 95 % interval of
            the first, by bootstrap over objects; ``pooled_iou``: shared points of all objects over the union of all.
        """
        rows = []
        for method, tables in self._counts.items():
            table = torch.cat(tables)
            by_class = [table[table[:, 0] == label].double() for label in range(len(self.class_names))]
            rows += [self._row(method, label, counts) for label, counts in enumerate(by_class) if len(counts)]
        return rows

    def _row(self, method: str, label: int, counts: Tensor) -> dict[str, Any]:
        _, shared, labelled, wanted = counts.T
        union = labelled + wanted - shared
        ious = shared / union
        return {
            "method": method,
            "class": self.class_names[label],
            "objects": len(counts),
            "point_iou": float(ious.mean()),
            "point_iou_95": _interval(ious),
            "precision": float((shared / labelled.clamp(min=1)).mean()),
            "recall": float((shared / wanted).mean()),
            "pooled_iou": float(shared.sum() / union.sum()),
        }


def _interval(values: Tensor) -> list[float]:
    """Return the 2.5 and 97.5 % quantiles of the mean over resamples of (K,) values, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    draws = (torch.randint(len(values), (len(values),), generator=generator) for _ in range(NUM_RESAMPLES))
    means = torch.stack([values[draw].mean() for draw in draws])
    return [float(means.quantile(share)) for share in (0.025, 0.975)]


def _boxes(truth: FrameTruth, cameras: Sequence[CameraView]) -> tuple[Tensor, Tensor, Tensor]:
    """Return camera, class (-1 ignored) and true instance of each box over all cameras, (G,) int64 each."""
    per_camera = [len(view.labels) for view in cameras]
    assert [len(ids) for ids in truth.box_instance_ids] == per_camera, "one instance id per box expected"
    none = torch.zeros(0, dtype=torch.int64)
    camera = torch.repeat_interleave(torch.arange(len(cameras)), torch.tensor(per_camera, dtype=torch.int64))
    label = torch.cat([none, *(torch.where(view.labels.ignore, -1, view.labels.labels) for view in cameras)])
    return camera, label, torch.cat([none, *truth.box_instance_ids])


def _object_points(point_camera: Tensor, point_object: Tensor, box_camera: Tensor, box_object: Tensor) -> Tensor:
    """Return (G,) int64: the points of each box's object that fall in the image of the box's camera."""
    belongs = point_object >= 0
    in_image = (point_camera[belongs][:, :, None] == box_camera).any(1)
    return (in_image & (point_object[belongs][:, None] == box_object)).sum(0)
