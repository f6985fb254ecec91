"""Where pseudo masks come from: a teacher's masks of an object, masks made elsewhere, or the box itself.

A source turns what there is in a step (`camera.context.MaskContext`) into one soft mask per object, `DenseTarget`, and
says in ``needs`` what must be there. The loss against it is `camera.terms.PseudoMask`; what the LiDAR branch learns
from it is in `fusion`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from camera.affinity import CELL
from camera.context import DenseTarget, MaskContext
from camera.fcos import Cells
from camera.matching import Greedy, Matcher
from camera.refinement import ColorRefinement
from camera.terms import box_bands
from mwsis.core.errors import ConfigError, closest_name
from mwsis.core.frame import BoxMasks
from mwsis.core.instances import MaskSet
from mwsis.core.schedule import Ramp

__all__ = [
    "BoxFill",
    "Compose",
    "DenseTarget",
    "FadedIn",
    "Learner",
    "MaskSource",
    "MatchedDetections",
    "OfflineMasks",
    "PositiveAggregation",
    "Refined",
]

MIN_WEIGHT = 1e-12
FOREGROUND = 0.5
COMPOSE_MODES = ("first", "mean", "weighted")


class MaskSource(Protocol):
    """What makes pseudo masks.

    Attributes:
        needs: some of ``teacher`` (EMA or the student itself), ``ema_teacher``, ``given_masks``, ``depth``; checked
            before a run.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def propose(self, ctx: MaskContext) -> DenseTarget:
        """Return a pseudo mask per object of the step."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A part of a method that learns from steps beside the networks; a module, so that its state is the step's."""

    def begin(self, num_classes: int, channels: int) -> None:
        """Make the state of a new run, the same in every process.

        Args:
            num_classes: C.
            channels: D, depth of the mask features.
        """
        ...

    def after_step(self) -> None:
        """Learn from the step, once, after the optimiser's; not called after a skipped one."""
        ...


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

    def propose(self, ctx: MaskContext) -> DenseTarget:
        """Return one pseudo mask per object that has samples."""
        teacher, positives = ctx.teaching, ctx.positives
        return self(teacher.masks, *teacher.evidence, positives.gt_index, positives.num_gt)

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


class Refined(nn.Module):
    """Another source's masks, sharpened by the colours of the image within the box that a person drew.

    A student that learns from its teacher's masks as they are learns what it knows; colours and exact boxes add to it.

    Args:
        source: makes the masks.
        refinement: on cells of 4 px, so ``steps`` count these; by default `ColorRefinement`'s own distances in pixels.

    Raises:
        ConfigError: the refinement has smaller cells.

    Source: ours, beyond MWSIS's IPG.
    """

    def __init__(self, source: MaskSource, refinement: ColorRefinement | None = None) -> None:
        super().__init__()
        self.source = source
        self.refinement = refinement or ColorRefinement(steps=(1, 2, 4), cell=CELL)
        if self.refinement.cell != CELL:
            raise ConfigError(f"Refined: expected a refinement with cell={CELL}, got {self.refinement.cell}")
        self.needs = source.needs | {"images"}

    @torch.no_grad()
    def propose(self, ctx: MaskContext) -> DenseTarget:
        """Return the sharpened masks, nothing outside the boxes."""
        target = self.source.propose(ctx)
        on_row, on_col = box_bands(ctx.gt_boxes, *ctx.map_size)
        boxed = on_row[:, :, None] & on_col[:, None]
        per_gt = target.per_gt * boxed
        for image in torch.unique(ctx.gt_image[target.present]).tolist():
            rows = (target.present & (ctx.gt_image == image)).nonzero()[:, 0]
            per_gt[rows] = self.refinement(per_gt[rows], ctx.gt_boxes[rows], ctx.images.images[image])
        return DenseTarget(per_gt * boxed, target.present, target.inst_weight)


class MatchedDetections:
    """The teacher's detection of each object, its mask cut by the object's box.

    An object without a detection weighs nothing, nor does one whose mask exceeds 0.5 nowhere in the box.

    Args:
        matcher: finds the detections; by default `camera.matching.Greedy`, as in BoxTeacher.
        weighted: a mask weighs ``sqrt(score * mean of the mask where it exceeds 0.5 in the box)`` (BoxTeacher); false:
            all weigh the same (Pseudo-Depth).

    Source: BoxTeacher (CVPR 2023), mask-aware confidence; Pseudo-Depth (arXiv 2403.01214).
    """

    def __init__(self, matcher: Matcher | None = None, weighted: bool = True) -> None:
        self.matcher: Matcher = matcher or Greedy()
        self.needs = frozenset({"ema_teacher"}) | self.matcher.needs
        self.weighted = weighted

    @torch.no_grad()
    def propose(self, ctx: MaskContext) -> DenseTarget:
        """Return the masks of matched detections; only these are decoded."""
        teacher, found = ctx.teaching, ctx.teaching.found
        match = self.matcher.match(ctx)
        present = match >= 0
        chosen = match[present]
        on_row, on_col = (band[present] for band in box_bands(ctx.gt_boxes, *ctx.map_size))
        cells = Cells(found.cells.image_index[chosen], found.cells.location_index[chosen])
        prob = teacher.decode(cells) * (on_row[:, :, None] & on_col[:, None])
        sure = prob > FOREGROUND
        mask_score = (prob * sure).flatten(1).sum(1) / sure.flatten(1).sum(1).clamp(min=1)
        per_gt = prob.new_zeros(len(match), *ctx.map_size)
        per_gt[present] = prob
        weight = prob.new_zeros(len(match))
        weight[present] = (found.scores[chosen] * mask_score).sqrt()
        return DenseTarget(per_gt, weight > 0, weight if self.weighted else None)


class OfflineMasks:
    """The masks that came with the boxes: made elsewhere, or ground truth in a fully supervised run.

    Args:
        min_weight: masks trusted less are left out.

    Source: training on masks of another model (SAM, MAL, P2Seg), `mwsis.data.given_masks`.
    """

    needs = frozenset({"given_masks"})

    def __init__(self, min_weight: float = 0.0) -> None:
        if not 0 <= min_weight <= 1:
            raise ConfigError(f"OfflineMasks: expected min_weight in [0, 1], got {min_weight}")
        self.min_weight = min_weight

    @torch.no_grad()
    def propose(self, ctx: MaskContext) -> DenseTarget:
        """Return the given masks on the step's maps.

        Complexity: memory of the target and of the masks' crops.
        """
        objects = [~labels.ignore.to(ctx.gt_boxes.device) for labels in ctx.images.labels]
        per_gt = ctx.gt_boxes.new_zeros(len(ctx.gt_boxes), *ctx.map_size)
        weight = ctx.gt_boxes.new_zeros(len(ctx.gt_boxes))
        start = 0
        for given, is_object in zip(ctx.images.masks, objects, strict=True):
            row = torch.where(is_object, is_object.cumsum(0) - 1 + start, -1)
            _draw(given.masks, row, per_gt)
            weight[row[is_object]] = given.weight[is_object]
            start += int(is_object.sum())
        return DenseTarget(per_gt, self._trusted(weight), weight)

    def of_boxes(self, masks: Sequence[BoxMasks]) -> tuple[BoxMasks, ...]:
        """Return given masks as a network with a mask per box learns them: weight 0 where one is not trusted."""
        return tuple(BoxMasks(one.masks, one.weight * self._trusted(one.weight)) for one in masks)

    def _trusted(self, weight: Tensor) -> Tensor:
        return (weight > 0) & (weight >= self.min_weight)


def _draw(masks: MaskSet, row: Tensor, per_gt: Tensor) -> None:
    """Set the cells of mask g on map ``row[g]``; masks with row -1 are left out."""
    x1, y1, x2, y2 = masks.crop_boxes.unbind(1)
    area = (x2 - x1) * (y2 - y1)
    owner = torch.repeat_interleave(torch.arange(len(area), device=area.device), area)
    local = torch.arange(len(owner), device=area.device) - (area.cumsum(0) - area)[owner]
    drawn = masks.bits & (row[owner] >= 0)
    owner, local = owner[drawn], local[drawn]
    width = (x2 - x1)[owner]
    per_gt[row[owner], y1[owner] + local // width, x1[owner] + local % width] = 1


class BoxFill:
    """The whole box as the object's mask: what a mask trained from boxes must beat."""

    needs: frozenset[str] = frozenset()

    @torch.no_grad()
    def propose(self, ctx: MaskContext) -> DenseTarget:
        """Return every box, filled."""
        on_row, on_col = box_bands(ctx.gt_boxes, *ctx.map_size)
        filled = on_row[:, :, None] & on_col[:, None]
        return DenseTarget(filled.float(), torch.ones_like(ctx.gt_labels, dtype=torch.bool))


class FadedIn(nn.Module):
    """Another source's masks, from some point of the run on and then trusted more and more.

    For a source that needs a trained teacher, beside one that does not (`Compose`): a term's schedule cannot tell them
    apart.

    Args:
        source: makes the masks; not asked before the start.
        start: fraction of the run.
        length: fraction of the run over which the trust rises from 0; 0 means at once.
        enabled: false never asks it.
    """

    def __init__(self, source: MaskSource, start: float, length: float = 0.0, enabled: bool = True) -> None:
        super().__init__()
        self.source = source
        self.trust = Ramp(float(enabled), start, length)
        self.needs = source.needs if enabled else frozenset[str]()

    @torch.no_grad()
    def propose(self, ctx: MaskContext) -> DenseTarget:
        """Return the masks, each weighing what the source says times the trust; none before the start."""
        trust = self.trust(ctx.progress)
        if trust == 0:
            absent = torch.zeros_like(ctx.gt_labels, dtype=torch.bool)
            return DenseTarget(ctx.gt_boxes.new_zeros(len(absent), *ctx.map_size), absent)
        target = self.source.propose(ctx)
        return DenseTarget(target.per_gt, target.present, target.weight * trust)


class Compose(nn.Module):
    """One mask per object from several sources.

    Args:
        sources: at least one.
        mode: ``first`` takes an object's mask from the first source that has one, ``mean`` averages over those that
            have one, ``weighted`` averages by their weights. An averaged mask has the mean weight of those averaged.

    Raises:
        ConfigError: no source, or no such mode.
    """

    def __init__(self, sources: Sequence[MaskSource], mode: str = "first") -> None:
        if not sources:
            raise ConfigError("Compose: expected at least one source, got []")
        if mode not in COMPOSE_MODES:
            raise ConfigError(f"Compose: no mode '{mode}'{closest_name(mode, COMPOSE_MODES)}")
        super().__init__()
        self.sources = list(sources)
        self.learning = nn.ModuleList(source for source in sources if isinstance(source, nn.Module))
        self.mode = mode
        self.needs = frozenset[str]().union(*(source.needs for source in sources))

    @torch.no_grad()
    def propose(self, ctx: MaskContext) -> DenseTarget:
        """Return the joined masks; one accumulator, whatever the number of sources."""
        zero = ctx.gt_boxes.new_zeros(len(ctx.gt_boxes))
        share_sum, trust_sum, num_sources = zero, zero, zero
        per_gt = ctx.gt_boxes.new_zeros(len(ctx.gt_boxes), *ctx.map_size)
        for source in self.sources:
            target = source.propose(ctx)
            used = target.present & (num_sources == 0) if self.mode == "first" else target.present
            trust = target.weight * used
            share = trust if self.mode == "weighted" else used.float()
            per_gt += target.per_gt * share[:, None, None]
            share_sum, trust_sum, num_sources = share_sum + share, trust_sum + trust, num_sources + used
        per_gt /= share_sum.clamp(min=MIN_WEIGHT)[:, None, None]
        return DenseTarget(per_gt, share_sum > 0, trust_sum / num_sources.clamp(min=1))
