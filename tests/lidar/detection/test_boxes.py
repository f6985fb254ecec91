"""Codes, cells and heat maps against their slow twin."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidar.detection.boxes import Boxes3D, HeatGrid, decode_boxes, encode_boxes, gaussian_radius, heat_map
from tests.lidar.detection.scenes import random_boxes
from tests.reference.center_targets import heat_of, radius_of

GRID = HeatGrid((-16.0, -12.0), (0.8, 1.0), (24, 40))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12))
def test_decoding_undoes_encoding(seed, count):
    boxes = random_boxes(count, torch.Generator().manual_seed(seed), reach=11.9).boxes3d
    codes, cells = encode_boxes(boxes, GRID)
    again = decode_boxes(codes, cells, GRID)
    torch.testing.assert_close(again, boxes, rtol=0, atol=2e-5)
    assert bool(((codes[:, :2] >= 0) & (codes[:, :2] < 1)).all())
    assert bool((cells[:, 0] < 24).all())
    assert bool((cells[:, 1] < 40).all())


@settings(max_examples=40, deadline=None)
@given(st.floats(0.3, 30), st.floats(0.3, 30), st.floats(0.05, 0.9))
def test_radius_is_the_largest_error_that_keeps_the_overlap(length, width, overlap):
    sides = torch.tensor([[length], [width]], dtype=torch.float64)
    assert float(gaussian_radius(*sides, overlap)) == pytest.approx(radius_of(length, width, overlap), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 9))
def test_heat_map_equals_its_slow_twin(seed, count):
    boxes = random_boxes(count, torch.Generator().manual_seed(seed), reach=11.9)
    slow = heat_of(boxes.boxes3d.tolist(), boxes.labels.tolist(), GRID.low, GRID.cell, GRID.shape, 3)
    torch.testing.assert_close(heat_map(boxes, GRID, 3), torch.tensor(slow), rtol=0, atol=1e-6)


def test_a_long_vehicle_has_a_wider_bump_and_a_person_the_least_one():
    boxes = torch.tensor([[0.0, 0, 0, 30, 30, 3, 0], [8.0, 0, 0, 0.6, 0.6, 1.8, 0]])
    heat = heat_map(Boxes3D(boxes, torch.tensor([0, 1])), GRID, 3)
    assert int((heat[1] > 0).sum()) == 25
    assert int((heat[0] > 0).sum()) > 100
    assert [float(heat[label].max()) for label in range(3)] == [1, 1, 0]


def test_centers_off_the_grid_are_told():
    inside, above, left = [0.0, 0.0], [0.0, 12.0], [-16.01, 0.0]
    boxes = torch.tensor([[*xy, 0, 1, 1, 1, 0.0] for xy in (inside, above, left)])
    assert GRID.holds(boxes).tolist() == [True, False, False]


@pytest.mark.parametrize("yaw", [0.0, 1.2, math.pi / 2, -math.pi / 2, 3.0, -3.0])
def test_an_axis_is_read_where_front_and_back_are_not_known(yaw):
    codes, cells = encode_boxes(torch.tensor([[0.0, 0, 0, 4, 2, 1.5, yaw]]), GRID)
    codes[:, 6:8] *= 0.01
    assert float(decode_boxes(codes, cells, GRID)[0, 6]) == pytest.approx(yaw, abs=1e-5)
    codes[:, 6:8] *= -1
    turned = float(decode_boxes(codes, cells, GRID)[0, 6])
    assert math.cos(turned - yaw) == pytest.approx(-1)


def test_a_side_of_nothing_has_a_code():
    codes, _ = encode_boxes(torch.zeros(1, 7), GRID)
    assert math.isfinite(float(codes.sum()))
