"""Boxes of one sweep in memory, and the heat map's view of them: cells, codes, Gaussians.

A box is (x, y, z of its centre, length, width, height, yaw), metres and rad in the vehicle frame, as in `FrameTruth`.
Overlap is `mwsis.core.boxes3d`. Next: `center_head.py`, which predicts these codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CODE_SIZE", "Boxes3D", "HeatGrid", "decode_boxes", "encode_boxes", "gaussian_radius", "heat_map"]

CODE_SIZE = 10
"""Numbers that describe a box at its cell: x and y within the cell, z, log length, width, height, cos and sin of yaw,
cos and sin of twice the yaw."""
MIN_OVERLAP = 0.1
MIN_RADIUS = 2
SMALLEST_SIDE = 0.01
"""Metres; a side that is recorded as 0 has no logarithm."""


@dataclass(frozen=True, eq=False)
class Boxes3D:
    """Boxes of one sweep.

    Attributes:
        boxes3d: (G, 7) float32, centre xyz, length, width, height (metres, vehicle frame), yaw (rad, about +z).
        labels: (G,) int64, class from 0.
        scores: (G,) float32 in [0, 1], of predicted boxes; None for given ones.
    """

    boxes3d: Tensor
    labels: Tensor
    scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes3d)

    def __getitem__(self, keep: Tensor) -> Boxes3D:
        scores = None if self.scores is None else self.scores[keep]
        return Boxes3D(self.boxes3d[keep], self.labels[keep], scores)


@dataclass(frozen=True)
class HeatGrid:
    """Where the cells of a heat map lie.

    Attributes:
        low: x and y of the corner of cell (0, 0), metres.
        cell: edge along x and along y, metres.
        shape: rows (y) and columns (x).
    """

    low: tuple[float, float]
    cell: tuple[float, float]
    shape: tuple[int, int]

    def position(self, xy: Tensor) -> Tensor:
        """Return (G, 2) x and y in cells from the corner."""
        return (xy - xy.new_tensor(self.low)) / xy.new_tensor(self.cell)

    def holds(self, boxes3d: Tensor) -> Tensor:
        """Return which centres lie on the grid, (G,) bool."""
        position = self.position(boxes3d[:, :2])
        rows, columns = self.shape
        return ((position >= 0) & (position < position.new_tensor([columns, rows]))).all(1)


def encode_boxes(boxes3d: Tensor, grid: HeatGrid) -> tuple[Tensor, Tensor]:
    """Return what the head is to predict at the cell of each box's centre.

    Args:
        boxes3d: (G, 7) float32, centres on the grid.
        grid: the cells.

    Returns:
        codes: (G, 10) float32, see `CODE_SIZE`.
        cells: (G, 2) int64, row and column.

    Source: CenterPoint (Yin et al., CVPR 2021), section 4: sub-cell offset, height, log size, sine and cosine of yaw.
    Of twice the yaw as well: *generalised*. While front and back look alike, the best guess of the former two is 0,
    from which no axis can be read.
    """
    position = grid.position(boxes3d[:, :2])
    corner = position.floor()
    size = boxes3d[:, 3:6].clamp(min=SMALLEST_SIDE).log()
    yaw = boxes3d[:, 6:]
    heading = [yaw.cos(), yaw.sin(), (2 * yaw).cos(), (2 * yaw).sin()]
    return torch.cat([position - corner, boxes3d[:, 2:3], size, *heading], 1), corner.long().flip(1)


def decode_boxes(codes: Tensor, cells: Tensor, grid: HeatGrid) -> Tensor:
    """Return the (G, 7) boxes of (G, 10) codes at (G, 2) cells; inverts `encode_boxes` up to whole turns of yaw.

    Twice the yaw gives the axis, and its cosine and sine which way along it.
    """
    position = cells.flip(1).to(codes.dtype) + codes[:, :2]
    xy = position * codes.new_tensor(grid.cell) + codes.new_tensor(grid.low)
    axis = torch.atan2(codes[:, 9], codes[:, 8]) / 2
    backwards = codes[:, 6] * axis.cos() + codes[:, 7] * axis.sin() < 0
    turned = torch.where(axis > 0, axis - torch.pi, axis + torch.pi)
    yaw = torch.where(backwards, turned, axis)
    return torch.cat([xy, codes[:, 2:3], codes[:, 3:6].exp(), yaw[:, None]], 1)


def gaussian_radius(length: Tensor, width: Tensor, min_overlap: float = MIN_OVERLAP) -> Tensor:
    """Return by how much two opposite corners of an upright rectangle may be off without losing its overlap.

    The least of three cases: both corners moved the same way, both inwards, both outwards.

    Args:
        length, width: (G,) sides, cells.
        min_overlap: IoU to keep, in (0, 1).

    Returns:
        (G,) float, cells.

    Source: CornerNet (Law and Deng, ECCV 2018), section 3.2; CenterPoint keeps an IoU of .1. Released code divides the
    roots of the quadratic equations by 2 instead of 2a and takes the larger ones: *corrected*.
    """
    total, area = length + width, length * width
    shifted = _smaller_root(torch.ones_like(area), -total, area * (1 - min_overlap) / (1 + min_overlap))
    inwards = _smaller_root(torch.full_like(area, 4.0), -2 * total, area * (1 - min_overlap))
    a, b, c = 4 * min_overlap, 2 * min_overlap * total, -area * (1 - min_overlap)
    outwards = (-b + (b * b - 4 * a * c).sqrt()) / (2 * a)
    return torch.stack([shifted, inwards, outwards]).amin(0)


def _smaller_root(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (-b - (b * b - 4 * a * c).clamp(min=0).sqrt()) / (2 * a)


def heat_map(boxes: Boxes3D, grid: HeatGrid, num_classes: int) -> Tensor:
    """Return how close each cell is to a centre of each class.

    A Gaussian around each centre's cell, 1 there, of standard deviation (2r + 1) / 6 and cut off beyond r cells, where
    r is the `gaussian_radius` of the box's sides, rounded down, 2 at least; the larger where two overlap.

    Args:
        boxes: G boxes with their centres on the grid.
        grid: the cells.
        num_classes: C.

    Returns:
        (C, rows, columns) float32 in [0, 1].

    Complexity: O(G * rows * columns) time and memory.

    Source: CenterPoint, section 4.1 (smallest radius 2); the Gaussian is CornerNet's.
    """
    rows, columns = grid.shape
    heat = boxes.boxes3d.new_zeros(num_classes, rows, columns)
    if not len(boxes):
        return heat
    _, cells = encode_boxes(boxes.boxes3d, grid)
    sides = boxes.boxes3d[:, 3:5] / boxes.boxes3d.new_tensor(grid.cell)
    radius = gaussian_radius(sides[:, 0], sides[:, 1]).floor().clamp(min=MIN_RADIUS)
    along_y = _falloff(cells[:, 0], radius, rows)
    along_x = _falloff(cells[:, 1], radius, columns)
    bumps = along_y[:, :, None] * along_x[:, None, :]
    for label in torch.unique(boxes.labels).tolist():
        heat[label] = bumps[boxes.labels == label].amax(0)
    return heat


def _falloff(center: Tensor, radius: Tensor, count: int) -> Tensor:
    """Return (G, count) the Gaussian along one axis; two of them multiply to the one of the plane."""
    distance = (torch.arange(count, device=center.device) - center[:, None]).to(radius.dtype)
    sigma = (2 * radius[:, None] + 1) / 6
    value = torch.exp(-(distance**2) / (2 * sigma**2))
    return torch.where(distance.abs() <= radius[:, None], value, torch.zeros_like(value))
