"""Which cells belong together by depth: units, what is unknown, the ground, and the loss on such pairs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from camera.affinity import Color, Depth, Product
from camera.terms import Pairwise, look_alike_pairs, raster_boxes
from mwsis.core.batch import DepthMaps
from mwsis.core.errors import ConfigError
from mwsis.core.losses import pair_nll
from tests.camera.depth_scene import depth_maps, scene
from tests.camera.test_terms import MAP
from tests.reference.depth import similarity_of_cells


def of_values(value, metric):
    value = torch.as_tensor(value, dtype=torch.float32)
    return DepthMaps(value, torch.ones_like(value).bool(), torch.zeros_like(value).bool(), metric)


@pytest.mark.parametrize("metric", [True, False])
@pytest.mark.parametrize("dilation", [1, 2])
def test_similarity_equals_that_of_cells_one_by_one(metric, dilation):
    depth = depth_maps(metric=metric)
    settings = {"metres": 0.2, "metres_per_metre": 0.03, "grey_levels": 1.5}
    affinity = Depth(dilation, **settings).of(scene(depth))
    assert affinity.similarity.shape == (2, 4, *MAP)
    seen = 0
    for index, (row, col) in enumerate(affinity.offsets):
        for image in (0, 1):
            for y in range(MAP[0]):
                for x in range(MAP[1]):
                    expected = similarity_of_cells(depth, image, (y, x), (y + row, x + col), **settings)
                    seen += 0 < expected < 1
                    assert float(affinity.similarity[image, index, y, x]) == pytest.approx(expected, abs=1e-5)
    assert seen > 500


@pytest.mark.parametrize(("metric", "level"), [(False, math.log(2)), (True, math.log(2) * (0.1 + 0.01 * 20))])
def test_the_threshold_is_a_difference_in_the_stated_unit(metric, level):
    """Half is .693 grey levels, or at 20 m .208 m."""
    for step, alike in ((0.99 * level, True), (1.01 * level, False)):
        similarity, known = Depth(1).similarity(of_values([[[20.0, 20.0 + step]]], metric), 0, 1)
        assert known[0, 0].tolist() == [True, False]
        assert (float(similarity[0, 0, 0]) >= 0.5) == alike


def test_maps_in_other_units_select_the_same_pairs_once_the_unit_is_said():
    """The published trap: of depths in [0, 1] a threshold in grey levels lets every pair pass."""
    grey = depth_maps(metric=False)
    unit = replace(grey, value=grey.value / 255)

    def pairs(depth, **settings):
        ctx = scene(depth)
        extent = raster_boxes(ctx.gt_boxes, *ctx.map_size)
        found = look_alike_pairs(Depth(1, **settings).of(ctx), extent, ctx.gt_image, 0.5)
        return list(zip(found.first.tolist(), found.second.tolist(), found.weight.tolist(), strict=True))

    assert pairs(grey) == pairs(unit, grey_levels=1 / 255)
    assert len(pairs(unit)) > 2 * len(pairs(grey)) > 0


def test_cells_without_depth_and_the_ground_form_no_pairs():
    depth = depth_maps()
    similarity = Depth(1).of(scene(depth)).similarity
    unusable = ~depth.valid | depth.ground
    assert int(unusable.sum()) > 100
    for index, (row, col) in enumerate(Depth(1).offsets):
        assert not similarity[:, index][unusable].any()
        other = torch.roll(unusable, (-row, -col), (1, 2))
        assert not similarity[:, index][other].any()
    logits = scene(depth).mask_logits
    for nothing in (depth.without(torch.ones_like(depth.valid)), replace(depth, ground=depth.valid)):
        ctx = replace(scene(nothing), mask_logits=logits)
        loss = Pairwise(Depth(1), threshold=0.5)(ctx)
        assert float(loss.detach()) == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert not gradient.any()


@pytest.mark.parametrize("metric", [True, False])
def test_the_pair_loss_by_hand(metric):
    """Ordered pairs whose first cell is in the box and whose second shows image content, both logits of each."""
    depth, threshold, dilation = depth_maps(metric=metric), 0.3, 1
    ctx = scene(depth, sizes=[[60, 90], [64, 70]])
    affinity = Depth(dilation, grey_levels=40.0, metres=1.0)
    total, count = 0.0, 0
    for sample, gt in enumerate(ctx.positives.gt_index.tolist()):
        image = int(ctx.gt_image[gt])
        top, bottom, left, right = raster_boxes(ctx.gt_boxes[gt : gt + 1], *MAP)[0].tolist()
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                for row in (-dilation, 0, dilation):
                    for col in (-dilation, 0, dilation):
                        other = (y + row, x + col)
                        if other == (y, x):
                            continue
                        similarity = similarity_of_cells(depth, image, (y, x), other, metres=1.0, grey_levels=40.0)
                        height, width = ctx.images.sizes[image].tolist()
                        if similarity >= threshold and 4 * other[0] + 2 < height and 4 * other[1] + 2 < width:
                            logits = ctx.mask_logits[sample]
                            total = total + pair_nll(logits[y, x], logits[other])
                            count += 1
    assert count > 200
    loss = Pairwise(affinity, threshold)(ctx)
    torch.testing.assert_close(loss, total / count)
    got, expected = (torch.autograd.grad(one, ctx.mask_logits, retain_graph=True)[0] for one in (loss, total / count))
    torch.testing.assert_close(got, expected)


def test_a_map_of_one_depth_gives_a_finite_loss_on_the_boxes_alone():
    for metric in (True, False):
        flat = of_values(torch.full((2, *MAP), 30.0), metric)
        ctx = scene(flat, gt_index=[0], boxes=[[8.0, 8.0, 40.0, 40.0]], gt_image=[1])
        loss = Pairwise(Depth(1), threshold=0.5)(ctx)
        assert bool(torch.isfinite(loss))
        (gradient,) = torch.autograd.grad(loss, ctx.mask_logits)
        assert bool(gradient[0, 2:10, 2:10].all())
        assert not gradient[0, 12:].any()
        assert not gradient[0, :, 12:].any()


def test_depth_joins_a_product_and_says_what_it_needs():
    ctx = scene(depth_maps())
    both = Product([Depth(1), Color(1)])
    assert both.needs == {"depth", "images"}
    place = (torch.tensor([0]), torch.tensor([1]), torch.tensor([5]), torch.tensor([7]))
    expected = Depth(1).of(ctx).at(*place) * Color(1).of(ctx).at(*place)
    torch.testing.assert_close(both.of(ctx).at(*place), expected)
    for wrong in ({"metres": -1.0}, {"metres": 0.0, "metres_per_metre": 0.0}, {"grey_levels": 0.0}):
        with pytest.raises(ConfigError, match="Depth: expected metres"):
            Depth(**wrong)
