"""Mask average precision of camera detections, and whether the masks are better than filled boxes.

The only file that imports pycocotools (run-length coding, mask overlap) and faster_coco_eval (the same AP, faster).
Masks are encoded from their crops, never as full-size images. Not here: LiDAR instances, whose AP needs no masks at all
(`point_instances.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import box_iou

from mwsis.core.frame import ImageTruth
from mwsis.core.instances import Boxes2D, Detections, MaskSet

__all__ = ["CocoMaskEvaluator", "check_ap_arithmetic", "encode_masks", "rle_counts"]

MATCH_BOX_IOU = 0.5
"""A detection is compared with a ground-truth object when their boxes overlap at least this much."""
AREA_ALL, MAX_DETECTIONS_100 = 0, 2
"""Positions of "all areas" and "100 detections an image" among COCO's defaults."""

Rle = dict[str, Any]


class CocoMaskEvaluator:
    """Collects detections image by image and scores them at the end.

    Args:
        class_names: the classes, in the order of the labels.

    Example:
        >>> masks = MaskSet.from_crops(8, 8, torch.tensor([[2, 2, 6, 6]]), [torch.ones(4, 4)])
        >>> box, label = torch.tensor([[2.0, 2, 6, 6]]), torch.tensor([0])
        >>> truth = ImageTruth(Boxes2D(box, label, torch.tensor([False])), masks, torch.tensor([7]))
        >>> evaluator = CocoMaskEvaluator(("Vehicle",))
        >>> evaluator.add(Detections(box, label, torch.tensor([0.9]), masks), truth)
        >>> round(evaluator.compute()["mask_ap"], 6)
        1.0
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._images: list[dict[str, int]] = []
        self._annotations: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []
        self._mask_ious: list[float] = []
        self._box_ious: list[float] = []

    def add(self, detections: Detections, truth: ImageTruth) -> None:
        """Record one image.

        Args:
            detections: what was found, pixels of the recorded image, masks on the CPU.
            truth: boxes, classes, ignore flags and masks of the same image. A detection on an ignored region is neither
                right nor wrong; an ignored region without a class (label -1) counts for every class.
        """
        labels, masks = truth.labels, truth.masks
        found_size = (detections.masks.height, detections.masks.width)
        assert found_size == (masks.height, masks.width), "detections must lie on the recorded image"
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "height": masks.height, "width": masks.width})
        found_rles, truth_rles = encode_masks(detections.masks), encode_masks(masks)
        self._record_truth(image_id, labels, masks.areas().tolist(), truth_rles)
        scores = detections.scores.double().tolist()
        for rle, label, score in zip(found_rles, detections.labels.tolist(), scores, strict=True):
            self._found.append({"image_id": image_id, "category_id": label + 1, "score": score, "segmentation": rle})
        filled_rles = encode_masks(_filled(labels.boxes.cpu(), masks.height, masks.width))
        for found, wanted in _match_boxes(detections, labels):
            self._mask_ious.append(_overlap(found_rles[found], truth_rles[wanted]))
            self._box_ious.append(_overlap(filled_rles[wanted], truth_rles[wanted]))

    def compute(self) -> dict[str, float]:
        """Score everything recorded so far.

        Returns:
            ``mask_ap`` (mean over IoU 0.50:0.05:0.95 and classes), ``mask_ap50``, ``mask_ap75``,
            ``mask_ap/<class>``: COCO mask AP, at most 100 detections an image and class; NaN where no object exists.
            ``matched_mask_iou``: mean mask IoU of the detections that find an object's box (same class, box IoU of at
            least 0.5, best score first, each object once); ``matched_box_iou``: what filling the ground-truth boxes of
            the same objects scores; both NaN without a match. ``num_matched``, ``num_objects`` (ignored ones not
            counted), ``num_images``.

        Source: COCO detection evaluation; the two matched IoUs are ours.
        """
        precision = self._precision()
        ap, ap50, ap75 = (_mean_valid(part) for part in (precision, precision[0], precision[5]))
        with_ignored = any(annotation["iscrowd"] for annotation in self._annotations)
        if not with_ignored and not np.isnan(ap):
            check_ap_arithmetic(ap, ap50, ap75)
        scores = {"mask_ap": ap, "mask_ap50": ap50, "mask_ap75": ap75}
        scores |= {f"mask_ap/{name}": _mean_valid(precision[..., k]) for k, name in enumerate(self.class_names)}
        scores["matched_mask_iou"] = float(np.mean(self._mask_ious)) if self._mask_ious else float("nan")
        scores["matched_box_iou"] = float(np.mean(self._box_ious)) if self._box_ious else float("nan")
        scores["num_matched"] = len(self._mask_ious)
        scores["num_objects"] = sum(not annotation["iscrowd"] for annotation in self._annotations)
        scores["num_images"] = len(self._images)
        return scores

    def _record_truth(self, image_id: int, labels: Boxes2D, areas: list[int], rles: list[Rle]) -> None:
        rows = zip(rles, areas, labels.labels.tolist(), labels.ignore.tolist(), strict=True)
        for rle, area, label, ignored in rows:
            for category in range(len(self.class_names)) if label < 0 else [label]:
                self._annotations.append(
                    {
                        "id": len(self._annotations) + 1,
                        "image_id": image_id,
                        "category_id": category + 1,
                        "segmentation": rle,
                        "area": area,
                        "iscrowd": int(ignored),
                    }
                )

    def _precision(self) -> np.ndarray[Any, Any]:
        """Return (10 IoU thresholds, 101 recalls, classes) float64, -1 where a class has no object."""
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(self.class_names)]
        if not self._found or not self._annotations:
            objects = {row["category_id"] for row in self._annotations if not row["iscrowd"]}
            per_class = np.array([0.0 if category["id"] in objects else -1.0 for category in categories])
            return np.broadcast_to(per_class, (10, 101, len(categories)))
        # Copies, because the evaluation adds keys to the rows.
        annotations, found_rows = [dict(row) for row in self._annotations], [dict(row) for row in self._found]
        content = {"info": {}, "images": self._images, "annotations": annotations, "categories": categories}
        truth = COCO(content, print_function=_silent)
        found = truth.loadRes(found_rows)
        evaluation = COCOeval_faster(truth, found, iouType="segm", print_function=_silent)
        evaluation.evaluate()
        evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"])[:, :, :, AREA_ALL, MAX_DETECTIONS_100]


def check_ap_arithmetic(ap: float, ap50: float, ap75: float) -> None:
    """Refuse an AP that no ten thresholds could have averaged to.

    AP cannot rise with the threshold, so it lies in [(AP50 + 5 AP75) / 10, (AP50 + AP75) / 2]. (Only without ignored
    regions: a stricter threshold can move a detection from an object to a region that does not count.)

    Args:
        ap: mean over IoU 0.50:0.05:0.95.
        ap50: at 0.50.
        ap75: at 0.75.

    Raises:
        AssertionError: outside the bounds.

    Warns:
        UserWarning: inside, but the four strictest thresholds would add less than half of AP75.
    """
    low, high = (ap50 + 5 * ap75) / 10, (ap50 + ap75) / 2
    assert low - 1e-9 <= ap <= high + 1e-9, f"AP {ap:.4f} outside [{low:.4f}, {high:.4f}] from AP50 and AP75"
    if 10 * ap - (ap50 + 5 * ap75) < ap75 / 2:
        warnings.warn(f"AP {ap:.4f} is oddly low for AP50 {ap50:.4f} and AP75 {ap75:.4f}", stacklevel=2)


def encode_masks(masks: MaskSet) -> list[Rle]:
    """Return COCO's compressed run-length codes, the same strings as encoding the full-size masks.

    Args:
        masks: G masks of one image, CPU.

    Returns:
        G dictionaries ``{"size": [height, width], "counts": bytes}``.
    """
    size = [masks.height, masks.width]
    boxes = masks.crop_boxes.tolist()
    pieces = torch.split(masks.bits, [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes])
    counts = [
        rle_counts(bits.reshape(y2 - y1, x2 - x1), x1, y1, *size)
        for bits, (x1, y1, x2, y2) in zip(pieces, boxes, strict=True)
    ]
    rows = [{"size": size, "counts": row} for row in counts]
    return list(coco_mask.frPyObjects(rows, *size)) if rows else []


def rle_counts(crop: Tensor, x: int, y: int, height: int, width: int) -> list[int]:
    """Return the run lengths of a mask that is zero outside a crop: zeros, ones, zeros, ... down the columns.

    Args:
        crop: (h, w) bool, CPU.
        x: column of the crop's left edge.
        y: row of its top edge.
        height: rows of the whole image.
        width: its columns.

    Returns:
        Run lengths that add up to ``height * width``.
    """
    # One zero below each column of the crop ends every run there; runs that go on at the top of the next column
    # (crops of full height) are joined again.
    rows, columns = crop.shape
    padded = np.zeros(1 + columns * (rows + 1), dtype=bool)
    padded[1:].reshape(columns, rows + 1)[:, :rows] = crop.numpy().T
    column, row = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), rows + 1)
    edges = (column + x) * height + row + y
    if not len(edges):
        return [height * width]
    starts_afresh = edges[2::2] != edges[1:-1:2]
    edges = edges[np.concatenate([[True], np.repeat(starts_afresh, 2), [True]])]
    counts: list[int] = np.diff(edges, prepend=0).tolist()
    rest = height * width - int(edges[-1])
    return [*counts, rest] if rest else counts


def _filled(boxes: Tensor, height: int, width: int) -> MaskSet:
    """Return the boxes as masks, clipped to the image and rounded to whole pixels."""
    limit = torch.tensor([width, height, width, height])
    corners = torch.minimum(boxes.round().long().clamp(min=0), limit)
    crops = [torch.ones(y2 - y1, x2 - x1, dtype=torch.bool) for x1, y1, x2, y2 in corners.tolist()]
    return MaskSet.from_crops(height, width, corners, crops)


def _match_boxes(detections: Detections, labels: Boxes2D) -> list[tuple[int, int]]:
    """Return (detection, object) pairs: best score first, nearest box of the same class, each object once."""
    overlap = box_iou(detections.boxes.cpu(), labels.boxes.cpu())
    same_class = detections.labels.cpu()[:, None] == labels.labels.cpu()[None]
    overlap[~same_class | labels.ignore.cpu()[None]] = 0
    pairs = []
    for found in detections.scores.cpu().argsort(descending=True, stable=True).tolist():
        if overlap.shape[1] and float(overlap[found].max()) >= MATCH_BOX_IOU:
            wanted = int(overlap[found].argmax())
            pairs.append((found, wanted))
            overlap[:, wanted] = 0
    return pairs


def _overlap(first: Rle, second: Rle) -> float:
    return float(coco_mask.iou([first], [second], [0])[0, 0])


def _mean_valid(precision: np.ndarray[Any, Any]) -> float:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else float("nan")


def _silent(*_: object) -> None:
    """Print nothing."""
