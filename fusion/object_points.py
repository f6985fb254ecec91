"""The points of a sweep as sparse masks of the camera's objects: what spatial labels say inside each 2D box.

A point that the labels give to the object lies on its mask, one they give to something else or to nothing does not. No
network is asked, so this teaches from the first step. The loss is `camera.terms.PointMask`; the labels come with the
batch (`spatial_labels.py`, `default_labels.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

from camera.context import ObjectPoints
from camera.fcos import Positives
from fusion.correspondence import PointPixelPairs
from mwsis.core.instances import IGNORE, PointLabels

__all__ = ["object_points"]

LEAST_OVERLAP = 0.2
"""Of a box with the extent of the points that are to be its object's: a sweep shows the upper half of some objects."""


@torch.no_grad()
def object_points(pairs: PointPixelPairs, frame: Tensor, pseudo: PointLabels, objects: Positives) -> ObjectPoints:
    """Return, per object, the points inside its box and whether they lie on it.

    Which of the labels' instances an object is follows from the image alone: the one whose pixels' extent overlaps its
    box most, of its class, and of which it is the best box; so instances may have been merged over cameras, and boxes
    of cameras that are not loaded do not matter. An object without such an instance has no points.

    Args:
        pairs: P points that a camera sees and their pixels.
        frame: (N,) int64, frame of each point.
        pseudo: labels of the N points; points to be ignored are left out.
        objects: the G objects of the batch, pixels of the resized images.

    Returns:
        Q points, object by object, weighted by the labels' confidence.

    Complexity: O(P + sum of points times boxes of each image).
    """
    semantic, instance = (part[pairs.point_index] for part in (pseudo.semantic_labels, pseudo.instance_ids))
    number = _numbered(instance, frame[pairs.point_index], pairs.image_index)
    chosen = _instance_of_object(pairs, number, semantic, objects)
    pair, owner = _inside(pairs, objects)
    counts = (chosen[owner] >= 0) & (semantic[pair] != IGNORE)
    pair, owner = pair[counts], owner[counts]
    order = owner.argsort(stable=True)
    pair, owner = pair[order], owner[order]
    starts = torch.nn.functional.pad(owner.bincount(minlength=objects.num_gt).cumsum(0), (1, 0))
    on_object = (number[pair] == chosen[owner]).float()
    return ObjectPoints(starts, pairs.pixel_uv[pair], on_object, pseudo.weight[pairs.point_index][pair])


def _numbered(instance: Tensor, frame: Tensor, image: Tensor) -> Tensor:
    """Return (P,) int64: a number for each instance in each image, -1 for points of none."""
    span = int(instance.max()) + 2 if len(instance) else 1
    frames = int(frame.max()) + 1 if len(frame) else 1
    found, number = torch.unique((image * frames + frame) * span + instance + 1, return_inverse=True)
    real = found % span > 0
    return torch.where(real, real.cumsum(0) - 1, -1)[number]


def _inside(pairs: PointPixelPairs, objects: Positives) -> tuple[Tensor, Tensor]:
    """Return the rows (pair, object) of pixels inside boxes of their image, half-open."""
    rows, owners = [], []
    for image in torch.unique(objects.gt_image).tolist():
        here = (pairs.image_index == image).nonzero()[:, 0]
        boxed = (objects.gt_image == image).nonzero()[:, 0]
        uv, box = pairs.pixel_uv[here, None], objects.gt_boxes[boxed]
        pair, owner = ((uv >= box[:, :2]) & (uv < box[:, 2:])).all(2).nonzero(as_tuple=True)
        rows.append(here[pair])
        owners.append(boxed[owner])
    nothing = pairs.image_index[:0]
    return torch.cat([nothing, *rows]), torch.cat([nothing, *owners])


def _instance_of_object(pairs: PointPixelPairs, number: Tensor, semantic: Tensor, objects: Positives) -> Tensor:
    """Return (G,) int64: the number of each object's instance, -1 without one."""
    count = int(number.max()) + 1 if len(number) else 0
    none = torch.full((objects.num_gt,), -1, dtype=torch.int64, device=number.device)
    if not count or not objects.num_gt:
        return none
    real = number >= 0
    number, uv = number[real], pairs.pixel_uv[real]
    column = number[:, None].expand(-1, 2)
    low = uv.new_zeros(count, 2).scatter_reduce(0, column, uv, "amin", include_self=False)
    high = uv.new_zeros(count, 2).scatter_reduce(0, column, uv, "amax", include_self=False)
    label, image = (torch.zeros(count, dtype=torch.int64, device=number.device) for _ in range(2))
    label[number], image[number] = semantic[real], pairs.image_index[real]
    overlap = box_iou(objects.gt_boxes, torch.cat([low, high], 1))
    overlap = overlap * ((objects.gt_image[:, None] == image) & (objects.gt_labels[:, None] == label))
    best, chosen = overlap.max(1)
    mutual = overlap.argmax(0)[chosen] == torch.arange(objects.num_gt, device=number.device)
    return torch.where(mutual & (best >= LEAST_OVERLAP), chosen, none)
