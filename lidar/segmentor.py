"""The LiDAR branch: points in, class and centre vote of every point out, instances on request.

Its parts come in through the constructor; `build_lidar_segmentor` puts them together. Not here: losses
(`point_head.py`), pseudo labels and the teacher (`fusion`), the training loop (`mwsis.training`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lidar.blocks import UNet
from lidar.grouping import MIN_POINTS, RADII, group_points
from lidar.point_head import PRIOR, PointHead, decode_votes
from lidar.voxelize import VoxelGrid, Voxelizer
from mwsis.core.batch import PointBatch
from mwsis.core.errors import ConfigError
from mwsis.core.instances import PointInstances

__all__ = ["OUT_OF_RANGE_LOGIT", "LidarSegmentor", "PointOutput", "build_lidar_segmentor"]

OUT_OF_RANGE_LOGIT = -20.0
"""Class logit of a point that no voxel holds: background, probability 2e-9."""


@dataclass(frozen=True, eq=False)
class PointOutput:
    """What the network says about each point.

    Attributes:
        class_logits: (N, C) float32, before the sigmoid; `OUT_OF_RANGE_LOGIT` outside the range.
        vote_encoded: (N, C, 3) float32, offset to the object's centre, one per class, root-compressed; 0 outside the
            range. `vote_offsets` has metres.
        in_range: (N,) bool, the points that the network saw; the others carry no gradient.
    """

    class_logits: Tensor
    vote_encoded: Tensor
    in_range: Tensor

    @property
    def class_prob(self) -> Tensor:
        """(N, C) float32 in [0, 1]: the logits through one sigmoid."""
        return self.class_logits.sigmoid()

    @property
    def vote_offsets(self) -> Tensor:
        """(N, C, 3) float32, metres, vehicle frame."""
        return decode_votes(self.vote_encoded)


class LidarSegmentor(nn.Module):
    """Voxelises, runs the sparse backbone, and predicts class and centre vote of every point.

    Args:
        voxelizer: the grid.
        encoder: (points, grid) to (V, D) voxel features.
        backbone: (voxel features, voxel coordinates, B) to (V, D') features; the part that is exported.
        head: (N, D' + 3) point features to class logits and encoded votes.
        num_classes: C.
        radii: grouping radius of each class, metres.
        min_points: smallest instance that `predict` returns.

    Raises:
        ConfigError: not one radius per class.

    Source: MWSIS and FSD (VoteSegmentor).
    """

    def __init__(
        self,
        voxelizer: Voxelizer,
        encoder: nn.Module,
        backbone: nn.Module,
        head: nn.Module,
        num_classes: int,
        *,
        radii: Sequence[float] = RADII,
        min_points: int = MIN_POINTS,
    ) -> None:
        super().__init__()
        if len(radii) != num_classes or min(radii) <= 0:
            raise ConfigError(f"radii: expected {num_classes} positive radii in metres, got {list(radii)}")
        self.voxelizer = voxelizer
        self.encoder = encoder
        self.backbone = backbone
        self.head = head
        self.num_classes = num_classes
        self.radii = tuple(radii)
        self.min_points = min_points

    def forward(self, points: PointBatch) -> PointOutput:
        """Predict class and vote of every point.

        Args:
            points: N points of B frames.

        Returns:
            One row per point, same order.
        """
        grid = self.voxelizer(points)
        in_range = grid.point_to_voxel >= 0
        class_logits = points.xyz.new_full((len(points.xyz), self.num_classes), OUT_OF_RANGE_LOGIT)
        vote_encoded = points.xyz.new_zeros(len(points.xyz), self.num_classes, 3)
        if len(grid):
            logits, votes = self.head(self._point_features(points, grid, in_range))
            class_logits = class_logits.index_put((in_range,), logits)
            vote_encoded = vote_encoded.index_put((in_range,), votes)
        return PointOutput(class_logits, vote_encoded, in_range)

    def _point_features(self, points: PointBatch, grid: VoxelGrid, in_range: Tensor) -> Tensor:
        voxel_features = self.backbone(self.encoder(points, grid), grid.voxel_coords, grid.num_frames)
        voxel = grid.point_to_voxel[in_range]
        offset = points.xyz[in_range] - self.voxelizer.centers(grid.voxel_coords)[voxel]
        return torch.cat([voxel_features[voxel], offset], 1)

    @torch.no_grad()
    def predict(self, points: PointBatch, relabel: Callable[[Tensor], Tensor] | None = None) -> list[PointInstances]:
        """Return the instances of each frame; the caller chooses ``eval()``.

        Args:
            points: N points of B frames.
            relabel: corrects the points' classes before they are grouped (`lidar.grouping.group_points`).

        Returns:
            B sets, points in the order of the batch.
        """
        output = self(points)
        return group_points(
            points.xyz,
            output.class_prob,
            output.vote_offsets,
            points.batch_index,
            points.num_frames,
            self.radii,
            self.min_points,
            relabel,
        )


def build_lidar_segmentor(
    parts: Callable[[Voxelizer], tuple[nn.Module, UNet]],
    num_classes: int,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    *,
    hidden: int = 64,
    prior: float = PRIOR,
    radii: Sequence[float] = RADII,
    min_points: int = MIN_POINTS,
) -> LidarSegmentor:
    """Return a segmentor around a network.

    Args:
        parts: makes the voxel encoder and the backbone for a grid, such as `lidar.unet_v2.unet_v2_parts`.
        num_classes: C.
        voxel_size: x, y, z, metres (MWSIS: .25, .25, .2).
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres, vehicle frame (MWSIS: -80, -80, -2, 80, 80, 4).
        hidden: width of the point head (MWSIS: 128).
        prior: initial score of each class.
        radii: grouping radius of each class, metres.
        min_points: smallest instance (MWSIS: 1).

    Returns:
        The segmentor with fresh weights (from torch's global generator), in training mode.

    Raises:
        ConfigError: the range is no whole number of voxels, or there is not one radius per class.

    Example:
        >>> from lidar.unet_v2 import unet_v2_parts
        >>> segmentor = build_lidar_segmentor(unet_v2_parts, 3, (0.2, 0.2, 0.2), (-20, -20, -2, 20, 20, 4))
        >>> len(segmentor.backbone.state_dict())
        168
    """
    voxelizer = Voxelizer(voxel_size, point_cloud_range)
    encoder, backbone = parts(voxelizer)
    head = PointHead(backbone.out_channels + 3, num_classes, hidden, prior)
    return LidarSegmentor(voxelizer, encoder, backbone, head, num_classes, radii=radii, min_points=min_points)
