"""From class probabilities and centre votes to instances, exactly and without a custom operator.

Not here: the connected components themselves (`mwsis.core.clustering`), and how classes may be corrected before they
are grouped (`fusion.ring_correction`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mwsis.core.clustering import connected_components
from mwsis.core.instances import BACKGROUND, PointInstances
from mwsis.core.segment_ops import segment_mean

__all__ = ["RADII", "group_points"]

RADII = (0.6, 0.1, 0.4)
"""Metres between shifted neighbours of one Vehicle, Pedestrian, Cyclist.

Source: MWSIS, test-time clustering.
"""
MIN_POINTS = 3
FOREGROUND = 0.5


def group_points(
    xyz: Tensor,
    class_prob: Tensor,
    vote_offsets: Tensor,
    batch_index: Tensor,
    num_frames: int,
    radii: Sequence[float] = RADII,
    min_points: int = MIN_POINTS,
    relabel: Callable[[Tensor], Tensor] | None = None,
) -> list[PointInstances]:
    """Return the instances of each frame.

    A point takes its most probable class if that exceeds 0.5. Points of one class and frame, moved by their vote of
    that class, belong together when a chain of steps strictly shorter than the class's radius joins them; height does
    not count. A group smaller than ``min_points`` keeps its class but is no instance.

    Args:
        xyz: (N, 3) float32, metres, vehicle frame.
        class_prob: (N, C) float32 in [0, 1], after exactly one sigmoid.
        vote_offsets: (N, C, 3) float32, metres (decoded).
        batch_index: (N,) int64, frame of each point, ascending.
        num_frames: B.
        radii: metres, one per class.
        min_points: smallest instance. Published: 1; here 3, because an object of one or two points cannot be told
            from a stray return: *generalised*.
        relabel: corrects the classes before they are grouped; from (N,) int64 to (N,) int64, class or `BACKGROUND`.

    Returns:
        B sets; instances are numbered by class, then by first point. An instance's score is the mean probability of
        its class over its points.

    Source: MWSIS, test-time instances (threshold 0.5, radii, xy only, mean score). The published scores passed through
        the sigmoid twice: *corrected*.
    """
    probability, label = class_prob.max(1)
    semantic_labels = torch.where(probability > FOREGROUND, label, torch.full_like(label, BACKGROUND))
    if relabel is not None:
        semantic_labels = relabel(semantic_labels)
    component, labels = _components(xyz, semantic_labels, vote_offsets, batch_index, radii)
    component, labels = _drop_small(component, labels, min_points)
    member = (component >= 0).nonzero()[:, 0]
    scores = segment_mean(class_prob[member, semantic_labels[member]], component[member], len(labels))
    return [
        _of_frame(semantic_labels[frame], component[frame], labels, scores)
        for frame in (batch_index == index for index in range(num_frames))
    ]


def _components(
    xyz: Tensor, semantic_labels: Tensor, vote_offsets: Tensor, batch_index: Tensor, radii: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the group of each point, (N,) int64 (-1 background), and the class of each group, (K,) int64."""
    component = torch.full_like(semantic_labels, -1)
    labels: list[Tensor] = []
    num_groups = 0
    for class_index, radius in enumerate(radii):
        member = (semantic_labels == class_index).nonzero()[:, 0]
        if len(member):
            shifted = xyz[member, :2] + vote_offsets[member, class_index, :2]
            group = connected_components(shifted, radius, batch_index[member])
            component[member] = group + num_groups
            labels.append(torch.full_like(group[: int(group.max()) + 1], class_index))
            num_groups += len(labels[-1])
    return component, torch.cat(labels) if labels else semantic_labels[:0]


def _drop_small(component: Tensor, labels: Tensor, min_points: int) -> tuple[Tensor, Tensor]:
    """Remove groups of fewer than ``min_points`` and close the gaps in the numbering."""
    size = torch.bincount(component[component >= 0], minlength=len(labels))
    kept = size >= min_points
    number = torch.where(kept, kept.cumsum(0) - 1, torch.full_like(size, -1))
    number = torch.cat([number, number.new_full((1,), -1)])  # the last entry answers for component -1
    return number[component], labels[kept]


def _of_frame(semantic_labels: Tensor, component: Tensor, labels: Tensor, scores: Tensor) -> PointInstances:
    present, number = torch.unique(component[component >= 0], return_inverse=True)
    instance_ids = torch.full_like(component, -1)
    instance_ids[component >= 0] = number
    return PointInstances(semantic_labels, instance_ids, labels[present], scores[present])
