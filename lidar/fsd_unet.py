"""The sparse 3D U-Net of the MWSIS paper: FSD's SimpleSparseUNet, key for key.

Five resolutions, 18 million parameters, fed by `DynamicEncoder`. Re-stated from the list of keys, shapes and
convolution settings; attribute names are SST's, because they are the keys of its checkpoints. Not here: units and the
join of a level (`blocks.py`), voxels (`voxelize.py`), the branch around it (`segmentor.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lidar.blocks import ResidualBlock, decode_level, down_unit, subm_unit, up_unit
from lidar.encoders import DynamicEncoder
from lidar.grouping import MIN_POINTS, RADII
from lidar.point_head import PRIOR, PointHead
from lidar.segmentor import LidarSegmentor
from lidar.sparse import SparseTensor, sequential, sparse_precision, sparse_tensor
from lidar.voxelize import Voxelizer

__all__ = ["ENCODER_CHANNELS", "FSDUNet", "build_fsd_unet_segmentor", "padded_shape"]

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


def _down_level(in_channels: int, out_channels: int, level: int) -> nn.Module:
    """Halve the resolution, then two convolutions at the new one."""
    return sequential(
        down_unit(in_channels, out_channels, level, PADDING[level]),
        subm_unit(out_channels, out_channels, level, padding=1),
        subm_unit(out_channels, out_channels, level, padding=1),
    )


class FSDUNet(nn.Module):
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

    def __init__(self, in_channels: int, sparse_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.sparse_shape = tuple(int(cells) for cells in sparse_shape)
        self._build_encoder(in_channels)
        self._build_decoder()

    def _build_encoder(self, in_channels: int) -> None:
        first = ENCODER_CHANNELS[0]
        self.conv_input = subm_unit(in_channels, first, 1, padding=1)
        levels: dict[str, nn.Module] = {"encoder_layer1": sequential(subm_unit(first, first, 1, padding=1))}
        for level in range(2, len(ENCODER_CHANNELS) + 1):
            above, here = ENCODER_CHANNELS[level - 2 : level]
            levels[f"encoder_layer{level}"] = _down_level(above, here, level)
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

    def forward(self, voxel_features: Tensor, voxel_coords: Tensor, num_frames: int) -> Tensor:
        """Return a feature of every input voxel.

        Args:
            voxel_features: (V, in_channels) float32.
            voxel_coords: (V, 4) int32, [b, z, y, x], each row once, any order.
            num_frames: B.

        Returns:
            (V, 64) float32, in the order of the input.
        """
        if not len(voxel_features):
            return voxel_features.new_zeros(0, self.out_channels)
        with sparse_precision(voxel_features.device):
            levels = self._levels(voxel_features, voxel_coords, num_frames)
            bottom = levels[-1]
            for level in range(len(levels), 0, -1):
                bottom = decode_level(levels[level - 1], bottom, *self._decoder(level))
        features: Tensor = bottom.features.float()
        return features

    def _decoder(self, level: int) -> list[nn.Module]:
        return [self.get_submodule(f"{part}_layer{level}") for part in ("lateral", "merge", "upsample")]

    def _levels(self, voxel_features: Tensor, voxel_coords: Tensor, num_frames: int) -> list[SparseTensor]:
        tensor = sparse_tensor(voxel_features.float(), voxel_coords, self.sparse_shape, num_frames)
        tensor = self.conv_input(tensor)
        levels = []
        for stage in self.encoder_layers.values():
            tensor = stage(tensor)
            levels.append(tensor)
        return levels


def build_fsd_unet_segmentor(
    num_classes: int,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    *,
    hidden: int = 128,
    prior: float = PRIOR,
    radii: Sequence[float] = RADII,
    min_points: int = MIN_POINTS,
) -> LidarSegmentor:
    """Return a segmentor around FSD's sparse U-Net with learned voxel features, the LiDAR network of MWSIS.

    Args:
        num_classes: C.
        voxel_size: x, y, z, metres (MWSIS: .25, .25, .2).
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres, vehicle frame (MWSIS: -80, -80, -2, 80, 80, 4).
        hidden: width of the point head.
        prior: initial score of each class.
        radii: grouping radius of each class, metres.
        min_points: smallest instance (MWSIS: 1).

    Returns:
        The segmentor with fresh weights (from torch's global generator), in training mode.

    Raises:
        ConfigError: the range is no whole number of voxels, or there is not one radius per class.

    Source: MWSIS and FSD (VoteSegmentor with DynamicScatterVFE and SimpleSparseUNet).

    Example:
        >>> segmentor = build_fsd_unet_segmentor(3, (0.25, 0.25, 0.2), (-80, -80, -2, 80, 80, 4))
        >>> len(segmentor.backbone.state_dict()), segmentor.backbone.sparse_shape
        (204, (32, 640, 640))
    """
    voxelizer = Voxelizer(voxel_size, point_cloud_range)
    encoder = DynamicEncoder(voxelizer)
    backbone = FSDUNet(encoder.out_channels, padded_shape(voxelizer.grid_shape_zyx))
    head = PointHead(backbone.out_channels + 3, num_classes, hidden, prior)
    return LidarSegmentor(voxelizer, encoder, backbone, head, num_classes, radii=radii, min_points=min_points)
