"""What several data sets do alike on the way to a frame: pixels of points, labels of points from 3D boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mwsis.core.frame import PixelMap
from mwsis.core.geometry import CameraModel, points_in_boxes3d
from mwsis.core.instances import PointLabels

__all__ = ["labels_in_boxes", "pixel_map"]

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


def labels_in_boxes(xyz: Tensor, boxes3d: Tensor, labels: Tensor, ids: Tensor, outside: int) -> PointLabels:
    """Return the label and the object of each point: those of the 3D box that it lies in, of several the nearest.

    Args:
        xyz: (N, 3) float32, metres.
        boxes3d: (M, 7) float32, centre, length, width, height, yaw, same frame.
        labels: (M,) int64, class, or `IGNORE` of a box whose points are no object's.
        ids: (M,) int64, of the objects.
        outside: label of points in no box.

    Complexity: O(N M), one box at a time.
    """
    nearest = torch.full((len(xyz),), math.inf)
    owner = torch.full((len(xyz),), -1)
    for number, box in enumerate(boxes3d):
        inside = points_in_boxes3d(xyz, box[None])[:, 0]
        closer = inside & ((distance := (xyz - box[:3]).norm(dim=1)) < nearest)
        nearest[closer], owner[closer] = distance[closer], number
    found = PointLabels(torch.full((len(xyz),), outside), torch.full((len(xyz),), -1))
    owned = owner >= 0
    found.semantic_labels[owned] = labels[owner[owned]]
    found.instance_ids[owned] = torch.where(labels >= 0, ids, -1)[owner[owned]]
    return found
