"""Labels and ground truth of a frame, read off what each pixel and each point shows.

Training labels are tight boxes of the visible part, nothing else. Masks, point labels and 3D boxes are for evaluation.
Next: `source.py`, which puts a frame together.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mwsis.core.frame import FrameTruth, ImageTruth
from mwsis.core.instances import BACKGROUND, IGNORE, Boxes2D, MaskSet
from mwsis.data.street.scene import World
from mwsis.data.street.shapes import Array

__all__ = ["frame_truth", "image_truth"]

MIN_AREA_PX, MIN_SIDE_PX, MEASURED_AT_WIDTH = 20, 4, 384
"""Smallest visible part that gets a box: pixels and box side in an image this wide; both scale with the image."""
LABELLED_AREA_PX = 300
"""Smaller visible parts are ignore regions: there to be seen, too small to be told what they are."""


def image_truth(world: World, entity: Array) -> ImageTruth:
    """Return boxes and masks of the objects one can make out in an image.

    Args:
        world: what was seen.
        entity: (H, W) int32, row of ``world.entities`` each pixel shows, -1 sky.

    Returns:
        Objects in order of instance id; a box touches its mask on all four sides; the smallest are ignore regions.
    """
    things = world.entities
    ids = np.where(entity >= 0, things.instance_ids[entity], 0)
    scale = entity.shape[1] / MEASURED_AT_WIDTH
    counts = np.bincount(ids.reshape(-1))
    seen = np.flatnonzero(counts >= MIN_AREA_PX * scale**2)
    masks = MaskSet.from_id_map(torch.from_numpy(ids), torch.from_numpy(seen[seen > 0]))
    sides = masks.crop_boxes[:, 2:] - masks.crop_boxes[:, :2]
    large = (sides >= MIN_SIDE_PX * scale).all(1)
    masks, instance_ids = masks[large], torch.from_numpy(seen[seen > 0])[large]
    label_of = torch.from_numpy(_label_of_instance(world))
    small = masks.areas() < LABELLED_AREA_PX * scale**2
    boxes = Boxes2D(masks.crop_boxes.float(), torch.where(small, IGNORE, label_of[instance_ids]), small)
    return ImageTruth(boxes, masks, instance_ids)


def _label_of_instance(world: World) -> Array:
    """Return the class of each instance id, (largest id + 1,) int64, -1 where there is none."""
    things = world.entities
    labels = np.full(int(things.instance_ids.max()) + 1, -1, np.int64)
    labels[things.instance_ids] = things.labels
    return labels


def frame_truth(world: World, point_entity: Array, images: tuple[ImageTruth, ...]) -> FrameTruth:
    """Return the ground truth of a frame.

    Args:
        world: what was seen.
        point_entity: (N,) int32, row of ``world.entities`` each point lies on.
        images: of each camera.

    Returns:
        Whole (not only visible) 3D boxes of every object that a point lies on or that an image shows.
    """
    things = world.entities
    labels, ids = things.labels[point_entity], things.instance_ids[point_entity]
    semantic_labels = torch.from_numpy(np.where(labels >= 0, labels, BACKGROUND))
    instance_ids = torch.from_numpy(np.where(labels >= 0, ids, -1))
    shown = [image.instance_ids.numpy() for image in images]
    known = np.isin(things.instance_ids, np.concatenate([ids, *shown])) & (things.labels >= 0)
    return FrameTruth(
        semantic_labels,
        instance_ids,
        _boxes3d(world, known),
        torch.from_numpy(things.labels[known]),
        torch.from_numpy(things.instance_ids[known]),
        tuple(image.instance_ids for image in images),
        images,
    )


def _boxes3d(world: World, known: Array) -> Tensor:
    """Return tight upright boxes of some things in the vehicle frame, (M, 7) float32."""
    things = world.entities
    centre, size, yaw = things.boxes[known, :3], things.boxes[known, 3:], things.yaw[known].astype(np.float64)
    cos, sin = np.cos(yaw), np.sin(yaw)
    offset = np.stack(
        [cos * centre[:, 0] - sin * centre[:, 1], sin * centre[:, 0] + cos * centre[:, 1], centre[:, 2]], 1
    )
    middle = (things.position[known] + offset - world.ego_position) @ world.vehicle_to_world()
    heading = (yaw - world.ego_yaw + np.pi) % (2 * np.pi) - np.pi
    return torch.from_numpy(np.concatenate([middle, size, heading[:, None]], 1).astype(np.float32))
