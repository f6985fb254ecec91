"""Cross-modal distillation against loops over images, classes and points."""

import pytest
import torch
from torch.nn.functional import grid_sample

from fusion.correspondence import PointPixelPairs, point_pixel_pairs
from fusion.distillation import border_certainty, camera_to_lidar, class_maps, lidar_to_camera

IMAGES, CLASSES, HEIGHT, WIDTH, STRIDE = 3, 3, 6, 8, 4.0


def scene(seed: int = 0):
    """Instance maps of two of three images, 40 points with two slots, probabilities of the other branch."""
    generator = torch.Generator().manual_seed(seed)
    per_gt = torch.rand(5, HEIGHT, WIDTH, generator=generator)
    labels, image = torch.tensor([0, 0, 2, 1, 1]), torch.tensor([0, 0, 0, 2, 2])
    size = torch.tensor([WIDTH * STRIDE, HEIGHT * STRIDE])
    pixel_uv = torch.rand(40, 2, 2, generator=generator) * size
    image_index = torch.randint(-1, IMAGES, (40, 2), generator=generator)
    logits = torch.randn(40, CLASSES, generator=generator) * 2
    return per_gt, labels, image, point_pixel_pairs(pixel_uv, image_index), logits


def slow_loss(per_gt, labels, image, pairs, point_prob, camera_learns: bool):
    """Return sum of gated cross-entropies, number of supervised cells, number of confident ones."""
    total, supervised, confident = torch.zeros(()), 0, 0
    for point, uv, seen_by in zip(pairs.point_index.tolist(), pairs.pixel_uv, pairs.image_index.tolist()):
        for label in range(CLASSES):
            maps = [per_gt[g] for g in range(len(per_gt)) if image[g] == seen_by and labels[g] == label]
            if not maps:
                continue
            merged = torch.stack(maps).amax(0)[None, None]
            at = torch.stack([uv[0] / (WIDTH * STRIDE), uv[1] / (HEIGHT * STRIDE)]) * 2 - 1
            on_map = grid_sample(merged, at.reshape(1, 1, 1, 2), align_corners=False).reshape(())
            prob, target = (on_map, point_prob[point, label]) if camera_learns else (point_prob[point, label], on_map)
            supervised += 1
            if all(0.3 <= float(p.detach()) <= 0.7 for p in (prob, target)):
                continue
            confident += 1
            clamped = prob.clamp(1e-5, 1 - 1e-5)
            total = total - target * clamped.log() - (1 - target) * (1 - clamped).log()
    return total, supervised, confident


def test_class_maps_are_maxima_with_gradient_to_the_largest():
    per_gt, labels, image, _, _ = scene()
    per_gt.requires_grad_()
    maps, present = class_maps(per_gt, labels, image, IMAGES, CLASSES)
    assert maps.shape == (IMAGES, CLASSES, HEIGHT, WIDTH)
    assert present.nonzero().tolist() == [[0, 0], [0, 2], [2, 1]]
    assert torch.equal(maps[0, 0], per_gt[:2].amax(0))
    assert torch.equal(maps[0, 2], per_gt[2])
    assert not maps[1].any()
    maps[0, 0].sum().backward()
    assert torch.equal(per_gt.grad[0], (per_gt[0] > per_gt[1]).float())
    assert not per_gt.grad[2:].any()


@pytest.mark.parametrize("seed", range(3))
def test_lidar_to_camera_equals_loops_in_value_and_gradient(seed):
    per_gt, labels, image, pairs, logits = scene(seed)
    fast, slow = per_gt.clone().requires_grad_(), per_gt.clone().requires_grad_()
    maps, present = class_maps(fast, labels, image, IMAGES, CLASSES)
    loss = lidar_to_camera(pairs, maps, present, STRIDE, logits.sigmoid())
    total, supervised, confident = slow_loss(slow, labels, image, pairs, logits.sigmoid(), camera_learns=True)
    assert 0 < confident < supervised
    expected = total / supervised  # over all supervised cells, not over the confident ones
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(fast.grad, slow.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_camera_to_lidar_equals_loops_in_value_and_gradient(seed):
    per_gt, labels, image, pairs, logits = scene(seed)
    fast, slow = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    maps, present = class_maps(per_gt, labels, image, IMAGES, CLASSES)
    loss = camera_to_lidar(pairs, maps, present, STRIDE, fast)
    total, supervised, confident = slow_loss(per_gt, labels, image, pairs, slow.sigmoid(), camera_learns=False)
    assert 0 < confident < supervised
    expected = total / confident
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(fast.grad, slow.grad, atol=1e-5, rtol=1e-4)


def test_upstream_bug_17_no_gradient_reaches_the_teacher():
    per_gt, labels, image, pairs, logits = scene()
    per_gt.requires_grad_()
    logits.requires_grad_()
    maps, present = class_maps(per_gt, labels, image, IMAGES, CLASSES)
    lidar_to_camera(pairs, maps, present, STRIDE, logits.sigmoid()).backward(retain_graph=True)
    assert logits.grad is None
    assert per_gt.grad.any()
    per_gt.grad = None
    camera_to_lidar(pairs, maps, present, STRIDE, logits).backward()
    assert per_gt.grad is None
    assert logits.grad.any()


@pytest.mark.parametrize("missing", ["pairs", "instances"])
def test_upstream_bug_11_nothing_to_learn_from_gives_a_connected_zero(missing):
    per_gt, labels, image, pairs, logits = scene()
    if missing == "pairs":
        pairs = PointPixelPairs(pairs.point_index[:0], pairs.pixel_uv[:0], pairs.image_index[:0])
    else:
        per_gt, labels, image = per_gt[:0], labels[:0], image[:0]
    per_gt.requires_grad_()
    logits.requires_grad_()
    maps, present = class_maps(per_gt, labels, image, IMAGES, CLASSES)
    to_camera = lidar_to_camera(pairs, maps, present, STRIDE, logits.sigmoid())
    to_lidar = camera_to_lidar(pairs, maps, present, STRIDE, logits)
    assert to_camera.item() == to_lidar.item() == 0
    (to_camera + to_lidar).backward()
    assert per_gt.grad is not None
    assert not per_gt.grad.any()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_pairs_count_like_repetitions(seed):
    """A pair of weight 1/2 beside pairs of weight 1 is the same as all others twice."""
    per_gt, labels, image, pairs, logits = scene(seed)
    maps, present = class_maps(per_gt, labels, image, IMAGES, CLASSES)
    half = torch.rand(len(pairs), generator=torch.Generator().manual_seed(seed)) < 0.5
    weight = torch.where(half, 0.5, 1.0)[:, None].expand(-1, CLASSES)
    twice = torch.cat([torch.arange(len(pairs)), (~half).nonzero()[:, 0]])
    for loss, branch in ((lidar_to_camera, logits.sigmoid()), (camera_to_lidar, logits)):
        weighted = loss(pairs, maps, present, STRIDE, branch, weight=weight)
        torch.testing.assert_close(weighted, loss(pairs[twice], maps, present, STRIDE, branch))
        every = torch.ones(len(pairs), CLASSES)
        assert torch.equal(
            loss(pairs, maps, present, STRIDE, branch, weight=every), loss(pairs, maps, present, STRIDE, branch)
        )
        assert float(loss(pairs, maps, present, STRIDE, branch, weight=0 * every)) == 0


def test_certainty_is_lost_on_borders_only():
    maps = torch.zeros(1, 1, 12, 12)
    maps[0, 0, 4:8, 4:8] = 1
    cells = torch.tensor([[5.5, 1.5], [5.5, 5.5], [5.5, 3.5], [5.5, 4.5], [2.5, 5.5]])
    pairs = PointPixelPairs(torch.arange(5), cells * STRIDE, torch.zeros(5, dtype=torch.int64))
    assert border_certainty(pairs, maps, STRIDE, 1)[:, 0].tolist() == [1, 1, 0, 0, 1]
    assert border_certainty(pairs, maps, STRIDE, 2)[:, 0].tolist() == [1, 0, 0, 0, 0]
