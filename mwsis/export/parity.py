"""Inputs and the features that the exported weights make of them, for a user's own environment to compare with.

Three small scenes of points on surfaces, each of two frames, with one voxel far from all others and one in the last
corner of the grid. The network is made anew from the weights that are exported, in evaluation mode on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lidar.blocks import SparseUNet
from lidar.encoders import MeanEncoder
from lidar.fsd_unet import padded_shape
from lidar.voxelize import Voxelizer
from mwsis.core.batch import PointBatch
from mwsis.data.sampler import seeded_generator
from mwsis.export.network import FIRST_WEIGHT, rebuilt

__all__ = ["NUM_SETS", "parity_arrays", "surface_points"]

NUM_SETS = 3
NUM_FRAMES = 2
CELLS_XY = 24
CELLS_Z = {"fsd_unet": 30}
"""Cells of height; 40 otherwise, as detectors on these backbones have."""
POINTS_PER_SURFACE = 60


def surface_points(voxelizer: Voxelizer, seed: int) -> PointBatch:
    """Return two frames of points on a ground, a wall and a box, with an isolated point and one in the last corner.

    Args:
        voxelizer: the grid; the points lie inside its range.
        seed: of the scene.

    Returns:
        About 370 points; ``point_feats`` within [0, 1].
    """
    generator = seeded_generator("parity", seed)
    frames = [_frame(voxelizer, generator) for _ in range(NUM_FRAMES)]
    counts = torch.tensor([0] + [len(frame) for frame in frames])
    xyz = torch.cat(frames)
    feats = torch.rand(len(xyz), 2, generator=generator)
    feats[:, 0] = torch.tanh(2 * feats[:, 0])
    index = torch.arange(len(xyz))
    return PointBatch(xyz, feats, counts.cumsum(0), index, torch.full_like(index, -1))


def _frame(voxelizer: Voxelizer, generator: torch.Generator) -> Tensor:
    """Return (N, 3) points in metres, drawn in cells of the grid."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(POINTS_PER_SURFACE, generator=generator)

    z, y, x = voxelizer.grid_shape_zyx
    slope = float(torch.rand(1, generator=generator))
    ground_x, ground_y = uniform(2, 0.7 * x), uniform(2, 0.7 * y)
    ground = torch.stack([ground_x, ground_y, 3 + slope * ground_x / x + uniform(0, 0.4)], 1)
    wall = torch.stack([uniform(4, 16), 20 + uniform(0, 0.5), uniform(4, 0.5 * z)], 1)
    angle = uniform(0, 2 * math.pi)
    box = torch.stack([12 + 3 * angle.cos(), 9 + 3 * angle.sin(), uniform(4, 11)], 1)
    alone = torch.tensor([[x - 6.5, 4.5, z - 8.5], [x - 0.5, y - 0.5, z - 0.5]])
    cells = torch.cat([ground, wall, box, alone])
    low = torch.tensor(voxelizer.point_cloud_range[:3])
    return low + cells * torch.tensor(voxelizer.voxel_size)


def parity_arrays(architecture: str, state: Mapping[str, Tensor], voxel_size: Sequence[float]) -> dict[str, np.ndarray]:
    """Return inputs and outputs of `NUM_SETS` scenes.

    Args:
        architecture: a key of `mwsis.export.network.ARCHITECTURES`.
        state: the weights.
        voxel_size: x, y, z, metres.

    Returns:
        By name, ``_0`` to ``_2`` at its end: ``points`` (N, 5) float32, ``point_coords`` (N, 4) int32 and
        ``voxel_features`` (V, D), ``voxel_coords`` (V, 4) int32 [b, z, y, x], ``unet`` (V, D') and, of networks with an
        encoder for bird's-eye-view detectors, ``bev`` (B, 128 * Z, Y, X). Of all scenes: ``num_sets``, ``num_frames``,
        ``sparse_shape``, ``voxel_size``, ``point_cloud_range``.
    """
    cells = (CELLS_XY, CELLS_XY, CELLS_Z.get(architecture, 40))
    edges = [float(edge) for edge in voxel_size]
    low = [-CELLS_XY / 2 * edges[0], -CELLS_XY / 2 * edges[1], -2.0]
    limits = low + [start + count * edge for start, count, edge in zip(low, cells, edges)]
    voxelizer = Voxelizer(edges, limits)
    shape = padded_shape(voxelizer.grid_shape_zyx) if architecture == "fsd_unet" else voxelizer.sparse_shape
    arrays = {
        "num_sets": np.array(NUM_SETS),
        "num_frames": np.array(NUM_FRAMES),
        "sparse_shape": np.array(shape),
        "voxel_size": np.array(edges),
        "point_cloud_range": np.array(limits),
    }
    for index in range(NUM_SETS):
        found = _one_set(architecture, state, voxelizer, shape, index)
        arrays |= {f"{name}_{index}": tensor.numpy() for name, tensor in found.items()}
    return arrays


@torch.no_grad()
def _one_set(
    architecture: str, state: Mapping[str, Tensor], voxelizer: Voxelizer, shape: Sequence[int], seed: int
) -> dict[str, Tensor]:
    encoder, backbone = rebuilt(architecture, state, voxelizer, shape)
    points = surface_points(voxelizer, seed)
    grid = voxelizer(points)
    features = encoder(points, grid)
    if isinstance(encoder, MeanEncoder):
        features = features[:, : state[FIRST_WEIGHT].shape[-1]]
    voxels = (features, grid.voxel_coords, grid.num_frames)
    found = {"voxel_features": features, "voxel_coords": grid.voxel_coords, "unet": backbone(*voxels)}
    if isinstance(backbone, SparseUNet):
        found["bev"] = backbone.encode(*voxels)
    else:
        found["points"] = torch.cat([points.xyz, points.point_feats], 1)
        found["point_coords"] = grid.voxel_coords[grid.point_to_voxel]
    return found
