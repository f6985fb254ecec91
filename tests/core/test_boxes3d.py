"""Overlaps equal those of polygons clipped one by one, and obey what areas obey."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mwsis.core import boxes3d
from mwsis.core.boxes3d import bev_iou, bev_nms, iou_3d
from tests.reference import boxes3d as reference

SIZES = st.sampled_from([0.001, 0.4, 1.0, 2.0, 4.5, 12.0])
YAWS = st.one_of(
    st.sampled_from([0.0, math.pi / 2, -math.pi, math.pi, 3 * math.pi, math.pi / 4, 1e-9]), st.floats(-7, 7)
)
PLACES = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0, -2.25]), st.floats(-4, 4))
BOXES = st.lists(st.tuples(PLACES, PLACES, PLACES, SIZES, SIZES, SIZES, YAWS), min_size=1, max_size=6)

same = partial(torch.testing.assert_close, atol=1e-9, rtol=0)


def table(rows):
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)


@settings(max_examples=150, deadline=None)
@given(boxes=BOXES, others=BOXES)
def test_equals_clipping_one_by_one(boxes, others):
    flat, solid = bev_iou(table(boxes), table(others)), iou_3d(table(boxes), table(others))
    for i, box in enumerate(boxes):
        for j, other in enumerate(others):
            assert float(flat[i, j]) == pytest.approx(reference.bev_iou(box, other), abs=1e-9)
            assert float(solid[i, j]) == pytest.approx(reference.iou_3d(box, other), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(boxes=BOXES, others=BOXES, yaw=YAWS, shift=st.tuples(PLACES, PLACES, PLACES))
def test_does_not_depend_on_order_or_frame(boxes, others, yaw, shift):
    one, two = table(boxes), table(others)
    same(bev_iou(one, two), bev_iou(two, one).T)
    moved = [seen_from_elsewhere(rows, yaw, shift) for rows in (one, two)]
    same(bev_iou(*moved), bev_iou(one, two))
    same(iou_3d(*moved), iou_3d(one, two))


def seen_from_elsewhere(rows, yaw, shift):
    x, y = rows[:, 0], rows[:, 1]
    turned = torch.stack([x * math.cos(yaw) - y * math.sin(yaw), x * math.sin(yaw) + y * math.cos(yaw), rows[:, 2]], 1)
    return torch.cat([turned + torch.tensor(shift, dtype=torch.float64), rows[:, 3:6], rows[:, 6:] + yaw], 1)


@settings(max_examples=80, deadline=None)
@given(boxes=BOXES)
def test_a_box_covers_itself_exactly(boxes):
    rows = table(boxes)
    assert bev_iou(rows, rows).diagonal().tolist() == [1.0] * len(rows)
    assert iou_3d(rows, rows).diagonal().tolist() == [1.0] * len(rows)
    far = rows + torch.tensor([25_000.0, -8_000.0, 100.0, 0, 0, 0, 0])
    assert bev_iou(far, far).diagonal().tolist() == [1.0] * len(rows)
    backward = rows + torch.tensor([0, 0, 0, 0, 0, 0, math.pi], dtype=torch.float64)
    same(bev_iou(rows, backward).diagonal(), torch.ones(len(rows), dtype=torch.float64))


@settings(max_examples=80, deadline=None)
@given(box=BOXES, share=st.floats(0.01, 1), turn=YAWS)
def test_of_a_box_within_another_is_the_ratio_of_areas(box, share, turn):
    outer = table(box)
    inner = outer.clone()
    half_diagonal = inner[:, 3:5].norm(dim=1, keepdim=True)
    inner[:, 3:5] *= share * outer[:, 3:5].min(1, keepdim=True).values / half_diagonal  # fits at any yaw
    inner[:, 6] += turn
    inner[:, 5] *= share
    ratio = inner[:, 3:6] / outer[:, 3:6]
    same(bev_iou(inner, outer).diagonal(), ratio[:, :2].prod(1))
    same(iou_3d(inner, outer).diagonal(), ratio.prod(1))


@pytest.mark.parametrize(
    ("box", "other", "expected"),
    [
        ((0, 0, 0, 2, 2, 1, 0), (2, 0, 0, 2, 2, 1, 0), 0.0),  # a shared edge
        ((0, 0, 0, 2, 2, 1, 0), (2, 2, 0, 2, 2, 1, 0), 0.0),  # a shared corner
        ((0, 0, 0, 2, 2, 1, 0), (1, 0, 0, 2, 2, 1, 0), 1 / 3),
        ((0, 0, 0, 2, 2, 1, 0), (0, 0, 0, 2, 2, 1, math.pi / 4), 1 / math.sqrt(2)),  # octagon: 8 (sqrt2 - 1)
        ((0, 0, 0, 4, 2, 1, 0), (0, 0, 0, 4, 2, 1, math.pi / 2), 1 / 3),
        ((0, 0, 0, 0, 2, 1, 0), (0, 0, 0, 0, 2, 1, 0), 0.0),  # no area
        ((0, 0, 0, 0, 2, 1, 0), (0, 0, 0, 4, 2, 1, 0), 0.0),
        ((0, 0, 0, 1, 1, 1, 0), (50, 0, 0, 1, 1, 1, 0), 0.0),
    ],
)
def test_by_hand(box, other, expected):
    assert float(bev_iou(table([box]), table([other]))) == pytest.approx(expected, abs=1e-12)
    assert float(iou_3d(table([box]), table([other]))) == pytest.approx(expected, abs=1e-12)


def test_height_by_hand():
    low, high = (0, 0, 0, 2, 2, 2, 0), (0, 0, 1, 2, 2, 2, 0)
    assert float(bev_iou(table([low]), table([high]))) == 1.0
    assert float(iou_3d(table([low]), table([high]))) == pytest.approx(1 / 3, abs=1e-12)
    assert float(iou_3d(table([low]), table([(0, 0, 2, 2, 2, 2, 0)]))) == 0.0


def test_sizes_and_dtypes(monkeypatch):
    none, some = torch.zeros(0, 7), torch.rand(40, 7, generator=torch.Generator().manual_seed(0)) * 3
    assert bev_iou(none, some).shape == (0, 40)
    assert iou_3d(some, none).shape == (40, 0)
    assert bev_iou(some, some).dtype == torch.float32
    assert iou_3d(some, some.double()).dtype == torch.float64
    whole = bev_iou(some, some)
    monkeypatch.setattr(boxes3d, "PAIRS_AT_ONCE", 7)
    assert torch.equal(bev_iou(some, some), whole)


@settings(max_examples=80, deadline=None)
@given(boxes=BOXES, seed=st.integers(0, 2**31), threshold=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_suppression_equals_one_by_one(boxes, seed, threshold):
    scores = torch.randint(0, 4, (len(boxes),), generator=torch.Generator().manual_seed(seed)) / 4  # with ties
    kept = bev_nms(table(boxes), scores, threshold)
    near = [abs(reference.bev_iou(one, two) - threshold) for one, two in combinations(boxes, 2)]
    if min(near, default=1.0) > 1e-9:  # rounding may decide either way
        assert kept.tolist() == reference.bev_nms(boxes, scores.tolist(), threshold)


def test_suppression_by_hand():
    rows = table([(0, 0, 0, 4, 2, 1, 0), (0.1, 0, 0, 4, 2, 1, 0), (9, 0, 0, 4, 2, 1, 0), (0, 0, 0, 4, 2, 1, 0)])
    assert bev_nms(rows, torch.tensor([0.5, 0.9, 0.1, 0.9]), 0.5).tolist() == [1, 2]
    assert bev_nms(rows[:0], torch.zeros(0), 0.5).tolist() == []
