"""Mask average precision of camera detections, and whether the masks are better than filled boxes.

The only file that imports faster_coco_eval (COCO's AP, faster) and, beside `mwsis.data.coco_json`, pycocotools
(run-length coding, mask overlap).
Masks are encoded from their crops, never as full-size images. Not here: LiDAR instances, whose AP needs no masks at all
(`point_instances.py`).
"""

from __future__ import annotations

import math
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

__all__ = ["CocoMaskEvaluator", "check_ap_arithmetic", "encode_masks", "json_masks", "match_boxes", "rle_counts"]

MATCH_BOX_IOU = 0.5
"""A detection is compared with a ground-truth object when their boxes overlap at least this much."""
AREAS = ("all", "small", "medium", "large")
"""COCO's sizes of objects, in its order: all, below 32 x 32 px, below 96 x 96 px, above."""
MAX_DETECTIONS_100 = 2
"""Position of "100 detections an image" among COCO's defaults."""

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
        self._own_box_ious: list[float] = []

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
        areas = _areas(truth_rles)
        self._record_truth(image_id, labels, areas, truth_rles)
        self._record_found(image_id, detections, found_rles)
        if pairs := match_boxes(detections, labels):
            matched, wanted = zip(*pairs, strict=True)
            self._mask_ious += _overlaps([found_rles[row] for row in matched], [truth_rles[row] for row in wanted])
            self._box_ious += _overlaps_when_filled(labels.boxes[list(wanted)], masks, areas, wanted)
            self._own_box_ious += _overlaps_when_filled(detections.boxes[list(matched)], masks, areas, wanted)

    def compute(self) -> dict[str, float]:
        """Score everything recorded so far.

        Returns:
            ``mask_ap`` (mean over IoU 0.50:0.05:0.95 and classes), ``mask_ap50``, ``mask_ap75``,
            ``mask_ap_small``, ``mask_ap_medium``, ``mask_ap_large`` (objects and detections below 32 x 32 px of mask,
            below 96 x 96, above), ``mask_ap/<class>``: COCO mask AP, at most 100 detections an image and class; NaN
            where no object exists.
            ``matched_mask_iou``: mean mask IoU of the detections that find an object's box (same class, box IoU of at
            least 0.5, best score first, each object once); ``matched_box_iou``: what filling the ground-truth boxes of
            the same objects scores; ``matched_own_box_iou``: what filling those detections' own boxes scores; all NaN
            without a match. ``num_matched``, ``num_objects`` (ignored ones not
            counted), ``num_images``.

        Raises:
            AssertionError: the three APs contradict each other (`check_ap_arithmetic`).

        Source: COCO detection evaluation; the matched IoUs are ours. *Simplified*: the size of an object is the
        number of its mask's pixels; a COCO file gives the area of its polygons (median .2 % apart; 1 of 645 objects of
        real images falls into another size).
        """
        by_area = self._precision()
        precision = by_area[..., 0]
        ap, ap50, ap75 = (_mean_valid(part) for part in (precision, precision[0], precision[5]))
        with_ignored = any(annotation["iscrowd"] for annotation in self._annotations)
        if not with_ignored and not np.isnan(ap):
            check_ap_arithmetic(ap, ap50, ap75)
        scores = {"mask_ap": ap, "mask_ap50": ap50, "mask_ap75": ap75}
        scores |= {f"mask_ap_{area}": _mean_valid(by_area[..., k]) for k, area in enumerate(AREAS) if k}
        scores |= {f"mask_ap/{name}": _mean_valid(precision[..., k]) for k, name in enumerate(self.class_names)}
        matched = {"mask": self._mask_ious, "box": self._box_ious, "own_box": self._own_box_ious}
        scores |= {
            f"matched_{name}_iou": float(np.mean(values)) if values else math.nan for name, values in matched.items()
        }
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

    def _record_found(self, image_id: int, detections: Detections, rles: list[Rle]) -> None:
        scores, areas = detections.scores.double().tolist(), _areas(rles)
        for rle, area, label, score in zip(rles, areas, detections.labels.tolist(), scores, strict=True):
            self._found.append(
                {
                    "id": len(self._found) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "segmentation": rle,
                    "area": area,
                    "iscrowd": 0,
                    "score": score,
                }
            )

    def _precision(self) -> np.ndarray[Any, Any]:
        """Return (10 IoU thresholds, 101 recalls, classes, `AREAS`) float64, -1 where a class has no such object."""
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(self.class_names)]
        if not self._annotations:
            return np.full((10, 101, len(categories), len(AREAS)), -1.0)
        # Copies, because the evaluation adds keys to the rows.
        truth, found = (
            COCO(
                {"images": self._images, "categories": categories, "annotations": [dict(row) for row in rows]},
                print_function=_silent,
            )
            for rows in (self._annotations, self._found)
        )
        evaluation = COCOeval_faster(truth, found, iouType="segm", print_function=_silent)
        evaluation.evaluate()
        evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"])[..., MAX_DETECTIONS_100]


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


def json_masks(masks: MaskSet) -> list[dict[str, Any]]:
    """Return the codes of `encode_masks` as COCO's JSON files hold them: ``counts`` is text."""
    return [{"size": code["size"], "counts": code["counts"].decode("ascii")} for code in encode_masks(masks)]


def rle_counts(crop: Tensor, x: int, y: int, height: int, width: int) -> np.ndarray[Any, Any]:
    """Return the run lengths of a mask that is zero outside a crop: zeros, ones, zeros, ... down the columns.

    Args:
        crop: (h, w) bool, CPU.
        x: column of the crop's left edge.
        y: row of its top edge.
        height: rows of the whole image.
        width: its columns.

    Returns:
        (R,) int64, run lengths that add up to ``height * width``.
    """
    # A row of zeros above and below ends every run in its column; runs that go on at the top of the next column (crops
    # of full height) are joined again. Edges are found row by row, as the crop lies in memory, and then sorted: there
    # are few of them.
    rows, columns = crop.shape
    padded = np.zeros((rows + 2, columns), dtype=bool)
    padded[1:-1] = crop.numpy()
    found = np.flatnonzero(padded[1:] != padded[:-1])
    if not len(found):
        return np.array([height * width])
    row = found // columns
    edges = np.sort(found * height - row * (columns * height - 1) + (x * height + y))
    if rows == height:
        starts_afresh = edges[2::2] != edges[1:-1:2]
        edges = edges[np.concatenate([[True], np.repeat(starts_afresh, 2), [True]])]
    counts = np.empty(len(edges) + 1, dtype=np.int64)
    counts[0], counts[-1] = edges[0], height * width - edges[-1]
    np.subtract(edges[1:], edges[:-1], out=counts[1:-1])
    return counts if counts[-1] else counts[:-1]


def _overlaps_when_filled(boxes: Tensor, masks: MaskSet, areas: Sequence[int], wanted: Sequence[int]) -> list[float]:
    """Return the IoU of masks with filled boxes, clipped to the image and rounded to whole pixels.

    Args:
        boxes: (M, 4), one for each mask to compare.
        masks: G masks.
        areas: of the G masks, pixels.
        wanted: indices of the M masks to compare.
    """
    limit = torch.tensor([masks.width, masks.height, masks.width, masks.height])
    corners = torch.minimum(boxes.cpu().round().long().clamp(min=0), limit).tolist()
    places = masks.crop_boxes.tolist()
    overlaps = []
    for (x1, y1, x2, y2), index in zip(corners, wanted, strict=True):
        left, top, _, _ = places[index]
        part = masks.crop(index).numpy()[max(y1 - top, 0) : max(y2 - top, 0), max(x1 - left, 0) : max(x2 - left, 0)]
        inside = int(np.count_nonzero(part))
        union = (x2 - x1) * (y2 - y1) + areas[index] - inside
        overlaps.append(inside / union if union else 0.0)
    return overlaps


def match_boxes(detections: Detections, labels: Boxes2D) -> list[tuple[int, int]]:
    """Return which detection finds which object: best score first, nearest box of the same class, each object once.

    Args:
        detections: of one image.
        labels: its boxes; ignored regions are nobody's match.

    Returns:
        Pairs (detection, object) whose boxes overlap by `MATCH_BOX_IOU` at least.
    """
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


def _areas(rles: Sequence[Rle]) -> list[int]:
    """Return the number of pixels of each mask; the codes are shorter than the masks."""
    return [int(size) for size in coco_mask.area(list(rles))] if rles else []


def _overlaps(first: Sequence[Rle], second: Sequence[Rle]) -> list[float]:
    """Return the IoU of masks pair by pair."""
    every: list[float] = coco_mask.iou(list(first), list(second), [0] * len(second)).diagonal().tolist()
    return every


def _mean_valid(precision: np.ndarray[Any, Any]) -> float:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else float("nan")


def _silent(*_: object) -> None:
    """Print nothing."""
