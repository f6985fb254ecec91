import math

import pytest
import torch

from camera.affinity import Color
from camera.fcos import Positives
from camera.sources import DenseTarget
from camera.terms import MaskContext, Pairwise, Projection, PseudoMask, raster_boxes
from mwsis.core.batch import ImageBatch
from mwsis.core.instances import Boxes2D
from mwsis.core.losses import pair_nll
from tests.reference.lab import lab_of_rgb
from tests.reference.pairwise import dense_pairwise

HEIGHT, WIDTH = 64, 96
MAP = (HEIGHT // 4, WIDTH // 4)
BOXES = [[8.0, 12.0, 40.0, 50.0], [30.0, 5.0, 95.9, 40.0], [50.3, 30.2, 52.0, 31.0], [0.0, 0.0, 60.0, 63.9]]


def context(logits, gt_index, boxes=None, gt_image=None, sizes=None, target=None, seed=0):
    boxes = torch.tensor(BOXES if boxes is None else boxes)
    gt_image = torch.tensor([0, 0, 1, 1] if gt_image is None else gt_image)
    num_images = int(gt_image.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_images, 3, 4, 6, generator=generator) * 40 + 90
    images = torch.nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear").byte()
    sizes = torch.tensor([[HEIGHT, WIDTH]] * num_images if sizes is None else sizes)
    gt_index = torch.tensor(gt_index, dtype=torch.int64)
    none = torch.zeros(len(gt_index), dtype=torch.int64)
    positives = Positives(
        image_index=gt_image[gt_index],
        location_index=none,
        gt_index=gt_index,
        level=none,
        location=torch.zeros(len(gt_index), 2),
        class_index=none,
        gt_boxes=boxes,
        gt_labels=torch.zeros(len(boxes), dtype=torch.int64),
        gt_image=gt_image,
        ignored=torch.zeros(num_images, 1, dtype=torch.bool),
    )
    batch = ImageBatch(images, sizes, sizes, tuple(Boxes2D.empty() for _ in range(num_images)))
    return MaskContext(logits, positives, batch, target)


def random_logits(num_samples, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_samples, *MAP, generator=generator, dtype=torch.float64).mul(2).requires_grad_()


def box_cells(boxes):
    extent = raster_boxes(boxes, *MAP)
    rows, cols = torch.arange(MAP[0]), torch.arange(MAP[1])
    on_row = (rows >= extent[:, :1]) & (rows <= extent[:, 1:2])
    on_col = (cols >= extent[:, 2:3]) & (cols <= extent[:, 3:])
    return on_row[:, :, None] & on_col[:, None]


def test_raster_equals_a_full_size_bitmap_sampled_at_two():
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(40, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + torch.rand(40, 2, generator=generator) * 24 + 5], 1)
    cells = box_cells(boxes)
    for box, got in zip(boxes.tolist(), cells, strict=True):
        full = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        full[int(box[1]) : int(box[3] + 1), int(box[0]) : int(box[2] + 1)] = True
        assert torch.equal(got, full[2::4, 2::4])


def test_tiny_boxes_still_have_a_cell_and_a_gradient():
    tiny = torch.tensor([[11.2, 7.1, 12.9, 9.0], [95.0, 63.0, 96.0, 64.0], [0.0, 0.0, 1.0, 1.0]])
    assert (box_cells(tiny).flatten(1).sum(1) == 1).all()
    logits = random_logits(3)
    loss = Projection()(context(logits, [0, 1, 2], tiny.tolist(), [0, 0, 0]))
    loss.backward()
    assert loss < 2
    assert (logits.grad.flatten(1).abs().sum(1) > 0).all()


def test_projection_of_a_box_shaped_mask_is_zero():
    cells = box_cells(torch.tensor(BOXES))
    logits = torch.where(cells, 40.0, -40.0)
    assert Projection()(context(logits, [0, 1, 2, 3])).item() == pytest.approx(0, abs=1e-5)
    assert Projection(weight=2.0)(context(-logits[:2], [0, 1])).item() > 0.5


@pytest.mark.parametrize("sizes", [None, [[60, 90], [33, 70]]])
@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_sparse_pairwise_equals_the_dense_eight_neighbour_form(sizes, threshold):
    gt_index = [0, 0, 1, 2, 3, 3, 3]
    logits = random_logits(len(gt_index))
    ctx = context(logits, gt_index, sizes=sizes)
    loss = Pairwise(Color(), threshold)(ctx)
    (gradient,) = torch.autograd.grad(loss, logits)
    mean = ctx.images.images.float().reshape(2, 3, MAP[0], 4, MAP[1], 4).mean((3, 5)).floor()
    image = ctx.positives.image_index
    lab = lab_of_rgb(mean.byte())[image]
    rows, cols = torch.arange(MAP[0]) * 4 + 2, torch.arange(MAP[1]) * 4 + 2
    valid = (rows < ctx.images.sizes[:, :1])[:, :, None] & (cols < ctx.images.sizes[:, 1:])[:, None]
    in_box = box_cells(ctx.gt_boxes)[ctx.positives.gt_index]
    expected = dense_pairwise(logits, lab, valid[image], in_box, threshold, 2)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    assert expected > 0.1
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-8)


def test_pair_nll_values():
    assert pair_nll(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(math.log(2))
    first, second = torch.randn(2, 100, dtype=torch.float64)
    p, q = first.sigmoid(), second.sigmoid()
    torch.testing.assert_close(pair_nll(first, second), -(p * q + (1 - p) * (1 - q)).log(), rtol=1e-6, atol=1e-6)
    extreme = torch.tensor([80.0, -80.0])
    assert torch.isfinite(pair_nll(extreme[:, None], extreme)).all()


def test_pseudo_mask_by_hand():
    logits = random_logits(3)
    soft = torch.rand(4, *MAP, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    target = DenseTarget(soft, torch.tensor([True, False, True, True]))
    loss = PseudoMask()(context(logits, [0, 1, 3], target=target))
    entropies, overlaps = [], []
    for sample, gt in ((0, 0), (2, 3)):
        sure = (soft[gt] > 0.7) | (soft[gt] < 0.3)
        wanted = (soft[gt] > 0.7)[sure].double()
        prob = logits[sample].sigmoid()[sure]
        entropies.append(-(wanted * prob.log() + (1 - wanted) * (1 - prob).log()))
        overlaps.append(1 - 2 * (prob * wanted).sum() / (prob.square().sum() + wanted.sum() + 1e-5))
    expected = torch.cat(entropies).mean() + torch.stack(overlaps).mean()
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[1].any()  # its object has no pseudo mask


def test_global_dice_lets_large_objects_decide():
    soft = torch.zeros(2, *MAP)
    soft[0, :, :12] = 1
    soft[1, 0, 0] = 1
    logits = torch.where(soft > 0.5, 20.0, -20.0)
    logits[1] = -20.0  # the small object is missed
    target = DenseTarget(soft, torch.ones(2, dtype=torch.bool))
    ctx = context(logits, [0, 1], BOXES[:2], [0, 0], target=target)
    entropy = 20 / logits.numel()
    assert PseudoMask()(ctx).item() == pytest.approx(0.5 + entropy, abs=1e-3)
    assert PseudoMask(global_dice=True)(ctx).item() == pytest.approx(1 / 385 + entropy, abs=1e-3)


def test_bug11_a_missing_pseudo_mask_costs_nothing():
    logits = random_logits(2)
    loss = PseudoMask()(context(logits, [0, 1]))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
    absent = DenseTarget(torch.zeros(4, *MAP), torch.zeros(4, dtype=torch.bool))
    for global_dice in (False, True):
        assert PseudoMask(global_dice=global_dice)(context(random_logits(2), [0, 1], target=absent)) == 0


def test_no_samples_give_zero_losses_with_a_graph():
    logits = torch.zeros(0, *MAP, requires_grad=True)
    target = DenseTarget(torch.zeros(4, *MAP), torch.zeros(4, dtype=torch.bool))
    for term in (Projection(), Pairwise(), PseudoMask(), PseudoMask(global_dice=True)):
        loss = term(context(logits, [], target=target))
        assert loss == 0
        loss.backward()


def test_terms_say_what_they_need():
    names = {term.name: term.needs for term in (Projection(), Pairwise(), PseudoMask())}
    assert names == {"projection": frozenset(), "pairwise": {"images"}, "pseudo_mask": {"target"}}
