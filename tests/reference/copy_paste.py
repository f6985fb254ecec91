"""What pasting leaves of boxes, pixel by pixel, and a memory of objects that is a plain list."""

from __future__ import annotations

import math


def visible_box(box, covered):
    """Return what is left of a box on rows of booleans and how much, by asking every pixel it touches."""
    x1, y1, x2, y2 = box
    cells = [
        (row, col)
        for row in range(max(math.floor(y1), 0), min(math.ceil(y2), len(covered)))
        for col in range(max(math.floor(x1), 0), min(math.ceil(x2), len(covered[0])))
    ]
    shown = [(row, col) for row, col in cells if not covered[row][col]]
    if not cells or len(shown) == len(cells):
        return box, 1.0
    if not shown:
        return None, 0.0
    rows, cols = zip(*shown, strict=True)
    left = [max(x1, min(cols)), max(y1, min(rows)), min(x2, max(cols) + 1), min(y2, max(rows) + 1)]
    return left, len(shown) / len(cells)


class Memory:
    """Images' objects in a store of pixels that is written in a circle; what is written over is forgotten."""

    def __init__(self, size, store):
        self.size, self.store = size, store
        self.images, self.start = [], 0

    def remember(self, areas, name):
        """Keep an image called ``name`` whose objects have these areas."""
        while sum(areas) > self.store:
            areas = areas[:-1]
        if not areas:
            return
        if self.start + sum(areas) > self.store:
            self.start = 0
        mine = set(range(self.start, self.start + sum(areas)))
        self.start += sum(areas)
        self.images = [one for one in self.images if not one[1] & mine] + [(name, mine, len(areas))]
        self.images = [one for one in self.images if one[0] > name - self.size]
