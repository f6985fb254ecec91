"""How much of an object the objects before it hide, judged from 2D boxes; masks are never looked at."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["hidden_shares"]


def hidden_shares(boxes: Tensor, camera: Tensor, range_: Tensor) -> Tensor:
    """Return the largest share of each 2D box that the box of one nearer object of the same camera covers.

    Two boxes that cover one half of a third each hide half of it, not all: of the nearer objects the one counts that
    covers most.

    Args:
        boxes: (G, 4) float, x0 y0 x1 y1 with x0 < x1 and y0 < y1, pixels of each box's own image.
        camera: (G,) int64, whose image it is.
        range_: (G,) float, metres to the box's object; infinity where it is not known: such a box hides nothing.

    Returns:
        (G,) float64 in [0, 1]; 0 where nothing is nearer.

    Complexity: O(G^2).
    """
    corners = boxes.double()
    low = torch.maximum(corners[:, None, :2], corners[:, :2])
    high = torch.minimum(corners[:, None, 2:], corners[:, 2:])
    before = (camera[:, None] == camera) & (range_ < range_[:, None])
    covered = torch.where(before, (high - low).clamp(min=0).prod(2), 0.0)
    largest = covered.amax(1) if len(covered) else covered.new_zeros(0)
    return largest / (corners[:, 2:] - corners[:, :2]).prod(1)
