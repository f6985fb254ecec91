"""The sparse 3D U-Net of the MWSIS paper: FSD's SimpleSparseUNet, key for key.

Five resolutions, 18 million parameters, fed by `DynamicEncoder`. Re-stated from the list of keys, shapes and
convolution settings; attribute names are SST's, because they are the keys of its checkpoints. Not here: units and the
passes down and up (`blocks.py`), voxels (`voxelize.py`), the branch around it (`segmentor.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lidar.blocks import ResidualBlock, UNet, down_level, subm_unit, up_unit
from lidar.encoders import DynamicEncoder
from lidar.sparse import sequential
from lidar.voxelize import Voxelizer

__all__ = ["ENCODER_CHANNELS", "FSDUNet", "fsd_unet_parts", "padded_shape"]

ENCODER_CHANNELS = (64, 64, 64, 128, 256)
"""Channels of the five resolutions, finest first; going up, each level hands on the channels of the next finer one."""
TOTAL_STRIDE = 16
PADDING: dict[int, int | tuple[int, int, int]] = {2: 1, 3: 1, 4: (0, 1, 1), 5: 1}
"""Padding (z, y, x) of the strided convolution that enters a level."""
MERGE_PADDING = {5: 1, 4: 1, 3: 1, 2: 0, 1: 0}
"""Has no effect (`subm_conv`); as listed for SST."""


def padded_shape(grid_shape_zyx: Sequence[int]) -> tuple[int, int, int]:
    """Return the sparse shape of a grid: z is rounded up to a multiple of 16, the coarsest level's stride.

    Args:
        grid_shape_zyx: cells in z, y, x (`Voxelizer.grid_shape_zyx`).

    Returns:
        Cells in z, y, x: (32, 640, 640) for the paper's (30, 640, 640).

    Source: FSD's Waymo configuration states [32, 640, 640]; the rule behind the 32 is ours: *generalised*.
    """
    z, y, x = grid_shape_zyx
    return -(-z // TOTAL_STRIDE) * TOTAL_STRIDE, y, x


class FSDUNet(UNet):
    """Features of voxels from a U-Net of five resolutions, 64-64-64-128-256 channels down, 64 out.

    The state dict has 204 keys and 18,034,048 parameters; every one is trained. Weights are laid out
    (out, kd, kh, kw, in), which SST loads; what SST itself saves is (kd, kh, kw, in, out).

    The fourth level's strided convolution has no padding in z, as published: the topmost cell of the third level (of 8
    on the paper's grid, z above 3.6 m) reaches no coarser level.

    Args:
        in_channels: features of a voxel (`DynamicEncoder.out_channels`).
        sparse_shape: cells in z, y, x, at least 9 in z (`padded_shape`).

    Source: SST at 7c95376, SimpleSparseUNet with the settings of FSD on Waymo, which MWSIS uses unchanged (channels,
        kernels, strides, paddings, shared tables, BatchNorm constants).
    """

    out_channels = 64

    def _build_encoder(self, in_channels: int) -> None:
        first = ENCODER_CHANNELS[0]
        self.conv_input = subm_unit(in_channels, first, 1, padding=1)
        levels: dict[str, nn.Module] = {"encoder_layer1": sequential(subm_unit(first, first, 1, padding=1))}
        for level in range(2, len(ENCODER_CHANNELS) + 1):
            above, here = ENCODER_CHANNELS[level - 2 : level]
            levels[f"encoder_layer{level}"] = down_level(above, here, level, PADDING[level], inner_padding=1)
        self.encoder_layers = nn.ModuleDict(levels)

    def _build_decoder(self) -> None:
        for level in range(len(ENCODER_CHANNELS), 0, -1):
            channels = ENCODER_CHANNELS[level - 1]
            finer = ENCODER_CHANNELS[max(level - 2, 0)]
            up = up_unit(channels, finer, level) if level > 1 else subm_unit(channels, finer, 1, padding=1)
            self.add_module(f"lateral_layer{level}", ResidualBlock(channels, level))
            self.add_module(
                f"merge_layer{level}", subm_unit(2 * channels, channels, level, padding=MERGE_PADDING[level])
            )
            self.add_module(f"upsample_layer{level}", up)

    def _stages(self) -> list[nn.Module]:
        return list(self.encoder_layers.values())

    def _decoder(self, level: int) -> list[nn.Module]:
        return [self.get_submodule(f"{part}_layer{level}") for part in ("lateral", "merge", "upsample")]


def fsd_unet_parts(voxelizer: Voxelizer) -> tuple[nn.Module, UNet]:
    """Return the learned voxel encoder and the network for a grid.

    Source: FSD, whose VoteSegmentor has DynamicScatterVFE and SimpleSparseUNet; MWSIS takes both.
    """
    encoder = DynamicEncoder(voxelizer)
    return encoder, FSDUNet(encoder.out_channels, padded_shape(voxelizer.grid_shape_zyx))
