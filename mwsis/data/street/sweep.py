"""What the roof LiDAR records: a range image with two returns, read out as points.

A beam goes on through car windows; where the beam's edge passes what its middle hits, or through a pane or leaves, it
comes back twice. Ranges are noisy, weak returns drop out. Which camera sees a point is a projection alone: the LiDAR
looks over things the cameras do not. Next: `truth.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mwsis.core.frame import PointCloud
from mwsis.data.street.materials import REFLECTIVITY, Material
from mwsis.data.street.rays import STEP_PAST
from mwsis.data.street.rig import LidarRig
from mwsis.data.street.scene import World
from mwsis.data.street.shapes import Array

__all__ = [
    "BEAM_EDGE",
    "MAX_RANGE",
    "RANGE_NOISE",
    "Echoes",
    "Sweep",
    "elongations",
    "scan",
    "sift",
    "trace_beams",
    "two_returns",
]

MAX_RANGE = 75.0
"""Metres, as of Waymo's TOP LiDAR."""
RANGE_NOISE = 0.02
"""Standard deviation, metres."""
BEAM_EDGE = 0.0022
"""How far from the beam's middle, rad, a second surface still sends light back."""
RETURN_GAP = 0.8
"""Returns closer to one another than this are one, metres."""
PANE_RETURN = 0.12
"""Share of beams that a pane of glass sends back, before they go on."""
MAX_PANES = 4
FAINT, FAINT_DROP = 0.05, 0.006
"""Returns of this strength drop out with probability one half; share of all returns that drop out regardless."""


@dataclass(frozen=True, eq=False)
class Echoes:
    """What came back along every pixel's beam, NaN distance where nothing did.

    Attributes:
        distance: (N,) float64, metres.
        face: (N,) int32, face of the world.
        strength: (N,) float64, as at no distance.
    """

    distance: Array
    face: Array
    strength: Array


@dataclass(frozen=True, eq=False)
class Sweep:
    """One turn of the LiDAR.

    Attributes:
        points: in the vehicle frame, sorted by row, column, return.
        entity: (N,) int32, row of `World.entities` each point lies on.
    """

    points: PointCloud
    entity: Array


def scan(world: World, rig: LidarRig, rng: np.random.Generator) -> Sweep:
    """Return the points of one turn; ``rng`` draws noise and dropout."""
    turn = world.vehicle_to_world()
    origin = world.ego_position + turn @ rig.origin
    middle = trace_beams(world, origin, rig.directions() @ turn.T, rng, keep_panes=True)
    sign = rng.choice(np.array([-1.0, 1.0]), 2)
    beside = rig.directions(sign[0] * BEAM_EDGE, sign[1] * BEAM_EDGE)
    edge = trace_beams(world, origin, beside @ turn.T, rng, keep_panes=False)
    first, second = two_returns(middle, edge)
    pixels = np.arange(len(first.distance))
    columns = len(rig.azimuths)
    parts = [sift(echo, pixels, index, rng) for index, echo in enumerate((first, second))]
    pixel, face, distance, strength, index = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((index, pixel))
    pixel, face, distance, strength, index = (column[order] for column in (pixel, face, distance, strength, index))
    xyz = rig.origin + rig.directions()[pixel] * distance[:, None]
    feats = np.stack([np.tanh(strength), elongations(world.mesh.materials[face], rng)], 1)
    points = PointCloud(
        torch.from_numpy(xyz.astype(np.float32)),
        torch.from_numpy(feats.astype(np.float32)),
        torch.from_numpy(distance.astype(np.float32)),
        torch.from_numpy((pixel // columns).astype(np.int16)),
        torch.from_numpy((pixel % columns).astype(np.int32)),
        torch.from_numpy(index.astype(np.int8)),
    )
    return Sweep(points, world.entity[face])


def elongations(materials: Array, rng: np.random.Generator) -> Array:
    """Return how drawn out the returns from surfaces are, (N,) float64, 0 to 1.5: leaves lie at several depths."""
    leafy = materials == Material.LEAF
    return np.asarray(np.clip(rng.exponential(0.03, len(leafy)) + leafy * rng.uniform(0, 0.5, len(leafy)), 0, 1.5))


def trace_beams(
    world: World,
    origin: Array,
    directions: Array,
    rng: np.random.Generator,
    *,
    keep_panes: bool,
    reach: float = MAX_RANGE,
) -> tuple[Echoes, Echoes]:
    """Return the first solid thing along each beam and, if asked for, the panes of glass that glinted before it.

    Args:
        world: what is there.
        origin: (3,) or (N, 3) float64, metres, world frame.
        directions: (N, 3) float, unit length, world frame.
        rng: decides which panes glint.
        keep_panes: whether panes send anything back.
        reach: metres.
    """
    count, ahead = len(directions), directions.astype(np.float32)
    origin = np.broadcast_to(origin, ahead.shape)
    solid, pane = (Echoes(np.full(count, np.nan), np.zeros(count, np.int32), np.zeros(count)) for _ in range(2))
    going, gone = np.arange(count), np.zeros(count)
    for _ in range(MAX_PANES + 1):
        start = origin[going] + ahead[going] * gone[going, None]
        hits = world.caster.cast(start, ahead[going])
        met = np.flatnonzero((hits.face >= 0) & (gone[going] + hits.distance < reach))
        going, face = going[met], hits.face[met]
        distance, normal = gone[going] + hits.distance[met], hits.flat[met]
        cosine = np.abs((ahead[going] * normal).sum(1)) / np.maximum(np.linalg.norm(normal, axis=1), 1e-9)
        material = world.mesh.materials[face]
        strength = REFLECTIVITY[material] * (0.25 + 0.75 * cosine) * (0.35 + world.mesh.colors[face].mean(1))
        is_glass = material == Material.GLASS
        glints = is_glass & (rng.random(len(going)) < PANE_RETURN * cosine) & keep_panes
        for echo, chosen in ((solid, ~is_glass), (pane, glints & np.isnan(pane.distance[going]))):
            where = going[chosen]
            echo.distance[where], echo.face[where], echo.strength[where] = (
                distance[chosen],
                face[chosen],
                strength[chosen],
            )
        gone[going] = distance + STEP_PAST
        going = going[is_glass]
        if not len(going):
            break
    return solid, pane


def two_returns(middle: tuple[Echoes, Echoes], edge: tuple[Echoes, Echoes]) -> tuple[Echoes, Echoes]:
    """Return first and second return of each beam: the pane if one glinted, what is behind, what the edge met."""
    solid, pane = middle
    beside = edge[0]
    candidates = [
        np.stack([getattr(echo, name) for echo in (pane, solid, beside)]) for name in ("distance", "face", "strength")
    ]
    distance, face, strength = candidates
    strength[2] *= 0.5
    order = np.argsort(distance, axis=0, kind="stable")
    distance, face, strength = (np.take_along_axis(array, order, 0) for array in (distance, face, strength))
    # A beam whose middle hits near and whose edge hits nearer still returns the middle first.
    near = np.flatnonzero(~(distance[1] - distance[0] > RETURN_GAP))
    keep_middle = near[~np.isnan(solid.distance[near]) & np.isnan(pane.distance[near])]
    for array, own in ((distance, solid.distance), (face, solid.face), (strength, solid.strength)):
        array[0, keep_middle] = own[keep_middle]
    far = np.where(distance[1] - distance[0] > RETURN_GAP, 1, 2)
    pick = np.arange(distance.shape[1])
    second = Echoes(distance[far, pick].copy(), face[far, pick], strength[far, pick])
    second.distance[~(second.distance - distance[0] > RETURN_GAP)] = np.nan
    return Echoes(distance[0], face[0], strength[0]), second


def sift(
    echo: Echoes, pixels: Array, index: int, rng: np.random.Generator, noise: float = RANGE_NOISE
) -> tuple[Array, Array, Array, Array, Array]:
    """Add noise (m), drop weak returns; return pixel, face, distance, strength, return index of those that remain."""
    heard = np.flatnonzero(~np.isnan(echo.distance))
    distance, strength = echo.distance[heard], echo.strength[heard]
    faded = strength / (1 + (distance / 45.0) ** 2)
    drop = FAINT_DROP + 0.5 * np.exp2(-((faded / (FAINT * 0.35)) ** 2))
    kept = rng.random(len(heard)) > drop
    heard, distance, strength = heard[kept], distance[kept], strength[kept]
    strength = strength * rng.uniform(0.85, 1.15, len(heard))
    noisy = distance + rng.normal(0, noise, len(heard))
    return pixels[heard], echo.face[heard], noisy, strength, np.full(len(heard), index, np.int8)
