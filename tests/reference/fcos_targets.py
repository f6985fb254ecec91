"""Which location learns which object, one location and one box at a time. Slow and obvious."""

from __future__ import annotations

from collections.abc import Sequence


def assign_one_by_one(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    boxes: Sequence[Sequence[float]],
    size_ranges: Sequence[float],
    radius: float = 1.5,
) -> dict[int, int]:
    """Return ``{location: box}`` of one image, locations counted level by level, row by row."""
    learned: dict[int, int] = {}
    location = 0
    for level, ((height, width), stride) in enumerate(zip(shapes, strides, strict=True)):
        lower = size_ranges[level - 1] if level else -1
        for row in range(height):
            for col in range(width):
                x, y = col * stride + stride // 2, row * stride + stride // 2
                best = None
                for index, (x1, y1, x2, y2) in enumerate(boxes):
                    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
                    if not (x1 < x < x2 and y1 < y < y2):
                        continue
                    if abs(x - centre_x) >= radius * stride or abs(y - centre_y) >= radius * stride:
                        continue
                    if not lower < max(x - x1, y - y1, x2 - x, y2 - y) <= size_ranges[level]:
                        continue
                    area = (x2 - x1) * (y2 - y1)
                    if best is None or area < best[0]:
                        best = (area, index)
                if best is not None:
                    learned[location] = best[1]
                location += 1
    return learned
