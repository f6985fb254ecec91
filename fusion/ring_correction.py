"""Make the labels along a ring segment agree: one surface, one label.

A pure function of labels and segments. On predictions (as published) it acts before points are grouped to instances
(`lidar.segmentor.LidarSegmentor.predict`), on pseudo labels before the losses (`fusion/step.py`). Segments come from
`lidar/rings.py` and travel with the points, so filtering points filters both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mwsis.core.instances import BACKGROUND, IGNORE

__all__ = ["correct_by_ring_segment"]

MAJORITY_SHARE = 0.7
"""Share of a segment's points that must have a class for the whole segment to take it (MWSIS)."""


def correct_by_ring_segment(
    semantic_labels: Tensor,
    ring_segment_id: Tensor,
    classes: Sequence[int],
    majority_share: float = MAJORITY_SHARE,
) -> Tensor:
    """Give whole ring segments the label that dominates them.

    For each class in turn, a segment with points of that class becomes `BACKGROUND` if more of its points are
    background than of the class; else it takes the class if at least ``majority_share`` of all its points have it.
    Counts are those of the labels that came in; a later class overwrites an earlier one.

    `IGNORE` counts as a point of the segment and stays what it is: no class takes a segment of which little is known,
    and what was left open, by an ignore region or by the ring test of the spatial labels, is not decided by the few
    points beside it. Predictions have no such points.

    Args:
        semantic_labels: (N,) int64, class, `BACKGROUND` or `IGNORE`.
        ring_segment_id: (N,) int64, unique over the batch, -1 none (those points stay as they are).
        classes: classes to correct, in this order. MWSIS leaves pedestrians out: correcting them lowers their accuracy.
        majority_share: in (0, 1].

    Returns:
        (N,) int64, a new tensor.

    Complexity: O(N x classes).

    Source: MWSIS (AAAI 2024), RSC (ring segment-based correction); order and the share from its released code.
    *Generalised*: labels with `IGNORE`.
    """
    assert semantic_labels.shape == ring_segment_id.shape, "labels and ring segments must be of the same points"
    corrected = semantic_labels.clone()
    inside = (ring_segment_id >= 0).nonzero()[:, 0]
    segment, before = ring_segment_id[inside], semantic_labels[inside]
    after = before.clone()
    total = torch.bincount(segment)
    num_background = torch.bincount(segment[before == BACKGROUND], minlength=len(total))
    for label in classes:
        num_label = torch.bincount(segment[before == label], minlength=len(total))
        lost = (num_label > 0) & (num_background > num_label)
        won = (num_label > 0) & ~lost & (num_label >= majority_share * total.double())
        after = torch.where(lost[segment], BACKGROUND, torch.where(won[segment], label, after))
    corrected[inside] = torch.where(before == IGNORE, IGNORE, after)
    return corrected
