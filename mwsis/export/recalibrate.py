"""Batch-norm statistics measured again on the points that a detector will see.

Training may have seen only the points that fall on an image; a detector sees the whole sweep. Weights stay as they are.
Which frames: `tools/export.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from lidar.segmentor import LidarSegmentor
from mwsis.core.batch import PointBatch
from mwsis.core.errors import DataError

__all__ = ["recalibrate_norms"]


@torch.no_grad()
def recalibrate_norms(lidar: LidarSegmentor, batches: Iterable[PointBatch]) -> int:
    """Replace the running statistics of backbone and voxel encoder by their means over batches.

    Each batch counts the same, whatever came before (a cumulative average, as `torch.optim.swa_utils.update_bn` takes).
    Layers that the network does not run (``conv_out``) keep what they had.

    Args:
        lidar: the LiDAR branch, changed in place; it comes back in evaluation mode.
        batches: points, one frame each as a rule.

    Returns:
        The number of batches that had points in range.

    Raises:
        DataError: none had.
    """
    parts = [lidar.encoder, lidar.backbone]
    norms = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.BatchNorm1d)]
    before = [{name: tensor.clone() for name, tensor in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    lidar.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    num_batches = sum(_pass(lidar, points) for points in batches)
    for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
        norm.momentum = momentum
        measured = norm.state_dict()
        ran = int(measured["num_batches_tracked"]) > 0
        statistics = measured if ran else buffers
        norm.load_state_dict({**measured, **statistics, "num_batches_tracked": buffers["num_batches_tracked"]})
    lidar.eval()
    if not num_batches:
        raise DataError("recalibrate_bn: none of the frames has a point in the range of the network")
    return num_batches


def _pass(lidar: LidarSegmentor, points: PointBatch) -> bool:
    """Run the network for its norms; return whether it had anything to run on."""
    grid = lidar.voxelizer(points)
    if len(grid):
        lidar.backbone(lidar.encoder(points, grid), grid.voxel_coords, grid.num_frames)
    return len(grid) > 0
