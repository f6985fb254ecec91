"""Overlap of oriented 3D boxes, and suppression of those that overlap a better one.

A box is (centre x, y, z, length, width, height, yaw), metres and rad about +z, as in `geometry.py`. Overlaps are exact
areas of intersected rectangles, in double precision and on the device of the boxes; nothing here has a gradient. The
slow twin is tests/reference/boxes3d.py. Next: `mwsis/evaluation/detection3d.py`, which scores with these.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bev_iou", "bev_nms", "iou_3d"]

PAIRS_AT_ONCE = 2**16
"""Of boxes whose areas are computed together; bounds the memory to some 100 MB."""


def bev_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the overlap of boxes seen from above.

    Args:
        boxes: (N, 7) float, sizes not negative.
        others: (M, 7) float, same frame.

    Returns:
        (N, M) in the wider dtype of the two, intersection over union in [0, 1]; 0 where both have no area.

    Complexity: O(N M) for the distances, polygons only for pairs whose outer circles touch.
    """
    shared = _shared_area(boxes, others)
    area, other_area = (rows[:, 3].double() * rows[:, 4].double() for rows in (boxes, others))
    return _over_union(shared, area, other_area).to(torch.promote_types(boxes.dtype, others.dtype))


def iou_3d(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the overlap of upright boxes in space.

    Args:
        boxes: (N, 7) float, sizes not negative.
        others: (M, 7) float, same frame.

    Returns:
        (N, M) in the wider dtype of the two, intersection over union of the volumes in [0, 1]; 0 where both have none.
    """
    height, other_height = boxes[:, 5].double()[:, None], others[:, 5].double()
    apart = (boxes[:, 2].double()[:, None] - others[:, 2].double()).abs()
    least = torch.minimum(height, other_height)
    shared_height = ((height + other_height) / 2 - apart).clamp(min=0).minimum(least)
    volume, other_volume = (rows[:, 3:6].double().prod(1) for rows in (boxes, others))
    shared = _shared_area(boxes, others) * shared_height
    return _over_union(shared, volume, other_volume).to(torch.promote_types(boxes.dtype, others.dtype))


def bev_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return which boxes stay when each removes the lower ones that it overlaps by more than a threshold from above.

    Args:
        boxes: (N, 7) float, of one class.
        scores: (N,) float; of equal scores the first box wins.
        threshold: of `bev_iou`, in [0, 1].

    Returns:
        (K,) int64, rows of ``boxes``, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order]
    removes = (bev_iou(ranked, ranked) > threshold).cpu()
    kept, removed = [], torch.zeros(len(order), dtype=torch.bool)
    for row in range(len(order)):
        if not removed[row]:
            kept.append(row)
            removed |= removes[row]
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]


def _over_union(shared: Tensor, size: Tensor, other_size: Tensor) -> Tensor:
    union = size[:, None] + other_size - shared
    return torch.where(union > 0, shared / union, 0.0).clamp(0, 1)


def _shared_area(boxes: Tensor, others: Tensor) -> Tensor:
    """Return (N, M) float64, the areas that the rectangles share."""
    one, other = boxes.double()[:, [0, 1, 3, 4, 6]], others.double()[:, [0, 1, 3, 4, 6]]
    radius, other_radius = one[:, 2:4].norm(dim=1) / 2, other[:, 2:4].norm(dim=1) / 2
    apart = (one[:, None, :2] - other[None, :, :2]).norm(dim=2)
    rows, columns = (apart <= radius[:, None] + other_radius).nonzero(as_tuple=True)
    parts = zip(rows.split(PAIRS_AT_ONCE), columns.split(PAIRS_AT_ONCE), strict=True)
    shared = one.new_zeros(len(one), len(other))
    shared[rows, columns] = torch.cat([one.new_zeros(0), *(_pair_areas(one[i], other[j]) for i, j in parts)])
    return shared


def _pair_areas(one: Tensor, other: Tensor) -> Tensor:
    """Return the areas that pairs of rectangles share.

    In the frame of the other rectangle, every point of the outline of the one is moved to the nearest point of the
    other. Only a point within the other stays, so the outline then runs once around each shared point and not at all,
    or forth and back, around any other: it encloses the shared area. Its corners are those of the one and where its
    edges cross the four lines of the other's edges. Nothing is decided, so nothing can be decided wrongly by rounding.

    Args:
        one: (P, 5) float64, centre x, y, length, width, yaw.
        other: (P, 5) float64.

    Returns:
        (P,) float64, not negative.
    """
    start = _corners_within(one, other)
    edge = start.roll(-1, 1) - start
    limit = torch.stack([-other[:, 2:4], other[:, 2:4]], 1)[:, None] / 2  # (P, 1, 2 sides, 2 axes)
    crossing = (limit - start[:, :, None]) / edge[:, :, None]
    along = crossing.nan_to_num(0.0).clamp(0, 1).flatten(2).sort(2).values
    along = torch.nn.functional.pad(along, (1, 0))  # each edge from its start; its end is the next one's start
    points = start[:, :, None] + along[..., None] * edge[:, :, None]
    outline = torch.minimum(torch.maximum(points, limit[:, :, :1]), limit[:, :, 1:]).flatten(1, 2)
    following = outline.roll(-1, 1)
    twice = outline[..., 0] * following[..., 1] - outline[..., 1] * following[..., 0]
    return (twice.sum(1) / 2).clamp(min=0)


def _corners_within(one: Tensor, other: Tensor) -> Tensor:
    """Return (P, 4, 2) float64, the corners of the one in the frame of the other, counter-clockwise."""
    signs = one.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    local = signs * one[:, None, 2:4] / 2
    offset = _turned(one[:, None, :2] - other[:, None, :2], -other[:, 4:])
    return _turned(local, one[:, 4:] - other[:, 4:]) + offset


def _turned(points: Tensor, angle: Tensor) -> Tensor:
    """Return (P, K, 2) points turned by (P, 1) angles."""
    cos, sin = angle.cos(), angle.sin()
    x, y = points.unbind(2)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], 2)
