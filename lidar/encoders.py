"""From the points of a voxel to its features.

Only the encoder that OpenPCDet's sparse backbones expect is here; the learned encoder of FSD is not. Next:
`unet_v2.py`, which takes these features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lidar.voxelize import VoxelGrid
from mwsis.core.batch import PointBatch
from mwsis.core.segment_ops import segment_mean

__all__ = ["MeanEncoder"]


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
