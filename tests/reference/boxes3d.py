"""Overlap of oriented boxes as one would explain it: clip one polygon by the edges of the other, one pair at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]


def bev_iou(box: Sequence[float], other: Sequence[float]) -> float:
    shared = shared_area(box, other)
    return _ratio(shared, box[3] * box[4], other[3] * other[4])


def iou_3d(box: Sequence[float], other: Sequence[float]) -> float:
    top = min(box[2] + box[5] / 2, other[2] + other[5] / 2)
    bottom = max(box[2] - box[5] / 2, other[2] - other[5] / 2)
    shared = shared_area(box, other) * max(top - bottom, 0.0)
    return _ratio(shared, box[3] * box[4] * box[5], other[3] * other[4] * other[5])


def bev_nms(boxes: Sequence[Sequence[float]], scores: Sequence[float], threshold: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda row: -scores[row]):
        if all(bev_iou(boxes[better], boxes[index]) <= threshold for better in kept):
            kept.append(index)
    return kept


def shared_area(box: Sequence[float], other: Sequence[float]) -> float:
    """Sutherland and Hodgman: keep what lies left of each edge of the other, counter-clockwise rectangle."""
    if other[3] * other[4] == 0:
        return 0.0
    polygon, clip = rectangle(box), rectangle(other)
    for start, end in zip(clip, clip[1:] + clip[:1], strict=True):
        polygon = _left_of(polygon, start, end)
    return area(polygon)


def rectangle(box: Sequence[float]) -> list[Point]:
    x, y, length, width, yaw = box[0], box[1], box[3], box[4], box[6]
    corners = []
    for along, across in ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5)):
        u, v = along * length, across * width
        corners.append((x + u * math.cos(yaw) - v * math.sin(yaw), y + u * math.sin(yaw) + v * math.cos(yaw)))
    return corners


def area(polygon: list[Point]) -> float:
    if not polygon:
        return 0.0
    x0, y0 = polygon[0]  # far from the origin products of coordinates lose digits
    moved = [(x - x0, y - y0) for x, y in polygon]
    pairs = zip(moved, moved[1:] + moved[:1], strict=True)
    return abs(sum(x1 * y2 - y1 * x2 for (x1, y1), (x2, y2) in pairs)) / 2


def _left_of(polygon: list[Point], start: Point, end: Point) -> list[Point]:
    kept: list[Point] = []
    for point, following in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        here, there = _side(point, start, end), _side(following, start, end)
        if here >= 0:
            kept.append(point)
        if (here > 0 > there) or (here < 0 < there):
            t = here / (here - there)
            kept.append((point[0] + t * (following[0] - point[0]), point[1] + t * (following[1] - point[1])))
    return kept


def _side(point: Point, start: Point, end: Point) -> float:
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])


def _ratio(shared: float, size: float, other_size: float) -> float:
    union = size + other_size - shared
    return shared / union if union > 0 else 0.0
