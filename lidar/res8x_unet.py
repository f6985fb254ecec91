"""The sparse 3D U-Net for detectors with a residual encoder: OpenPCDet's VoxelResBackBone8x, and a decoder to train it.

CenterPoint, PV-RCNN++ (both in their ResNet form) and VoxelNeXt take this encoder and nothing of UNetV2's. Re-stated
from the list of keys, shapes and convolution settings. Not here: the decoder and the forward pass (`blocks.py`), the
other network (`unet_v2.py`), writing files (`mwsis.export`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lidar.blocks import ResidualBlock, SparseUNet, bird_eye_unit, down_unit, subm_unit
from lidar.encoders import MeanEncoder
from lidar.grouping import MIN_POINTS, RADII
from lidar.point_head import PRIOR, PointHead
from lidar.segmentor import LidarSegmentor
from lidar.voxelize import Voxelizer

__all__ = ["Res8xUNet", "build_res8x_unet_segmentor"]


def _down_level(in_channels: int, out_channels: int, level: int, padding: int | Sequence[int] = 1) -> nn.Module:
    """Halve the resolution, then two residual blocks at the new one."""
    return nn.Sequential(
        down_unit(in_channels, out_channels, level, padding),
        ResidualBlock(out_channels, level, "res", bias=True),
        ResidualBlock(out_channels, level, "res", bias=True),
    )


class Res8xUNet(SparseUNet):
    """Features of voxels from a residual U-Net of four resolutions, 16-32-64-128 channels down, 16 out.

    The state dict has 238 keys and 5,344,304 parameters; 142 keys with 2,695,312 parameters are OpenPCDet's
    VoxelResBackBone8x. Its 16 convolution biases are there, 0 and not trained (`ResidualBlock`). ``conv_out`` (6 keys)
    ends that encoder for a bird's-eye-view detector. `forward` does not run it, so pretraining leaves it at its initial
    values.

    Args:
        in_channels: features of a voxel.
        sparse_shape: cells in z, y, x (`Voxelizer.sparse_shape`).
        train_conv_out: let ``conv_out`` require gradients. Off by default: a parameter without a gradient would make
            distributed training wait for it.

    Source: OpenPCDet VoxelResBackBone8x at 8cacccec (channels, kernels, strides, paddings, shared tables, BatchNorm
        constants). OpenPCDet has no decoder for it; this is UNetV2's with 128 channels at the bottom: *generalised*.
    """

    widths = (16, 32, 64, 128)
    table = "res"

    def _build_encoder(self, in_channels: int) -> None:
        self.conv_input = subm_unit(in_channels, 16, 1, padding=1)
        self.conv1 = nn.Sequential(ResidualBlock(16, 1, "res", bias=True), ResidualBlock(16, 1, "res", bias=True))
        self.conv2 = _down_level(16, 32, 2)
        self.conv3 = _down_level(32, 64, 3)
        self.conv4 = _down_level(64, 128, 4, padding=(0, 1, 1))
        self.conv_out = bird_eye_unit(128, self.bev_channels)


def build_res8x_unet_segmentor(
    num_classes: int,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    *,
    hidden: int = 64,
    prior: float = PRIOR,
    radii: Sequence[float] = RADII,
    min_points: int = MIN_POINTS,
) -> LidarSegmentor:
    """Return a segmentor around the residual U-Net with mean voxel features.

    Args:
        num_classes: C.
        voxel_size: x, y, z, metres.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres, vehicle frame.
        hidden: width of the point head.
        prior: initial score of each class.
        radii: grouping radius of each class, metres.
        min_points: smallest instance.

    Returns:
        The segmentor with fresh weights (from torch's global generator), in training mode.

    Raises:
        ConfigError: the range is no whole number of voxels, or there is not one radius per class.

    Example:
        >>> segmentor = build_res8x_unet_segmentor(3, (0.2, 0.2, 0.2), (-20, -20, -2, 20, 20, 4))
        >>> len(segmentor.backbone.state_dict())
        238
    """
    voxelizer = Voxelizer(voxel_size, point_cloud_range)
    encoder = MeanEncoder()
    backbone = Res8xUNet(encoder.out_channels, voxelizer.sparse_shape)
    head = PointHead(backbone.out_channels + 3, num_classes, hidden, prior)
    return LidarSegmentor(voxelizer, encoder, backbone, head, num_classes, radii=radii, min_points=min_points)
