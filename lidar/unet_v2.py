"""The sparse 3D U-Net that is trained here and exported: OpenPCDet's UNetV2, key for key.

The encoder half is its VoxelBackBone8x. Re-stated from the list of keys, shapes and convolution settings; attribute
names are OpenPCDet's, because they are the keys of the exported file. Not here: the decoder and the forward pass
(`blocks.py`), voxels (`voxelize.py`), point heads (`point_head.py`), writing files (`mwsis.export`).
"""

from __future__ import annotations

from torch import nn

from lidar.blocks import BN_EPS, BN_MOMENTUM, SparseUNet, UNet, bird_eye_unit, down_level, subm_unit
from lidar.encoders import MeanEncoder
from lidar.sparse import sequential
from lidar.voxelize import Voxelizer

__all__ = ["BN_EPS", "BN_MOMENTUM", "UNetV2", "unet_v2_parts"]


class UNetV2(SparseUNet):
    """Features of voxels from a U-Net of four resolutions, 16-32-64-64 channels down, 16 out.

    The state dict has 168 keys; 72 of them are OpenPCDet's VoxelBackBone8x. ``conv_out`` (6 keys) ends that encoder for
    a bird's-eye-view detector. `forward` does not run it, so pretraining leaves it at its initial values.

    Args:
        in_channels: features of a voxel.
        sparse_shape: cells in z, y, x (`Voxelizer.sparse_shape`).
        train_conv_out: let ``conv_out`` require gradients. Off by default: a parameter without a gradient would make
            distributed training wait for it.

    Source: OpenPCDet UNetV2 at 8cacccec (channels, kernels, strides, paddings, shared tables, BatchNorm constants).
    """

    widths = (16, 32, 64, 64)
    table = "subm"

    def _build_encoder(self, in_channels: int) -> None:
        self.conv_input = subm_unit(in_channels, 16, 1, padding=1)
        self.conv1 = sequential(subm_unit(16, 16, 1))
        self.conv2 = down_level(16, 32, 2)
        self.conv3 = down_level(32, 64, 3)
        self.conv4 = down_level(64, 64, 4, padding=(0, 1, 1))
        self.conv_out = bird_eye_unit(64, self.bev_channels)


def unet_v2_parts(voxelizer: Voxelizer) -> tuple[nn.Module, UNet]:
    """Return the mean of a voxel's points and the network for a grid."""
    encoder = MeanEncoder()
    return encoder, UNetV2(encoder.out_channels, voxelizer.sparse_shape)
