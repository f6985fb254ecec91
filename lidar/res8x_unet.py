"""The sparse 3D U-Net for detectors with a residual encoder: OpenPCDet's VoxelResBackBone8x, and a decoder to train it.

CenterPoint, PV-RCNN++ (both in their ResNet form) and VoxelNeXt take this encoder and nothing of UNetV2's. Re-stated
from the list of keys, shapes and convolution settings. Not here: the decoder and the forward pass (`blocks.py`), the
other network (`unet_v2.py`), writing files (`mwsis.export`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lidar.blocks import ResidualBlock, SparseUNet, UNet, bird_eye_unit, down_unit, subm_unit
from lidar.encoders import MeanEncoder
from lidar.voxelize import Voxelizer

__all__ = ["Res8xUNet", "res8x_unet_parts"]


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


def res8x_unet_parts(voxelizer: Voxelizer) -> tuple[nn.Module, UNet]:
    """Return the mean of a voxel's points and the network for a grid."""
    encoder = MeanEncoder()
    return encoder, Res8xUNet(encoder.out_channels, voxelizer.sparse_shape)
