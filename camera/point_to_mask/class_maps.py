"""From class activations, points and colours to a map of classes, which P2Seg then learns from; pure functions.

Activations are blurred and reach beyond their objects. The points say for certain where their classes are, and that no
object is without one; the image says where borders are. Where activations come from is `activation_maps.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from camera.affinity import CELL
from camera.point_to_mask.activation_maps import ActivationSettings
from camera.point_to_mask.instances_from_semantics import EIGHT_CONNECTED, UNKNOWN_CLASS
from camera.point_to_mask.points import ImagePoints
from camera.point_to_mask.samples import padded
from camera.refinement import ColorRefinement

__all__ = ["class_map", "sharpened", "thresholded"]

REFINEMENT = ColorRefinement()
"""With the constants that masks are refined with."""


def class_map(found: Tensor, image: Tensor, points: ImagePoints, settings: ActivationSettings) -> Tensor:
    """Return the map of classes of an image.

    Args:
        found: (K, H, W) float32 in [0, 1], activations of ``points.classes``, in this order.
        image: (3, H, W) uint8 RGB, as recorded.
        points: in pixels of the image; where there are none, no class is there and all is background.
        settings: thresholds and radius.

    Returns:
        (H, W) uint8: 0 background, c + 1 for a class of the points, 255 unknown.

    Complexity: O(K H W) time; 24 float32 of memory for each pixel, see `ColorRefinement`.
    """
    if not len(points):
        return torch.zeros(image.shape[1:], dtype=torch.uint8)
    return thresholded(sharpened(found, image, points, settings.radius), points, settings)


def sharpened(found: Tensor, image: Tensor, points: ImagePoints, radius: float) -> Tensor:
    """Return activations that end where colours change, see `class_map`; (K, H, W) float32 in [0, 1].

    Near a point its class has 1 and the others 0 beforehand, so that the colours there count as theirs.

    Source: in place of the dense CRF that the released code of IRN (CVPR 2019) applies before the same thresholds.
    """
    height, width = (int(side) for side in image.shape[1:])
    certain = _near_points(points, (height, width), radius)
    own = certain == torch.tensor(points.classes)[:, None, None]
    seeded = torch.where(certain < 0, found, own.float())
    cells = [-(-side // CELL) for side in (height, width)]
    prob = functional.interpolate(seeded[None], cells, mode="bilinear", antialias=True)[0]
    everywhere = torch.tensor([[0.0, 0.0, width, height]]).expand(len(prob), 4)
    return REFINEMENT(prob, everywhere, padded(image, CELL * cells[0], CELL * cells[1], 0))[:, :height, :width]


def thresholded(found: Tensor, points: ImagePoints, settings: ActivationSettings) -> Tensor:
    """Return the map of classes that activations give, see `class_map`.

    A pixel that two classes claim has the one of the higher activation, one near several points that of the nearest. A
    connected region of a class without a point of it is unknown, since every object has its point.

    Source: the thresholds and what lies between from the released code of IRN (CVPR 2019); what points add is ours.
    """
    highest, which = found.max(0)
    classes = torch.tensor(points.classes)[which] + 1
    semantic = torch.where(highest < settings.low, 0, torch.where(highest >= settings.high, classes, UNKNOWN_CLASS))
    certain = _near_points(points, semantic.shape, settings.radius)
    semantic = torch.where(certain < 0, semantic, certain + 1)
    column, row = points.xy.floor().long().unbind(1)
    for label in points.classes:
        regions, _ = ndimage.label((semantic == label + 1).numpy(), EIGHT_CONNECTED)
        own = points.labels == label
        pointed = np.isin(regions, regions[row[own].numpy(), column[own].numpy()])
        semantic[(semantic == label + 1) & ~torch.from_numpy(pointed)] = UNKNOWN_CLASS
    return semantic.to(torch.uint8)


def _near_points(points: ImagePoints, size: torch.Size | tuple[int, int], radius: float) -> Tensor:
    """Return the class of the nearest point of each pixel whose centre is within ``radius`` of one, else -1."""
    labels, nearest = torch.full(size, -1), torch.full(size, torch.inf)
    rows, columns = (torch.arange(side) + 0.5 for side in size)
    for (x, y), label in zip(points.xy.tolist(), points.labels.tolist(), strict=True):
        place = tuple(slice(max(int(at - radius), 0), int(at + radius) + 1) for at in (y, x))
        distance = (rows[place[0], None] - y).square() + (columns[place[1]] - x).square()
        closer = (distance <= radius * radius) & (distance < nearest[place])
        nearest[place] = torch.where(closer, distance, nearest[place])
        labels[place] = torch.where(closer, label, labels[place])
    return labels
