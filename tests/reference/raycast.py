"""Rays against triangles, every ray with every triangle."""

from __future__ import annotations

import numpy as np


def first_hits(origins, directions, triangles):
    """Return face (N,), -1 none, and distance (N,), inf none (Moeller and Trumbore 1997)."""
    faces = np.full(len(origins), -1)
    distances = np.full(len(origins), np.inf)
    for number, (origin, direction) in enumerate(zip(origins, directions)):
        for face, (a, b, c) in enumerate(triangles):
            p = np.cross(direction, c - a)
            det = (b - a) @ p
            if abs(det) < 1e-12:
                continue
            u = (origin - a) @ p / det
            q = np.cross(origin - a, b - a)
            v = direction @ q / det
            t = (c - a) @ q / det
            if u >= 0 and v >= 0 and u + v <= 1 and 0 < t < distances[number]:
                faces[number], distances[number] = face, t
    return faces, distances
