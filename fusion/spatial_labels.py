"""Point labels made from 2D boxes alone: box frustum, then ring test, then largest cluster.

The published recipe in three separate steps (`ring_flags`, `largest_components`, `last_box_wins`), so that a better
rule for one of them replaces one function. Ring segments come in as an argument (`lidar/rings.py`); correcting the
labels during training is `vote_history.py`. Next: `mwsis/evaluation/label_quality.py`, which scores what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusion.correspondence import points_in_boxes2d
from mwsis.core.clustering import connected_components
from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import Frame
from mwsis.core.instances import BACKGROUND, IGNORE, PointLabels

__all__ = [
    "CLASS_RADII",
    "box_point_pairs",
    "boxes_of",
    "claimed_pairs",
    "largest_components",
    "last_box_wins",
    "ring_flags",
    "spatial_labels",
]

CLASS_RADII = (0.6, 0.1, 0.4)
"""Metres: two points of a Vehicle, Pedestrian, Cyclist nearer than this in the ground plane belong together (MWSIS)."""
CLEAN_SHARE = 0.05
"""A ring segment with less than this share of its points outside every box is kept whole (MWSIS)."""
LEAVING_SHARE = 0.5
"""A ring segment with at least this share outside every box is background (MWSIS); between the two it is ignored."""
KEEP, DROP, UNSURE = 1, 0, -1


def spatial_labels(
    frame: Frame,
    ring_segment_id: Tensor,
    *,
    rings: bool = True,
    clustering: bool = True,
    radii: Sequence[float] = CLASS_RADII,
) -> PointLabels:
    """Label the points of a sweep from the 2D boxes of its images.

    Args:
        frame: N points; only ``points.xyz``, ``pixels`` and the cameras' boxes are read, never ``truth``.
        ring_segment_id: (N,) int64, -1 none (``lidar.rings.ring_segments``).
        rings: drop points whose ring segment leaves the boxes.
        clustering: keep only the largest cluster of each box.
        radii: cluster radius per class, metres.

    Returns:
        N pseudo labels. An instance id is the index of the box, counted on over the cameras (objects and ignore regions
        alike); of several boxes the last wins. `IGNORE`: the ring test is unsure, or no image shows the point, or it
        would be `BACKGROUND` inside an ignore region. With both switches off: the plain frustum.

    Raises:
        DataError: ``rings`` is on and no point of the frame has a ring segment.
        ConfigError: a box with points in it has a class without a radius.

    Complexity: O(point-box pairs) plus one clustering of all boxes together.

    Source: MWSIS (AAAI 2024), SPG (spatial-based pseudo label generation), constants from its released code.
    *Generalised*: ignore regions, points outside every image (upstream removes them before).
    """
    pairs, box_labels = boxes_of(frame)
    flag = _flags(frame, ring_segment_id, pairs[box_labels[pairs[:, 1]] >= 0], rings)
    members = _members(frame, pairs, box_labels, flag, clustering, radii)
    instance_ids = last_box_wins(members, len(flag))
    labelled = instance_ids >= 0
    ignored = (flag == UNSURE) | ~frame.pixels.in_any_image
    ignored[pairs[box_labels[pairs[:, 1]] < 0, 0]] = True
    semantic_labels = torch.where(ignored, IGNORE, BACKGROUND)
    semantic_labels[labelled] = box_labels[instance_ids[labelled]]
    return PointLabels(semantic_labels, instance_ids)


def box_point_pairs(frame: Frame) -> Tensor:
    """Return every point of every object's box, (P, 2) int64 rows (point, box); a point may have several boxes."""
    pairs, box_labels = boxes_of(frame)
    return pairs[box_labels[pairs[:, 1]] >= 0]


def claimed_pairs(labels: PointLabels) -> Tensor:
    """Return the (P, 2) int64 rows (point, box) of the points that have an instance."""
    point = (labels.instance_ids >= 0).nonzero()[:, 0]
    return torch.stack([point, labels.instance_ids[point]], 1)


def ring_flags(in_box: Tensor, seen: Tensor, ring_segment_id: Tensor) -> Tensor:
    """Decide for each point in a box whether its ring segment belongs to an object.

    Args:
        in_box: (N,) bool, in any object's box of any image.
        seen: (N,) bool, shown by any image; only these count.
        ring_segment_id: (N,) int64, -1 none.

    Returns:
        (N,) int64: 1 keep, 0 background, -1 unsure; 0 outside every box. Points without a segment stand and fall
        together: kept if none of them lies outside the boxes, else unsure.

    Source: MWSIS (AAAI 2024), SPG; thresholds .05 and .5 from its released code.
    """
    slot = ring_segment_id + 1
    num_slots = int(slot.max()) + 1 if len(slot) else 1
    total = torch.bincount(slot[seen], minlength=num_slots)
    outside = torch.bincount(slot[seen & ~in_box], minlength=num_slots)
    share = outside.double() / total.clamp(min=1)
    state = torch.where(share < CLEAN_SHARE, KEEP, torch.where(share < LEAVING_SHARE, UNSURE, DROP))
    state[0] = torch.where(outside[0] > 0, UNSURE, KEEP)
    return torch.where(in_box, state[slot], DROP)


def largest_components(xy: Tensor, pairs: Tensor, pair_radius: Tensor) -> Tensor:
    """Return which (point, box) pairs belong to the largest cluster of their box.

    Args:
        xy: (N, 2) float, metres.
        pairs: (P, 2) int64 (point, box), sorted by box, then point.
        pair_radius: (P,) float, metres, equal within a box.

    Returns:
        (P,) bool. Of equally large clusters the one with the smallest point index wins.

    Source: MWSIS (AAAI 2024), SPG: clusters in the ground plane, neighbours strictly nearer than the class radius.
    """
    if not len(pairs):
        return torch.zeros(0, dtype=torch.bool, device=pairs.device)
    box = pairs[:, 1]
    scaled = xy[pairs[:, 0]].double() / pair_radius.double()[:, None]
    component = connected_components(scaled, 1.0, box)
    size = torch.bincount(component)[component]
    num_boxes = int(box.max()) + 1
    largest = size.new_zeros(num_boxes).scatter_reduce(0, box, size, "amax")
    rank = torch.where(size == largest[box], component, len(pairs))
    winner = rank.new_full((num_boxes,), len(pairs)).scatter_reduce(0, box, rank, "amin")
    return component == winner[box]


def last_box_wins(pairs: Tensor, num_points: int) -> Tensor:
    """Return per point the highest box index among its (P, 2) pairs, (N,) int64, -1 none."""
    instance_ids = torch.full((num_points,), -1, dtype=torch.int64, device=pairs.device)
    return instance_ids.scatter_reduce(0, pairs[:, 0], pairs[:, 1], "amax")


def boxes_of(frame: Frame) -> tuple[Tensor, Tensor]:
    """Return the (P, 2) point-box pairs of the frame and the (G,) class of each box, -1 for an ignore region."""
    labels = [view.labels for view in frame.cameras]
    pairs = points_in_boxes2d(frame.pixels, labels)
    classes = [torch.where(boxes.ignore, IGNORE, boxes.labels).to(pairs.device) for boxes in labels]
    return pairs, torch.cat([*classes, torch.zeros(0, dtype=torch.int64, device=pairs.device)])


def _flags(frame: Frame, ring_segment_id: Tensor, object_pairs: Tensor, rings: bool) -> Tensor:
    in_box = torch.zeros(len(frame.points), dtype=torch.bool, device=object_pairs.device)
    in_box[object_pairs[:, 0]] = True
    if not rings:
        return torch.where(in_box, KEEP, DROP)
    assert len(ring_segment_id) == len(in_box), "ring segments must be those of the frame's own points"
    if bool(frame.pixels.in_any_image.any()) and not bool((ring_segment_id >= 0).any()):
        raise DataError(
            f"{frame.frame_id}: ring: expected beam indices, got none (-1 everywhere); label with rings switched off"
        )
    return ring_flags(in_box, frame.pixels.in_any_image, ring_segment_id)


def _members(
    frame: Frame, pairs: Tensor, box_labels: Tensor, flag: Tensor, clustering: bool, radii: Sequence[float]
) -> Tensor:
    """Return the pairs that stay after ring test and clustering."""
    pairs = pairs[(box_labels[pairs[:, 1]] >= 0) & (flag[pairs[:, 0]] == KEEP)]
    if not clustering:
        return pairs
    asked = box_labels[pairs[:, 1]]
    if len(asked) and int(asked.max()) >= len(radii):
        raise ConfigError(
            f"radii: expected one cluster radius per class (at least {int(asked.max()) + 1}), got {len(radii)}; "
            "add the missing ones"
        )
    radius = torch.tensor(radii, dtype=torch.float64, device=pairs.device)[asked]
    return pairs[largest_components(frame.points.xyz[:, :2], pairs, radius)]
