"""Polygons of a mask: closed lines along the edges of its pixels, so that filling them gives the mask again.

A polygon has one outline and no hole. A part of a mask that has holes is therefore cut from top to bottom through the
middle of its first hole, until no part has any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage
from torch import Tensor

__all__ = ["outlines"]

Bits = np.ndarray[Any, np.dtype[np.bool_]]
Corner = tuple[int, int]
"""x, y of a pixel's corner; (0, 0) is the upper left one of the mask."""
AROUND = np.ones((3, 3), dtype=bool)
"""Background that touches at a corner is connected; pixels of a mask are connected by their sides only."""


def outlines(mask: Tensor) -> list[list[Corner]]:
    """Return polygons whose union is a mask.

    Args:
        mask: (H, W) bool, CPU.

    Returns:
        Polygons without a repeated last corner, clockwise as seen; corners only where the direction changes. Filled by
        the even-odd rule at the centres of pixels, they do not overlap and are the mask exactly.

    Complexity: O(perimeter) Python steps, and one pass over the mask per hole.
    """
    return [_outline(part, left, top) for part, left, top in _whole_parts(mask.numpy())]


def _whole_parts(bits: Bits) -> list[tuple[Bits, int, int]]:
    """Return parts connected by sides and without holes, each with the column and row of its upper left corner."""
    parts = []
    waiting = [(bits, 0, 0)] if bits.size else []
    while waiting:
        piece, left, top = waiting.pop()
        numbered, _ = ndimage.label(piece)
        for number, place in enumerate(ndimage.find_objects(numbered), start=1):
            part = numbered[place] == number
            x, y = left + place[1].start, top + place[0].start
            hole = _first_hole(part)
            if hole is None:
                parts.append((part, x, y))
            else:
                waiting += [(part[:, :hole], x, y), (part[:, hole:], x + hole, y)]
    return sorted(parts, key=lambda one: one[1:])


def _first_hole(part: Bits) -> int | None:
    """Return the column in or right of the middle of a part's first hole, None without holes.

    The column is inside the part on both sides, since a hole touches no edge: cutting before it makes two narrower
    parts.
    """
    background, count = ndimage.label(~np.pad(part, 1), AROUND)
    if count < 2:
        return None
    columns = ndimage.find_objects(background)[1][1]
    return int(columns.start + columns.stop) // 2 - 1


def _outline(part: Bits, left: int, top: int) -> list[Corner]:
    """Return the outline of a part without holes: pixels on the right hand of every step."""
    steps = _edges(part)
    start = min(steps)
    corners: list[Corner] = []
    here, heading = start, (1, 0)
    while True:
        choices = steps[here]
        # Where two pixels meet at a corner, the turn to the right stays with the pixel walked along.
        turn = (-heading[1], heading[0])
        step = turn if turn in choices else choices[0]
        choices.remove(step)
        if step != heading or not corners:
            corners.append((here[0] + left, here[1] + top))
        here, heading = (here[0] + step[0], here[1] + step[1]), step
        if here == start:
            assert not any(steps.values()), "a part without holes has one outline"
            return corners


def _edges(part: Bits) -> dict[Corner, list[Corner]]:
    """Return the unit steps that leave each corner: along the sides between pixels of the part and others."""
    padded = np.pad(part, 1)
    inside = padded[1:-1, 1:-1]
    steps: dict[Corner, list[Corner]] = {}
    sides = (
        (~padded[:-2, 1:-1], (0, 0), (1, 0)),
        (~padded[1:-1, 2:], (1, 0), (0, 1)),
        (~padded[2:, 1:-1], (1, 1), (-1, 0)),
        (~padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    for outside, (right, down), step in sides:
        for row, column in np.argwhere(inside & outside).tolist():
            steps.setdefault((column + right, row + down), []).append(step)
    return steps
