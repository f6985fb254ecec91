"""Beams and columns of sweeps that do not store them, recovered from the order of the points in the file.

A spinning LiDAR writes one beam after the other; the azimuth then runs round and round, and each turn is a beam.
Sources call this once per sweep and check what came out. What is done with the rings (segments, votes) is in
`lidar.rings`; formats are in the source modules, first `kitti.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mwsis.core.segment_ops import segment_median

__all__ = ["azimuth_columns", "ring_problem", "rings_from_elevation", "rings_from_file_order"]

BACKWARD_TOLERANCE = 0.1
"""rad; a step back by less is jitter, a longer one a gap of the sweep. Measured: real KITTI sweeps step back by up to
4e-4 rad, and folding steps to [0, 2 pi) without tolerance finds up to 89 beams of 64."""
NUM_SECTORS = 360
"""Directions tried for the seam between two beams; its exact place is then the median of the jumps found there."""
SEAM_DROP = (0.0025, 0.02)
"""rad; elevation lost where one beam ends and the next begins (HDL-64E beams are .0058 to .0087 rad apart)."""
SEAM_RANGE_CHANGE = 0.3
"""A larger relative change of range is an object's edge: beams of one sensor start at different heights, so the
elevation seen from its origin jumps there too."""
STUB_POINTS = 20
"""A first turn with fewer points is the jitter of the file's start, not a beam."""
OVERSIZE = 1.1
"""A ring with more points than this times the columns of a turn is two rings."""


def rings_from_file_order(xyz: Tensor) -> Tensor:
    """Return the beam of each point of a sweep written beam by beam, highest beam first.

    The azimuth is unwrapped in file order; a beam ends where the unwrapped angle passes the seam, the direction in
    which the elevation drops between neighbouring points in the most turns.

    Args:
        xyz: (N, 3) float, metres, sensor frame (x forward, y left, z up), in file order.

    Returns:
        (N,) int64, 0 = first beam of the file; validate with `ring_problem`.

    Complexity: O(N); 20 ms for 125 k points on one core.

    Source: KITTI scan unfolding (Triess et al. 2020), *generalised* to any seam and to sweeps cropped to the camera.
    """
    if len(xyz) < 2:
        return torch.zeros(len(xyz), dtype=torch.int64, device=xyz.device)
    phase = _unwrapped_azimuth(xyz)
    turn = torch.floor((phase - _seam(xyz, phase)) / (2 * math.pi)).long()
    turn = turn - turn.min()
    if int((turn == 0).sum()) < STUB_POINTS:
        turn = (turn - 1).clamp(min=0)
    return turn


def ring_problem(ring: Tensor, xyz: Tensor, *, num_rings: tuple[int, int], num_columns: int) -> str | None:
    """Say why recovered rings cannot be right, or ``None``.

    Args:
        ring: (N,) int64, 0 = highest beam.
        xyz: (N, 3) float, metres, sensor frame.
        num_rings: fewest and most rings the sensor can give.
        num_columns: firings per turn.

    Returns:
        A clause for a warning: wrong number of rings, elevations out of order, or more than 1 % of the points in rings
        with more points than a turn has firings.

    Source: thresholds 58 to 64 rings, falling medians and 1 % as measured on 20 KITTI sweeps.
    """
    counts = torch.bincount(ring)
    if not num_rings[0] <= len(counts) <= num_rings[1]:
        return f"{len(counts)} rings instead of {num_rings[0]} to {num_rings[1]}"
    if not bool((counts > 0).all()):
        return f"ring {int(counts.argmin())} has no points"
    if not bool((segment_median(_elevation(xyz), ring, len(counts)).diff() < 0).all()):
        return "ring elevations that do not fall from ring to ring"
    oversized = counts[counts > OVERSIZE * num_columns].sum() / counts.sum()
    if oversized > 0.01:
        return f"{float(oversized):.0%} of the points in rings larger than a turn of {num_columns} firings"
    return None


def rings_from_elevation(xyz: Tensor, beam_elevations: Tensor) -> Tensor:
    """Return the beam whose nominal elevation is nearest to each point's: the fallback for shuffled sweeps.

    Less exact than file order (.62 to .65 of the points of a motion-corrected HDL-64E sweep get their own beam).

    Args:
        xyz: (N, 3) float, metres, sensor frame.
        beam_elevations: (R,) float, rad, falling.

    Returns:
        (N,) int64 in 0..R-1.
    """
    rising = beam_elevations.flip(0).to(torch.float64).to(xyz.device)
    borders = (rising[1:] + rising[:-1]) / 2
    return len(rising) - 1 - torch.bucketize(_elevation(xyz), borders)


def azimuth_columns(xyz: Tensor, num_columns: int) -> Tensor:
    """Return the column of each point, counted from the rear, anticlockwise.

    The seam lies behind the vehicle, so that nothing a forward camera sees is cut by it.

    Args:
        xyz: (N, 3) float, metres, sensor frame (x forward, y left).
        num_columns: firings per turn.

    Returns:
        (N,) int32 in 0..num_columns-1; straight ahead is ``num_columns // 2``.
    """
    turn = (_azimuth(xyz) + math.pi) / (2 * math.pi)
    return torch.floor(turn * num_columns).clamp(0, num_columns - 1).to(torch.int32)


def _azimuth(xyz: Tensor) -> Tensor:
    return torch.atan2(xyz[:, 1].double(), xyz[:, 0].double())


def _elevation(xyz: Tensor) -> Tensor:
    return torch.atan2(xyz[:, 2].double(), xyz[:, :2].double().norm(dim=1))


def _unwrapped_azimuth(xyz: Tensor) -> Tensor:
    """Return the azimuth in file order without its jumps by a turn, (N,) float64, rad."""
    azimuth = _azimuth(xyz)
    step = torch.remainder(azimuth.diff() + BACKWARD_TOLERANCE, 2 * math.pi) - BACKWARD_TOLERANCE
    return torch.cat([azimuth[:1], azimuth[:1] + step.cumsum(0)])


def _seam(xyz: Tensor, phase: Tensor) -> Tensor:
    """Return the direction in which one beam ends and the next begins, scalar, rad."""
    ranges = xyz.double().norm(dim=1)
    drop = -_elevation(xyz).diff()
    jumps = (drop > SEAM_DROP[0]) & (drop < SEAM_DROP[1]) & (phase.diff().abs() < BACKWARD_TOLERANCE)
    jumps &= ranges.diff().abs() < SEAM_RANGE_CHANGE * ranges[1:]
    sectors = ((phase[1:] + phase[:-1]) / 2)[jumps] / (2 * math.pi / NUM_SECTORS)
    if not len(sectors):
        return phase.new_tensor(0.0)
    counts = torch.bincount(torch.floor(sectors).long() % NUM_SECTORS, minlength=NUM_SECTORS)
    best = int((counts + counts.roll(1)).argmax())  # border between this sector and the one before
    offset = torch.remainder(sectors - best + NUM_SECTORS / 2, NUM_SECTORS) - NUM_SECTORS / 2
    return (best + offset[offset.abs() <= 1].median()) * (2 * math.pi / NUM_SECTORS)
