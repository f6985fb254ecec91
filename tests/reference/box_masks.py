"""The slow, obvious twins of masks on boxes (`camera.box_masks`): one cell, one sample, one pixel at a time."""

from __future__ import annotations

import math

import torch


def value_at(mask, x, y):
    """Bilinear value of a (H, W) mask at a point in pixels, centres at +0.5; 0 beyond it, and its edge goes on."""
    height, width = mask.shape
    if not (-0.5 <= x <= width + 0.5 and -0.5 <= y <= height + 0.5):
        return 0.0
    column, row = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
    left, upper = math.floor(column), math.floor(row)
    total = 0.0
    for r, down in ((upper, 1 - (row - upper)), (min(upper + 1, height - 1), row - upper)):
        for c, across in ((left, 1 - (column - left)), (min(left + 1, width - 1), column - left)):
            total += down * across * float(mask[r, c])
    return total


def mask_target(mask, box, cells):
    """What each of cells x cells cells of a box is covered by: the mean of evenly spread samples, one a pixel."""
    x1, y1, x2, y2 = box
    width, height = (x2 - x1) / cells, (y2 - y1) / cells
    across, down = math.ceil(width), math.ceil(height)
    target = torch.zeros(cells, cells)
    for row in range(cells):
        for column in range(cells):
            samples = [
                value_at(mask, x1 + (column + (i + 0.5) / across) * width, y1 + (row + (j + 0.5) / down) * height)
                for i in range(across)
                for j in range(down)
            ]
            target[row, column] = sum(samples) / len(samples)
    return target


def pasted(cells, box, height, width):
    """The mask on an image: pixels whose centre lies in the box, read between the centres of the box's cells."""
    x1, y1, x2, y2 = box
    size = len(cells)
    full = torch.zeros(height, width)
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5, row + 0.5
            if x1 <= x < x2 and y1 <= y < y2:
                full[row, column] = value_at(cells, (x - x1) / (x2 - x1) * size, (y - y1) / (y2 - y1) * size)
    return full
