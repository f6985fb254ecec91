"""Waymo's AP and APH as its definition reads: at every cutoff the best of all assignments, frame by frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, permutations
from typing import Any

Box = Sequence[float]


def scores(
    frames: list[dict[str, Any]],
    label: int,
    min_iou: float,
    level: int,
    near: float,
    far: float,
    overlap: Callable[[Box, Box], float],
) -> tuple[float, float]:
    """Return AP and APH of one class in one range.

    Args:
        frames: each ``found`` = [(box, label, score, unlabelled)], ``objects`` = [(box, label, level)].
    """
    curve = [counts(frames, label, min_iou, level, near, far, overlap, step * 0.01) for step in range(101)]
    if curve[0][0] + curve[0][2] == 0:
        return math.nan, math.nan
    points, weighted = [], []
    for right, wrong, missed, heading in curve:
        recall = right / (right + missed) if right + missed else 0.0
        precision = right / (right + wrong) if right + wrong else 0.0
        heading_precision = heading / (right + wrong) if right + wrong else 0.0
        points.append((recall, precision if recall else 1.0))
        weighted.append((recall, heading_precision if recall else 1.0))
    return area(points), area(weighted)


def counts(frames, label, min_iou, level, near, far, overlap, cutoff):
    right = wrong = missed = 0
    heading = 0.0
    for frame in frames:
        found = [
            item for item in frame["found"] if item[1] == label and item[2] >= cutoff and near <= far_off(item[0]) < far
        ]
        objects = [
            item for item in frame["objects"] if item[1] == label and item[2] > 0 and near <= far_off(item[0]) < far
        ]
        pairs = best_assignment([[overlap(one[0], other[0]) for other in objects] for one in found], min_iou)
        right += len(pairs)
        heading += sum(heading_agreement(found[i][0][6], objects[j][0][6]) for i, j in pairs)
        wrong += sum(1 for i, item in enumerate(found) if i not in {i for i, _ in pairs} and not item[3])
        missed += sum(1 for j, item in enumerate(objects) if j not in {j for _, j in pairs} and item[2] <= level)
    return right, wrong, missed, heading


def best_assignment(overlaps: list[list[float]], min_iou: float) -> list[tuple[int, int]]:
    """Of all ways to give each detection an object of its own or none, the one with the largest sum of overlaps."""
    num_objects = len(overlaps[0]) if overlaps else 0
    best: tuple[float, list[tuple[int, int]]] = (0.0, [])
    choices = list(range(num_objects)) + [-1] * len(overlaps)
    for choice in set(permutations(choices, len(overlaps))):
        pairs = [(i, j) for i, j in enumerate(choice) if j >= 0 and overlaps[i][j] >= min_iou]
        total = sum(overlaps[i][j] for i, j in pairs)
        if total > best[0]:
            best = (total, pairs)
    return best[1]


def heading_agreement(yaw: float, true_yaw: float) -> float:
    apart = abs(math.atan2(math.sin(yaw - true_yaw), math.cos(yaw - true_yaw)))
    return 1 - apart / math.pi


def far_off(box: Box) -> float:
    return math.sqrt(box[0] ** 2 + box[1] ** 2 + box[2] ** 2)


def area(points: list[tuple[float, float]], step: float = 0.05) -> float:
    """From high to low recall; a gap wider than a step is filled by points of the precision reached so far."""
    best_at = {0.0: 1.0}
    for recall, precision in points:
        best_at[recall] = max(best_at.get(recall, 0.0), precision)
    line: list[tuple[float, float]] = []
    best = last = 0.0
    for recall in sorted(best_at, reverse=True):
        while last - recall > step + 1e-6:
            last -= step
            line.append((last, best))
        best = max(best, best_at[recall])
        line.append((recall, best))
        last = recall
    if len(line) >= 2:
        line[-1] = (line[-1][0], line[-2][1])
    return sum((left[0] - right[0]) * (left[1] + right[1]) / 2 for left, right in pairwise(line))
