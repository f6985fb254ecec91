"""Boxes as points: a heat map of centres per class, and what a box is at its centre; the losses; reading boxes off.

Codes, cells and Gaussians are in `boxes.py`, the network around the head in `detector.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lidar.detection.boxes import Boxes3D, HeatGrid, decode_boxes, encode_boxes, heat_map
from lidar.detection.neck import conv_unit
from mwsis.core.boxes3d import bev_nms
from mwsis.core.distributed import normaliser

__all__ = ["CenterHead", "CenterOutput", "center_losses", "find_boxes", "heat_loss"]

PRIOR = 0.1
POSITIVE_POWER = 2
NEGATIVE_POWER = 4
BOX_WEIGHT = 2.0
MAX_PEAKS = 500
PARTS = {"offset": 2, "height": 1, "size": 3, "heading": 4}
"""Branches of a box's code, in its order, and their numbers."""


@dataclass(frozen=True, eq=False)
class CenterOutput:
    """What the head says about each cell.

    Attributes:
        heat_logits: (B, C, rows, columns) float32, before the sigmoid.
        codes: (B, 10, rows, columns) float32, see `CODE_SIZE`.
    """

    heat_logits: Tensor
    codes: Tensor


class CenterHead(nn.Module):
    """A shared convolution, then for heat, offset, height, size and heading a hidden convolution and one that predicts.

    Args:
        in_channels: D of the neck's output.
        num_classes: C.
        channels: D of the shared and hidden convolutions.

    Source: CenterPoint (CVPR 2021); OpenPCDet's values for Waymo: one head for all classes, 64 channels, two
    convolutions a branch, initial score .1. Without bias before norms, which take it out again: *simplified*.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 64) -> None:
        super().__init__()
        self.shared = conv_unit(in_channels, channels)
        self.branches = nn.ModuleDict(
            {
                name: nn.Sequential(conv_unit(channels, channels), nn.Conv2d(channels, outputs, 3, padding=1))
                for name, outputs in {"heat": num_classes, **PARTS}.items()
            }
        )
        bias = self.branches["heat"][1].bias  # type: ignore[index]
        nn.init.constant_(bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, features: Tensor) -> CenterOutput:
        """Return the head's output for (B, in_channels, rows, columns) float32 features."""
        shared = self.shared(features)
        heat_logits = self.branches["heat"](shared).float()
        return CenterOutput(heat_logits, torch.cat([self.branches[name](shared).float() for name in PARTS], 1))


def heat_loss(heat_logits: Tensor, heat: Tensor) -> Tensor:
    """Return the focal loss of a heat map.

    Args:
        heat_logits: (...) float32, before the sigmoid.
        heat: (...) float32 in [0, 1], exactly 1 at centres; near a centre a wrong score costs less.

    Returns:
        Scalar, sum over the cells divided by the number of centres of the step (`normaliser`).

    Source: CornerNet (ECCV 2018), equation 1 (powers 2 and 4), as in CenterPoint.
    """
    prob = heat_logits.sigmoid()
    center = heat == 1
    found = -((1 - prob) ** POSITIVE_POWER) * functional.logsigmoid(heat_logits)
    invented = -((1 - heat) ** NEGATIVE_POWER) * prob**POSITIVE_POWER * functional.logsigmoid(-heat_logits)
    return torch.where(center, found, invented).sum() / normaliser(center.sum())


def center_losses(output: CenterOutput, gt: Sequence[Boxes3D], grid: HeatGrid) -> dict[str, Tensor]:
    """Return the losses of a batch.

    Args:
        output: of B sweeps.
        gt: B sets of boxes; those with their centre off the grid are left out.
        grid: the cells.

    Returns:
        ``heat`` and ``box``, weighted scalars. ``box`` is the L1 distance of the codes at the boxes' cells, summed over
        its numbers, mean over the boxes of the step.

    Source: CenterPoint; OpenPCDet's weights for Waymo (heat 1, box 2, all numbers alike).
    """
    kept = [boxes[grid.holds(boxes.boxes3d)] for boxes in gt]
    num_classes = output.heat_logits.shape[1]
    heat = torch.stack([heat_map(boxes, grid, num_classes) for boxes in kept])
    predicted, wanted = [], []
    for codes, boxes in zip(output.codes, kept, strict=True):
        targets, cells = encode_boxes(boxes.boxes3d, grid)
        predicted.append(codes[:, cells[:, 0], cells[:, 1]].T)
        wanted.append(targets)
    distance = (torch.cat(predicted) - torch.cat(wanted)).abs().sum()
    count = torch.tensor(sum(map(len, kept)), device=distance.device)
    return {"heat": heat_loss(output.heat_logits, heat), "box": BOX_WEIGHT * distance / normaliser(count)}


def find_boxes(output: CenterOutput, grid: HeatGrid, score_threshold: float, nms_iou: float) -> list[Boxes3D]:
    """Return the boxes of each sweep, best first.

    A cell that no neighbour exceeds is a centre; the 500 best above the threshold are kept, and of two that overlap by
    more than ``nms_iou`` in the bird's-eye view, and are of one class, the better one.

    Args:
        output: of B sweeps.
        grid: the cells.
        score_threshold: lowest score (OpenPCDet: .1).
        nms_iou: (OpenPCDet: .7, over all classes together; *generalised*: class by class).

    Returns:
        B sets with scores.

    Source: peaks by 3x3 max pooling as in CenterNet (Zhou et al., 2019); the rest as OpenPCDet's CenterPoint.
    """
    heat = output.heat_logits.sigmoid()
    peak = heat == functional.max_pool2d(heat, 3, stride=1, padding=1)
    heat = torch.where(peak & (heat > score_threshold), heat, torch.zeros_like(heat))
    return [_of_sweep(one, codes, grid, nms_iou) for one, codes in zip(heat, output.codes, strict=True)]


def _of_sweep(heat: Tensor, codes: Tensor, grid: HeatGrid, nms_iou: float) -> Boxes3D:
    _, rows, columns = heat.shape
    scores, place = heat.flatten().topk(min(MAX_PEAKS, heat.numel()))
    scores, place = scores[scores > 0], place[scores > 0]
    labels, cell = place // (rows * columns), place % (rows * columns)
    cells = torch.stack([cell // columns, cell % columns], 1)
    boxes = Boxes3D(decode_boxes(codes[:, cells[:, 0], cells[:, 1]].T, cells, grid), labels, scores)
    kept = []
    for label in torch.unique(labels).tolist():
        mine = (labels == label).nonzero()[:, 0]
        kept.append(mine[bev_nms(boxes.boxes3d[mine], scores[mine], nms_iou)])
    return boxes[torch.cat(kept).sort().values] if kept else boxes
