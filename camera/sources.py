"""Where pseudo masks come from: the teacher's masks of one object, merged into one.

A source turns what a teacher says at the student's positives into one soft mask per object (`DenseTarget`). The loss
against it is `camera.terms.PseudoMask`; what the LiDAR branch learns from it is in `fusion`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DenseTarget", "PositiveAggregation"]

MIN_WEIGHT = 1e-12


@dataclass(frozen=True, eq=False)
class DenseTarget:
    """A soft mask per object, stride 4; carries no gradient.

    Attributes:
        per_gt: (G, h, w) float32 in [0, 1]; zero where not ``present``.
        present: (G,) bool, the object has a pseudo mask; without one it supervises nothing.
    """

    per_gt: Tensor
    present: Tensor


class PositiveAggregation:
    """Merge the teacher's masks of an object's positives, better boxes and surer classes counting more.

    ``M_g = sum_k w_k m_k / sum_k w_k`` with ``w_k = score_k exp(mu IoU_k)``.

    Args:
        mu: how much more a well-placed box counts (MWSIS: 1, SIM: 5).
        use_cls: multiply by the teacher's score of the object's class (MWSIS: yes, SIM: no).

    Source: MWSIS (AAAI 2024), IPG; with ``mu=5, use_cls=False`` SIM (CVPR 2023), section 3.3.
    """

    needs = frozenset({"teacher"})

    def __init__(self, mu: float = 1.0, use_cls: bool = True) -> None:
        self.mu = mu
        self.use_cls = use_cls

    @torch.no_grad()
    def __call__(
        self, teacher_mask_prob: Tensor, cls_prob_of_gt: Tensor, iou: Tensor, gt_index: Tensor, num_gt: int
    ) -> DenseTarget:
        """Return one pseudo mask per object.

        Args:
            teacher_mask_prob: (K, h, w) float in [0, 1].
            cls_prob_of_gt: (K,) float in [0, 1], the teacher's score of the object's class.
            iou: (K,) float in [0, 1], of the teacher's box with the object's.
            gt_index: (K,) int64 in [0, num_gt).
            num_gt: G.

        Complexity: O(K h w), one accumulator of (G, h, w).
        """
        weight = (self.mu * iou.float()).exp()
        if self.use_cls:
            weight = weight * cls_prob_of_gt.float()
        weight = weight.clamp(min=MIN_WEIGHT)
        total = weight.new_zeros(num_gt).index_add_(0, gt_index, weight)
        share = weight / total[gt_index]
        masks = teacher_mask_prob.float() * share[:, None, None]
        per_gt = masks.new_zeros(num_gt, *masks.shape[1:]).index_add_(0, gt_index, masks)
        return DenseTarget(per_gt, total > 0)
