"""The head's losses against their slow twin, and reading boxes off."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidar.detection.boxes import Boxes3D, HeatGrid, encode_boxes, heat_map
from lidar.detection.center_head import CenterHead, CenterOutput, center_losses, find_boxes
from tests.lidar.detection.scenes import random_boxes
from tests.reference.center_targets import losses_of

GRID = HeatGrid((-8.0, -8.0), (1.0, 1.0), (16, 16))
NMS = 0.2


def perfect(boxes, sure=12.0):
    """Return what a head that knows the boxes of one sweep says."""
    heat = heat_map(boxes, GRID, 3)
    codes, cells = encode_boxes(boxes.boxes3d, GRID)
    planes = torch.zeros(10, *GRID.shape)
    planes[:, cells[:, 0], cells[:, 1]] = codes.T
    return CenterOutput((heat * 2 - 1)[None] * sure, planes[None])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6))
def test_losses_equal_their_slow_twin(seed, count):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, generator, reach=7.9)
    logits, codes = torch.randn(3, 16, 16, generator=generator), torch.randn(10, 16, 16, generator=generator)
    losses = center_losses(CenterOutput(logits[None], codes[None]), [boxes], GRID)
    heat, box = losses_of(
        logits.tolist(), codes.tolist(), boxes.boxes3d.tolist(), boxes.labels.tolist(), GRID.low, GRID.cell
    )
    assert float(losses["heat"]) == pytest.approx(heat, rel=1e-4)
    assert float(losses["box"]) == pytest.approx(box, rel=1e-4)


def test_a_batch_is_averaged_over_all_its_boxes():
    generator = torch.Generator().manual_seed(3)
    sets = [random_boxes(count, generator, reach=7.9) for count in (1, 4)]
    output = CenterOutput(torch.randn(2, 3, 16, 16), torch.randn(2, 10, 16, 16))
    alone = [
        float(center_losses(CenterOutput(output.heat_logits[i : i + 1], output.codes[i : i + 1]), [one], GRID)["box"])
        for i, one in enumerate(sets)
    ]
    together = float(center_losses(output, sets, GRID)["box"])
    assert together == pytest.approx((alone[0] + 4 * alone[1]) / 5, rel=1e-5)


def test_boxes_off_the_grid_teach_nothing():
    boxes = Boxes3D(torch.tensor([[20.0, 0, 0, 4, 2, 1.5, 0]]), torch.tensor([0]))
    output = CenterOutput(torch.zeros(1, 3, 16, 16), torch.zeros(1, 10, 16, 16))
    none = Boxes3D(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64))
    wanted = center_losses(output, [none], GRID)
    assert {name: float(value) for name, value in center_losses(output, [boxes], GRID).items()} == {
        name: float(value) for name, value in wanted.items()
    }
    assert float(wanted["box"]) == 0


def test_a_perfect_head_gives_the_boxes_back():
    xy = torch.tensor([[-6.0, -6.0], [-2.3, 4.1], [3.4, -5.2], [5.5, 5.5]])
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(4, generator)
    boxes = Boxes3D(torch.cat([xy, boxes.boxes3d[:, 2:]], 1), torch.tensor([0, 1, 2, 0]))
    (found,) = find_boxes(perfect(boxes), GRID, 0.3, NMS)
    assert len(found) == 4
    order = [int((found.boxes3d[:, :2] - place).norm(dim=1).argmin()) for place in xy]
    torch.testing.assert_close(found.boxes3d[order], boxes.boxes3d, rtol=0, atol=1e-4)
    assert found.labels[order].tolist() == [0, 1, 2, 0]
    assert bool((found.scores.diff() <= 0).all())


def test_one_of_two_that_overlap_stays_but_not_across_classes():
    logits, codes = torch.full((1, 3, 16, 16), -9.0), torch.zeros(1, 10, 16, 16)
    codes[:, 3:6] = torch.tensor([4.0, 2.0, 1.5]).log()[:, None, None]
    codes[:, 6] = codes[:, 8] = 1.0
    for label, column, logit in ((0, 4, 2.0), (0, 6, 1.0), (0, 13, 0.5), (1, 4, 1.5)):
        logits[0, label, 5, column] = logit
    (found,) = find_boxes(CenterOutput(logits, codes), GRID, 0.3, NMS)
    assert [(int(label), round(float(box[0]))) for label, box in zip(found.labels, found.boxes3d, strict=True)] == [
        (0, -4),
        (1, -4),
        (0, 5),
    ]


def test_a_neighbour_that_is_less_sure_is_no_center():
    logits = torch.full((1, 3, 16, 16), -9.0)
    logits[0, 1, 5, 5], logits[0, 1, 6, 6] = 2.0, 1.0
    (found,) = find_boxes(CenterOutput(logits, torch.zeros(1, 10, 16, 16)), GRID, 0.1, 1.0)
    assert len(found) == 1


def test_nothing_above_the_threshold_is_nothing():
    (found,) = find_boxes(CenterOutput(torch.full((1, 3, 16, 16), -9.0), torch.zeros(1, 10, 16, 16)), GRID, 0.1, 0.5)
    assert len(found) == 0
    assert found.scores.shape == (0,)


def test_scores_begin_low_everywhere():
    torch.manual_seed(0)
    with torch.no_grad():
        output = CenterHead(12, 3, 8)(torch.randn(2, 12, 10, 9))
    assert output.heat_logits.shape == (2, 3, 10, 9)
    assert output.codes.shape == (2, 10, 10, 9)
    assert 0.02 < float(output.heat_logits.sigmoid().mean()) < 0.3
