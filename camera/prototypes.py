"""Another source's masks, corrected by what their class looks like in the mask features (SIM).

`PrototypeRefiner` keeps a few prototypes per class, directions in the space of the teacher's mask features, learned
from the cells that masks are sure of. It proposes masks during the forward passes and learns after
the optimiser's step, once, however many parts or processes the step has. Its state is that of the training step and
lies in the checkpoint.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from camera.condinst import aligned_bilinear
from camera.context import DenseTarget, MaskContext
from camera.sources import MaskSource
from camera.terms import box_bands
from mwsis.core.distributed import gather
from mwsis.core.errors import ConfigError

__all__ = ["PrototypeRefiner", "decided", "own_threshold", "sinkhorn"]

SURE_OFF, SURE_ON = 0.3, 0.7
"""Below a cell is off its object, above on it: as `camera.terms.PseudoMask` and `fusion.distillation` read masks."""
INIT_STD = 0.02
SMALL = 1e-6
"""Kept away from thresholds; directions shorter than this are none."""


def sinkhorn(similarity: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Return how N cells share L prototypes so that each prototype gets about as many cells as any other.

    Maximises ``<Q, S> + epsilon H(Q)`` over plans Q with the given sums, by scaling the sums of the prototypes and
    those of the cells in turn; in logarithms, so no similarity is too large.

    Args:
        similarity: (N, L) float.
        epsilon: smaller is closer to a hard assignment, and takes more iterations.
        iterations: after the last, the sums over prototypes are exact, those over cells nearly.

    Returns:
        (N, L) float: each row sums to 1 / N, each column to about 1 / L.

    Complexity: O(N L iterations).

    Source: Sinkhorn and Knopp (1967) as in SIM (CVPR 2023), section 3.2: 0.05, 3.
    """
    num_cells, num_prototypes = similarity.shape
    plan = similarity / epsilon
    for _ in range(iterations):
        plan = plan.log_softmax(0) - math.log(num_prototypes)
        plan = plan.log_softmax(1) - math.log(max(num_cells, 1))
    return plan.exp()


def own_threshold(fused: Tensor, instance: Tensor, box: Tensor, least: float, most: float) -> Tensor:
    """Return, per object, the value that as many of its cells exceed as its first mask is sure of.

    Args:
        fused: (G, h, w) float, the corrected mask.
        instance: (G, h, w) float, the first mask; sure above `SURE_ON`.
        box: (G, h, w) bool, the cells looked at.
        least, most: limits of the result.

    Returns:
        (G,) float: with n sure cells the (n + 1)-th largest of ``fused``, ``least`` where there are no more cells.

    Complexity: O(M log M) for M cells in all boxes.

    Source: SIM's released configuration: limits 0.7 and 0.8.
    """
    owner, value = box.nonzero()[:, 0], fused[box]
    order = value.argsort(descending=True, stable=True)
    value = value[order[owner[order].argsort(stable=True)]]
    count, sure = (box.flatten(1).sum(1), (box & (instance > SURE_ON)).flatten(1).sum(1))
    value = torch.cat([value, value.new_zeros(1)])  # an object at the end without further cells
    place = torch.where(sure < count, count.cumsum(0) - count + sure, len(value) - 1)
    return value[place].clamp(least, most)


def decided(fused: Tensor, high: Tensor, low: float) -> Tensor:
    """Return masks bent so that thresholds of their own become those of everyone, `SURE_ON` and `SURE_OFF`.

    Args:
        fused: (G, h, w) float in [0, 1].
        high: (G,) float in (0, 1), cells above are on the object.
        low: below ``high``; cells below are off the object.

    Returns:
        (G, h, w) in [0, 1], above ``SURE_ON``, below ``SURE_OFF`` or between as ``fused`` is above ``high``, below
        ``low`` or between; the order of an object's cells stays.
    """
    high = high[:, None, None]
    above = SURE_ON + (1 - SURE_ON) * ((fused - high) / (1 - high))
    below = SURE_OFF * (fused / low)
    between = SURE_OFF + (SURE_ON - SURE_OFF) * ((fused - low) / (high - low))
    bent = torch.where(fused < low, below.clamp(max=SURE_OFF - SMALL), between.clamp(SURE_OFF, SURE_ON - SMALL))
    return torch.where(fused > high, above.clamp(min=SURE_ON + SMALL), bent)


class PrototypeRefiner(nn.Module):
    """Masks averaged with how much each cell looks like the class, inside the boxes.

    ``M = (1 - alpha) sigmoid((s - centre) / temperature) + alpha M_I``; ``s`` is the largest cosine of a cell's
    features with a prototype of the class, ``M_I`` the inner source's mask. A class of which nothing was seen yet has
    ``M = M_I``. Outside its box a mask is 0.

    Args:
        inner: makes the masks that are corrected (SIM: `camera.sources.PositiveAggregation`, mu 5, without scores).
        num_prototypes: L, per class.
        decay: share of a prototype that stays in an update, in [0, 1).
        temperature: of the cosines.
        centred: ``centre`` is the mean of s over the object's box; false is published, ``centre`` 0.
        epsilon, iterations: see `sinkhorn`.
        alpha: share of the inner source's mask.
        high: limits of the threshold above which a cell is on its object, see `own_threshold`.
        low: threshold below which it is off.

    Attributes:
        prototypes: (C, L, D) float32, unit vectors; empty before `begin`.
        num_updates: (C, L) int64, how many steps each has learned from.

    Raises:
        ConfigError: a value out of range.

    Source: SIM (CVPR 2023), sections 3.2 to 3.5. *Corrected*: in its first updates a prototype is the mean of what it
    has seen, so nothing random is left in it; the published ``decay`` alone keeps 37 % of the random start after 1,000
    steps. *Generalised*: ``centred``, since all cells of a box resemble its class: of the street world's cells in boxes
    99 % have a published probability above .7.
    """

    prototypes: Tensor
    num_updates: Tensor

    def __init__(
        self,
        inner: MaskSource,
        num_prototypes: int = 10,
        decay: float = 0.999,
        temperature: float = 0.1,
        *,
        centred: bool = True,
        epsilon: float = 0.05,
        iterations: int = 3,
        alpha: float = 0.5,
        high: tuple[float, float] = (0.7, 0.8),
        low: float = 0.4,
    ) -> None:
        super().__init__()
        if not (0 <= decay < 1 and 0 <= alpha <= 1 and min(temperature, epsilon) > 0):
            raise ConfigError("PrototypeRefiner: expected decay in [0, 1), alpha in [0, 1], temperature, epsilon > 0")
        if min(num_prototypes, iterations) < 1:
            raise ConfigError("PrototypeRefiner: expected num_prototypes and iterations of at least 1")
        if len(high) != 2 or not 0 < low < high[0] <= high[1] < 1:
            raise ConfigError(f"PrototypeRefiner: expected 0 < low < high[0] <= high[1] < 1, got {low} and {high}")
        self.inner = inner
        self.needs = inner.needs | {"teacher"}
        self.num_prototypes = num_prototypes
        self.decay = decay
        self.temperature = temperature
        self.centred = centred
        self.epsilon = epsilon
        self.iterations = iterations
        self.alpha = alpha
        self.high = (float(high[0]), float(high[1]))
        self.low = low
        self._votes: list[tuple[Tensor, Tensor]] = []
        self._voted_at = -1.0
        self.begin(0, 0)

    def begin(self, num_classes: int, channels: int) -> None:
        """Make the prototypes of a new run, the same in every process.

        Args:
            num_classes: C.
            channels: D, depth of the mask features.
        """
        shape = num_classes, self.num_prototypes, channels
        drawn = nn.init.trunc_normal_(torch.empty(shape), std=INIT_STD, generator=torch.Generator().manual_seed(0))
        self.register_buffer("prototypes", functional.normalize(drawn, dim=2))
        self.register_buffer("num_updates", torch.zeros(shape[:2], dtype=torch.int64))

    @torch.no_grad()
    def propose(self, ctx: MaskContext) -> DenseTarget:
        """Return the corrected masks, and keep the votes of the cells that the inner masks are sure of."""
        first = self.inner.propose(ctx)
        on_row, on_col = box_bands(ctx.gt_boxes, *ctx.map_size)
        box = on_row[:, :, None] & on_col[:, None] & first.present[:, None, None]
        feats = functional.normalize(ctx.teaching.dense.mask_feats.float(), dim=1)
        self._keep_votes(ctx, feats, (first.per_gt > SURE_ON) & box)
        seen = (self.num_updates > 0).any(1)[ctx.gt_labels]
        semantic = torch.where(seen[:, None, None], self._semantic(ctx, feats, box), first.per_gt)
        fused = (1 - self.alpha) * semantic + self.alpha * first.per_gt
        high = own_threshold(fused, first.per_gt, box, *self.high)
        return DenseTarget(decided(fused, high, self.low) * box, first.present, first.inst_weight)

    def _semantic(self, ctx: MaskContext, feats: Tensor, box: Tensor) -> Tensor:
        """Return (G, h, w) in [0, 1]: how likely each cell is of the object's class by its looks."""
        key, row = torch.unique(ctx.gt_image * len(self.prototypes) + ctx.gt_labels, return_inverse=True)
        image, label = key // len(self.prototypes), key % len(self.prototypes)
        cosine = torch.einsum("pld,pdhw->plhw", self.prototypes[label], feats[image])
        cosine = cosine.masked_fill((self.num_updates[label] == 0)[:, :, None, None], -1.0).amax(1)
        looks = aligned_bilinear(cosine[:, None], 2)[row, 0]
        if self.centred:
            cells = box.flatten(1).sum(1).clamp(min=1)
            looks = looks - ((looks * box).flatten(1).sum(1) / cells)[:, None, None]
        return (looks / self.temperature).sigmoid()

    def _keep_votes(self, ctx: MaskContext, feats: Tensor, sure: Tensor) -> None:
        """Keep class and features of the sure cells at stride 8, once per object; votes of a dropped step go."""
        if ctx.progress != self._voted_at:
            self._votes, self._voted_at = [], ctx.progress
        gt, row, col = sure[:, 1::2, 1::2].nonzero(as_tuple=True)  # where `aligned_bilinear` puts cells of stride 8
        self._votes.append((ctx.gt_labels[gt], feats[ctx.gt_image[gt], :, row, col]))

    @torch.no_grad()
    def after_step(self) -> None:
        """Learn from the votes of the step, those of all its parts and processes together."""
        if not self._votes:  # on all processes, or on none
            return
        own = tuple(torch.cat(part).cpu() for part in zip(*self._votes, strict=True))
        self._votes = []
        labels, feats = (torch.cat(part).to(self.prototypes.device) for part in zip(*gather(own), strict=True))
        for label in torch.unique(labels).tolist():
            self._learn(label, feats[labels == label])

    def _learn(self, label: int, feats: Tensor) -> None:
        """Move the prototypes of a class towards the (N, D) unit vectors assigned to them."""
        old, num_updates = self.prototypes[label], self.num_updates[label]
        plan = sinkhorn(feats @ old.T, self.epsilon, self.iterations)
        assigned = functional.one_hot(plan.argmax(1), self.num_prototypes).to(feats.dtype)
        total = assigned.T @ feats
        voted = total.norm(dim=1) > SMALL
        stays = (num_updates / (num_updates + 1)).clamp(max=self.decay)[:, None]
        new = functional.normalize(stays * old + (1 - stays) * functional.normalize(total, dim=1), dim=1)
        self.prototypes[label] = torch.where(voted[:, None], new, old)
        self.num_updates[label] += voted
