import math

import pytest
import torch

from camera.affinity import Color, Mask, Product
from camera.context import DenseTarget
from camera.fcos import Positives
from camera.terms import LevelSet, MaskContext, Pairwise, Projection, PseudoMask, raster_boxes
from mwsis.core.batch import ImageBatch
from mwsis.core.errors import ConfigError
from mwsis.core.instances import Boxes2D
from mwsis.core.losses import pair_nll
from tests.reference.camera_masks import level_set
from tests.reference.lab import lab_of_rgb
from tests.reference.pairwise import dense_pairs, dense_pairwise, neighbours

HEIGHT, WIDTH = 64, 96
MAP = (HEIGHT // 4, WIDTH // 4)
BOXES = [[8.0, 12.0, 40.0, 50.0], [30.0, 5.0, 95.9, 40.0], [50.3, 30.2, 52.0, 31.0], [0.0, 0.0, 60.0, 63.9]]


def context(logits, gt_index, boxes=None, gt_image=None, sizes=None, target=None, seed=0, pixel_feats=None):
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
    return MaskContext(logits, positives, batch, target, pixel_feats=pixel_feats)


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


def valid_map(ctx):
    rows, cols = torch.arange(MAP[0]) * 4 + 2, torch.arange(MAP[1]) * 4 + 2
    return (rows < ctx.images.sizes[:, :1])[:, :, None] & (cols < ctx.images.sizes[:, 1:])[:, None]


@pytest.mark.parametrize("colour", [False, True])
def test_agreement_of_pseudo_masks_equals_the_dense_form(colour):
    """BoxTeacher's mask affinity, alone and times colour; the third object has no pseudo mask."""
    gt_index = [0, 0, 1, 2, 3]
    logits = random_logits(len(gt_index))
    soft = torch.rand(4, *MAP, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    target = DenseTarget(soft, torch.tensor([True, True, False, True]))
    ctx = context(logits, gt_index, sizes=[[60, 90], [33, 70]], target=target)
    threshold = 0.2 if colour else 0.5
    loss = Pairwise(Product([Mask(), Color()]) if colour else Mask(), threshold)(ctx)
    smooth = (soft + torch.nn.functional.avg_pool2d(soft[:, None], 3, 1, 1)[:, 0]) / 2
    smooth = smooth[ctx.positives.gt_index]
    other = neighbours(smooth, 2)
    similarity = smooth[:, None] * other + (1 - smooth[:, None]) * (1 - other)
    similarity = similarity * neighbours(valid_map(ctx)[ctx.positives.image_index].double(), 2)
    similarity = similarity * target.present[ctx.positives.gt_index][:, None, None, None]
    if colour:
        mean = ctx.images.images.float().reshape(2, 3, MAP[0], 4, MAP[1], 4).mean((3, 5)).floor()
        lab = lab_of_rgb(mean.byte())[ctx.positives.image_index]
        near = torch.stack([neighbours(lab[:, channel], 2) for channel in range(3)], 2)
        similarity = similarity * (-0.5 * (lab[:, None] - near).norm(dim=2)).exp()
    expected = dense_pairs(logits, similarity, box_cells(ctx.gt_boxes)[ctx.positives.gt_index], threshold, 2)
    assert expected > 0.1
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)
    assert not gradients[0][3].any()


@pytest.mark.parametrize("features", ["color", "student"])
def test_level_set_equals_loops_over_cells(features):
    gt_index = [0, 1, 1, 2, 3]
    logits = random_logits(len(gt_index)).detach().float().requires_grad_()
    pixel_feats = torch.randn(2, 3, MAP[0] // 2, MAP[1] // 2, generator=torch.Generator().manual_seed(5))
    ctx = context(logits, gt_index, sizes=[[60, 90], [33, 70]], pixel_feats=pixel_feats)
    loss = LevelSet(features, weight=2.0)(ctx)
    mean, deviation = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    feats = ctx.images.images.float().reshape(2, 3, MAP[0], 4, MAP[1], 4).mean((3, 5))
    feats = (feats - mean[:, None, None]) / deviation[:, None, None]
    if features == "student":
        from camera.condinst import aligned_bilinear

        feats = aligned_bilinear(pixel_feats, 2)
    boxes = box_cells(ctx.gt_boxes) & valid_map(ctx)[ctx.gt_image]
    energies = [level_set(logits[k].sigmoid(), feats[ctx.gt_image[gt]], boxes[gt]) for k, gt in enumerate(gt_index)]
    expected = 2 * torch.stack(energies).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_level_set_is_least_where_the_mask_is_the_thing():
    """A bright square in a dark box: its own mask costs nothing, all or half of the box costs more."""
    ctx = context(torch.zeros(1, *MAP), [0], [[0.0, 0.0, 63.0, 63.0]], [0])
    ctx.images.images.fill_(40)
    ctx.images.images[:, :, 16:48, 16:48] = 200
    square = torch.zeros(1, *MAP)
    square[:, 4:12, 4:12] = 1
    half = torch.zeros(1, *MAP)
    half[:, :8] = 1
    costs = [
        LevelSet()(context_like(ctx, torch.where(mask > 0, 20.0, -20.0))).item()
        for mask in (square, half, torch.ones(1, *MAP))
    ]
    assert costs[0] == pytest.approx(0, abs=1e-3)
    assert min(costs[1:]) > 0.5
    with pytest.raises(ConfigError, match="no features 'colour'; did you mean 'color'"):
        LevelSet("colour")


def context_like(ctx, logits):
    return MaskContext(logits, ctx.positives, ctx.images, ctx.target)


def test_pseudo_masks_count_with_their_weight():
    logits = random_logits(3)
    soft = torch.rand(4, *MAP, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    present = torch.tensor([True, False, True, True])
    weight = torch.tensor([0.25, 0.9, 0.0, 1.0])

    def loss(trust, logits=logits, **settings):
        target = DenseTarget(soft, present, trust)
        return PseudoMask(0.5, 0.5, **settings)(context(logits, [0, 1, 3], target=target))

    torch.testing.assert_close(loss(torch.ones(4)), loss(None), rtol=0, atol=0)
    alone = [loss(torch.eye(4)[gt], entropy=False) for gt in (0, 3)]
    torch.testing.assert_close(loss(weight, entropy=False), 0.25 * alone[0] + alone[1])
    both = [loss(torch.eye(4)[gt]) for gt in (0, 3)]
    torch.testing.assert_close(loss(weight), 0.25 * both[0] + both[1])
    (gradient,) = torch.autograd.grad(loss(torch.eye(4)[0]), logits)
    assert gradient[0].any()
    assert not gradient[1:].any()


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
    terms = (Projection(), Pairwise(), PseudoMask(), PseudoMask(global_dice=True), LevelSet(), Pairwise(Mask(), 0.5))
    for term in terms:
        loss = term(context(logits, [], target=target))
        assert loss == 0
        loss.backward()


def test_terms_say_what_they_need():
    names = {term.name: term.needs for term in (Projection(), Pairwise(), PseudoMask(), LevelSet())}
    assert names == {
        "projection": frozenset(), "pairwise": {"images"}, "pseudo_mask": {"target"}, "level_set": {"images"}
    }  # fmt: skip
    assert Pairwise(Product([Color(), Mask()])).needs == {"images", "target"}
    assert LevelSet("teacher").needs == {"teacher"}


EVERY_TERM = {
    "projection": Projection(),
    "pairwise": Pairwise(),
    "mask_affinity": Pairwise(Mask(), 0.5),
    "pseudo_mask": PseudoMask(0.5, 0.5),
    "level_set": LevelSet(),
}


@pytest.mark.parametrize("name", EVERY_TERM)
@pytest.mark.parametrize(
    "boxes", [[[50.3, 30.2, 51.3, 31.2]], [[200.0, 90.0, 260.0, 130.0]], [[-40.0, -9.0, -5.0, -1.0]], 300]
)
def test_odd_boxes_give_finite_losses_and_gradients(name, boxes):
    """One pixel; outside the image on either side; 300 of them."""
    if boxes == 300:
        corner = torch.rand(300, 2, generator=torch.Generator().manual_seed(6)) * 50
        boxes = torch.cat([corner, corner + 0.5 + torch.rand(300, 2) * 40], 1).tolist()
    logits = (3 * torch.randn(len(boxes), *MAP, generator=torch.Generator().manual_seed(7))).requires_grad_()
    soft = torch.rand(len(boxes), *MAP, generator=torch.Generator().manual_seed(8))
    target = DenseTarget(soft, torch.ones(len(boxes), dtype=torch.bool))
    loss = EVERY_TERM[name](context(logits, list(range(len(boxes))), boxes, [0] * len(boxes), target=target))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
