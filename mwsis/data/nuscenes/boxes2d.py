"""2D boxes of 3D boxes: the extent of the part of a box that an image shows.

nuScenes has no 2D boxes of its own. A projected box is looser than one a person would draw: it encloses corners that
are air, and hidden parts of the object.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mwsis.core.geometry import BOX_EDGES, MIN_DEPTH, CameraModel, transform_points

__all__ = ["projected_box"]


def projected_box(corners: Tensor, camera: CameraModel) -> list[float] | None:
    """Return the extent of a 3D box in an image.

    Args:
        corners: (8, 3) float64, metres, vehicle frame, the last axis changing fastest.
        camera: a camera without distortion.

    Returns:
        x1, y1, x2, y2, pixels, inside the image: of the convex hull of the part in front of the camera, cut to the
        image; None where the image shows nothing of it.
    """
    points = transform_points(camera.camera_SE3_vehicle, corners)
    depth = points[:, 2]
    ahead = list(points[depth >= MIN_DEPTH])
    for i, j in BOX_EDGES:
        if (depth[i] >= MIN_DEPTH) != (depth[j] >= MIN_DEPTH):
            share = (MIN_DEPTH - depth[i]) / (depth[j] - depth[i])
            ahead.append(points[i] + share * (points[j] - points[i]))
    if not ahead:
        return None
    seen = torch.stack(ahead)
    focal, centre = camera.intrinsics[:2], camera.intrinsics[2:]
    polygon = _hull((seen[:, :2] / seen[:, 2:] * focal + centre).tolist())
    for axis, limit, sign in ((0, 0, 1), (0, camera.width, -1), (1, 0, 1), (1, camera.height, -1)):
        polygon = _cut(polygon, axis, limit, sign)
    if not polygon:
        return None
    (x1, x2), (y1, y2) = ((min(values), max(values)) for values in zip(*polygon, strict=True))
    return [x1, y1, x2, y2] if x1 < x2 and y1 < y2 else None


def _hull(points: list[list[float]]) -> list[list[float]]:
    """Return the convex hull of points, in order around it (Andrew's monotone chain)."""
    ordered = sorted(points)
    hull: list[list[float]] = []
    for chain in (ordered, ordered[::-1]):
        start = len(hull)
        for point in chain:
            while len(hull) >= start + 2 and _turn(hull[-2], hull[-1], point) <= 0:
                hull.pop()
            hull.append(point)
        hull.pop()
    return hull


def _turn(a: list[float], b: list[float], c: list[float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _cut(polygon: list[list[float]], axis: int, limit: float, sign: int) -> list[list[float]]:
    """Return the part of a convex polygon on one side of an axis-aligned line (Sutherland and Hodgman)."""
    kept: list[list[float]] = []
    for one, other in pairwise([*polygon[-1:], *polygon]):
        inside = [sign * (point[axis] - limit) >= 0 for point in (one, other)]
        if inside[0] != inside[1]:
            share = (limit - one[axis]) / (other[axis] - one[axis])
            kept.append([a + share * (b - a) for a, b in zip(one, other, strict=True)])
        if inside[1]:
            kept.append(other)
    return kept
