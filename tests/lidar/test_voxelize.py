"""Voxels and voxel features against their point-by-point twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lidar.encoders import MeanEncoder
from lidar.voxelize import Voxelizer
from mwsis.core.batch import PointBatch
from mwsis.core.errors import ConfigError
from tests.reference.voxelize import voxel_means, voxelize

SIZE = (0.2, 0.25, 0.3)
RANGE = (-4.0, -5.0, -1.2, 4.0, 5.0, 1.8)


def batch_of(xyz: Tensor, counts: list[int]) -> PointBatch:
    generator = torch.Generator().manual_seed(2)
    offsets = torch.tensor([0, *np.cumsum(counts).tolist()])
    feats = torch.rand(len(xyz), 2, generator=generator)
    return PointBatch(xyz, feats, offsets, torch.arange(len(xyz)), torch.full((len(xyz),), -1))


def random_batch(num_points: int = 600) -> PointBatch:
    generator = torch.Generator().manual_seed(1)
    xyz = torch.randn(num_points, 3, generator=generator) * torch.tensor([2.0, 2.5, 0.8])
    xyz[: num_points // 3] = xyz[: num_points // 3].mul(5).round().div(5)  # on the edges of cells
    return batch_of(xyz, [num_points // 2, 0, num_points - num_points // 2])


def test_equals_the_point_by_point_twin() -> None:
    points = random_batch()
    grid = Voxelizer(SIZE, RANGE)(points)
    want_voxels, want_points = voxelize(points.xyz.numpy(), points.batch_index.numpy(), SIZE, RANGE)
    assert [tuple(row) for row in grid.voxel_coords.tolist()] == want_voxels
    assert grid.point_to_voxel.tolist() == want_points
    assert -1 in want_points
    assert grid.voxel_coords.dtype == torch.int32
    assert grid.sparse_shape == (11, 40, 40)
    assert grid.num_frames == 3


def test_means_equal_the_twin_and_do_not_depend_on_the_order_of_points() -> None:
    points = random_batch()
    grid = Voxelizer(SIZE, RANGE)(points)
    got = MeanEncoder()(points, grid)
    columns = torch.cat([points.xyz, points.point_feats], 1)
    want = voxel_means(columns.numpy(), grid.point_to_voxel.tolist(), len(grid))
    np.testing.assert_allclose(got.numpy(), want, atol=1e-5)


def test_range_is_half_open() -> None:
    xyz = torch.tensor([[-4.0, 0, 0], [4.0, 0, 0], [0, 5.0, 0], [0, 0, 1.8], [3.999, 4.999, 1.799]])
    grid = Voxelizer(SIZE, RANGE)(batch_of(xyz, [5]))
    assert (grid.point_to_voxel >= 0).tolist() == [True, False, False, False, True]


def test_centers_lie_within_half_a_voxel_of_their_points() -> None:
    points = random_batch()
    voxelizer = Voxelizer(SIZE, RANGE)
    grid = voxelizer(points)
    inside = grid.point_to_voxel >= 0
    centre = voxelizer.centers(grid.voxel_coords)[grid.point_to_voxel[inside]]
    offset = (points.xyz[inside] - centre).abs()
    assert bool((offset <= torch.tensor(SIZE) / 2 + 1e-5).all())


def test_waymo_grid_is_the_published_one() -> None:
    voxelizer = Voxelizer((0.1, 0.1, 0.15), (-75.2, -75.2, -2, 75.2, 75.2, 4))
    assert voxelizer.sparse_shape == (41, 1504, 1504)


def test_no_points_in_range_give_no_voxels() -> None:
    points = batch_of(torch.full((4, 3), 100.0), [4])
    grid = Voxelizer(SIZE, RANGE)(points)
    assert grid.voxel_coords.shape == (0, 4)
    assert MeanEncoder()(points, grid).shape == (0, 5)


@pytest.mark.parametrize(
    ("size", "limits", "words"),
    [
        ((0.1, 0.1, 0), RANGE, "voxel_size"),
        ((0.3, 0.25, 0.3), RANGE, "whole number of voxels of 0.3 m along x"),
        (SIZE, (4.0, -5.0, -1.2, -4.0, 5.0, 1.8), "along x"),
        (SIZE, RANGE[:5], "x0 y0 z0"),
    ],
)
def test_wrong_settings_are_named(size: tuple[float, ...], limits: tuple[float, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Voxelizer(size, limits)
