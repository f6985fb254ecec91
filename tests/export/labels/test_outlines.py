"""Polygons of masks: filled, they are the mask again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mwsis.export.labels.outlines import outlines


def filled(polygon, height, width):
    """Even-odd rule at the centre of every pixel, spelled out: count edges that a ray to the left crosses."""
    inside = np.zeros((height, width), dtype=bool)
    for (x1, y1), (x2, y2) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        assert (x1 == x2) != (y1 == y2), "every edge runs along pixels"
        if x1 == x2:
            inside[min(y1, y2) : max(y1, y2), x1:] ^= True
    return inside


def filled_once(mask):
    """Fill all polygons of a mask; no pixel may be filled twice."""
    counts = np.zeros(mask.shape, dtype=int)
    for polygon in outlines(torch.from_numpy(mask)):
        counts += filled(polygon, *mask.shape)
    assert counts.max(initial=0) <= 1
    return counts > 0


SHAPES = {
    "nothing": ["..."],
    "a pixel": [".#."],
    "a ring": ["###", "#.#", "###"],
    "a ring that touches itself at a corner": ["###.", "#.#.", "##.#"],
    "two pixels that touch at a corner": ["#.", ".#"],
    "a ring in a ring": ["#####", "#...#", "#.#.#", "#...#", "#####"],
    "two holes": ["#####", "#.#.#", "#####"],
    "holes that touch at a corner": ["####", "#.##", "##.#", "####"],
}


@pytest.mark.parametrize("rows", SHAPES.values(), ids=SHAPES)
def test_shapes_that_are_easily_got_wrong(rows):
    mask = np.array([[letter == "#" for letter in row] for row in rows])
    assert (filled_once(mask) == mask).all()


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@settings(max_examples=300, deadline=None)
def test_any_mask_comes_back(mask):
    assert (filled_once(mask) == mask).all()


def test_a_rectangle_has_four_corners_and_runs_clockwise():
    assert outlines(torch.ones(2, 3, dtype=torch.bool)) == [[(0, 0), (3, 0), (3, 2), (0, 2)]]


def test_pixels_that_touch_at_a_corner_are_two_polygons():
    assert len(outlines(torch.eye(2, dtype=torch.bool))) == 2
