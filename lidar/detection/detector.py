"""CenterPoint on the pretrained encoder: points in, 3D boxes out.

`build_center_point` puts the parts together. Training data are `sweep.py` (augmentation) and `object_bank.py` (pasted
objects); the training loop is `mwsis.training`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lidar.blocks import BEV_STRIDE, SparseUNet, UNet, bird_eye_cells
from lidar.detection.boxes import Boxes3D, HeatGrid
from lidar.detection.center_head import CenterHead, CenterOutput, center_losses, find_boxes
from lidar.detection.neck import BirdEyeNeck
from lidar.voxelize import VoxelGrid, Voxelizer
from mwsis.core.batch import PointBatch
from mwsis.core.errors import ConfigError

__all__ = ["CenterPoint", "bird_eye_shape", "build_center_point", "strongest_of_cells"]

DECODER = ("conv_up_", "inv_conv", "conv5")
"""How the names of a `SparseUNet`'s layers begin that `encode` does not run."""


def strongest_of_cells(features: Tensor, grid: VoxelGrid, shape: tuple[int, int], voxels_per_cell: int) -> Tensor:
    """Return the largest value of each feature over the voxels above each cell of the bird's-eye view.

    Args:
        features: (V, D) float32, of the grid's voxels; not negative (they come out of a ReLU).
        grid: the voxels.
        shape: rows and columns; voxels beyond them go to the last ones.
        voxels_per_cell: along x and along y.

    Returns:
        (B, D, rows, columns), dtype of ``features``, differentiable; 0 where a cell has no voxel.

    Source: pillars of PointPillars (CVPR 2019), of voxels instead of points.
    """
    rows, columns = shape
    frame, _, y, x = grid.voxel_coords.long().unbind(1)
    row, column = (y // voxels_per_cell).clamp(max=rows - 1), (x // voxels_per_cell).clamp(max=columns - 1)
    cell = ((frame * rows + row) * columns + column)[:, None].expand_as(features)
    pooled = features.new_zeros(grid.num_frames * rows * columns, features.shape[1])
    pooled = pooled.scatter_reduce(0, cell, features, "amax")
    return pooled.view(grid.num_frames, rows, columns, -1).permute(0, 3, 1, 2)


def bird_eye_shape(sparse_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the cells z, y, x that `SparseUNet.encode` makes of a grid of ``sparse_shape`` cells z, y, x.

    Raises:
        ConfigError: the grid is too low for the encoder's steps along z.
    """
    z, y, x = bird_eye_cells(sparse_shape)
    if z < 1:
        raise ConfigError(
            f"lidar.voxel_size: the detector's encoder needs a grid of 24 voxels along z, got {sparse_shape[0] - 1}; "
            "take flatter voxels or a taller data.point_cloud_range"
        )
    return z, y, x


class CenterPoint(nn.Module):
    """Voxelises, runs the encoder, and finds boxes in its bird's-eye view; with ``decoder`` in the decoder's, too.

    Pretraining on points teaches the decoder's voxels most of what it teaches: they alone say what a point is and where
    its object. The encoder's last level, all that a detector of the usual kind sees, carries little of that. Without
    ``decoder`` the decoder of the backbone rests: its weights stay as they were loaded.

    Attributes:
        bird_eye: cells z, y, x of the encoder's output.
        grid: the cells of the heat map.

    Args:
        voxelizer: the grid of voxels.
        encoder: (points, grid) to (V, D) voxel features.
        backbone: its `encode` is the encoder; pretrained or fresh.
        neck: (B, D, rows, columns) to features of the heat map's cells.
        head: these to heat map and codes.
        decoder: show the head the decoder's features, too, the strongest above each cell.
        score_threshold, nms_iou: see `find_boxes`.

    Raises:
        ConfigError: the grid is too low for the encoder, or cells cut voxels.

    Source: CenterPoint (Yin et al., CVPR 2021), first stage, with voxels; ``decoder``: *generalised*, as Part-A2 and
    FSD find objects on a U-Net's points.
    """

    def __init__(
        self,
        voxelizer: Voxelizer,
        encoder: nn.Module,
        backbone: SparseUNet,
        neck: BirdEyeNeck,
        head: CenterHead,
        *,
        decoder: bool = False,
        score_threshold: float = 0.1,
        nms_iou: float = 0.7,
    ) -> None:
        super().__init__()
        if decoder and BEV_STRIDE % neck.upsample:
            raise ConfigError(f"detector.upsample: with detector.decoder expected 1, 2, 4 or 8, got {neck.upsample}")
        self.voxelizer = voxelizer
        self.encoder = encoder
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.decoder = decoder
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.bird_eye = bird_eye_shape(voxelizer.sparse_shape)
        x0, y0 = voxelizer.point_cloud_range[:2]
        edge_x, edge_y = (edge * BEV_STRIDE / neck.upsample for edge in voxelizer.voxel_size[:2])
        rows, columns = (cells * neck.upsample for cells in self.bird_eye[1:])
        self.grid = HeatGrid((x0, y0), (edge_x, edge_y), (rows, columns))
        for name, part in backbone.named_children():
            if name.startswith(DECODER) and not decoder:
                part.requires_grad_(False)
        backbone.conv_out.requires_grad_(True)

    def forward(self, points: PointBatch) -> CenterOutput:
        """Return what the head says about each cell of B sweeps."""
        grid = self.voxelizer(points)
        bird_eye, decoded = self._features(points, grid)
        features = self.neck(bird_eye)
        if decoded is not None:
            voxels_per_cell = BEV_STRIDE // self.neck.upsample
            features = torch.cat([features, strongest_of_cells(decoded, grid, self.grid.shape, voxels_per_cell)], 1)
        output: CenterOutput = self.head(features)
        return output

    def _features(self, points: PointBatch, grid: VoxelGrid) -> tuple[Tensor, Tensor | None]:
        """Return the encoder's bird's-eye view and, where the head sees them, the decoder's voxel features."""
        if not len(grid):
            height, rows, columns = self.bird_eye
            empty = points.xyz.new_zeros(grid.num_frames, self.backbone.bev_channels * height, rows, columns)
            return empty, points.xyz.new_zeros(0, self.backbone.out_channels) if self.decoder else None
        voxels = (self.encoder(points, grid), grid.voxel_coords, grid.num_frames)
        return self.backbone.encode_and_decode(*voxels) if self.decoder else (self.backbone.encode(*voxels), None)

    def losses(self, points: PointBatch, gt: Sequence[Boxes3D]) -> dict[str, Tensor]:
        """Return the losses of B sweeps with B sets of boxes, see `center_losses`."""
        return center_losses(self(points), gt, self.grid)

    @torch.no_grad()
    def predict(self, points: PointBatch) -> list[Boxes3D]:
        """Return the boxes of each sweep, best first; the caller chooses ``eval()``."""
        return find_boxes(self(points), self.grid, self.score_threshold, self.nms_iou)


def build_center_point(
    parts: Callable[[Voxelizer], tuple[nn.Module, UNet]],
    num_classes: int,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    *,
    neck_layers: Sequence[int] = (5, 5),
    neck_channels: Sequence[int] = (128, 256),
    neck_up_channels: Sequence[int] = (256, 256),
    upsample: int = 1,
    head_channels: int = 64,
    decoder: bool = False,
    score_threshold: float = 0.1,
    nms_iou: float = 0.7,
) -> CenterPoint:
    """Return a detector around a network.

    Args:
        parts: makes the voxel encoder and the backbone for a grid, such as `lidar.unet_v2.unet_v2_parts`.
        num_classes: C.
        voxel_size: x, y, z, metres.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres, vehicle frame.
        neck_layers, neck_channels, neck_up_channels, upsample: see `BirdEyeNeck`.
        head_channels: see `CenterHead`.
        decoder: see `CenterPoint`.
        score_threshold, nms_iou: see `find_boxes`.

    Returns:
        The detector with fresh weights (from torch's global generator), in training mode.

    Raises:
        ConfigError: a number is out of range, or the network has no encoder for a bird's-eye view.

    Source: sizes are OpenPCDet's for Waymo, CenterPoint without residual blocks.
    """
    voxelizer = Voxelizer(voxel_size, point_cloud_range)
    encoder, backbone = parts(voxelizer)
    if not isinstance(backbone, SparseUNet):
        raise ConfigError(f"lidar.network: {type(backbone).__name__} has no bird's-eye view; take unet_v2, res8x_unet")
    in_channels = backbone.bev_channels * bird_eye_shape(voxelizer.sparse_shape)[0]
    neck = BirdEyeNeck(in_channels, neck_layers, neck_channels, neck_up_channels, upsample)
    head = CenterHead(neck.out_channels + decoder * backbone.out_channels, num_classes, head_channels)
    return CenterPoint(
        voxelizer,
        encoder,
        backbone,
        neck,
        head,
        decoder=decoder,
        score_threshold=score_threshold,
        nms_iou=nms_iou,
    )
