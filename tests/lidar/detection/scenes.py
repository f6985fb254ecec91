"""Small labelled sweeps: boxes full of points on a flat ground."""

from __future__ import annotations

import torch

from lidar.detection.boxes import Boxes3D
from lidar.detection.sweep import LabelledSweep
from mwsis.core.instances import BACKGROUND, PointLabels

SIZES = torch.tensor([[4.2, 1.9, 1.6], [0.7, 0.7, 1.75], [1.8, 0.7, 1.7]])


def random_boxes(count, generator, reach=14.0, ground=0.0):
    """Return boxes of the three classes, standing on a flat ground, centres within +-reach."""
    labels = torch.randint(3, (count,), generator=generator)
    sizes = SIZES[labels] * (0.8 + 0.4 * torch.rand(count, 3, generator=generator))
    xy = (torch.rand(count, 2, generator=generator) * 2 - 1) * reach
    yaw = (torch.rand(count, 1, generator=generator) * 2 - 1) * torch.pi
    return Boxes3D(torch.cat([xy, sizes[:, 2:] / 2 + ground, sizes, yaw], 1), labels)


def points_within(box, count, generator):
    """Return points in the inner nine tenths of one (7,) box."""
    local = (torch.rand(count, 3, generator=generator) - 0.5) * 0.9 * box[3:6]
    cos, sin = box[6].cos(), box[6].sin()
    x, y, z = local.unbind(1)
    return torch.stack([x * cos - y * sin, x * sin + y * cos, z], 1) + box[:3]


def sweep_of(boxes, generator, frame_id="frame", points_each=30, ground=0.0, num_ground=600, reach=15.0):
    """Return a sweep whose objects have so many points each, on a rough ground."""
    soil = (torch.rand(num_ground, 3, generator=generator) * 2 - 1) * torch.tensor([reach, reach, 0.02])
    soil[:, 2] += ground
    objects = [points_within(box, points_each, generator) for box in boxes.boxes3d]
    labels = torch.cat([torch.full((num_ground,), BACKGROUND), boxes.labels.repeat_interleave(points_each)])
    ids = torch.cat([torch.full((num_ground,), -1), torch.arange(len(boxes)).repeat_interleave(points_each)])
    xyz = torch.cat([soil, *objects])
    return LabelledSweep(frame_id, xyz, torch.rand(len(xyz), 2, generator=generator), PointLabels(labels, ids), boxes)
