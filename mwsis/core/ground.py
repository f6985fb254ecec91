"""How high points are above the ground, from the sweep alone: one plane, robustly fitted.

A plane, because whatever follows the ground more closely follows the undersides of objects, too. Next:
`fusion/default_labels.py`, which needs to tell tyres from asphalt.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["height_above_ground"]

CELL = 1.0
"""Edge of the squares of which the lowest point counts, metres."""
REACH = 35.0
"""Only points nearer than this count, metres."""
NUM_DRAWS = 200
TOLERANCE = 0.15
"""Points nearer to a plane than this support it, metres."""
STEEPEST = 0.15
"""Planes with a larger slope are no ground."""


def height_above_ground(xyz: Tensor) -> Tensor:
    """Return how far each point is above the ground plane of the sweep.

    The lowest point of every square metre within 35 m, then the plane through three of them that most of them support
    (RANSAC, the same draws every time), then least squares on its support. Fewer than three squares: height above the
    lowest point.

    Args:
        xyz: (N, 3) float, metres, any frame whose z points up.

    Returns:
        (N,) float64, metres, along z.

    Source: RANSAC (Fischler and Bolles 1981); its constants from our study on KITTI.
    """
    points = xyz.double()
    if not len(points):
        return points.new_zeros(0)
    low = _lowest_of_cells(points[points[:, :2].norm(dim=1) < REACH])
    if len(low) < 3:
        return points[:, 2] - points[:, 2].min()
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(low), (NUM_DRAWS, 3), generator=generator).to(low.device)
    planes = torch.linalg.lstsq(_with_one(low[draws]), low[draws][..., 2:]).solution[..., 0]
    usable = torch.isfinite(planes).all(1) & (planes[:, :2].norm(dim=1) < STEEPEST)
    off = (_with_one(low) @ planes.T - low[:, 2:]).abs()
    support = torch.where(usable, (off < TOLERANCE).sum(0), -1)
    best = int(support.argmax())
    if support[best] < 3:
        return points[:, 2] - points[:, 2].min()
    near = low[off[:, best] < TOLERANCE]
    plane = torch.linalg.lstsq(_with_one(near), near[:, 2:]).solution[:, 0]
    return points[:, 2] - _with_one(points) @ plane


def _lowest_of_cells(points: Tensor) -> Tensor:
    """Return the lowest point of each occupied square, by square; of equally low ones the first."""
    column, row = ((points[:, :2] + REACH) / CELL).floor().long().T
    num_columns = math.ceil(2 * REACH / CELL) + 1
    cell = column * num_columns + row
    low = points.new_full((num_columns**2,), torch.inf).scatter_reduce(0, cell, points[:, 2], "amin")
    number = torch.arange(len(points), device=points.device)
    candidate = torch.where(points[:, 2] == low[cell], number, len(points))
    first = number.new_full((num_columns**2,), len(points)).scatter_reduce(0, cell, candidate, "amin")
    return points[first[first < len(points)]]


def _with_one(points: Tensor) -> Tensor:
    return torch.cat([points[..., :2], torch.ones_like(points[..., :1])], -1)
