"""Rays against triangles with Embree: first hits, shadows, and rays that go on through glass.

The same answers as `trimesh.ray`, without its per-mesh bookkeeping. Next: `render.py` and `sweep.py`, which aim them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from mwsis.data.street.shapes import Array

__all__ = ["Hits", "PairCaster", "RayCaster"]

STEP_PAST = 1e-3
"""How far beyond a pane of glass, or off a surface, the next ray starts, metres."""


@dataclass(frozen=True, eq=False)
class Hits:
    """First hits of N rays.

    Attributes:
        face: (N,) int32, -1 where nothing was hit.
        distance: (N,) float32, metres; meaningless where nothing was hit.
        weights: (N, 3) float32, of the hit triangle's corners.
        flat: (N, 3) float32, the hit triangle's normal, of any length and either side.
    """

    face: Array
    distance: Array
    weights: Array
    flat: Array


class RayCaster:
    """Casts rays at a fixed set of triangles.

    Args:
        triangles: (F, 3, 3) float32, metres.
    """

    def __init__(self, triangles: Array) -> None:
        self._scene = EmbreeScene()
        self._mesh = TriangleMesh(self._scene, np.ascontiguousarray(triangles, np.float32))

    def cast(self, origins: Array, directions: Array) -> Hits:
        """Return the first hits of rays.

        Args:
            origins: (N, 3) or (3,) float, metres.
            directions: (N, 3) float, unit length.
        """
        directions = np.ascontiguousarray(directions, np.float32)
        origins = np.ascontiguousarray(np.broadcast_to(origins, directions.shape), np.float32)
        found = self._scene.run(origins, directions, query="INTERSECT", output=True)
        u, v = found["u"], found["v"]
        return Hits(found["primID"], found["tfar"], np.stack([1 - u - v, u, v], 1), found["Ng"])

    def blocked(self, origins: Array, directions: Array, reach: float | None = None) -> Array:
        """Return (N,) bool: something lies ahead of each ray, within ``reach`` metres if given."""
        directions = np.ascontiguousarray(np.broadcast_to(directions, origins.shape), np.float32)
        limit = None if reach is None else np.full(len(origins), reach, np.float32)
        hit = self._scene.run(np.ascontiguousarray(origins, np.float32), directions, dists=limit, query="OCCLUDED")
        return np.asarray(hit) >= 0


class PairCaster:
    """Casts rays at triangles that stay and at triangles that are often replaced, as if at one mesh.

    Args:
        still: casts at the mesh's first faces.
        count: how many those are.
        moving: casts at the faces that follow.
    """

    def __init__(self, still: RayCaster, count: int, moving: RayCaster) -> None:
        self._still, self._count, self._moving = still, count, moving

    def cast(self, origins: Array, directions: Array) -> Hits:
        """Return the first hits of rays, as `RayCaster.cast`."""
        one, other = self._still.cast(origins, directions), self._moving.cast(origins, directions)
        nearer = (other.face >= 0) & ((one.face < 0) | (other.distance < one.distance))
        return Hits(
            np.where(nearer, other.face + self._count, one.face).astype(np.int32),
            np.where(nearer, other.distance, one.distance),
            np.where(nearer[:, None], other.weights, one.weights),
            np.where(nearer[:, None], other.flat, one.flat),
        )

    def blocked(self, origins: Array, directions: Array, reach: float | None = None) -> Array:
        """Return (N,) bool: something lies ahead of each ray, as `RayCaster.blocked`."""
        hidden = self._still.blocked(origins, directions, reach)
        return np.asarray(hidden | self._moving.blocked(origins, directions, reach))
