"""Sums, means and maxima over ragged segments (points of a voxel, samples of an object), differentiable; medians.

Segments are named by an id per row, in any order. Plain torch computes them; `use` hands sums, means and maxima to
torch-scatter (an extra) for the whole process, never by itself: results may differ in the last bits. Not here:
clustering, which makes such ids (`clustering.py`).
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from mwsis.core.errors import ConfigError

__all__ = ["IMPLEMENTATIONS", "segment_max", "segment_mean", "segment_median", "segment_sum", "use"]

IMPLEMENTATIONS = ("torch", "scatter")
_scatter: ModuleType | None = None


def use(implementation: str) -> None:
    """Choose what computes sums, means and maxima of segments in this process, from now on.

    On CPU both take about the same time, except that torch-scatter's maximum without gradient takes two to ten times
    as long; on a GPU nobody measured.

    Args:
        implementation: ``torch`` (what a process starts with) or ``scatter``, torch-scatter.

    Raises:
        ConfigError: there is no such implementation, or torch-scatter cannot be imported.
    """
    global _scatter
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(f"segment_ops: expected one of {list(IMPLEMENTATIONS)}, got {implementation}")
    try:
        _scatter = import_module("torch_scatter") if implementation == "scatter" else None
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"segment_ops=scatter: torch-scatter cannot be imported ({error}); install the extra 'scatter' or use torch"
        ) from None


def segment_sum(values: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    """Return the sum of the rows of each segment.

    Args:
        values: (N, ...) number.
        segment_ids: (N,) int64, in [0, num_segments).
        num_segments: number of segments M.

    Returns:
        (M, ...), dtype of ``values``; 0 for an empty segment.
    """
    if _scatter is not None:
        summed: Tensor = _scatter.scatter_sum(values, segment_ids, 0, dim_size=num_segments)
        return summed
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
    if _scatter is not None:
        mean: Tensor = _scatter.scatter_mean(values, segment_ids, 0, dim_size=num_segments)
        return mean
    counts = torch.bincount(segment_ids, minlength=num_segments).clamp(min=1).to(values.dtype)
    return segment_sum(values, segment_ids, num_segments) / counts.reshape(-1, *[1] * (values.ndim - 1))


def segment_max(values: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    """Return the element-wise maximum of the rows of each segment.

    Args:
        values: (N, ...) float.
        segment_ids: (N,) int64, in [0, num_segments).
        num_segments: number of segments M.

    Returns:
        (M, ...), dtype of ``values``; -inf for an empty segment. Equal maxima share the gradient; with
        torch-scatter one of them has all of it.
    """
    if _scatter is not None:
        largest: Tensor
        largest, row = _scatter.scatter_max(values, segment_ids, 0, dim_size=num_segments)
        return largest.masked_fill(row == len(values), -torch.inf)
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
