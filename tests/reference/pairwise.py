"""The look-alike neighbour loss as published: every sample, eight neighbours, dense maps. Slow and obvious."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def neighbours(maps: Tensor, dilation: int) -> Tensor:
    """Return (K, 8, h, w): the eight neighbours of each cell of (K, h, w), zero outside."""
    height, width = maps.shape[-2:]
    padded = functional.pad(maps, (dilation,) * 4)
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    views = []
    for row, col in steps:
        top, left = dilation * (1 + row), dilation * (1 + col)
        views.append(padded[..., top : top + height, left : left + width])
    return torch.stack(views, 1)


def dense_pairwise(
    logits: Tensor, lab: Tensor, valid: Tensor, in_box: Tensor, threshold: float, dilation: int
) -> Tensor:
    """Return the loss of (K, h, w) logits.

    Args:
        logits: (K, h, w).
        lab: (K, 3, h, w) colours of each sample's image.
        valid: (K, h, w) bool, image content.
        in_box: (K, h, w) bool, the sample's box.
        threshold: smallest similarity.
        dilation: distance of neighbours, cells.
    """
    other = torch.stack([neighbours(lab[:, channel], dilation) for channel in range(3)], 2)
    similarity = (-0.5 * (lab[:, None] - other).norm(dim=2)).exp() * neighbours(valid.float(), dilation)
    return dense_pairs(logits, similarity, in_box, threshold, dilation)


def dense_pairs(logits: Tensor, similarity: Tensor, in_box: Tensor, threshold: float, dilation: int) -> Tensor:
    """Return the loss of (K, h, w) logits for (K, 8, h, w) similarities, zero where the neighbour is not valid."""
    num_samples = len(logits)
    prob = logits.sigmoid()[:, None]
    near = neighbours(logits, dilation).sigmoid()
    same = prob * near + (1 - prob) * (1 - near)
    weight = (similarity >= threshold).to(logits.dtype) * in_box[:, None].to(logits.dtype)
    assert weight.shape == (num_samples, 8, *logits.shape[1:])
    return -(weight * same.log()).sum() / weight.sum().clamp(min=1)
