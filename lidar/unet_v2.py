"""The sparse 3D U-Net that is trained here and exported: OpenPCDet's UNetV2, key for key.

The encoder half is its VoxelBackBone8x. Re-stated from the list of keys, shapes and convolution settings; attribute
names are OpenPCDet's, because they are the keys of the exported file. Not here: voxels (`voxelize.py`), point heads
(`point_head.py`), writing files (`mwsis.export`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lidar.sparse import (
    SparseTensor,
    dense,
    inverse_conv,
    replace_feature,
    sequential,
    sparse_precision,
    sparse_tensor,
    strided_conv,
    subm_conv,
)

__all__ = ["BN_EPS", "BN_MOMENTUM", "UNetV2"]

BN_EPS = 1e-3
BN_MOMENTUM = 0.01
"""BatchNorm constants of every sparse backbone of OpenPCDet (torch's defaults would be 1e-5 and 0.1)."""


def _norm(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


def _unit(conv: nn.Module, channels: int) -> nn.Module:
    """A convolution, the norm of its output, and a ReLU."""
    return sequential(conv, _norm(channels), nn.ReLU())


def _subm_unit(in_channels: int, out_channels: int, level: int, padding: int = 0) -> nn.Module:
    return _unit(subm_conv(in_channels, out_channels, padding=padding, key=f"subm{level}"), out_channels)


def _down_level(in_channels: int, out_channels: int, level: int, padding: int | Sequence[int] = 1) -> nn.Module:
    """Halve the resolution, then two convolutions at the new one."""
    down = strided_conv(in_channels, out_channels, kernel=3, stride=2, padding=padding, key=f"spconv{level}")
    return sequential(
        _unit(down, out_channels),
        _subm_unit(out_channels, out_channels, level),
        _subm_unit(out_channels, out_channels, level),
    )


def _up_unit(in_channels: int, out_channels: int, level: int) -> nn.Module:
    return _unit(inverse_conv(in_channels, out_channels, key=f"spconv{level}"), out_channels)


class _Lateral(nn.Module):
    """A residual block on the skip connection: two convolutions, added to their input."""

    def __init__(self, channels: int, level: int) -> None:
        super().__init__()
        self.conv1 = subm_conv(channels, channels, padding=1, key=f"subm{level}")
        self.bn1 = _norm(channels)
        self.conv2 = subm_conv(channels, channels, padding=1, key=f"subm{level}")
        self.bn2 = _norm(channels)

    def forward(self, skip: SparseTensor) -> SparseTensor:
        inner = self.conv1(skip)
        inner = self.conv2(replace_feature(inner, self.bn1(inner.features).relu()))
        return replace_feature(inner, (self.bn2(inner.features) + skip.features).relu())


def _decode_level(
    skip: SparseTensor, bottom: SparseTensor, lateral: nn.Module, merge: nn.Module, up: nn.Module
) -> SparseTensor:
    """Join the skip connection with what comes from below, and go up one level.

    The merge convolution halves the channels of [bottom, lateral]; neighbouring pairs of channels of the same
    concatenation are summed and added to it, a shortcut without parameters.
    """
    beside = lateral(skip)
    both = replace_feature(beside, torch.cat([bottom.features, beside.features], 1))
    merged = merge(both)
    num_voxels, channels = merged.features.shape
    shortcut = both.features.view(num_voxels, channels, -1).sum(2)
    return up(replace_feature(merged, merged.features + shortcut))


class UNetV2(nn.Module):
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

    out_channels = 16
    bev_channels = 128

    def __init__(self, in_channels: int, sparse_shape: Sequence[int], *, train_conv_out: bool = False) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.sparse_shape = tuple(int(cells) for cells in sparse_shape)
        self._build_encoder(in_channels)
        self._build_decoder()
        self.conv_out.requires_grad_(train_conv_out)

    def _build_encoder(self, in_channels: int) -> None:
        self.conv_input = _subm_unit(in_channels, 16, 1, padding=1)
        self.conv1 = sequential(_subm_unit(16, 16, 1))
        self.conv2 = _down_level(16, 32, 2)
        self.conv3 = _down_level(32, 64, 3)
        self.conv4 = _down_level(64, 64, 4, padding=(0, 1, 1))
        self.conv_out = _unit(
            strided_conv(64, self.bev_channels, kernel=(3, 1, 1), stride=(2, 1, 1), padding=0, key="spconv_down2"),
            self.bev_channels,
        )

    def _build_decoder(self) -> None:
        self.conv_up_t4 = _Lateral(64, 4)
        self.conv_up_m4 = _subm_unit(128, 64, 4)
        self.inv_conv4 = _up_unit(64, 64, 4)
        self.conv_up_t3 = _Lateral(64, 3)
        self.conv_up_m3 = _subm_unit(128, 64, 3)
        self.inv_conv3 = _up_unit(64, 32, 3)
        self.conv_up_t2 = _Lateral(32, 2)
        self.conv_up_m2 = _subm_unit(64, 32, 2)
        self.inv_conv2 = _up_unit(32, 16, 2)
        self.conv_up_t1 = _Lateral(16, 1)
        self.conv_up_m1 = _subm_unit(32, 16, 1)
        self.conv5 = sequential(_subm_unit(16, 16, 1))

    def forward(self, voxel_features: Tensor, voxel_coords: Tensor, num_frames: int) -> Tensor:
        """Return a feature of every input voxel.

        Args:
            voxel_features: (V, in_channels) float32.
            voxel_coords: (V, 4) int32, [b, z, y, x], each row once, any order.
            num_frames: B.

        Returns:
            (V, 16) float32, in the order of the input.
        """
        if not len(voxel_features):
            return voxel_features.new_zeros(0, self.out_channels)
        with sparse_precision(voxel_features.device):
            level1, level2, level3, level4 = self._levels(voxel_features, voxel_coords, num_frames)
            up = _decode_level(level4, level4, self.conv_up_t4, self.conv_up_m4, self.inv_conv4)
            up = _decode_level(level3, up, self.conv_up_t3, self.conv_up_m3, self.inv_conv3)
            up = _decode_level(level2, up, self.conv_up_t2, self.conv_up_m2, self.inv_conv2)
            up = _decode_level(level1, up, self.conv_up_t1, self.conv_up_m1, self.conv5)
        features: Tensor = up.features.float()
        return features

    def encode(self, voxel_features: Tensor, voxel_coords: Tensor, num_frames: int) -> Tensor:
        """Return the encoder's bird's-eye view, for a detector; `forward` does not need it.

        Args:
            voxel_features: (V, in_channels) float32, V > 0.
            voxel_coords: (V, 4) int32, [b, z, y, x], each row once.
            num_frames: B.

        Returns:
            (B, 128 * Z, Y, X) float32: Z cells remain of the height (2 of 41), Y and X are an eighth; 0 where empty.
        """
        with sparse_precision(voxel_features.device):
            deepest = self._levels(voxel_features, voxel_coords, num_frames)[-1]
            volume = dense(self.conv_out(deepest))
        return volume.float().flatten(1, 2)

    def _levels(self, voxel_features: Tensor, voxel_coords: Tensor, num_frames: int) -> list[SparseTensor]:
        tensor = sparse_tensor(voxel_features.float(), voxel_coords, self.sparse_shape, num_frames)
        tensor = self.conv_input(tensor)
        levels = []
        for stage in (self.conv1, self.conv2, self.conv3, self.conv4):
            tensor = stage(tensor)
            levels.append(tensor)
        return levels
