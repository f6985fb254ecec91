"""Triangle meshes with a colour, a material and smooth normals per face, and the few solids everything is made of.

Knows nothing of streets, sensors or classes. Next: `vehicles.py`, `people.py` and `scenery.py`, which build objects
from these solids; `materials.py` for what a material means to a camera and to a LiDAR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Limb", "Mesh", "blob", "box", "disc", "limbs", "loft", "merge", "paned_quad", "quad", "surface"]

Array = npt.NDArray[Any]
Color = tuple[float, float, float]

CREASE_COS = 0.72
"""Neighbouring faces whose normals differ by more than about 44 degrees keep a sharp edge between them."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """A bag of triangles.

    Attributes:
        triangles: (F, 3, 3) float32, corners, metres.
        normals: (F, 3, 3) float32, unit normal at each corner, on the side given by the corners' order.
        colors: (F, 3) float32, linear albedo in [0, 1].
        materials: (F,) uint8, `Material`.
    """

    triangles: Array
    normals: Array
    colors: Array
    materials: Array

    def __len__(self) -> int:
        return len(self.triangles)

    def placed(self, yaw: float, translation: Sequence[float]) -> Mesh:
        """Return the mesh turned by ``yaw`` (rad, about +z) and then moved."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], np.float32)
        triangles = self.triangles.reshape(-1, 3) @ rotation + np.asarray(translation, np.float32)
        normals = self.normals.reshape(-1, 3) @ rotation
        return replace(self, triangles=triangles.reshape(-1, 3, 3), normals=normals.reshape(-1, 3, 3))

    def painted(self, material: int, color: Sequence[float]) -> Mesh:
        """Return the mesh with every face of one material in another colour."""
        chosen = (self.materials == material)[:, None]
        return replace(self, colors=np.where(chosen, np.asarray(color, np.float32), self.colors))

    def mirrored(self) -> Mesh:
        """Return the mesh reflected at y = 0."""
        flip = np.array([1, -1, 1], np.float32)
        return replace(self, triangles=self.triangles[:, ::-1] * flip, normals=self.normals[:, ::-1] * flip)

    def bounds(self) -> tuple[Array, Array]:
        """Return the lowest and highest corner coordinates, (3,) each."""
        corners = self.triangles.reshape(-1, 3)
        return corners.min(0), corners.max(0)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """Return one mesh with the faces of all, in order."""
    columns = ("triangles", "normals", "colors", "materials")
    return Mesh(*(np.concatenate([getattr(mesh, name) for mesh in meshes]) for name in columns))


def _mesh(triangles: Array, normals: Array | None, color: Color | Array, material: int) -> Mesh:
    """Make a mesh; corner normals beyond the crease angle, or absent, become the face's own."""
    triangles = triangles.astype(np.float32)
    edges = triangles[:, 1:] - triangles[:, :1]
    flat = np.cross(edges[:, 0], edges[:, 1])
    size = np.linalg.norm(flat, axis=1, keepdims=True)
    triangles, flat = triangles[size[:, 0] > 1e-9], (flat / np.maximum(size, 1e-12))[size[:, 0] > 1e-9]
    corner = np.repeat(flat[:, None], 3, 1)
    if normals is not None:
        smooth = normals.astype(np.float32)[size[:, 0] > 1e-9]
        aligned = (smooth * corner).sum(-1, keepdims=True)
        corner = np.where(np.abs(aligned) > CREASE_COS, smooth * np.sign(aligned), corner)
    colors = np.broadcast_to(np.asarray(color, np.float32), (len(triangles), 3)).copy()
    return Mesh(triangles, corner.astype(np.float32), colors, np.full(len(triangles), material, np.uint8))


def _grid_triangles(grid: Array, keep: Array | None = None) -> Array:
    """Split the cells of an (R, C, 3) grid of corners into triangles, (cells * 2, 3, 3)."""
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
    cells = np.stack([np.stack([a, b, c], 2), np.stack([a, c, d], 2)], 2)
    cells = cells.reshape(-1, 2, 3, 3) if keep is None else cells[keep]
    return cells.reshape(-1, 3, 3)


def _grid_normals(grid: Array, wrap: bool) -> Array:
    """Return unit normals of a grid of corners by finite differences, same shape."""
    along = np.gradient(grid, axis=0)
    around = (np.roll(grid, -1, 1) - np.roll(grid, 1, 1)) if wrap else np.gradient(grid, axis=1)
    normal = np.cross(around, along)
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)


def quad(corners: Array, color: Color | Array, material: int) -> Mesh:
    """Return two triangles over four corners, (4, 3), given around the rim."""
    return _mesh(np.asarray(corners, np.float32)[[[0, 1, 2], [0, 2, 3]]], None, color, material)


def box(
    size: Sequence[float], centre: Sequence[float], color: Color | Array, material: int, taper: float = 1.0
) -> Mesh:
    """Return a box of this size (metres) around ``centre``; ``taper`` scales the top face."""
    unit = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)], np.float32)
    unit[:, :2] *= np.where(unit[:, 2:] > 0, taper, 1.0)
    corners = unit * np.asarray(size, np.float32) + np.asarray(centre, np.float32)
    faces = [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]]
    faces += [[2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
    return _mesh(corners[faces], None, color, material)


def loft(rings: Array, color: Color | Array, material: int, *, caps: bool = True) -> Mesh:
    """Return the skin through closed rings.

    Args:
        rings: (R, C, 3), R cross-sections of C corners each.
        color: linear albedo.
        material: `Material`.
        caps: close both ends with a fan.
    """
    rings = np.asarray(rings, np.float32)
    normals = _grid_normals(rings, wrap=True)
    closed, closed_normals = (np.concatenate([part, part[:, :1]], 1) for part in (rings, normals))
    parts = [_mesh(_grid_triangles(closed), _grid_triangles(closed_normals), color, material)]
    if caps:
        parts += [disc(rings[0], color, material), disc(rings[-1], color, material)]
    return merge(parts)


def disc(rim: Array, color: Color | Array, material: int) -> Mesh:
    """Return a fan from the middle of a closed rim, (C, 3)."""
    centre = np.broadcast_to(rim.mean(0), rim.shape)
    return _mesh(np.stack([centre, rim, np.roll(rim, -1, 0)], 1), None, color, material)


def surface(grid: Array, color: Color | Array, material: int) -> Mesh:
    """Return the smooth open surface through an (R, C, 3) grid of corners."""
    grid = np.asarray(grid, np.float32)
    normals = _grid_normals(grid, wrap=False)
    return _mesh(_grid_triangles(grid), _grid_triangles(normals), color, material)


def paned_quad(
    corners: Array,
    panes: Sequence[tuple[float, float]],
    heights: tuple[float, float],
    frame: tuple[Color, int],
    glass: tuple[Color, int],
) -> Mesh:
    """Return a wall of a cabin with window panes in it.

    Args:
        corners: (4, 3), lower left, lower right, upper right, upper left.
        panes: from-to of each pane along the wall, fractions of its length, ascending.
        heights: from-to of all panes, fractions of the wall's height.
        frame: colour and material around the panes.
        glass: colour and material of the panes.
    """
    across = np.unique([0.0, 1.0, *np.ravel(np.asarray(panes))])
    upward = np.unique([0.0, 1.0, *heights])
    low, high = corners[0], corners[3]
    s, t = across[None, :, None], upward[:, None, None]
    bottom, top = low + (corners[1] - low) * s, high + (corners[2] - high) * s
    grid = bottom + (top - bottom) * t
    middle_s, middle_t = (across[1:] + across[:-1]) / 2, (upward[1:] + upward[:-1]) / 2
    in_pane = np.any([(middle_s > start) & (middle_s < end) for start, end in panes], axis=0)
    is_glass = ((middle_t > heights[0]) & (middle_t < heights[1]))[:, None] & in_pane[None]
    solid = _mesh(_grid_triangles(grid, ~is_glass), None, *frame)
    return merge([solid, _mesh(_grid_triangles(grid, is_glass), None, *glass)])


@dataclass(frozen=True)
class Limb:
    """A rounded, tapered, possibly flattened rod.

    Attributes:
        start, end: axis, metres.
        start_radius, end_radius: metres, across the body (y).
        color: linear albedo.
        material: `Material`.
        flatten: radius front to back over radius across.
    """

    start: Array
    end: Array
    start_radius: float
    end_radius: float
    color: Color
    material: int
    flatten: float = 1.0


@lru_cache(maxsize=8)
def _limb_topology(count: int) -> tuple[Array, Array]:
    """Return ring angles (2, sides) as cos/sin and the faces over [pole, ring, ring, pole]."""
    angle = np.arange(count) * 2 * np.pi / count
    one, two = np.arange(count), (np.arange(count) + 1) % count
    low, high, top = 1, 1 + count, 1 + 2 * count
    bottom_cap = np.stack([np.zeros_like(one), two + low, one + low], 1)
    sides = np.concatenate(
        [np.stack([one + low, two + low, two + high], 1), np.stack([one + low, two + high, one + high], 1)]
    )
    top_cap = np.stack([np.full_like(one, top), one + high, two + high], 1)
    return np.stack([np.cos(angle), np.sin(angle)]), np.concatenate([bottom_cap, sides, top_cap])


def limbs(parts: Sequence[Limb], sides: int = 7) -> Mesh:
    """Return the mesh of many limbs, built in one go because crowds are posed anew for every frame."""
    start, end = np.array([part.start for part in parts]), np.array([part.end for part in parts])
    radii = np.array([[part.start_radius, part.end_radius] for part in parts])[:, :, None, None]
    flatten = np.array([part.flatten for part in parts])[:, None, None]
    axis = end - start
    axis = axis / np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-6)
    sideways = np.where(np.abs(axis[:, 1:2]) > 0.9, np.array([[1.0, 0, 0]]), np.array([[0, 1.0, 0]]))
    forward = np.cross(sideways, axis)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    sideways = np.cross(axis, forward)
    (cos, sin), faces = _limb_topology(sides)
    ring = sideways[:, None] * cos[None, :, None] + forward[:, None] * sin[None, :, None] * flatten
    outward = sideways[:, None] * cos[None, :, None] + forward[:, None] * sin[None, :, None] / flatten
    centres = np.stack([start, end], 1)[:, :, None]
    rings = (centres + ring[:, None] * radii).reshape(len(parts), -1, 3)
    pole = axis[:, None] * 0.75 * radii[:, :, 0]
    corners = np.concatenate([start[:, None] - pole[:, :1], rings, end[:, None] + pole[:, 1:]], 1)
    tilt = np.stack([-axis, axis], 1)[:, :, None] * 0.45
    normals = (outward[:, None] + tilt).reshape(len(parts), -1, 3)
    normals = np.concatenate([-axis[:, None], normals, axis[:, None]], 1)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    colors = np.repeat(np.array([part.color for part in parts], np.float32), len(faces), 0)
    materials = np.repeat(np.array([part.material for part in parts], np.uint8), len(faces))
    shape = (-1, 3, 3)
    return Mesh(
        corners[:, faces].reshape(shape).astype(np.float32),
        normals[:, faces].reshape(shape).astype(np.float32),
        colors,
        materials,
    )


@lru_cache(maxsize=4)
def _unit_ball(subdivisions: int) -> tuple[Array, Array]:
    from trimesh.creation import icosphere

    ball = icosphere(subdivisions=subdivisions)
    return np.asarray(ball.vertices), np.asarray(ball.faces)


def blob(
    radii: Sequence[float],
    centre: Sequence[float],
    color: Color | Array,
    material: int,
    rng: np.random.Generator | None,
    *,
    roughness: float = 0.0,
    subdivisions: int = 1,
) -> Mesh:
    """Return an ellipsoid whose corners are pushed in and out at random by the fraction ``roughness``."""
    corners, faces = _unit_ball(subdivisions)
    push = 1.0 if rng is None else 1 + roughness * rng.uniform(-1, 1, (len(corners), 1))
    scale = np.asarray(radii)
    normals = corners / scale
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    placed = corners * push * scale + np.asarray(centre)
    return _mesh(placed[faces], normals[faces], color, material)
