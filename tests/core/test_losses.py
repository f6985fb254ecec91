from __future__ import annotations

import math

import torch
import torchvision

from mwsis.core.losses import dice, pair_nll, sigmoid_focal, soft_bce


def test_pair_nll_at_zero_is_ln2():
    other = torch.tensor([-80.0, -3.0, 0.0, 5.0, 80.0])
    torch.testing.assert_close(pair_nll(torch.zeros(5), other), torch.full((5,), math.log(2)))


def test_pair_nll_is_finite_at_80_with_finite_gradient():
    z = torch.tensor([[80.0, 80.0], [80.0, -80.0], [-80.0, 80.0], [-80.0, -80.0]], requires_grad=True)
    loss = pair_nll(z[:, 0], z[:, 1])
    torch.testing.assert_close(
        loss.detach(), torch.tensor([0.0, 80 - math.log(2), 80 - math.log(2), 0.0]), atol=1e-5, rtol=0
    )
    loss.sum().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert z.grad[1].tolist() == [0.5, -0.5]  # pulls the two together


def test_pair_nll_equals_the_plain_form():
    logits = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    p_i, p_j = logits.sigmoid()
    plain = -(p_i * p_j + (1 - p_i) * (1 - p_j)).log()
    torch.testing.assert_close(pair_nll(*logits), plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(pair_nll(*logits.float()), plain.float(), atol=1e-5, rtol=0)


def test_pair_nll_uses_both_logits():
    assert pair_nll(torch.tensor(5.0), torch.tensor(-5.0)) > 4
    assert pair_nll(torch.tensor(5.0), torch.tensor(5.0)) < 0.02


def test_pair_nll_in_half_precision_is_computed_in_float32():
    loss = pair_nll(torch.tensor([20.0], dtype=torch.bfloat16), torch.tensor([20.0], dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
    assert abs(float(loss)) < 1e-5


def test_focal_equals_torchvision_and_takes_soft_targets():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(40, 3, generator=generator) * 3, torch.rand(40, 3, generator=generator)
    for labels in (targets, targets.round()):
        theirs = torchvision.ops.sigmoid_focal_loss(logits, labels, alpha=0.8, gamma=3.0)
        torch.testing.assert_close(sigmoid_focal(logits, labels, alpha=0.8, gamma=3.0), theirs)
    assert torch.isfinite(sigmoid_focal(torch.tensor([500.0, -500.0]), torch.tensor([0.0, 1.0]), 0.25, 2.0)).all()


def test_dice():
    square = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert float(dice(square, square)) < 1e-5
    assert float(dice(square, 1 - square)) == 1
    assert float(dice(square, torch.zeros(1, 4))) == 1
    half = dice(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(half, torch.tensor([1 - 2 * 0.5 / (0.5 + 1 + 1e-5)]))


def test_dice_weight_leaves_cells_out():
    prob, target = torch.rand(2, 5, 8, generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 0]).expand(5, 8)
    torch.testing.assert_close(dice(prob, target, kept), dice(prob[:, kept[0] > 0], target[:, kept[0] > 0]))


def test_soft_bce_is_finite_and_smallest_at_the_target():
    prob = torch.tensor([0.0, 1.0], requires_grad=True)
    loss = soft_bce(prob, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(loss.detach(), torch.full((2,), -math.log(1e-5)), atol=0.01, rtol=0)
    grid = torch.linspace(0.01, 0.99, 99)
    assert int(soft_bce(grid, torch.full((99,), 0.3)).argmin()) == 29
