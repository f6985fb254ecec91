"""Exact connected components of points closer than a radius, the same partition as the dense distance matrix gives.

One code path for CPU and GPU, plain tensor operations, O(N) memory in place of the dense O(N^2). Not here: what the
components mean (`fusion.spatial_labels` groups pseudo labels, `lidar.grouping` groups predictions) and approximations
on voxel grids. The slow, obvious twin is `tests/reference/clustering.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mwsis.core.errors import DataError

__all__ = ["connected_components"]

CELL_SHRINK = 1 - 1e-9
"""Cells are this much smaller than radius / sqrt(D), so rounding never puts two points a radius apart in one cell."""
MAX_TESTS = 1 << 20
"""Point pairs compared at once: bounds the memory of the distance tests to about 100 MB."""
FEW = 4
"""Points of each cell that are tried first; they join most neighbouring cells, so that few need all their pairs."""
MAX_KEY = 2**62
"""Numbers of cells stay below this; where the points are spread over more, empty cells are left out."""

Pairs = tuple[Tensor, Tensor]
"""(P,) int64 each: pairs of cells."""


def connected_components(positions: Tensor, radius: float, groups: Tensor | None = None) -> Tensor:
    """Return the cluster of each point: points of one group linked by steps strictly shorter than the radius.

    Strictly shorter, because the published labels were made so.

    Args:
        positions: (N, D) float, metres, any frame, finite; D is 2 or 3 in practice (the neighbour table has 5^D cells).
        radius: largest step, exclusive, metres, > 0.
        groups: (N,) int64, points of different groups are never joined; None puts all points in one group.

    Returns:
        (N,) int64, component ids 0..K-1, numbered in the order of their first points.

    Raises:
        DataError: a position is not finite.

    Complexity: O(N log N) for points spread over many cells; only occupied neighbouring cells are compared, point by
    point when nothing cheaper decides. Peak memory for 200 k points in two dimensions about 150 MB.

    Source: MWSIS (AAAI 2024) clusters with a dense N x N distance matrix; the cell scheme is ours and exact.

    Example:
        >>> connected_components(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.5, 0.0]]), radius=0.6)
        tensor([0, 1, 0])
    """
    assert positions.ndim == 2
    assert radius > 0
    if not len(positions):
        return torch.zeros(0, dtype=torch.int64, device=positions.device)
    if not bool(torch.isfinite(positions).all()):
        raise DataError("positions: expected finite coordinates, got NaN or infinity; look for a diverged training run")
    points = positions.detach().double()
    reach = math.ceil(math.sqrt(points.shape[1]))
    keys, spans = _keys(points, radius, groups, reach)
    sorted_keys, order = keys.sort()
    cell_keys, cell, counts = torch.unique_consecutive(sorted_keys, return_inverse=True, return_counts=True)
    cells = _Cells(points.index_select(0, order), cell, counts)
    touching, apart = _neighbours(cell_keys, spans, reach)
    roots = torch.arange(len(cell_keys), device=points.device)
    both = _joined([touching, apart])
    for pairs, at_most in ((touching, FEW), (apart, FEW), (both, None)):
        open_pairs = _select(pairs, roots.index_select(0, pairs[0]) != roots.index_select(0, pairs[1]))
        roots = _merge(roots, _select(open_pairs, cells.any_closer(open_pairs, radius, at_most)))
    cluster = torch.empty_like(order).scatter_(0, order, roots.index_select(0, cell))
    return _numbered_by_first_member(cluster)


class _Cells:
    """Points sorted by cell, one tensor per axis (gathers of one number are the fastest), and the cells' extents."""

    def __init__(self, points: Tensor, cell: Tensor, counts: Tensor) -> None:
        self.axes = [axis.contiguous() for axis in points.unbind(1)]
        self.counts = counts
        self.starts = counts.cumsum(0) - counts
        empty = points.new_empty(len(counts))
        self.low = [empty.scatter_reduce(0, cell, axis, "amin", include_self=False) for axis in self.axes]
        self.high = [empty.scatter_reduce(0, cell, axis, "amax", include_self=False) for axis in self.axes]

    def any_closer(self, pairs: Pairs, radius: float, at_most: int | None) -> Tensor:
        """Return (P,) bool: whether some point of a pair's first cell is closer than the radius to one of its second.

        ``at_most`` compares only the first so many points of each cell (a sufficient test), None all of them.
        """
        linked = torch.zeros(len(pairs[0]), dtype=torch.bool, device=pairs[0].device)
        near = (self._squared_gap(pairs) < radius * radius).nonzero()[:, 0]
        first, second = pairs[0].index_select(0, near), pairs[1].index_select(0, near)
        num_first, num_second = self.counts.index_select(0, first), self.counts.index_select(0, second)
        if at_most is not None:
            num_first, num_second = num_first.clamp(max=at_most), num_second.clamp(max=at_most)
        pair, one = _runs(self.starts.index_select(0, first), num_first)
        start, length = self.starts.index_select(0, second).index_select(0, pair), num_second.index_select(0, pair)
        for rows in _slices(length, MAX_TESTS):
            row, other = _runs(start[rows], length[rows])
            closer = self._squared_step(one[rows].index_select(0, row), other) < radius * radius
            linked[near.index_select(0, pair[rows].index_select(0, row.masked_select(closer)))] = True
        return linked

    def _squared_step(self, one: Tensor, other: Tensor) -> Tensor:
        return _sum_of_squares(axis.index_select(0, one) - axis.index_select(0, other) for axis in self.axes)

    def _squared_gap(self, pairs: Pairs) -> Tensor:
        """Return (P,) the squared distance of the cells' extents: no step between them is shorter."""
        first, second = pairs
        return _sum_of_squares(
            torch.maximum(
                low.index_select(0, first) - high.index_select(0, second),
                low.index_select(0, second) - high.index_select(0, first),
            ).clamp(min=0)
            for low, high in zip(self.low, self.high, strict=True)
        )


def _sum_of_squares(axes: Iterator[Tensor]) -> Tensor:
    total = next(axes).square()
    for axis in axes:
        total += axis.square()
    return total


def _select(pairs: Pairs, wanted: Tensor) -> Pairs:
    keep = wanted.nonzero()[:, 0]
    return pairs[0].index_select(0, keep), pairs[1].index_select(0, keep)


def _runs(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the members of runs of consecutive numbers, run after run: (S,) which run, and (S,) the number."""
    run = torch.repeat_interleave(lengths)
    shift = starts - (lengths.cumsum(0) - lengths)
    return run, torch.arange(len(run), device=run.device) + shift.index_select(0, run)


def _slices(lengths: Tensor, at_most: int) -> Iterator[slice]:
    """Cut rows into slices whose lengths sum to ``at_most``; a longer row has its own slice."""
    ends = lengths.cumsum(0)
    begin, done = 0, 0
    while begin < len(ends):
        end = max(int(torch.searchsorted(ends, done + at_most, right=True)), begin + 1)
        yield slice(begin, end)
        begin, done = end, int(ends[end - 1])


def _keys(points: Tensor, radius: float, groups: Tensor | None, reach: int) -> tuple[Tensor, list[int]]:
    """Return (N,) int64, a number for the cell and group of each point, and the span of each axis in these numbers.

    The group is the highest digit, the axes follow. A span ends with ``reach`` empty cells, so that neighbours beyond
    the last cell of a row are none of the next row.
    """
    side = radius / math.sqrt(points.shape[1]) * CELL_SHRINK
    axes = list(((points - points.amin(0)) / side).floor().unbind(1))
    first_group, last_group = (0, 0) if groups is None else (int(groups.min()), int(groups.max()))
    spans = [int(axis.max()) + 1 + reach for axis in axes]
    if (last_group - first_group + 1) * math.prod(spans) < MAX_KEY:
        keys = (
            torch.zeros(len(points), dtype=torch.int64, device=points.device)
            if groups is None
            else groups - first_group
        )
    else:
        axes = [_without_gaps(axis, reach) for axis in axes]
        spans = [int(axis.max()) + 1 + reach for axis in axes]
        keys = torch.unique(torch.zeros_like(axes[0]) if groups is None else groups, return_inverse=True)[1]
        assert (int(keys.max()) + 1) * math.prod(spans) < MAX_KEY, "too many cells for an int64 key"
    for axis, span in zip(axes, spans, strict=True):
        keys = keys * span + axis.long()
    return keys, spans


def _without_gaps(axis: Tensor, reach: int) -> Tensor:
    """Return coordinates with runs of empty cells cut to ``reach``: neighbourhoods stay, the numbers become small."""
    occupied, index = torch.unique(axis, return_inverse=True)
    jumps = occupied.diff().clamp(max=reach + 1).long()
    return torch.cat([jumps.new_zeros(1), jumps.cumsum(0)])[index]


def _neighbours(cell_keys: Tensor, spans: list[int], reach: int) -> tuple[Pairs, Pairs]:
    """Return the pairs of occupied cells that a step can span, each once: those that touch, and those that do not.

    Neighbours along the last axis follow each other in the sorted keys, so one search finds a whole row of them. An
    offset and its opposite name the same pairs: only offsets whose first other number is positive are looked for.
    """
    num_axes = len(spans)
    padded = torch.cat([cell_keys, cell_keys.new_full((2 * reach + 1,), torch.iinfo(torch.int64).max)])
    touching, apart = [], []
    for offset in itertools.product(range(-reach, reach + 1), repeat=num_axes - 1):
        gap = _squared_gap_of(offset)
        if offset < (0,) * (num_axes - 1) or gap > num_axes:
            continue
        widest = max(step for step in range(reach + 1) if gap + _squared_gap_of((step,)) <= num_axes)
        lowest = -widest if any(offset) else 1
        shift = 0
        for step, span in zip((*offset, 0), spans, strict=True):
            shift = shift * span + step
        row = torch.searchsorted(cell_keys, cell_keys + (shift + lowest))
        first, second = _runs(row, torch.full_like(row, widest - lowest + 1))
        along = padded.index_select(0, second) - cell_keys.index_select(0, first) - shift
        beside = (along.abs() <= 1) & (gap == 0)
        touching.append(_select((first, second), beside))
        apart.append(_select((first, second), (along <= widest) & ~beside))
    return _joined(touching), _joined(apart)


def _squared_gap_of(offset: tuple[int, ...]) -> int:
    """Return the squared distance, in cells, of the nearest edges of two cells this far apart."""
    return sum(max(abs(step) - 1, 0) ** 2 for step in offset)


def _joined(parts: list[Pairs]) -> Pairs:
    return torch.cat([first for first, _ in parts]), torch.cat([second for _, second in parts])


def _merge(roots: Tensor, pairs: Pairs) -> Tensor:
    """Return (M,) roots after joining the linked cells: each root hooks onto the smallest root it is linked to."""
    while True:
        first, second = roots.index_select(0, pairs[0]), roots.index_select(0, pairs[1])
        pairs = _select((first, second), first != second)
        if not len(pairs[0]):
            return roots
        high, low = torch.maximum(*pairs), torch.minimum(*pairs)
        roots = roots.scatter_reduce(0, high, low, "amin")
        while not torch.equal(roots, above := roots.index_select(0, roots)):
            roots = above


def _numbered_by_first_member(cluster: Tensor) -> Tensor:
    """Return the ids renumbered 0..K-1 in the order of their first points; ids are below N."""
    rank = torch.arange(len(cluster), device=cluster.device)
    first_member = rank.new_full((len(cluster),), len(cluster)).scatter_reduce(0, cluster, rank, "amin")
    first_of_mine = first_member.index_select(0, cluster)
    return ((first_of_mine == rank).cumsum(0) - 1).index_select(0, first_of_mine)
