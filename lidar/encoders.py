"""From the points of a voxel to its features.

`MeanEncoder` is what OpenPCDet's sparse backbones expect, `DynamicEncoder` the learned one of FSD. Next: `unet_v2.py`
and `fsd_unet.py`, which take these features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lidar.blocks import BN_EPS, BN_MOMENTUM
from lidar.voxelize import VoxelGrid, Voxelizer
from mwsis.core.batch import PointBatch
from mwsis.core.segment_ops import segment_max, segment_mean

__all__ = ["DynamicEncoder", "MeanEncoder"]


class MeanEncoder(nn.Module):
    """Mean of [x, y, z, tanh(intensity), elongation] over all points of a voxel; no parameters.

    Source: OpenPCDet's MeanVFE, which averages the first 5 points it meets; all points here, so that the result does
    not depend on their order: *generalised* (equal for voxels of at most 5 points).
    """

    out_channels = 5

    def forward(self, points: PointBatch, grid: VoxelGrid) -> Tensor:
        """Return voxel features.

        Args:
            points: ``xyz`` in metres, vehicle frame, and ``point_feats``.
            grid: the voxels of these points.

        Returns:
            (V, 5) float32: x, y, z in metres, tanh(intensity), elongation.
        """
        inside = grid.point_to_voxel >= 0
        columns = torch.cat([points.xyz, points.point_feats], 1)[inside]
        return segment_mean(columns, grid.point_to_voxel[inside], len(grid))


class _PointLayer(nn.Module):
    """A linear layer on points, a norm and a ReLU; attribute names are keys of SST's checkpoints."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = nn.BatchNorm1d(out_channels, BN_EPS, BN_MOMENTUM)

    def forward(self, columns: Tensor) -> Tensor:
        activated: Tensor = self.norm(self.linear(columns)).relu()
        return activated


class DynamicEncoder(nn.Module):
    """Learned features of a voxel: two layers on each of its points, each followed by the maximum over the voxel.

    A point enters with 11 columns: [x, y, z, tanh(intensity), elongation], its offset from the mean of the voxel's
    points, its offset from the voxel's centre. The second layer sees the point's features beside the first maximum of
    its voxel (128 columns). The state dict has 12 keys, ``vfe_layers.{0,1}.{linear,norm}.*``, 9,152 parameters; an
    exported `FSDUNet` means nothing without them.

    Args:
        voxelizer: the grid; its voxel centres are part of the input.

    Source: FSD's DynamicScatterVFE as MWSIS configures it (64 and 64 channels, cluster and voxel centres, no scaling
        of offsets, BatchNorm eps 1e-3 and momentum 0.01).
    """

    in_channels = 11
    out_channels = 64

    def __init__(self, voxelizer: Voxelizer) -> None:
        super().__init__()
        self.voxelizer = voxelizer
        width = self.out_channels
        self.vfe_layers = nn.ModuleList([_PointLayer(self.in_channels, width), _PointLayer(2 * width, width)])

    def forward(self, points: PointBatch, grid: VoxelGrid) -> Tensor:
        """Return voxel features.

        Args:
            points: ``xyz`` in metres, vehicle frame, and ``point_feats``.
            grid: the voxels of these points.

        Returns:
            (V, 64) float32, not negative.
        """
        inside = grid.point_to_voxel >= 0
        voxel = grid.point_to_voxel[inside]
        first, second = self.vfe_layers
        per_point = first(self._columns(points, grid, inside))
        per_voxel = segment_max(per_point, voxel, len(grid))
        return segment_max(second(torch.cat([per_point, per_voxel[voxel]], 1)), voxel, len(grid))

    def _columns(self, points: PointBatch, grid: VoxelGrid, inside: Tensor) -> Tensor:
        """Return the (N', 11) input of the points inside the range."""
        xyz, voxel = points.xyz[inside], grid.point_to_voxel[inside]
        mean = segment_mean(xyz, voxel, len(grid))[voxel]
        center = self.voxelizer.centers(grid.voxel_coords)[voxel]
        return torch.cat([xyz, points.point_feats[inside], xyz - mean, xyz - center], 1)
