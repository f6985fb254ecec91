"""What the sparse U-Nets share: their units, the pass down and up (`UNet`), OpenPCDet's decoder (`SparseUNet`).

Attribute names are those of the frameworks that read the weights. Not here: the networks (`unet_v2.py`,
`res8x_unet.py`, `fsd_unet.py`, next) and the convolutions themselves (`sparse.py`).
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

__all__ = [
    "BEV_STRIDE",
    "BN_EPS",
    "BN_MOMENTUM",
    "ResidualBlock",
    "SparseUNet",
    "UNet",
    "bird_eye_cells",
    "bird_eye_unit",
    "decode_level",
    "down_level",
    "down_unit",
    "subm_unit",
    "unit",
    "up_unit",
]

BN_EPS = 1e-3
BN_MOMENTUM = 0.01
"""BatchNorm constants of every sparse backbone of OpenPCDet (torch's defaults would be 1e-5 and 0.1)."""
BEV_STRIDE = 8
"""Voxels per cell of the encoder's bird's-eye view, along x and y."""


def _norm(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


def unit(conv: nn.Module, channels: int) -> nn.Module:
    """Return a convolution with the norm of its output and a ReLU.

    Args:
        conv: any layer of `sparse.py`.
        channels: D of its output.

    Returns:
        A module from `SparseTensor` to `SparseTensor`.
    """
    return sequential(conv, _norm(channels), nn.ReLU())


def subm_unit(in_channels: int, out_channels: int, level: int, padding: int = 0, table: str = "subm") -> nn.Module:
    """Return a 3x3x3 convolution that keeps the voxels, with norm and ReLU.

    Args:
        in_channels: D of the input.
        out_channels: D of the output.
        level: 1 finest; layers of one level share the neighbour table.
        padding: has no effect; see `subm_conv`.
        table: what the table is called, before the level's number.

    Returns:
        A module from `SparseTensor` to `SparseTensor`.
    """
    return unit(subm_conv(in_channels, out_channels, padding=padding, key=f"{table}{level}"), out_channels)


def down_unit(in_channels: int, out_channels: int, level: int, padding: int | Sequence[int] = 1) -> nn.Module:
    """Return a convolution that halves the resolution, with norm and ReLU.

    Args:
        in_channels: D of the input.
        out_channels: D of the output.
        level: the level it leads to; names the table that `up_unit` walks back.
        padding: cells, one number or (z, y, x).

    Returns:
        A module from `SparseTensor` to `SparseTensor`.
    """
    down = strided_conv(in_channels, out_channels, kernel=3, stride=2, padding=padding, key=f"spconv{level}")
    return unit(down, out_channels)


def down_level(
    in_channels: int, out_channels: int, level: int, padding: int | Sequence[int] = 1, inner_padding: int = 0
) -> nn.Module:
    """Return a convolution that halves the resolution and two that keep the new voxels.

    Args:
        in_channels: D of the input.
        out_channels: D of the output.
        level: the level it leads to.
        padding: of the first, cells, one number or (z, y, x).
        inner_padding: of the others; has no effect, see `subm_conv`.

    Returns:
        A module from `SparseTensor` to `SparseTensor`.
    """
    return sequential(
        down_unit(in_channels, out_channels, level, padding),
        subm_unit(out_channels, out_channels, level, inner_padding),
        subm_unit(out_channels, out_channels, level, inner_padding),
    )


def bird_eye_unit(in_channels: int, out_channels: int) -> nn.Module:
    """Return the layer that ends an encoder for a bird's-eye-view detector: it halves the height, nothing else.

    Args:
        in_channels: D of the deepest level.
        out_channels: D of the output.

    Returns:
        A module from `SparseTensor` to `SparseTensor`.
    """
    squeeze = strided_conv(in_channels, out_channels, kernel=(3, 1, 1), stride=(2, 1, 1), padding=0, key="spconv_down2")
    return unit(squeeze, out_channels)


def bird_eye_cells(sparse_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the cells z, y, x that `SparseUNet.encode` leaves of a grid; z is below 1 where that is too flat."""
    z, y, x = sparse_shape
    for padding in (1, 1, 0, 0):  # the strided convolutions of levels 2, 3, 4 and `bird_eye_unit`
        z = (z + 2 * padding - 3) // 2 + 1
    return z, -(-y // BEV_STRIDE), -(-x // BEV_STRIDE)


def up_unit(in_channels: int, out_channels: int, level: int) -> nn.Module:
    """Return the convolution that restores the voxels of the next finer level, with norm and ReLU.

    Args:
        in_channels: D of the input.
        out_channels: D of the output.
        level: the level it starts from.

    Returns:
        A module from `SparseTensor` to `SparseTensor`.
    """
    return unit(inverse_conv(in_channels, out_channels, key=f"spconv{level}"), out_channels)


def _use_plain_bias(conv: nn.Module, inputs: tuple[SparseTensor]) -> None:
    """Let spconv add the bias after the convolution: outside training it asks for a fused kernel, which no CPU has."""
    conv.training = True


def _subm_conv(channels: int, key: str) -> nn.Module:
    return subm_conv(channels, channels, padding=1, key=key)


def _subm_conv_with_bias(channels: int, key: str) -> nn.Module:
    """A 3x3x3 convolution with a bias of 0 that is not trained.

    A norm follows and takes every constant out again: the gradient is zero but for round-off, and Adam would turn that
    into steps of full size. Weights that are loaded may have another bias; it is added.
    """
    conv = _subm_conv(channels, key)
    conv.bias = nn.Parameter(torch.zeros(channels), requires_grad=False)
    conv.register_forward_pre_hook(_use_plain_bias)
    return conv


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions that keep the voxels, added to their input.

    Args:
        channels: D of input and output.
        level: 1 finest; layers of one level share the neighbour table.
        table: what the table is called, before the level's number.
        bias: give the convolutions a ``bias``, as OpenPCDet's residual encoder does; 0 and not trained.

    Source: OpenPCDet's SparseBasicBlock. Its biases are random and trained, where no loss can see them: *simplified*.
    """

    def __init__(self, channels: int, level: int, table: str = "subm", bias: bool = False) -> None:
        super().__init__()
        conv = _subm_conv_with_bias if bias else _subm_conv
        self.conv1 = conv(channels, f"{table}{level}")
        self.bn1 = _norm(channels)
        self.conv2 = conv(channels, f"{table}{level}")
        self.bn2 = _norm(channels)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """Return the block's features at the same voxels."""
        inner = self.conv1(tensor)
        inner = self.conv2(replace_feature(inner, self.bn1(inner.features).relu()))
        return replace_feature(inner, (self.bn2(inner.features) + tensor.features).relu())


def decode_level(
    skip: SparseTensor, bottom: SparseTensor, lateral: nn.Module, merge: nn.Module, up: nn.Module
) -> SparseTensor:
    """Join the skip connection with what comes from below, and go up one level.

    The merge convolution halves the channels of [bottom, lateral]; neighbouring pairs of channels of the same
    concatenation are summed and added to it, a shortcut without parameters.

    Args:
        skip: the encoder's features of this level.
        bottom: what comes from below, same voxels, same D.
        lateral: from ``skip`` to features of the same D.
        merge: from 2D to D features.
        up: from this level to the result.

    Returns:
        What ``up`` makes of the level.

    Source: OpenPCDet UNetV2, SST SimpleSparseUNet.
    """
    beside = lateral(skip)
    both = replace_feature(beside, torch.cat([bottom.features, beside.features], 1))
    merged = merge(both)
    num_voxels, channels = merged.features.shape
    shortcut = both.features.view(num_voxels, channels, -1).sum(2)
    return up(replace_feature(merged, merged.features + shortcut))


class UNet(nn.Module):
    """Levels of an encoder, joined from the coarsest to the finest; a subclass brings the layers.

    Attributes:
        out_channels: D of what `forward` returns.

    Args:
        in_channels: features of a voxel.
        sparse_shape: cells in z, y, x.
    """

    out_channels: int
    conv_input: nn.Module

    def __init__(self, in_channels: int, sparse_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.sparse_shape = tuple(int(cells) for cells in sparse_shape)
        self._build_encoder(in_channels)
        self._build_decoder()

    def _build_encoder(self, in_channels: int) -> None:
        raise NotImplementedError

    def _build_decoder(self) -> None:
        raise NotImplementedError

    def _stages(self) -> list[nn.Module]:
        """Return what makes each level of the one before, finest first."""
        raise NotImplementedError

    def _decoder(self, level: int) -> list[nn.Module]:
        """Return the layers that `decode_level` takes at a level, 1 finest."""
        raise NotImplementedError

    def forward(self, voxel_features: Tensor, voxel_coords: Tensor, num_frames: int) -> Tensor:
        """Return a feature of every input voxel.

        Args:
            voxel_features: (V, in_channels) float32.
            voxel_coords: (V, 4) int32, [b, z, y, x], each row once, any order.
            num_frames: B.

        Returns:
            (V, out_channels) float32, in the order of the input.
        """
        if not len(voxel_features):
            return voxel_features.new_zeros(0, self.out_channels)
        with sparse_precision(voxel_features.device):
            return self._decoded(self._levels(voxel_features, voxel_coords, num_frames))

    def _levels(self, voxel_features: Tensor, voxel_coords: Tensor, num_frames: int) -> list[SparseTensor]:
        """Return what the encoder makes of the voxels, finest level first."""
        tensor = sparse_tensor(voxel_features.float(), voxel_coords, self.sparse_shape, num_frames)
        tensor = self.conv_input(tensor)
        levels = []
        for stage in self._stages():
            tensor = stage(tensor)
            levels.append(tensor)
        return levels

    def _decoded(self, levels: list[SparseTensor]) -> Tensor:
        """Return the features of the finest level's voxels that the decoder makes of the encoder's levels."""
        bottom = levels[-1]
        for level in range(len(levels), 0, -1):
            bottom = decode_level(levels[level - 1], bottom, *self._decoder(level))
        features: Tensor = bottom.features.float()
        return features


class SparseUNet(UNet):
    """An encoder of four resolutions and OpenPCDet's UNetV2 decoder on its levels; a subclass brings the encoder.

    ``conv_out`` ends the encoder for a bird's-eye-view detector. `forward` does not run it, so pretraining leaves it at
    its initial values.

    Attributes:
        widths: D of the four levels.
        table: what the neighbour tables of the levels are called, before the level's number.
        bev_channels: D of a cell of height in what `encode` returns.

    Args:
        in_channels: features of a voxel.
        sparse_shape: cells in z, y, x (`Voxelizer.sparse_shape`).
        train_conv_out: let ``conv_out`` require gradients. Off by default: a parameter without a gradient would make
            distributed training wait for it.

    Source: OpenPCDet UNetV2 at 8cacccec; for widths other than its 16, 32, 64, 64: *generalised*.
    """

    widths: tuple[int, int, int, int]
    table: str
    out_channels = 16
    bev_channels = 128

    conv1: nn.Module
    conv2: nn.Module
    conv3: nn.Module
    conv4: nn.Module
    conv_out: nn.Module

    def __init__(self, in_channels: int, sparse_shape: Sequence[int], *, train_conv_out: bool = False) -> None:
        super().__init__(in_channels, sparse_shape)
        self.conv_out.requires_grad_(train_conv_out)

    def _build_decoder(self) -> None:
        for level in (4, 3, 2, 1):
            width = self.widths[level - 1]
            self.add_module(f"conv_up_t{level}", ResidualBlock(width, level, self.table))
            self.add_module(f"conv_up_m{level}", subm_unit(2 * width, width, level, table=self.table))
            if level > 1:
                self.add_module(f"inv_conv{level}", up_unit(width, self.widths[level - 2], level))
        self.conv5 = sequential(subm_unit(self.widths[0], self.out_channels, 1, table=self.table))

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
            return self._bird_eye(self._levels(voxel_features, voxel_coords, num_frames))

    def encode_and_decode(self, voxel_features: Tensor, voxel_coords: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        """Return what `encode` and what `forward` return; the encoder runs once."""
        with sparse_precision(voxel_features.device):
            levels = self._levels(voxel_features, voxel_coords, num_frames)
            return self._bird_eye(levels), self._decoded(levels)

    def _bird_eye(self, levels: list[SparseTensor]) -> Tensor:
        volume: Tensor = dense(self.conv_out(levels[-1]))
        return volume.float().flatten(1, 2)

    def _decoder(self, level: int) -> list[nn.Module]:
        names = [f"conv_up_t{level}", f"conv_up_m{level}", f"inv_conv{level}" if level > 1 else "conv5"]
        return [self.get_submodule(name) for name in names]

    def _stages(self) -> list[nn.Module]:
        return [self.conv1, self.conv2, self.conv3, self.conv4]
