"""Everything that is no object of interest: ground with relief, kerbs, buildings, trees, bushes, poles, furniture.

Upright and thin things are there on purpose: they are what people are mistaken for. Next: `layout.py`, which places
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mwsis.data.street.materials import Material
from mwsis.data.street.shapes import Array, Color, Limb, Mesh, blob, box, limbs, merge, quad

__all__ = ["FURNITURE", "FacadeStyle", "Street", "building", "furniture", "hedge", "tree"]

LANE_EDGE, BIKE_EDGE, KERB, WALL = 3.2, 4.9, 7.1, 12.0
"""Lateral distances from the street's middle where lane, bicycle lane, parking lane and pavement end, metres."""
KERB_HEIGHT = 0.13

_STRIPS = (
    (KERB - 0.02, 0.0, Material.ASPHALT), (KERB, KERB_HEIGHT, Material.KERB), (KERB + 0.2, KERB_HEIGHT, Material.KERB),
    (KERB + 2.0, KERB_HEIGHT + 0.02, Material.PAVING), (WALL, KERB_HEIGHT + 0.06, Material.PAVING),
    (WALL + 9.0, KERB_HEIGHT + 0.25, Material.GRASS), (60.0, 1.2, Material.GRASS),
)  # fmt: skip


@dataclass(frozen=True)
class Street:
    """The middle line and the relief of one street.

    Attributes:
        bend: amplitude (m), wavelength (m) and phase (rad) of the middle line's swing.
        waves: (K, 4) amplitude (m), wave numbers along and across (rad/m), phase (rad) of the ground's relief.
    """

    bend: tuple[float, float, float]
    waves: Array

    def centre(self, along: Array | float) -> Array:
        """Return the middle line's y at ``along`` = x, metres."""
        size, length, phase = self.bend
        return np.asarray(size * np.sin(2 * np.pi * np.asarray(along) / length + phase))

    def heading(self, along: float) -> float:
        """Return the street's direction, rad."""
        size, length, phase = self.bend
        turn = 2 * np.pi / length
        return float(np.arctan(size * turn * np.cos(turn * along + phase)))

    def relief(self, along: Array | float, across: Array | float) -> Array:
        """Return the height of the road surface before kerbs, metres."""
        along, across = np.asarray(along)[..., None], np.asarray(across)[..., None]
        size, along_rate, across_rate, phase = self.waves.T
        swell = (size * np.sin(along_rate * along + across_rate * across + phase)).sum(-1)
        return np.asarray(swell - 0.018 * np.minimum(np.abs(across[..., 0]), KERB))

    def ground(self, along: float, across: float) -> float:
        """Return the height one stands on, kerbs included, metres."""
        edges = np.array([0.0] + [strip[0] for strip in _STRIPS])
        lifts = np.array([0.0] + [strip[1] for strip in _STRIPS])
        return float(self.relief(along, across) + np.interp(abs(across), edges, lifts))

    def place(self, along: float, across: float, turn: float = 0.0) -> tuple[float, tuple[float, float, float]]:
        """Return yaw (rad) and position (m) in the world of something at street coordinates."""
        position = (along, float(self.centre(along)) + across, self.ground(along, across))
        return self.heading(along) + turn, position

    def mesh(self, start: float, stop: float) -> Mesh:
        """Return the ground from ``start`` to ``stop`` metres along the street."""
        along = np.arange(start, stop + 2.0, 2.0)
        road = np.linspace(-(KERB - 0.02), KERB - 0.02, 9)
        parts = [self._strip(along, road, np.zeros(9), Material.ASPHALT)]
        for (near, low, _), (far, high, material) in pairwise(_STRIPS):
            for side in (-1, 1):
                parts.append(self._strip(along, np.array([near, far]) * side, np.array([low, high]), material))
        return merge(parts)

    def _strip(self, along: Array, across: Array, lift: Array, material: Material) -> Mesh:
        x, d = np.meshgrid(along, across, indexing="ij")
        grid = np.stack([x, self.centre(x) + d, self.relief(x, d) + lift[None]], -1)
        a, b, c, e = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
        triangles = np.concatenate([np.stack([a, b, c], 2), np.stack([a, c, e], 2)]).reshape(-1, 3, 3)
        normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        color = {Material.ASPHALT: 0.10, Material.KERB: 0.36, Material.PAVING: 0.27}.get(material)
        shade = np.array([0.11, 0.16, 0.05]) if color is None else np.array([1.0, 0.985, 0.96]) * color
        colors = np.broadcast_to(shade.astype(np.float32), (len(triangles), 3)).copy()
        normals = np.repeat(normal[:, None], 3, 1).astype(np.float32)
        return Mesh(triangles.astype(np.float32), normals, colors, np.full(len(triangles), material, np.uint8))


@dataclass(frozen=True)
class FacadeStyle:
    """The window pattern of one building, read by `textures.facade`.

    Attributes:
        floor, bay: height of a storey and width of a window axis, metres.
        window: width and height of a window, fractions of its bay and storey.
        ground_floor: height of the ground floor, metres.
        shop: the ground floor has shop windows.
        brick: strength of the brick pattern, 0 none.
        tint: seed of curtains and lights, 0..1.
    """

    floor: float
    bay: float
    window: tuple[float, float]
    ground_floor: float
    shop: bool
    brick: float
    tint: float

    def row(self) -> Array:
        """Return the numbers as the (8,) float32 row of an entity."""
        numbers = (self.floor, self.bay, *self.window, self.ground_floor, self.shop, self.brick, self.tint)
        return np.array(numbers, np.float32)


WALLS: tuple[Color, ...] = (
    (0.42, 0.18, 0.12), (0.52, 0.47, 0.38), (0.60, 0.56, 0.48), (0.38, 0.37, 0.36), (0.56, 0.38, 0.24),
    (0.30, 0.14, 0.10), (0.62, 0.60, 0.58), (0.40, 0.45, 0.47), (0.55, 0.50, 0.30), (0.46, 0.28, 0.24),
)  # fmt: skip


def building(width: float, depth: float, height: float, style: FacadeStyle, rng: np.random.Generator) -> Mesh:
    """Return a house, its front on y = 0 facing -y, from x = 0 to ``width``, storeys from z = 0."""
    wall = np.array(WALLS[int(rng.integers(len(WALLS)))]) * rng.uniform(0.8, 1.15)
    trim, roof = np.minimum(wall * 1.25, 0.8), np.array([0.16, 0.09, 0.07]) * rng.uniform(0.6, 1.4)
    parts = [box((width, depth, height + 1.2), (width / 2, depth / 2, height / 2 - 0.6), wall, Material.FACADE)]
    parts.append(box((width, 0.24, 0.35), (width / 2, -0.08, height - 0.2), trim, Material.ROOF))
    if rng.random() < 0.6:
        parts += _gable(width, depth, height, roof)
    else:
        parts.append(
            box((width * 0.3, 2.5, 1.6), (width * rng.uniform(0.3, 0.7), depth / 2, height + 0.8), wall, Material.ROOF)
        )
    if style.shop:
        parts += _awning(width, style, rng)
    elif rng.random() < 0.7:
        parts += _balconies(width, height, style, trim)
    return merge(parts)


def _gable(width: float, depth: float, height: float, color: Array) -> list[Mesh]:
    rise, eave = depth * 0.32, 0.35
    front = [[-0.1, -eave, height - 0.1], [width + 0.1, -eave, height - 0.1]]
    ridge = [[width + 0.1, depth / 2, height + rise], [-0.1, depth / 2, height + rise]]
    back = [[width + 0.1, depth + eave, height - 0.1], [-0.1, depth + eave, height - 0.1]]
    ends = [
        np.array([[x, 0, height], [x, depth / 2, height + rise], [x, depth, height], [x, depth / 2, height]])
        for x in (0.02, width - 0.02)
    ]
    slopes = [np.array([*front, *ridge]), np.array([ridge[1], ridge[0], *back])]
    return [quad(corners, color, Material.ROOF) for corners in (*slopes, *ends)]


def _awning(width: float, style: FacadeStyle, rng: np.random.Generator) -> list[Mesh]:
    color = np.array(
        [(0.5, 0.05, 0.05), (0.04, 0.2, 0.12), (0.05, 0.12, 0.35), (0.65, 0.55, 0.3)][int(rng.integers(4))]
    )
    low, high = style.ground_floor - 0.75, style.ground_floor - 0.25
    awning = np.array([[0.6, -1.3, low], [width - 0.6, -1.3, low], [width - 0.6, 0, high], [0.6, 0, high]])
    board = box((width - 0.8, 0.12, 0.55), (width / 2, -0.06, style.ground_floor + 0.1), color * 0.7, Material.PLASTIC)
    return [quad(awning, color, Material.CLOTH), board] if rng.random() < 0.7 else [board]


def _balconies(width: float, height: float, style: FacadeStyle, color: Array) -> list[Mesh]:
    parts = []
    for floor in range(int((height - style.ground_floor) / style.floor)):
        z = style.ground_floor + floor * style.floor
        for bay in range(1, int(width / style.bay), 3):
            x = (bay + 0.5) * style.bay
            parts.append(box((style.bay * 0.9, 0.9, 0.12), (x, -0.45, z + 0.1), color, Material.ROOF))
            parts.append(box((style.bay * 0.9, 0.05, 0.9), (x, -0.88, z + 0.6), color * 0.35, Material.METAL))
    return parts


def _leaves(centres: Array, radii: Array, color: Array, rng: np.random.Generator, count: int) -> Mesh:
    """Return single leaf clusters strewn over balls: gaps for the eye and second returns for the LiDAR."""
    which = rng.integers(len(centres), size=count)
    outward = rng.normal(size=(count, 3))
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    spot = centres[which] + outward * radii[which, None] * rng.uniform(0.78, 1.12, (count, 1))
    corners = spot[:, None] + rng.normal(0, 0.11, (count, 3, 3))
    colors = np.clip(color * rng.uniform(0.6, 1.5, (count, 1)), 0.01, 0.8).astype(np.float32)
    normals = np.repeat((outward * 0.8 + [0, 0, 0.4])[:, None], 3, 1)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    return Mesh(corners.astype(np.float32), normals.astype(np.float32), colors, np.full(count, Material.LEAF, np.uint8))


_GREENS: tuple[Color, ...] = ((0.07, 0.13, 0.03), (0.11, 0.17, 0.03), (0.05, 0.10, 0.04), (0.16, 0.16, 0.03))


def tree(rng: np.random.Generator) -> Mesh:
    """Return a tree with a trunk, limbs and a crown of leaf clusters, 5 to 9 metres high."""
    height, spread = rng.uniform(5.0, 9.0), rng.uniform(1.1, 1.7)
    fork, green = height * 0.42, np.array(_GREENS[int(rng.integers(len(_GREENS)))]) * rng.uniform(0.8, 1.3)
    bark: Color = (0.10, 0.07, 0.05)
    count = int(rng.integers(3, 6))
    angle = np.arange(count) * 2 * np.pi / count + rng.uniform(0, 6)
    centres = np.stack(
        [spread * 0.75 * np.cos(angle), spread * 0.75 * np.sin(angle), rng.uniform(0.55, 0.85, count) * height], 1
    )
    centres = np.concatenate([centres, [[0, 0, height * 0.86]]])
    radii = rng.uniform(0.75, 1.05, count + 1) * spread
    trunk = np.array([0, 0, fork])
    rods = [Limb(np.array([0, 0, -0.2]), trunk, 0.17, 0.11, bark, Material.BARK)]
    rods += [Limb(trunk, centre, 0.09, 0.04, bark, Material.BARK) for centre in centres]
    cores = [
        blob((radius * 0.82,) * 3, centre, green * 0.75, Material.LEAF, rng, roughness=0.16)
        for radius, centre in zip(radii, centres)
    ]
    return merge([limbs(rods, 5), *cores, _leaves(centres, radii, green, rng, 230)])


def hedge(length: float, rng: np.random.Generator) -> Mesh:
    """Return a row of bushes along x, about a metre high."""
    count = max(1, int(length / 1.15))
    centres = np.stack([(np.arange(count) + 0.5) * length / count, rng.normal(0, 0.08, count), np.full(count, 0.42)], 1)
    radii, green = rng.uniform(0.42, 0.62, count), np.array(_GREENS[int(rng.integers(3))])
    cores = [
        blob((radius * 1.35, radius * 0.9, radius * 0.95), centre, green, Material.LEAF, rng, roughness=0.15)
        for radius, centre in zip(radii, centres)
    ]
    return merge([*cores, _leaves(centres, radii, green, rng, 28 * count)])


def _lamp_post() -> Mesh:
    gray: Color = (0.12, 0.13, 0.13)
    top = np.array([0, 0, 5.8])
    rods = [
        Limb(np.zeros(3), np.array([0, 0, 0.9]), 0.10, 0.09, gray, Material.METAL),
        Limb(np.array([0, 0, 0.9]), top, 0.06, 0.045, gray, Material.METAL),
        Limb(top, np.array([0, -1.5, 6.1]), 0.045, 0.035, gray, Material.METAL),
    ]
    return merge([limbs(rods), box((0.22, 0.7, 0.10), (0, -1.7, 6.1), (0.5, 0.5, 0.48), Material.LAMP)])


def _sign_post(rng: np.random.Generator) -> Mesh:
    pole = Limb(np.zeros(3), np.array([0, 0, 2.5]), 0.035, 0.035, (0.4, 0.4, 0.42), Material.METAL)
    color = np.array([(0.6, 0.03, 0.03), (0.03, 0.12, 0.5), (0.7, 0.55, 0.03), (0.7, 0.7, 0.7)][int(rng.integers(4))])
    plate = box((0.03, 0.6, 0.6), (-0.05, 0, 2.3), color, Material.PLATE)
    rim = box((0.02, 0.66, 0.66), (-0.03, 0, 2.3), (0.7, 0.7, 0.7), Material.PLATE)
    return merge([limbs([pole]), plate, rim])


def _bin(rng: np.random.Generator) -> Mesh:
    color = np.array([(0.05, 0.14, 0.07), (0.12, 0.12, 0.13), (0.35, 0.16, 0.03)][int(rng.integers(3))])
    body = box((0.5, 0.5, 0.95), (0, 0, 0.475), color, Material.PLASTIC, taper=1.12)
    return merge([body, box((0.6, 0.6, 0.08), (0, 0, 0.99), color * 0.6, Material.PLASTIC)])


def _bench() -> Mesh:
    wood: Color = (0.26, 0.14, 0.06)
    parts = [box((1.7, 0.14, 0.05), (0, y, 0.45), wood, Material.BARK) for y in (-0.18, 0.0, 0.18)]
    parts += [box((1.7, 0.05, 0.13), (0, 0.27, z), wood, Material.BARK) for z in (0.62, 0.82)]
    parts += [box((0.07, 0.45, 0.44), (x, 0.03, 0.22), (0.05, 0.05, 0.05), Material.METAL) for x in (-0.7, 0.7)]
    return merge(parts)


def _kiosk(rng: np.random.Generator) -> Mesh:
    """Return an advertising column: as tall and round as a person is not, but nearly."""
    color = np.array([(0.5, 0.3, 0.2), (0.25, 0.35, 0.45), (0.6, 0.55, 0.4)][int(rng.integers(3))])
    rods = [
        Limb(
            np.array([0, 0, 0.0]),
            np.array([0, 0, 2.5]),
            0.5,
            0.5,
            (float(color[0]), float(color[1]), float(color[2])),
            Material.PLASTIC,
        )
    ]
    cap = blob((0.62, 0.62, 0.25), (0, 0, 2.85), color * 0.3, Material.ROOF, None)
    return merge([limbs(rods), cap])


FURNITURE = ("lamp", "sign", "bin", "bench", "bollard", "column", "bush")


def furniture(kind: str, rng: np.random.Generator) -> Mesh:
    """Return one of `FURNITURE`, standing on z = 0, the street towards -y."""
    if kind == "lamp":
        return _lamp_post()
    if kind == "sign":
        return _sign_post(rng)
    if kind == "bin":
        return _bin(rng)
    if kind == "bench":
        return _bench()
    if kind == "column":
        return _kiosk(rng)
    if kind == "bush":
        return hedge(1.8, rng).placed(0.0, (-0.9, 0.0, 0.0))
    assert kind == "bollard", kind
    post = Limb(np.zeros(3), np.array([0, 0, 0.85]), 0.09, 0.09, (0.10, 0.10, 0.11), Material.METAL)
    band = Limb(np.array([0, 0, 0.68]), np.array([0, 0, 0.78]), 0.098, 0.098, (0.7, 0.7, 0.68), Material.PLATE)
    return limbs([post, band])
