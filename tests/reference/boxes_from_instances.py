"""A box around one labelled object, step by step on plain lists."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]


def fit_box(
    points: list[tuple[float, float, float]],
    heights: list[float],
    label: int,
    usual: Sequence[float],
    num_yaws: int = 90,
    near_edge: float = 0.2,
    trim: float = 0.02,
    slack: float = 0.3,
    floor: float = 0.1,
    whole: float = 0.75,
    slim: float = 0.6,
    tall: float = 0.75,
) -> list[float]:
    body = [(x, y) for (x, y, _), height in zip(points, heights, strict=True) if height > floor]
    if len(body) < 2:
        body = [(x, y) for x, y, _ in points]
    yaw = side_yaw(body, num_yaws, near_edge, trim) if label == 0 else line_yaw(body)
    axes = [(math.cos(yaw), math.sin(yaw)), (-math.sin(yaw), math.cos(yaw))]
    ends = [extent([x * u + y * v for x, y in body], trim, slack) for u, v in axes]
    seen = [high - low for low, high in ends]
    longer = 0 if seen[0] >= seen[1] else 1
    if label == 0 and seen[longer] < whole * usual[0]:
        longer = 0 if abs(axes[0][0]) >= abs(axes[1][0]) else 1
    wanted = [usual[1], usual[1]]
    wanted[longer] = usual[0]
    if label == 1:
        scale = min(max(max(seen) / usual[0], slim), 1)
        wanted = [scale * size for size in wanted]
    full = [max(pair) for pair in zip(seen, wanted, strict=True)]
    middle = []
    for (low, high), size in zip(ends, full, strict=True):
        middle.append(low + size / 2 if low + high > 0 else high - size / 2)
    x, y = (middle[0] * axes[0][k] + middle[1] * axes[1][k] for k in (0, 1))
    below, top = extent(heights, trim, slack)
    below = min(below, 0)
    plane = sorted(z - height for (_, _, z), height in zip(points, heights, strict=True))
    ground = plane[(len(plane) - 1) // 2] + below
    top -= below
    height = top if top >= tall * usual[2] else usual[2]
    angle = math.atan2(axes[longer][1], axes[longer][0])
    while angle > math.pi / 2:
        angle -= math.pi
    while angle <= -math.pi / 2:
        angle += math.pi
    return [x, y, ground + height / 2, full[longer], full[1 - longer], height, angle]


def side_yaw(body: list[Point], num_yaws: int, near_edge: float, trim: float) -> float:
    best, chosen = -1.0, 0.0
    for number in range(num_yaws):
        yaw = number * math.pi / 2 / num_yaws
        along = [x * math.cos(yaw) + y * math.sin(yaw) for x, y in body]
        across = [-x * math.sin(yaw) + y * math.cos(yaw) for x, y in body]
        lines = [(quantile(values, trim), quantile(values, 1 - trim)) for values in (along, across)]
        closeness = 0.0
        for one, other in zip(along, across, strict=True):
            off = [abs(value - line) for value, pair in zip((one, other), lines, strict=True) for line in pair]
            closeness += 1 / max(min(off), near_edge)
        if closeness > best + 1e-9:
            best, chosen = closeness, yaw
    return chosen


def line_yaw(body: list[Point]) -> float:
    count = len(body)
    x0, y0 = sum(x for x, _ in body) / count, sum(y for _, y in body) / count
    xx = sum((x - x0) ** 2 for x, _ in body)
    yy = sum((y - y0) ** 2 for _, y in body)
    xy = sum((x - x0) * (y - y0) for x, y in body)
    return 0.5 * math.atan2(2 * xy, xx - yy)


def extent(values: list[float], trim: float, slack: float) -> tuple[float, float]:
    low, high = quantile(values, trim), quantile(values, 1 - trim)
    return max(low - slack, min(values)), min(high + slack, max(values))


def quantile(values: list[float], share: float) -> float:
    """Between neighbours, straight."""
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    lower = math.floor(place)
    upper = min(lower + 1, len(ranked) - 1)
    return ranked[lower] + (place - lower) * (ranked[upper] - ranked[lower])
