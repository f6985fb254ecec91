"""Patterns painted on surfaces from where a point lies: asphalt and markings, paving, windows, brick, cloth, leaves.

Each function takes colours of some hit points and returns the colours with the pattern. Next: `render.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mwsis.data.street.materials import Material
from mwsis.data.street.scenery import BIKE_EDGE, LANE_EDGE, Street
from mwsis.data.street.shapes import Array

__all__ = ["Spots", "albedo", "noise"]

TILE = 512
"""Side of the noise tile, texels."""


@lru_cache(maxsize=1)
def _noise_tile() -> Array:
    """Return a (TILE, TILE) float32 tile of smooth noise around 0, about -1..1, that repeats without seams."""
    rng = np.random.default_rng(20240220)
    freq = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]) * TILE
    spectrum = np.fft.rfft2(rng.normal(size=(TILE, TILE))) / np.maximum(freq, 4.0) ** 0.9
    tile = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return np.asarray(np.clip(tile / tile.std() / 2.2, -1.2, 1.2), np.float32)


def noise(x: Array, y: Array, texel: float) -> Array:
    """Return noise at coordinates (metres), (N,) float32 in about -1..1; ``texel`` is its finest grain, metres."""
    column = np.floor(x / texel).astype(np.int64) % TILE
    row = np.floor(y / texel).astype(np.int64) % TILE
    return np.asarray(_noise_tile()[row, column])


def _cell_value(*numbers: Array) -> Array:
    """Return a fixed pseudo-random value in [0, 1) for each tuple of whole numbers, (N,) float32."""
    mixed = np.zeros(numbers[0].shape, np.int64)
    for prime, number in zip((73856093, 19349663, 83492791), numbers):
        mixed ^= np.floor(number).astype(np.int64) * prime
    return ((mixed * 2654435761 >> 8) % 4096 / 4096).astype(np.float32)


def _paint_road(color: Array, along: Array, across: Array, zebra: float) -> Array:
    """Asphalt with lane lines, bicycle lanes, parking bays, and stripes and stop lines around a zebra."""
    side = np.abs(across)
    grain = 1 + 0.14 * noise(along, across, 0.011) + 0.22 * noise(along, across, 0.09)
    tyre_tracks = 1 - 0.10 * np.exp(-(((side - 1.65) ** 2 - 0.6) ** 2) / 0.3)
    patched = np.where(_cell_value(along / 7, across / 3.4) > 0.88, 0.74, 1.0)
    color = color * (grain * tyre_tracks * patched)[:, None]
    bike = (side > LANE_EDGE) & (side < BIKE_EDGE)
    color = np.where(bike[:, None], color * np.array([1.35, 0.86, 0.76], np.float32), color)
    open_road = np.abs(along) > zebra + 1.0 if zebra else np.ones(len(along), bool)
    line = (side < 0.07) & (along % 6 < 3) | (np.abs(side - LANE_EDGE) < 0.07) | (np.abs(side - BIKE_EDGE) < 0.06)
    line |= (side > BIKE_EDGE) & (along % 6.2 < 0.12)
    line &= open_road
    if zebra:
        line |= (np.abs(along) < zebra) & ((across + 0.25) % 1.0 < 0.5)
        line |= (np.abs(np.abs(along) - zebra - 0.85) < 0.17) & (side < BIKE_EDGE) & (along * across > 0)
    worn = np.clip(0.82 + 0.3 * noise(along, across, 0.03), 0.35, 1)[:, None]
    return np.where(line[:, None], color * (1 - worn) + np.float32(0.62) * worn, color)


def _pave(color: Array, along: Array, across: Array) -> Array:
    slab = np.stack([along / 0.6, across / 0.4 + np.floor(along / 0.6) % 2 * 0.5])
    joint = ((slab % 1) < 0.05).any(0)
    tone = 1 + 0.18 * (_cell_value(slab[0], slab[1]) - 0.5) + 0.10 * noise(along, across, 0.05)
    return color * np.where(joint, 0.62, tone)[:, None]


def _turf(color: Array, along: Array, across: Array) -> Array:
    tone = 1 + 0.45 * noise(along, across, 0.02) + 0.4 * noise(across, along, 0.2)
    return color * np.maximum(tone, 0.2)[:, None]


def facade(color: Array, local: Array, normal_local: Array, styles: Array) -> tuple[Array, Array]:
    """Return walls with windows, doors, shop windows and brick courses.

    Args:
        color: (N, 3) float32 wall colour.
        local: (N, 3) metres, in the building's frame.
        normal_local: (N, 3) in the same frame.
        styles: (N, 8), see `FacadeStyle`.

    Returns:
        color: (N, 3); pane: (N,) bool, the point is on window glass.
    """
    floor, bay, share_w, share_h, ground, shop, brick, tint = styles.T
    sideways = np.abs(normal_local[:, 0]) > 0.7
    u, z = np.where(sideways, local[:, 1] + 0.6, local[:, 0]), local[:, 2]
    upstairs = z > ground
    column, row = u / bay, np.where(upstairs, (z - ground) / floor, 0)
    across, upward = np.abs(column % 1 - 0.5), np.where(upstairs, row % 1, z / ground)
    in_shop = ~upstairs & (shop > 0) & ~sideways
    half_w = np.where(in_shop, 0.46, share_w / 2)
    low, high = np.where(in_shop, 0.10, 0.28), np.where(in_shop, 0.80, 0.28 + share_h)
    framed = (across < half_w + 0.035) & (upward > low - 0.03) & (upward < high + 0.03)
    pane = (across < half_w) & (upward > low) & (upward < high) & ~(~in_shop & (across < 0.012))
    chance = _cell_value(column + tint * 997, row + upstairs * 3)
    door = ~upstairs & ~in_shop & (chance > 0.8) & (across < 0.22) & (upward < 0.68)
    courses = ((z % 0.15) < 0.018) | ((u + np.floor(z / 0.15) % 2 * 0.15) % 0.3 < 0.018)
    wall = color * (1 + 0.10 * noise(u, z, 0.06) - 0.22 * brick * courses)[:, None]
    wall = np.where((z < 0.6)[:, None], wall * 0.62, wall)
    sill = np.minimum(color * 0.5 + 0.3, 0.75)
    glass = np.where(chance < 0.25, 0.30, np.where(in_shop, 0.10, 0.035))[:, None] * np.array(
        [1.0, 0.95, 0.85], np.float32
    )
    painted = np.where(framed[:, None], sill, wall)
    painted = np.where(pane[:, None], glass, painted)
    return np.where(door[:, None], color * 0.3 + np.array([0.08, 0.04, 0.02], np.float32), painted), pane & ~door


def _dress(color: Array, local: Array, entity: Array) -> Array:
    """Stripes on some shirts, folds on all cloth."""
    folds = 1 + 0.22 * noise(local[:, 0] + local[:, 1] * 2 + entity * 3.7, local[:, 2], 0.012)
    striped = (entity % 4 == 0) & (local[:, 2] > 0.95) & (local[:, 2] < 1.45) & (local[:, 2] % 0.12 < 0.06)
    return np.where(striped[:, None], color * 0.45 + np.float32(0.22), color) * folds[:, None]


def _coach(color: Array, local: Array, entity: Array) -> Array:
    """Door gaps and road dirt on car paint."""
    gap = (
        (np.abs(local[:, 0] - 0.05) < 0.014)
        | (np.abs(local[:, 0] + 0.95) < 0.014)
        | (np.abs(local[:, 0] - 1.05) < 0.014)
    )
    gap &= (np.abs(local[:, 1]) > 0.72) & (local[:, 2] > 0.35)
    dirt = 1 - 0.35 * np.clip(0.55 - local[:, 2], 0, 0.4) - 0.05 * noise(local[:, 0] + entity, local[:, 2], 0.02)
    return color * np.where(gap, 0.35, dirt)[:, None]


@dataclass(frozen=True, eq=False)
class Spots:
    """Hit points whose colour is asked for.

    Attributes:
        material: (N,) uint8.
        color: (N, 3) float32, of the face.
        position: (N, 3) float32, metres, world.
        normal: (N, 3) float32, world.
        entity: (N,) int, number of the thing.
        yaw, origin, styles: (E,), (E, 3), (E, 8) of all things: their own frames in the world, and `FacadeStyle` rows.
    """

    material: Array
    color: Array
    position: Array
    normal: Array
    entity: Array
    yaw: Array
    origin: Array
    styles: Array

    def local(self, on: Array) -> Array:
        """Return the positions numbered ``on`` in the frames of their things, (len(on), 3)."""
        return self._turned(self.position[on] - self.origin[self.entity[on]], on)

    def local_normal(self, on: Array) -> Array:
        """Return the normals numbered ``on`` in the frames of their things, (len(on), 3)."""
        return self._turned(self.normal[on], on)

    def _turned(self, vectors: Array, on: Array) -> Array:
        entity = self.entity[on]
        cos, sin = np.cos(self.yaw)[entity], np.sin(self.yaw)[entity]
        x, y = vectors[:, 0], vectors[:, 1]
        return np.stack([cos * x + sin * y, cos * y - sin * x, vectors[:, 2]], 1)


def _grain(material: int, position: Array) -> Array:
    """Return the brightness pattern of bark and leaves, (N,) float32."""
    texel = 0.02 if material == Material.BARK else 0.012
    u, v = position[:, 0] + position[:, 1] * 0.7, position[:, 2] + position[:, 1] * 0.3
    return np.maximum(1 + 0.45 * noise(u, v, texel), 0.25)


def _ground(material: int, color: Array, along: Array, across: Array, zebra: float) -> Array:
    if material == Material.ASPHALT:
        return _paint_road(color, along, across, zebra)
    if material == Material.PAVING:
        return _pave(color, along, across)
    if material == Material.GRASS:
        return _turf(color, along, across)
    assert material == Material.KERB
    return color * np.where(along % 1.0 < 0.025, 0.6, 1 + 0.15 * noise(along, across, 0.02))[:, None]


def albedo(spots: Spots, street: Street, zebra: float) -> tuple[Array, Array]:
    """Return what colour each hit point has.

    Args:
        spots: the points.
        street: whose middle line the markings follow.
        zebra: half-width of a crossing at x = 0, or 0.

    Returns:
        color: (N, 3) float32; pane: (N,) bool, window glass of a house.
    """
    color, pane = spots.color.copy(), np.zeros(len(spots.color), bool)
    for kind in np.flatnonzero(np.bincount(spots.material)).tolist():
        on = np.flatnonzero(spots.material == kind)
        if kind <= Material.GRASS:
            along = spots.position[on, 0]
            across = spots.position[on, 1] - np.asarray(street.centre(along), np.float32)
            color[on] = _ground(kind, color[on], along, across, zebra)
        elif kind == Material.FACADE:
            style = spots.styles[spots.entity[on]]
            color[on], pane[on] = facade(color[on], spots.local(on), spots.local_normal(on), style)
        elif kind == Material.CLOTH:
            color[on] = _dress(color[on], spots.local(on), spots.entity[on])
        elif kind == Material.PAINT:
            color[on] = _coach(color[on], spots.local(on), spots.entity[on])
        elif kind == Material.ROOF:
            color[on] *= np.where(spots.position[on, 2] % 0.3 < 0.05, np.float32(0.75), np.float32(1))[:, None]
        elif kind in (Material.BARK, Material.LEAF):
            color[on] *= _grain(kind, spots.position[on])[:, None]
    return color, pane
