"""Masks on boxes: M x M cells that divide a box evenly, as Mask R-CNN learns and predicts them.

`mask_targets` reads what a box's cells should be from given masks, `paste_box_masks` and `map_box_masks` lay predicted
cells on an image. Masks of whole images (CondInst) are in `condinst.py`; the network is `mask_rcnn.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

from mwsis.core.instances import MaskSet

__all__ = ["map_box_masks", "mask_targets", "paste_box_masks"]

MASK_THRESHOLD = 0.5


def mask_targets(masks: MaskSet, mask_index: Tensor, boxes: Tensor, cells: int) -> Tensor:
    """Return how far each cell of each box is covered by its mask.

    Args:
        masks: G masks of an image.
        mask_index: (K,) int64 in [0, G), the mask of each box.
        boxes: (K, 4) float32 xyxy, pixels of that image, on the device of the masks.
        cells: M.

    Returns:
        (K, M, M) float32 in [0, 1].

    Complexity: memory of one mask's crop at a time; no bitmap of the size of the image is made.

    Source: RoIAlign of Mask R-CNN (ICCV 2017) on the mask; pixel centres at +0.5 as in Detectron2 (*corrected*:
    torchvision's targets lie half a pixel off).
    """
    targets = boxes.new_zeros(len(boxes), cells, cells)
    for index in torch.unique(mask_index).tolist():
        mine = mask_index == index
        x1, y1, x2, y2 = masks.crop_boxes[index].tolist()
        # Beyond the crop the mask is 0; beyond the image there is nothing, and its last pixels count.
        margin = [int(side) for side in (x1 > 0, x2 < masks.width, y1 > 0, y2 < masks.height)]
        crop = functional.pad(masks.crop(index).to(boxes.dtype), margin)
        corner = boxes.new_tensor([x1 - margin[0], y1 - margin[2]]).repeat(2)
        targets[mine] = roi_align(crop[None, None], [boxes[mine] - corner], cells, aligned=True)[:, 0]
    return targets


def paste_box_masks(prob: Tensor, boxes: Tensor, height: int, width: int) -> MaskSet:
    """Return masks on an image, each computed only within its box.

    Args:
        prob: (K, M, M) float in [0, 1].
        boxes: (K, 4) float xyxy, pixels of the image.
        height, width: of the image.

    Returns:
        K masks, on the CPU: pixels whose centre lies in the box and is more likely set than not.
    """
    areas, crops = [], []
    for cells, box in zip(prob.cpu(), boxes.tolist(), strict=True):
        area = _pixels_of(box, height, width)
        areas.append(area)
        crops.append(_read(cells, box, area) > MASK_THRESHOLD)
    return MaskSet.from_crops(height, width, torch.tensor(areas, dtype=torch.int64), crops)


def map_box_masks(prob: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Return masks as maps of an image, (K, H, W) float, 0 outside of their boxes; arguments as of `paste_box_masks`.

    Complexity: memory of K maps.
    """
    maps = prob.new_zeros(len(prob), height, width)
    for one, cells, box in zip(maps, prob, boxes.tolist(), strict=True):
        x1, y1, x2, y2 = area = _pixels_of(box, height, width)
        one[y1:y2, x1:x2] = _read(cells, box, area)
    return maps


def _pixels_of(box: list[float], height: int, width: int) -> list[int]:
    """Return x1 y1 x2 y2, half-open, of the pixels whose centre lies in a box; all zero where there are none."""
    area = [min(max(math.ceil(side - 0.5), 0), size) for side, size in zip(box, (width, height) * 2, strict=True)]
    return area if area[0] < area[2] and area[1] < area[3] else [0, 0, 0, 0]


def _read(cells: Tensor, box: list[float], area: list[int]) -> Tensor:
    """Return an (M, M) mask at the pixels of an area, linearly between the centres of its cells."""
    rows = _read_rows(cells, box[1], box[3], area[1], area[3])
    return _read_rows(rows.T, box[0], box[2], area[0], area[2]).T


def _read_rows(cells: Tensor, low: float, high: float, begin: int, end: int) -> Tensor:
    """Return pixel rows ``begin`` to ``end`` of M rows of cells that reach from ``low`` to ``high`` pixels."""
    pixel = torch.arange(begin, end, device=cells.device, dtype=cells.dtype) + 0.5
    place = ((pixel - low) / (high - low) * len(cells) - 0.5).clamp(0, len(cells) - 1)
    first = place.floor().long()
    return torch.lerp(cells[first], cells[(first + 1).clamp(max=len(cells) - 1)], (place - first)[:, None])
