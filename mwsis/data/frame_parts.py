"""What several data sets do alike on the way to a frame: pixels of points, points of 3D boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mwsis.core.frame import PixelMap
from mwsis.core.geometry import CameraModel, points_in_boxes3d

__all__ = ["box_of_point", "pixel_map"]

SLOTS = 2
"""Cameras that may see one point: fields of view overlap in pairs."""


def pixel_map(xyz: Tensor, cameras: Sequence[CameraModel]) -> PixelMap:
    """Return the pixels each point falls on in the first two cameras whose image it lies in, hidden or not.

    Args:
        xyz: (N, 3) float32, metres, vehicle frame.
        cameras: the rig.
    """
    uv = torch.zeros(len(xyz), SLOTS, 2)
    index = torch.full((len(xyz), SLOTS), -1, dtype=torch.int8)
    used = torch.zeros(len(xyz), dtype=torch.int64)
    for number, camera in enumerate(cameras):
        pixel_uv, _, visible = camera.project(xyz)
        chosen = (visible & (used < SLOTS)).nonzero()[:, 0]
        slot = used[chosen]
        uv[chosen, slot], index[chosen, slot] = pixel_uv[chosen], number
        used[chosen] += 1
    return PixelMap(uv, index)


def box_of_point(xyz: Tensor, boxes3d: Tensor) -> Tensor:
    """Return the 3D box each point lies in, of several the one with the nearest centre.

    Args:
        xyz: (N, 3) float32, metres.
        boxes3d: (M, 7) float32, centre, length, width, height, yaw, same frame.

    Returns:
        (N,) int64, -1 none.

    Complexity: O(N M), one box at a time.
    """
    nearest = torch.full((len(xyz),), math.inf)
    owner = torch.full((len(xyz),), -1)
    for number, box in enumerate(boxes3d):
        inside = points_in_boxes3d(xyz, box[None])[:, 0]
        closer = inside & ((distance := (xyz - box[:3]).norm(dim=1)) < nearest)
        nearest[closer], owner[closer] = distance[closer], number
    return owner
