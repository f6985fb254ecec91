"""Instances from votes by flood fill over all pairs: the obvious twin of `lidar.grouping`."""

from __future__ import annotations

import numpy as np


def group_frame(
    xyz: np.ndarray, class_prob: np.ndarray, vote_offsets: np.ndarray, radii: tuple[float, ...], min_points: int
) -> tuple[np.ndarray, np.ndarray, list[int], list[float]]:
    """Return semantic labels (-2 background), instance ids (-1 none), and class and score of each instance."""
    num_points = len(xyz)
    semantic = np.full(num_points, -2)
    instance = np.full(num_points, -1)
    for point in range(num_points):
        best = int(class_prob[point].argmax())
        if class_prob[point, best] > 0.5:
            semantic[point] = best
    labels: list[int] = []
    scores: list[float] = []
    for class_index, radius in enumerate(radii):
        unseen = {point for point in range(num_points) if semantic[point] == class_index}
        shifted = xyz[:, :2] + vote_offsets[:, class_index, :2]
        while unseen:
            first = min(unseen)
            unseen.remove(first)
            group, frontier = [first], [first]
            while frontier:
                here = frontier.pop()
                near = [other for other in unseen if np.linalg.norm(shifted[here] - shifted[other]) < radius]
                unseen.difference_update(near)
                group += near
                frontier += near
            if len(group) >= min_points:
                instance[group] = len(labels)
                labels.append(class_index)
                scores.append(float(np.mean(class_prob[group, class_index])))
    return semantic, instance, labels, scores
