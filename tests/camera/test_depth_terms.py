"""The depth output of mask networks: what it should be, and the loss against that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from camera.depth_terms import DepthRegression, nearness_in_boxes
from mwsis.core.batch import DepthMaps
from tests.camera.depth_scene import depth_maps, scene
from tests.camera.test_terms import BOXES, MAP, box_cells
from tests.reference.depth import nearness_one_by_one, regression_loss


@pytest.mark.parametrize("seed", range(5))
def test_nearness_equals_that_of_each_box_alone(seed):
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(12, 6, 7, generator=generator) * 40 + 1
    depth[0] = 7.0  # a wall
    depth[1] = 30 + torch.rand(6, 7, generator=generator) * 0.3  # hardly any difference
    known = torch.rand(12, 6, 7, generator=generator) > torch.linspace(0, 1, 12)[:, None, None]
    got = nearness_in_boxes(depth, known)
    expected = nearness_one_by_one(depth, known)
    torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(got[1], expected[1])
    used = got[1].flatten(1).any(1).tolist()
    assert not used[0]
    assert not used[1]
    assert 4 < sum(used) < 12
    assert float(got[0].max()) == 1
    assert [one.shape for one in nearness_in_boxes(depth[:0], known[:0])] == [(0, 6, 7)] * 2


def test_near_is_one_and_far_is_zero():
    depth = torch.linspace(5, 50, 60).reshape(1, 6, 10)
    nearness, used = nearness_in_boxes(depth, torch.ones_like(depth).bool())
    assert bool(used.all())
    assert nearness.flatten()[[0, -1]].tolist() == [1, 0]
    assert bool((nearness.flatten().diff() <= 0).all())


@pytest.mark.parametrize("metric", [True, False])
def test_the_regression_loss_by_hand(metric):
    depth = depth_maps(metric=metric)
    ctx = scene(depth, gt_index=(0, 0, 1, 2, 3, 3))  # the third box is one cell
    known = box_cells(ctx.gt_boxes) & depth.valid[ctx.gt_image]
    expected = regression_loss(ctx.depth_output, ctx.positives.gt_index, known, depth.value[ctx.gt_image], metric)
    loss = DepthRegression(weight=3.0)(ctx)
    torch.testing.assert_close(loss, 3 * expected)
    (gradient,) = torch.autograd.grad(loss, ctx.depth_output)
    assert not gradient[~known[ctx.positives.gt_index]].any()
    assert bool(gradient[0][known[0]].any())
    assert bool(gradient[3].any()) == (not metric and bool(known[2].any()))


def test_objects_count_alike_whatever_their_size():
    """The published mean over all cells lets the larger box decide."""
    value = torch.linspace(4, 60, MAP[0] * MAP[1]).reshape(1, *MAP).repeat(2, 1, 1)
    depth = DepthMaps(value, torch.ones_like(value).bool(), torch.zeros_like(value).bool(), True)
    boxes = [[0.0, 0.0, 95.0, 63.0], [8.0, 8.0, 24.0, 24.0]]
    each = [
        float(DepthRegression()(replace(scene(depth, gt_index=(k, k), boxes=boxes, gt_image=[0, 0]))).detach())
        for k in (0, 1)
    ]
    ctx = scene(depth, gt_index=(0, 1), boxes=boxes, gt_image=[0, 0])
    both = [scene(depth, gt_index=(k,), boxes=boxes, gt_image=[0, 0]) for k in (0, 1)]
    single = [DepthRegression()(replace(one, depth_output=ctx.depth_output[k : k + 1])) for k, one in enumerate(both)]
    torch.testing.assert_close(DepthRegression()(ctx), sum(single) / 2)
    assert min(each) > 0


@pytest.mark.parametrize("metric", [True, False])
def test_without_samples_or_depth_the_loss_is_a_connected_zero(metric):
    depth = depth_maps(metric=metric)
    nothing = depth.without(torch.ones_like(depth.valid))
    for ctx in (scene(nothing), scene(depth, gt_index=()), scene(nothing, gt_index=())):
        loss = DepthRegression()(ctx)
        assert float(loss.detach()) == 0
        (gradient,) = torch.autograd.grad(loss, ctx.depth_output)
        assert not gradient.any()
    flat = DepthMaps(torch.full((2, *MAP), 9.0), *(torch.zeros(2, *MAP).bool() | one for one in (True, False)), metric)
    assert bool(torch.isfinite(DepthRegression()(scene(flat))))


def test_boxes_of_the_scene_are_what_the_tests_say():
    cells = box_cells(torch.tensor(BOXES)).flatten(1).sum(1).tolist()
    assert cells[2] == 1
    assert min(cells[0], cells[1], cells[3]) > 50
