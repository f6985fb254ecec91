"""Masks of points without any training: what trained ones must beat (P2Seg's figures of masks are read beside these).

All get what training gets, the points, the map of classes and the image, and use less of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from torch import Tensor

from camera.point_to_mask.instances_from_semantics import instances_by_offsets, square_around
from camera.point_to_mask.points import ImagePoints
from mwsis.core.instances import MaskSet

__all__ = ["nearest_points", "squares", "watersheds"]

Indices = np.ndarray[Any, np.dtype[np.int64]]
Heights = np.ndarray[Any, np.dtype[np.float64]]


def squares(points: ImagePoints, size: tuple[int, int]) -> MaskSet:
    """Return a square of 64 px around each point, cut off at the image's borders; the fallback of P2Seg's export.

    Args:
        points: M, in pixels of the image.
        size: height and width of the image.
    """
    boxes = (
        torch.stack([square_around(point, *size) for point in points.xy]) if len(points) else torch.zeros(0, 4).long()
    )
    crops = [torch.ones(y2 - y1, x2 - x1, dtype=torch.bool) for x1, y1, x2, y2 in boxes.tolist()]
    return MaskSet.from_crops(*size, boxes, crops)


def nearest_points(semantic: Tensor, points: ImagePoints) -> MaskSet:
    """Return the pixels of a point's class that are nearer to it than to other points of that class.

    Args:
        semantic: (H, W) uint8, 0 background, c + 1 for class c, 255 unknown.
        points: M, in pixels of this map.
    """
    instances = instances_by_offsets(semantic, points, torch.zeros(2, *semantic.shape))
    return MaskSet.from_id_map(instances, torch.arange(len(points)))


def watersheds(image: Tensor, semantic: Tensor, points: ImagePoints) -> MaskSet:
    """Return the pixels of a point's class in the basin flooded from it, edges of the image being the crests.

    Args:
        image: (3, H, W) uint8 RGB.
        semantic, points: see `nearest_points`.

    Each class is flooded on its own, so that a basin is never lost to another class. Equally high ways are taken in no
    particular order.

    Source: watershed cuts (Cousty et al., TPAMI 2009): the minimum spanning forest rooted in the points, an edge
    between neighbouring pixels weighing the larger magnitude of the two's gradients.
    """
    height, width = semantic.shape
    height_of = ndimage.gaussian_gradient_magnitude(image.float().mean(0).numpy(), 1.0)
    index = np.arange(height * width).reshape(height, width)
    first = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    second = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
    crest = 1 + np.maximum(height_of.ravel()[first], height_of.ravel()[second])
    column = points.xy[:, 0].floor().long().clamp(0, width - 1)
    row = points.xy[:, 1].floor().long().clamp(0, height - 1)
    pixel = (row * width + column).numpy()
    instances = torch.full((height, width), -1)
    for label in points.classes:
        own = (points.labels == label).nonzero()[:, 0].numpy()
        basin = torch.from_numpy(_basins(first, second, crest, pixel[own], height * width)).view(height, width)
        cells = semantic == label + 1
        instances[cells] = torch.from_numpy(own)[basin[cells]]
    return MaskSet.from_id_map(instances, torch.arange(len(points)))


def _basins(first: Indices, second: Indices, crest: Heights, roots: Indices, num_pixels: int) -> Indices:
    """Return the root that each pixel's tree hangs on, of the last of those that share a pixel."""
    source = np.full(len(np.unique(roots)), num_pixels)  # a node below all points keeps their trees apart
    rows, columns = np.concatenate([first, source]), np.concatenate([second, np.unique(roots)])
    weights = np.concatenate([crest, np.full(len(source), 0.5)])
    size = num_pixels + 1
    forest = csgraph.minimum_spanning_tree(sparse.coo_array((weights, (rows, columns)), (size, size)).tocsr()).tocoo()
    kept = (forest.row < num_pixels) & (forest.col < num_pixels)
    links = sparse.coo_array((forest.data[kept], (forest.row[kept], forest.col[kept])), (num_pixels, num_pixels))
    _, tree = csgraph.connected_components(links, directed=False)
    root_of = np.zeros(tree.max() + 1, dtype=np.int64)
    root_of[tree[roots]] = np.arange(len(roots))
    basins: Indices = root_of[tree]
    return basins
