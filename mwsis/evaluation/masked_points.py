"""Camera masks judged by LiDAR points, where a data set has 3D boxes and no masks (KITTI).

The points of an object that its camera shows should fall into the mask, others should not. LiDAR and camera look from
different places, so that even a true mask holds points of what lies behind its object: compare with what the filled 2D
box scores on the same objects, not with 1. Masks against true masks: `coco_masks.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mwsis.core.frame import Frame
from mwsis.core.instances import IGNORE, Detections, MaskSet
from mwsis.evaluation.coco_masks import match_boxes
from mwsis.evaluation.label_quality import MIN_OBJECT_POINTS, box_columns, true_pairs

__all__ = ["MaskedPointEvaluator", "in_mask"]


class MaskedPointEvaluator:
    """Collects the detections of frames and scores the points that their masks hold."""

    def __init__(self) -> None:
        self._ious: list[tuple[float, float]] = []
        self._num_objects = 0

    def add(self, detections: list[Detections], frame: Frame) -> None:
        """Record one frame.

        An object is a 2D box whose true instance has at least 5 points in the image of the box's camera. It is scored
        if a detection of its class finds its box (`match_boxes`). Points of true class `IGNORE` count on neither side.

        Args:
            detections: per camera, pixels of the recorded image, on the CPU.
            frame: with ground truth.
        """
        truth = frame.truth
        assert truth is not None, "masks are scored against ground truth"
        camera, label, _ = box_columns(frame)
        wanted = true_pairs(frame)
        counts = torch.bincount(wanted[:, 1], minlength=len(camera))
        scored = (label >= 0) & (counts >= MIN_OBJECT_POINTS)
        self._num_objects += int(scored.sum())
        counted = truth.semantic_labels != IGNORE
        first_box = 0
        for view, (found, of_camera) in enumerate(zip(detections, frame.cameras, strict=True)):
            point, slot = ((frame.pixels.camera_index == view) & counted[:, None]).nonzero().T
            pixel_uv = frame.pixels.pixel_uv[point, slot]
            for detected, box in match_boxes(found, of_camera.labels):
                if scored[first_box + box]:
                    own = torch.isin(point, wanted[wanted[:, 1] == first_box + box, 0])
                    masked = in_mask(found.masks, detected, pixel_uv)
                    boxed = _in_box(of_camera.labels.boxes[box], pixel_uv)
                    self._ious.append((_iou(masked, own), _iou(boxed, own)))
            first_box += len(of_camera.labels)

    def compute(self) -> dict[str, float]:
        """Score everything recorded so far.

        Returns:
            ``matched_point_iou``: mean over found objects of the IoU between the points inside the mask and the
            object's; ``matched_box_point_iou``: what filling the ground-truth boxes of the same objects scores; both
            NaN without a found object. ``num_point_matched``, ``num_point_objects``. Nothing where no frame has such an
            object.

        Source: ours; KITTI has no masks.
        """
        if not self._num_objects:
            return {}
        masks, boxes = torch.tensor(self._ious, dtype=torch.float64).reshape(-1, 2).mean(0).tolist()
        return {
            "matched_point_iou": masks,
            "matched_box_point_iou": boxes,
            "num_point_matched": len(self._ious),
            "num_point_objects": self._num_objects,
        }


def in_mask(masks: MaskSet, index: int, pixel_uv: Tensor) -> Tensor:
    """Return which pixels lie in a mask.

    Args:
        masks: of one image.
        index: which of them.
        pixel_uv: (P, 2) float32, pixels of that image, centres at +0.5.

    Returns:
        (P,) bool.
    """
    x1, y1, x2, y2 = masks.crop_boxes[index].tolist()
    column, row = pixel_uv.floor().long().unbind(1)
    inside = (column >= x1) & (column < x2) & (row >= y1) & (row < y2)
    found = torch.zeros(len(pixel_uv), dtype=torch.bool)
    found[inside] = masks.crop(index)[row[inside] - y1, column[inside] - x1]
    return found


def _in_box(box: Tensor, pixel_uv: Tensor) -> Tensor:
    return ((pixel_uv >= box[:2]) & (pixel_uv < box[2:])).all(1)


def _iou(first: Tensor, second: Tensor) -> float:
    return float((first & second).sum() / (first | second).sum())
