"""Matching, masks at stride 4 and level sets, one element at a time. Slow and obvious."""

from __future__ import annotations

import torch
from torch import Tensor


def greedy_match(iou: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Return the detection of each object, -1 none: best score first, its nearest free object."""
    match = [-1] * iou.shape[1]
    for found in scores.argsort(descending=True, stable=True).tolist():
        best, wanted = -1.0, -1
        for gt in range(iou.shape[1]):
            if match[gt] < 0 and iou[found, gt] >= threshold and iou[found, gt] > best:
                best, wanted = float(iou[found, gt]), gt
        if wanted >= 0:
            match[wanted] = found
    return match


def overlaps(num_cells: int, num_pixels: int, cell: float) -> Tensor:
    """Return (num_cells, num_pixels): the share of each cell, ``cell`` pixels wide, that each pixel covers."""
    shares = torch.zeros(num_cells, num_pixels, dtype=torch.float64)
    for j in range(num_cells):
        for i in range(num_pixels):
            shares[j, i] = max(0.0, min((j + 1) * cell, i + 1.0) - max(j * cell, float(i))) / cell
    return shares


def mask_at_stride_4(mask: Tensor, size: tuple[int, int], flipped: bool) -> Tensor:
    """Return the cells of an (H, W) bool mask on an image resized to ``size``: covered by half, or the fullest."""
    if flipped:
        mask = mask.flip(1)
    rows = overlaps(-(-size[0] // 4), mask.shape[0], 4 * mask.shape[0] / size[0])
    cols = overlaps(-(-size[1] // 4), mask.shape[1], 4 * mask.shape[1] / size[1])
    cover = rows @ mask.double() @ cols.T
    cells = cover >= 0.5 - 1e-5
    if mask.any() and not cells.any():
        cells = cover >= cover.max() - 1e-9
    return cells


def level_set(prob: Tensor, feats: Tensor, box: Tensor) -> Tensor:
    """Return the energy of one mask (h, w) on features (D, h, w) within the cells of a box (h, w) bool."""
    energy = prob.new_zeros(())
    for share in (prob, 1 - prob):
        cells = [(share[y, x], feats[:, y, x]) for y, x in box.nonzero().tolist()]
        total = sum(weight for weight, _ in cells)
        mean = sum(weight * value for weight, value in cells) / total
        energy = energy + sum(weight * (value - mean).square().sum() for weight, value in cells)
    return energy / box.sum()
