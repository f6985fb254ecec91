"""Sums, means and maxima over ragged segments (points of a voxel, samples of an object), differentiable; medians.

Segments are named by an id per row, in any order; no CUDA extension is involved. Not here: clustering, which makes such
ids (`clustering.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["segment_max", "segment_mean", "segment_median", "segment_sum"]


def segment_sum(values: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    """Return the sum of the rows of each segment.

    Args:
        values: (N, ...) number.
        segment_ids: (N,) int64, in [0, num_segments).
        num_segments: number of segments M.

    Returns:
        (M, ...), dtype of ``values``; 0 for an empty segment.
    """
    return values.new_zeros(num_segments, *values.shape[1:]).index_add(0, segment_ids, values)


def segment_mean(values: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    """Return the mean of the rows of each segment.

    Args:
        values: (N, ...) float.
        segment_ids: (N,) int64, in [0, num_segments).
        num_segments: number of segments M.

    Returns:
        (M, ...), dtype of ``values``; 0 for an empty segment.
    """
    counts = torch.bincount(segment_ids, minlength=num_segments).clamp(min=1).to(values.dtype)
    return segment_sum(values, segment_ids, num_segments) / counts.reshape(-1, *[1] * (values.ndim - 1))


def segment_max(values: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    """Return the element-wise maximum of the rows of each segment.

    Args:
        values: (N, ...) float.
        segment_ids: (N,) int64, in [0, num_segments).
        num_segments: number of segments M.

    Returns:
        (M, ...), dtype of ``values``; -inf for an empty segment. Equal maxima share the gradient.
    """
    index = segment_ids.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
    lowest = values.new_full((num_segments, *values.shape[1:]), -torch.inf)
    return lowest.scatter_reduce(0, index, values, "amax")


def segment_median(values: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    """Return the lower median of the values of each segment; without gradient.

    Args:
        values: (N,) float.
        segment_ids: (N,) int64, in [0, num_segments).
        num_segments: number of segments M.

    Returns:
        (M,), dtype of ``values``; infinity for an empty segment.
    """
    values = values.detach()
    order = torch.argsort(values, stable=True)
    order = order[torch.argsort(segment_ids[order], stable=True)]
    counts = torch.bincount(segment_ids, minlength=num_segments)
    middle = (counts.cumsum(0) - counts) + (counts - 1).clamp(min=0) // 2
    padded = torch.cat([values[order], values.new_full((1,), torch.inf)])
    return torch.where(counts > 0, padded[middle.clamp(max=len(values))], torch.inf)
