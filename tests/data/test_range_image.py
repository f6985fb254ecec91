from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mwsis.data.range_image import azimuth_columns, ring_problem, rings_from_elevation, rings_from_file_order

BEAMS = torch.deg2rad(torch.cat([torch.linspace(2, -8.333, 32), torch.linspace(-8.833, -24.333, 32)])).double()
COLUMNS = 1000


def spinning_sweep(dropout: float, seam: float, azimuth_jitter: float = 0.0) -> tuple[Tensor, Tensor]:
    """A sensor 1.7 m above ground among walls, written beam by beam from ``seam`` on; also the true ring of each."""
    generator = torch.Generator().manual_seed(0)
    azimuth = seam + (torch.arange(COLUMNS) + 0.5) * (2 * math.pi / COLUMNS)
    azimuth = azimuth[None] + (torch.rand(64, 1, generator=generator) - 0.5) * azimuth_jitter
    elevation = BEAMS[:, None].expand_as(azimuth)
    wall = 15 + 10 * torch.sign(torch.sin(9 * azimuth))
    ranges = torch.minimum(wall / elevation.cos(), 1.7 / (-elevation.sin()).clamp(min=1e-3)).float()
    flat = ranges * elevation.cos()
    xyz = torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), ranges * elevation.sin()], -1).reshape(-1, 3).float()
    keep = torch.rand(len(xyz), generator=generator) >= dropout
    return xyz[keep], torch.arange(64).repeat_interleave(COLUMNS)[keep]


@pytest.mark.parametrize(("dropout", "seam"), [(0.0, 0.0), (0.2, 0.0), (0.2, -math.pi), (0.3, 1.234)])
def test_rings_recovered_from_file_order(dropout: float, seam: float) -> None:
    xyz, ring = spinning_sweep(dropout, seam)
    recovered = rings_from_file_order(xyz)
    assert (recovered == ring).float().mean() > 0.999
    assert ring_problem(recovered, xyz, num_rings=(58, 64), num_columns=COLUMNS) is None


def test_rings_survive_azimuth_offsets_between_beams() -> None:
    xyz, ring = spinning_sweep(0.2, 0.0, azimuth_jitter=0.05)
    assert (rings_from_file_order(xyz) == ring).float().mean() > 0.99


def test_rings_recovered_after_cropping_to_the_camera() -> None:
    xyz, ring = spinning_sweep(0.1, 0.0)
    ahead = xyz[:, 1].abs() < xyz[:, 0]
    assert (rings_from_file_order(xyz[ahead]) == ring[ahead]).float().mean() > 0.999


def test_problem_is_said_for_shuffled_and_cut_sweeps() -> None:
    xyz, _ = spinning_sweep(0.0, 0.0)
    shuffled = xyz[torch.randperm(len(xyz), generator=torch.Generator().manual_seed(0))]
    rules = {"num_rings": (58, 64), "num_columns": COLUMNS}
    assert "rings instead of 58 to 64" in ring_problem(rings_from_file_order(shuffled), shuffled, **rules)
    half = xyz[: len(xyz) // 2]
    assert ring_problem(rings_from_file_order(half), half, **rules) == "32 rings instead of 58 to 64"
    assert "do not fall" in ring_problem(rings_from_file_order(xyz).flip(0), xyz, **rules)
    assert "larger than a turn" in ring_problem(rings_from_file_order(xyz), xyz, num_rings=(58, 64), num_columns=500)
    assert "ring 3 has no points" in ring_problem(torch.tensor([0, 1, 2, 4]), xyz[:4], num_rings=(5, 5), num_columns=9)


def test_elevation_fallback() -> None:
    xyz, ring = spinning_sweep(0.0, 0.0)
    assert torch.equal(rings_from_elevation(xyz, BEAMS), ring)


@pytest.mark.parametrize("num_points", [0, 1, 2])
def test_tiny_sweeps(num_points: int) -> None:
    assert len(rings_from_file_order(torch.rand(num_points, 3))) == num_points


def test_columns_have_their_seam_at_the_rear() -> None:
    angle = torch.tensor([-179.9, -89.5, -0.1, 0.1, 90.5, 179.9]).deg2rad()
    columns = azimuth_columns(torch.stack([angle.cos(), angle.sin(), torch.zeros(6)], 1), 360)
    assert columns.tolist() == [0, 90, 179, 180, 270, 359]
    behind = azimuth_columns(torch.tensor([[-1.0, 0.0, 0.0], [-1.0, -0.0, 0.0]]), 360)
    assert behind.tolist() == [359, 0]
