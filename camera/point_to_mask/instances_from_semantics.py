"""From a map of classes and one point per object to instances, offsets and masks (S2I of P2Seg); pure functions.

Every function that returns instances uses one code: the index of the object's point, `BACKGROUND` where there is no
object for certain, `IGNORE` where nothing is known. The other direction, from instances back to classes, is
`local_affinity.py`. Points are `points.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from camera.point_to_mask.points import ImagePoints
from mwsis.core.instances import BACKGROUND, IGNORE, MaskSet

__all__ = [
    "FALLBACK_SCORE",
    "UNKNOWN_CLASS",
    "PointMasks",
    "cell_centres",
    "instances_by_offsets",
    "instances_of_components",
    "masks_of_points",
    "offset_targets",
    "square_around",
]

UNKNOWN_CLASS = 255
"""Of a pixel, in a map of classes: 0 is background, c + 1 is class c."""
MIN_AREA = 50
FALLBACK_SIDE = 64
FALLBACK_SCORE = 0.5
EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


def cell_centres(size: Sequence[int], stride: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the centre of each of (h, w) cells, (2, h, w) float32: column and row, ``(index + 0.5) * stride`` px."""
    height, width = size
    rows = (torch.arange(height, device=device) + 0.5) * stride
    columns = (torch.arange(width, device=device) + 0.5) * stride
    return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])


def instances_of_components(semantic: Tensor, points: ImagePoints, min_area: int = MIN_AREA) -> Tensor:
    """Give the pixels of each connected region of a class to the points of that class inside it.

    A region without a point, or smaller than ``min_area``, stays `IGNORE`; one point takes all of it; several share it
    by distance (Voronoi), the first of equally near ones taking the pixel.

    Args:
        semantic: (H, W) uint8, 0 background, c + 1 for class c, 255 unknown.
        points: in pixels of this map; those outside belong to no region.
        min_area: pixels.

    Returns:
        (H, W) int64: index of a point, `BACKGROUND` or `IGNORE`.

    Complexity: O(H W) per class for the regions, then pixels of a region times its points.

    Source: P2Seg (arXiv 2401.09709), semantic-to-instance with distance separation; 8-connected regions of at least 50
    pixels from BESTIE's code (CVPR 2022).
    """
    instances = torch.where(semantic == 0, BACKGROUND, IGNORE)
    height, width = semantic.shape
    column, row = points.xy.floor().long().unbind(1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    for label in points.classes:
        regions, _ = ndimage.label((semantic == label + 1).numpy(), EIGHT_CONNECTED)
        own = (inside & (points.labels == label)).nonzero()[:, 0]
        region_of = torch.from_numpy(regions).long()[row[own], column[own]]
        boxes = ndimage.find_objects(regions)
        for number in sorted(set(region_of[region_of > 0].tolist())):
            place = boxes[number - 1]
            part = torch.from_numpy(regions[place] == number)
            if int(part.sum()) >= min_area:
                pixels = part.nonzero() + torch.tensor([place[0].start, place[1].start])
                members = own[region_of == number]
                instances[pixels[:, 0], pixels[:, 1]] = members[_nearest(pixels.flip(1) + 0.5, points.xy[members])]
    return instances


def instances_by_offsets(semantic: Tensor, points: ImagePoints, offsets: Tensor, stride: int = 1) -> Tensor:
    """Give every cell of a class to the point of that class that is nearest to where its offset leads.

    Used on the given map with the offsets of the moment it refines instances; on a predicted map it makes masks.

    Args:
        semantic: (h, w) integer, 0 background, c + 1 for class c, 255 unknown.
        points: on the same device; also those outside the map count.
        offsets: (2, h, w) float32, column and row, pixels from the centre of the cell to the object's point.
        stride: pixels of a cell along each axis.

    Returns:
        (h, w) int64: index of a point, `BACKGROUND` or `IGNORE` (unknown, or a class that no point has).

    Source: P2Seg (arXiv 2401.09709), refinement in each iteration, and the grouping of its released export.
    """
    instances = torch.where(semantic == 0, BACKGROUND, IGNORE)
    reached = cell_centres(semantic.shape, stride, semantic.device) + offsets
    for label in points.classes:
        cells = semantic == label + 1
        own = (points.labels == label).nonzero()[:, 0]
        instances[cells] = own[_nearest(reached[:, cells].T, points.xy[own])]
    return instances


def _nearest(positions: Tensor, xy: Tensor) -> Tensor:
    """Return the first of the nearest points, (K,) int64, of (K, 2) positions; one point at a time, to save memory."""
    best = torch.full_like(positions[:, 0], torch.inf)
    nearest = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
    for index, point in enumerate(xy):
        distance = (positions - point).square().sum(1)
        closer = distance < best
        best = torch.where(closer, distance, best)
        nearest[closer] = index
    return nearest


def offset_targets(instances: Tensor, points: ImagePoints, stride: int = 1) -> tuple[Tensor, Tensor]:
    """Return what leads from each cell to the point of its object, and where that is known.

    Args:
        instances: (h, w) int64, index of a point or negative.
        points: in pixels.
        stride: pixels of a cell.

    Returns:
        (2, h, w) float32, column and row in pixels, 0 where unknown; and (h, w) float32, weight 1 or 0.

    Source: P2Seg (arXiv 2401.09709), section on S2I: to the annotated point. *Corrected*: the released code leads to
    the centroid of the region.
    """
    known = instances >= 0
    offsets = torch.zeros(2, *instances.shape, device=instances.device)
    centres = cell_centres(instances.shape, stride, instances.device)
    offsets[:, known] = points.xy[instances[known]].T - centres[:, known]
    return offsets, known.float()


@dataclass(frozen=True, eq=False)
class PointMasks:
    """A mask per point, in the order of the points.

    Attributes:
        masks: on the recorded image.
        scores: (M,) float32 in [0, 1], mean probability of the class within the mask; 0.5 for a made-up square.
        weight: (M,) float32 in [0, 1], how far to trust the mask: the score, 0 for a made-up square.
    """

    masks: MaskSet
    scores: Tensor
    weight: Tensor


def masks_of_points(prob: Tensor, offsets: Tensor, points: ImagePoints, semantic: Tensor | None = None) -> PointMasks:
    """Return the mask of each point from dense predictions; a square of 64 px with weight 0 where it has no pixel.

    A pixel has the likeliest class among background and those of the points, and goes to a point by its offset.

    Args:
        prob: (C+1, H, W) float32, channel 0 background.
        offsets: (2, H, W) float32, pixels.
        points: inside the image.
        semantic: (H, W) uint8, a given map of classes, which is believed wherever it knows (not 255); None: there is
            none.

    Source: P2Seg's released export; weight 0 for the squares is ours (*corrected*: they would be trained on as masks),
    and so is believing a map (*generalised*).
    """
    possible = torch.zeros(len(prob), 1, 1)
    possible[[0, *(label + 1 for label in points.classes)]] = 1
    classes = (prob * possible).argmax(0)
    if semantic is not None:
        classes = classes.where(semantic == UNKNOWN_CLASS, semantic.long())
    instances = instances_by_offsets(classes, points, offsets)
    found = MaskSet.from_id_map(instances, torch.arange(len(points)))
    areas = found.areas()
    own = instances >= 0
    likely = prob[points.labels[instances[own]] + 1, own.nonzero()[:, 0], own.nonzero()[:, 1]]
    total = torch.zeros(len(points)).index_add_(0, instances[own], likely)
    scores = torch.where(areas > 0, total / areas.clamp(min=1), FALLBACK_SCORE).clamp(max=1)
    boxes, crops = found.crop_boxes.clone(), [found.crop(index) for index in range(len(points))]
    for index in (areas == 0).nonzero()[:, 0].tolist():
        boxes[index] = square_around(points.xy[index], *prob.shape[-2:])
        x1, y1, x2, y2 = boxes[index].tolist()
        crops[index] = torch.ones(y2 - y1, x2 - x1, dtype=torch.bool)
    masks = MaskSet.from_crops(found.height, found.width, boxes, crops)
    return PointMasks(masks, scores, torch.where(areas > 0, scores, 0.0))


def square_around(point: Tensor, height: int, width: int) -> Tensor:
    """Return x1 y1 x2 y2 of the square around a point, cut off at the borders."""
    low = (point - FALLBACK_SIDE / 2).round().long()
    size = torch.tensor([width, height])
    return torch.cat([low.clamp(min=0), (low + FALLBACK_SIDE).minimum(size)])
