"""Points to voxels without limits on either: every point in range belongs to exactly one voxel.

Not here: what a voxel's features are (`encoders.py`, next) and the network over voxels (`unet_v2.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mwsis.core.batch import PointBatch
from mwsis.core.errors import ConfigError

__all__ = ["VoxelGrid", "Voxelizer"]

DIVISION_TOLERANCE = 1e-3
"""Fraction of a voxel by which the range may miss a whole number of voxels (round-off of decimal settings)."""


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """The occupied voxels of B frames.

    Attributes:
        voxel_coords: (V, 4) int32, [b, z, y, x], each row once, in ascending order.
        point_to_voxel: (N,) int64, the voxel of each point, -1 outside the range.
        sparse_shape: cells in z, y, x that sparse layers see, one more in z than the range holds.
        num_frames: B.
    """

    voxel_coords: Tensor
    point_to_voxel: Tensor
    sparse_shape: tuple[int, int, int]
    num_frames: int

    def __len__(self) -> int:
        return len(self.voxel_coords)


class Voxelizer:
    """Assigns points to voxels; holds the geometry that an exported backbone must state.

    Indices are ``floor((p - min) / voxel_size)`` in float32, as OpenPCDet and mmdetection3d compute them: in float64
    some points on a cell's edge would fall into the neighbour.

    Args:
        voxel_size: x, y, z edge of a voxel, metres.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres, vehicle frame; half-open; a whole number of voxels.

    Raises:
        ConfigError: a voxel size is not positive, or the range is empty or no whole number of voxels.

    Source: OpenPCDet's VoxelBackBone8x and UNetV2 for ``sparse_shape = grid + [1, 0, 0]``; dynamic voxelisation in
        place of at most 5 points a voxel: *generalised*.
    """

    def __init__(self, voxel_size: Sequence[float], point_cloud_range: Sequence[float]) -> None:
        self.voxel_size = tuple(float(edge) for edge in voxel_size)
        self.point_cloud_range = tuple(float(limit) for limit in point_cloud_range)
        if len(self.voxel_size) != 3 or min(self.voxel_size) <= 0:
            raise ConfigError(f"voxel_size: expected three positive edges in metres (x, y, z), got {list(voxel_size)}")
        if len(self.point_cloud_range) != 6:
            raise ConfigError(f"point_cloud_range: expected x0 y0 z0 x1 y1 z1, got {list(point_cloud_range)}")
        self.grid_shape_zyx = self._count_cells()
        z, y, x = self.grid_shape_zyx
        self.sparse_shape = (z + 1, y, x)

    def _count_cells(self) -> tuple[int, int, int]:
        counts = []
        for axis, edge in enumerate(self.voxel_size):
            low, high = self.point_cloud_range[axis], self.point_cloud_range[axis + 3]
            cells = (high - low) / edge
            if cells < 1 or abs(cells - round(cells)) > DIVISION_TOLERANCE:
                raise ConfigError(
                    f"point_cloud_range: expected a whole number of voxels of {edge} m along {'xyz'[axis]}, "
                    f"got {cells:.3f} between {low} and {high}; change the range or voxel_size"
                )
            counts.append(round(cells))
        return counts[2], counts[1], counts[0]

    def __call__(self, points: PointBatch) -> VoxelGrid:
        """Return the occupied voxels of a batch and the voxel of each point.

        Args:
            points: ``xyz`` (N, 3) float32, metres, vehicle frame.

        Returns:
            The voxels in ascending order of [b, z, y, x], on the device of the points.

        Complexity: O(N log N), about 60 bytes a point.
        """
        xyz = points.xyz
        low = xyz.new_tensor(self.point_cloud_range[:3])
        cell = ((xyz - low) / xyz.new_tensor(self.voxel_size)).floor()
        cells_z, cells_y, cells_x = self.grid_shape_zyx
        inside = ((cell >= 0) & (cell < cell.new_tensor([cells_x, cells_y, cells_z]))).all(1)
        x, y, z = cell[inside].long().unbind(1)
        key = ((points.batch_index[inside] * cells_z + z) * cells_y + y) * cells_x + x
        occupied, voxel_of_inside = torch.unique(key, return_inverse=True)
        point_to_voxel = torch.full((len(xyz),), -1, dtype=torch.int64, device=xyz.device)
        point_to_voxel[inside] = voxel_of_inside
        return VoxelGrid(self._unravel(occupied), point_to_voxel, self.sparse_shape, points.num_frames)

    def _unravel(self, key: Tensor) -> Tensor:
        columns = []
        for cells in reversed(self.grid_shape_zyx):
            columns.append(key % cells)
            key = key.div(cells, rounding_mode="floor")
        return torch.stack([key, *reversed(columns)], 1).int()

    def centers(self, voxel_coords: Tensor) -> Tensor:
        """Return the centres of (V, 4) int32 voxels, (V, 3) float32 xyz, metres, vehicle frame."""
        low = torch.tensor(self.point_cloud_range[:3], device=voxel_coords.device)
        edge = torch.tensor(self.voxel_size, device=voxel_coords.device)
        return (voxel_coords[:, [3, 2, 1]].float() + 0.5) * edge + low
