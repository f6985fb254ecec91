"""CenterPoint's targets and losses cell by cell and box by box: the slow, obvious twin of `lidar.detection`."""

from __future__ import annotations

import math


def radius_of(length, width, min_overlap=0.1):
    """Return the largest corner error, in cells, that keeps the overlap in all three cases, by bisection."""

    def keeps(r):
        area = length * width
        shared = max(length - r, 0) * max(width - r, 0)
        shifted = shared / (2 * area - shared)
        inwards = max(length - 2 * r, 0) * max(width - 2 * r, 0) / area
        outwards = area / ((length + 2 * r) * (width + 2 * r))
        return min(shifted, inwards, outwards) >= min_overlap

    low, high = 0.0, max(length, width)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def heat_of(boxes, labels, low, cell, shape, num_classes):
    """Return heat[c][row][column] of boxes (x, y, z, l, w, h, yaw)."""
    rows, columns = shape
    heat = [[[0.0] * columns for _ in range(rows)] for _ in range(num_classes)]
    for (x, y, _, length, width, *_), label in zip(boxes, labels, strict=True):
        column, row = math.floor((x - low[0]) / cell[0]), math.floor((y - low[1]) / cell[1])
        radius = max(math.floor(radius_of(length / cell[0], width / cell[1])), 2)
        sigma = (2 * radius + 1) / 6
        for r in range(rows):
            for c in range(columns):
                if abs(r - row) <= radius and abs(c - column) <= radius:
                    value = math.exp(-((r - row) ** 2 + (c - column) ** 2) / (2 * sigma**2))
                    heat[label][r][c] = max(heat[label][r][c], value)
    return heat


def losses_of(logits, codes, boxes, labels, low, cell):
    """Return (heat loss, box loss) of one sweep from logits[c][row][column] and codes[k][row][column]."""
    shape = len(logits[0]), len(logits[0][0])
    heat = heat_of(boxes, labels, low, cell, shape, len(logits))
    centers, heat_loss = 0, 0.0
    for wanted_rows, rows in zip(heat, logits, strict=True):
        for wanted_row, row in zip(wanted_rows, rows, strict=True):
            for wanted, logit in zip(wanted_row, row, strict=True):
                prob = 1 / (1 + math.exp(-logit))
                if wanted == 1:
                    centers += 1
                    heat_loss -= (1 - prob) ** 2 * math.log(prob)
                else:
                    heat_loss -= (1 - wanted) ** 4 * prob**2 * math.log(1 - prob)
    box_loss = 0.0
    for x, y, z, length, width, height, yaw in boxes:
        column, row = (x - low[0]) / cell[0], (y - low[1]) / cell[1]
        target = [column % 1, row % 1, z, *map(math.log, (length, width, height))]
        target += [math.cos(yaw), math.sin(yaw), math.cos(2 * yaw), math.sin(2 * yaw)]
        box_loss += sum(abs(codes[k][math.floor(row)][math.floor(column)] - target[k]) for k in range(10))
    return heat_loss / max(centers, 1), 2.0 * box_loss / max(len(boxes), 1)
