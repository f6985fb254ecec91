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
from lidar.voxelize import Voxelizer
from mwsis.core.batch import PointBatch
from mwsis.core.errors import ConfigError

__all__ = ["CenterPoint", "bird_eye_shape", "build_center_point"]

DECODER = ("conv_up_", "inv_conv", "conv5")
"""How the names of a `SparseUNet`'s layers begin that `encode` does not run."""


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
    """Voxelises, runs the encoder, and finds boxes in its bird's-eye view.

    The decoder of the backbone rests: its weights stay as they were loaded.

    Attributes:
        bird_eye: cells z, y, x of the encoder's output.
        grid: the cells of the heat map.

    Args:
        voxelizer: the grid of voxels.
        encoder: (points, grid) to (V, D) voxel features.
        backbone: its `encode` is the encoder; pretrained or fresh.
        neck: (B, D, rows, columns) to features of the heat map's cells.
        head: these to heat map and codes.
        score_threshold, nms_iou: see `find_boxes`.

    Raises:
        ConfigError: the grid is too low for the encoder.

    Source: CenterPoint (Yin et al., CVPR 2021), first stage, with voxels.
    """

    def __init__(
        self,
        voxelizer: Voxelizer,
        encoder: nn.Module,
        backbone: SparseUNet,
        neck: BirdEyeNeck,
        head: CenterHead,
        *,
        score_threshold: float = 0.1,
        nms_iou: float = 0.7,
    ) -> None:
        super().__init__()
        self.voxelizer = voxelizer
        self.encoder = encoder
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.bird_eye = bird_eye_shape(voxelizer.sparse_shape)
        x0, y0 = voxelizer.point_cloud_range[:2]
        edge_x, edge_y = (edge * BEV_STRIDE / neck.upsample for edge in voxelizer.voxel_size[:2])
        rows, columns = (cells * neck.upsample for cells in self.bird_eye[1:])
        self.grid = HeatGrid((x0, y0), (edge_x, edge_y), (rows, columns))
        for name, part in backbone.named_children():
            if name.startswith(DECODER):
                part.requires_grad_(False)
        backbone.conv_out.requires_grad_(True)

    def forward(self, points: PointBatch) -> CenterOutput:
        """Return what the head says about each cell of B sweeps."""
        grid = self.voxelizer(points)
        if len(grid):
            bird_eye = self.backbone.encode(self.encoder(points, grid), grid.voxel_coords, grid.num_frames)
        else:
            height, rows, columns = self.bird_eye
            bird_eye = points.xyz.new_zeros(grid.num_frames, self.backbone.bev_channels * height, rows, columns)
        output: CenterOutput = self.head(self.neck(bird_eye))
        return output

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
    head = CenterHead(neck.out_channels, num_classes, head_channels)
    return CenterPoint(voxelizer, encoder, backbone, neck, head, score_threshold=score_threshold, nms_iou=nms_iou)
