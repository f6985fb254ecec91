"""The elementary losses, free of any model: focal, Dice, soft cross entropy, and the same-label pair term.

Each is the bare formula; which elements count and how they are averaged is decided by its caller (`camera.terms`,
`lidar.point_head`, `fusion.distillation`). Read `camera/terms.py` next.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mwsis.core.distributed import sum_over_processes

__all__ = ["dice", "pair_nll", "sigmoid_focal", "soft_bce"]

DICE_EPSILON = 1e-5
PROB_MARGIN = 1e-5


def sigmoid_focal(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss of independent yes/no decisions, element by element.

    Args:
        logits: (...) float, before the sigmoid.
        targets: (...) float in [0, 1], same shape.
        alpha: weight of positives; negatives get ``1 - alpha``.
        gamma: focusing power; 0 gives weighted cross entropy.

    Returns:
        (...) float, >= 0, not reduced.

    Source: RetinaNet (Lin et al., ICCV 2017), section 3. MWSIS uses alpha 0.8, gamma 3 on points (released
    configuration); FCOS uses alpha 0.25, gamma 2.
    """
    prob = logits.sigmoid()
    missed = prob + targets - 2 * prob * targets  # 1 - probability given to the target
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * missed**gamma * functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def dice(prob: Tensor, target: Tensor, weight: Tensor | None = None, *, whole_step: bool = False) -> Tensor:
    """Return one minus the overlap of each row, ``1 - 2 sum(ut) / (sum(u^2) + sum(t^2) + 1e-5)``.

    Args:
        prob: (K, M) float in [0, 1].
        target: (K, M) float in [0, 1].
        weight: (K, M) float >= 0 on every term of the three sums (0 leaves a cell out); None means 1.
        whole_step: add up the cells of all processes of a distributed run, which then have K in common but not M.

    Returns:
        (K,) float in [0, 1]; exactly 1 where prediction and target share nothing.

    Source: V-Net form with squared terms, as BoxInst (arXiv 2012.02310) section 3.1 and MWSIS; 1e-5 from their code.
    """
    weight = torch.ones_like(prob) if weight is None else weight
    overlap = (weight * prob * target).sum(1)
    size = (weight * prob * prob).sum(1) + (weight * target * target).sum(1)
    if whole_step:
        overlap, size = sum_over_processes(torch.stack([overlap, size])).unbind()
    return 1 - 2 * overlap / (size + DICE_EPSILON)


def soft_bce(prob: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of a probability against a soft target, element by element.

    Args:
        prob: (...) float in [0, 1]; clamped to [1e-5, 1 - 1e-5], so a certain mistake costs 11.5 and has no gradient.
        target: (...) float in [0, 1], same shape, not differentiated by convention of the callers.

    Returns:
        (...) float, not reduced.

    Source: MWSIS, distillation and pseudo-mask losses; the clamp is that of the released code.
    """
    prob = prob.clamp(PROB_MARGIN, 1 - PROB_MARGIN)
    return -(target * prob.log() + (1 - target) * (1 - prob).log())


def pair_nll(z_i: Tensor, z_j: Tensor) -> Tensor:
    """Return minus the log probability that two pixels carry the same label, element by element.

    ``-log(p_i p_j + (1 - p_i)(1 - p_j)) = softplus(z_i) + softplus(z_j) - softplus(z_i + z_j)``: finite for any logit.

    Args:
        z_i: (...) float, logits of one pixel of each pair; half precision is computed in float32.
        z_j: (...) float, logits of the other, same shape.

    Returns:
        (...) float, ln 2 where either logit is 0; not reduced.

    Source: BoxInst (arXiv 2012.02310), equation 4; the softplus form is ours.
    """
    if z_i.dtype in (torch.float16, torch.bfloat16):
        z_i, z_j = z_i.float(), z_j.float()
    return functional.softplus(z_i) + functional.softplus(z_j) - functional.softplus(z_i + z_j)
