"""Losses on masks that need no mask label: box projections, look-alike neighbours, a teacher's pseudo masks.

Each term is called with one `MaskContext` and returns a scalar; a method is a list of terms with schedules, chosen in
the configuration. Detection losses are in `fcos.py`; terms that look at LiDAR points are in `fusion`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from camera.affinity import CELL, Affinity, CellAffinity, Color, pixel_feats, valid_cells
from camera.context import MaskContext
from mwsis.core.distributed import everywhere, normaliser
from mwsis.core.errors import ConfigError, closest_name
from mwsis.core.losses import dice, pair_nll

__all__ = [
    "CellPairs",
    "LevelSet",
    "MaskContext",
    "Pairwise",
    "Projection",
    "PseudoMask",
    "box_bands",
    "look_alike_pairs",
    "raster_boxes",
]

RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Grey levels of ImageNet, by which level sets scale colours."""


def _raster_axis(low: Tensor, high: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return first and last cell (inclusive) of each interval in pixels."""
    first = ((low.floor() - CELL // 2) / CELL).ceil().long()
    last = ((high.floor() - CELL // 2) / CELL).floor().long()
    nearest = (((low + high) / 2 - CELL // 2) / CELL).round().long()
    missed = first > last
    first, last = torch.where(missed, nearest, first), torch.where(missed, nearest, last)
    return first.clamp(0, length - 1), last.clamp(0, length - 1)


def raster_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the cells at stride 4 that each box covers; never none.

    Cell j is covered when its pixel ``4 j + 2`` lies between the box's first and last pixel, both included; a box that
    misses every such pixel covers the cell nearest its centre.

    Args:
        boxes: (G, 4) float32, pixels.
        height: rows of the mask map.
        width: columns of the mask map.

    Returns:
        (G, 4) int64: first row, last row, first column, last column, all included.

    Source: BoxInst's raster; the nearest cell for small boxes is *corrected*: with none, the projection loss is a
    constant 1 without gradient.
    """
    rows = _raster_axis(boxes[:, 1], boxes[:, 3], height)
    cols = _raster_axis(boxes[:, 0], boxes[:, 2], width)
    return torch.stack([*rows, *cols], 1)


def box_bands(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the rows (G, height) and columns (G, width), bool, that `raster_boxes` covers; a box is their product."""
    extent = raster_boxes(boxes, height, width)
    rows = torch.arange(height, device=boxes.device)
    cols = torch.arange(width, device=boxes.device)
    on_row = (rows >= extent[:, :1]) & (rows <= extent[:, 1:2])
    return on_row, (cols >= extent[:, 2:3]) & (cols <= extent[:, 3:])


class Projection:
    """A mask's row and column maxima should be those of its box.

    Args:
        weight: factor of the loss.

    Source: BoxInst (arXiv 2012.02310), section 3.1.
    """

    name = "projection"
    needs: frozenset[str] = frozenset()

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, ctx: MaskContext) -> Tensor:
        """Return the mean over samples of two Dice losses; zero, connected to the graph, without samples."""
        prob = ctx.mask_logits.sigmoid()
        bands = box_bands(ctx.gt_boxes, *ctx.map_size)
        on_row, on_col = (band[ctx.positives.gt_index].to(prob.dtype) for band in bands)
        loss = dice(prob.amax(2), on_row) + dice(prob.amax(1), on_col)
        return self.weight * loss.sum() / normaliser(prob.new_tensor(len(prob)))


@dataclass(frozen=True, eq=False)
class CellPairs:
    """Unordered pairs of look-alike cells, object by object.

    Attributes:
        starts: (G+1,) int64, the pairs of object g are rows ``starts[g]`` to ``starts[g+1]``.
        first, second: (M,) int64, cells ``row * width + column``.
        weight: (M,) float32, 1 or 2: how many of the two ordered pairs count.
    """

    starts: Tensor
    first: Tensor
    second: Tensor
    weight: Tensor


def _cells_around(extent: Tensor, reach: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return object, row and column of the cells from which a forward pair can touch each object's box."""
    top, bottom = (extent[:, 0] - reach).clamp(min=0), extent[:, 1]
    left, right = (extent[:, 2] - reach).clamp(min=0), (extent[:, 3] + reach).clamp(max=width - 1)
    span = right - left + 1
    count = span * (bottom - top + 1)
    owner = torch.repeat_interleave(torch.arange(len(extent), device=extent.device), count)
    local = torch.arange(len(owner), device=extent.device) - (count.cumsum(0) - count)[owner]
    return owner, top[owner] + local // span[owner], left[owner] + local % span[owner]


def look_alike_pairs(affinity: CellAffinity, extent: Tensor, gt_image: Tensor, threshold: float) -> CellPairs:
    """Return the pairs at least as similar as the threshold that touch an object's box.

    An ordered pair counts when its first cell is in the box and its second shows image content; the two orders of a
    pair are one row with their number as weight, so sums equal those of the 8-neighbour form.

    Args:
        affinity: similarity of the cells of I images, or of G objects.
        extent: (G, 4) int64, first and last row, first and last column of each box.
        gt_image: (G,) int64.
        threshold: smallest similarity.

    Complexity: O(cells of all boxes) memory; no map per object is made.
    """
    height, width = affinity.valid.shape[1:]
    reach = max(abs(cols) for _, cols in affinity.offsets)
    owner, row, col = _cells_around(extent, reach, height, width)
    image = gt_image[owner]
    step = torch.tensor(affinity.offsets, device=extent.device)
    rows, cols = (
        torch.stack([row.expand(4, -1), row + step[:, :1]]),
        torch.stack([col.expand(4, -1), col + step[:, 1:]]),
    )
    onto = (rows[1] < height) & (cols[1] >= 0) & (cols[1] < width)
    box = extent[owner].T[:, None, None]
    in_box = (rows >= box[0]) & (rows <= box[1]) & (cols >= box[2]) & (cols <= box[3])
    valid = affinity.valid[image, rows.clamp(max=height - 1), cols.clamp(0, width - 1)]
    weight = (in_box[0] & valid[1]).float() + (in_box[1] & valid[0]).float()
    alike = affinity.at(owner, image, row, col) >= threshold
    cell, direction = (onto & alike & (weight > 0)).T.nonzero(as_tuple=True)
    flat = rows * width + cols
    starts = functional.pad(owner[cell].bincount(minlength=len(extent)).cumsum(0), (1, 0))
    return CellPairs(starts, flat[0, direction, cell], flat[1, direction, cell], weight[direction, cell])


def _rows_of_samples(starts: Tensor, gt_index: Tensor) -> tuple[Tensor, Tensor]:
    """Return sample and row of every row that belongs to a sample's object, sample by sample."""
    count = starts.diff()[gt_index]
    sample = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    skipped = starts[gt_index] - (count.cumsum(0) - count)
    return sample, torch.arange(len(sample), device=count.device) + skipped[sample]


class Pairwise:
    """Neighbouring cells that look alike should carry the same label.

    The same value, gradient and normaliser as the dense 8-neighbour form, from the pairs that count only.

    Args:
        affinity: what looks alike; by default colours, two cells apart.
        threshold: pairs below are left out, never pushed apart.
        dilation: distance of paired cells for the default affinity.
        weight: factor of the loss.

    Source: BoxInst (arXiv 2012.02310), section 3.2: threshold 0.3, dilation 2.
    """

    name = "pairwise"

    def __init__(
        self, affinity: Affinity | None = None, threshold: float = 0.3, dilation: int = 2, weight: float = 1.0
    ) -> None:
        self.affinity: Affinity = affinity or Color(dilation)
        self.needs: frozenset[str] = self.affinity.needs
        self.threshold = threshold
        self.weight = weight

    def __call__(self, ctx: MaskContext) -> Tensor:
        """Return the weighted mean over all pairs of the batch; zero, connected to the graph, without pairs.

        Complexity: O(samples times pairs of their box).
        """
        height, width = ctx.map_size
        extent = raster_boxes(ctx.gt_boxes, height, width)
        pairs = look_alike_pairs(self.affinity.of(ctx), extent, ctx.gt_image, self.threshold)
        sample, pair = _rows_of_samples(pairs.starts, ctx.positives.gt_index)
        flat, base = ctx.mask_logits.flatten(), sample * (height * width)
        loss = pair_nll(flat.index_select(0, base + pairs.first[pair]), flat.index_select(0, base + pairs.second[pair]))
        weight = pairs.weight[pair]
        return self.weight * (loss * weight).sum() / normaliser(weight.sum())


class LevelSet:
    """The cells of a box that a mask takes, and those that it leaves, should each be of one kind.

    ``E = (sum m |f - c1|^2 + sum (1 - m) |f - c2|^2) / cells of the box``, c1 and c2 being the means of the features
    weighted by m and by 1 - m. Computed from sums of 1, f and its squares, so no map of samples times channels is made.

    Args:
        features: ``color``, or the pixel features of the ``student`` or the ``teacher``; never differentiated.
        weight: factor of the loss.

    Raises:
        ConfigError: no such features.

    Source: Chan-Vese energy as in BoxLevelSet (ECCV 2022) and Box2Mask, per box; colours in units of ImageNet's
    deviation. *Simplified*: no tree filter.
    """

    name = "level_set"

    def __init__(self, features: str = "color", weight: float = 1.0) -> None:
        if features not in (known := ("color", "student", "teacher")):
            raise ConfigError(f"LevelSet: no features '{features}'{closest_name(features, known)}")
        self.features = features
        self.needs = frozenset({"teacher"}) if features == "teacher" else frozenset({"images"})
        self.weight = weight

    def __call__(self, ctx: MaskContext) -> Tensor:
        """Return the mean energy of the samples; zero, connected to the graph, without samples.

        Complexity: O(samples times cells times channels) operations, O(samples times cells) memory.
        """
        gt_index, image = ctx.positives.gt_index, ctx.positives.image_index
        on_row, on_col = (band[gt_index] for band in box_bands(ctx.gt_boxes, *ctx.map_size))
        shown = valid_cells(ctx.images, *ctx.map_size)[image]
        box = (on_row[:, :, None] & on_col[:, None] & shown).flatten(1)
        prob = ctx.mask_logits.float().sigmoid().flatten(1)
        table = self._table(ctx)
        energy = _spread(prob * box, table, image) + _spread((1 - prob) * box, table, image)
        energy = energy / box.sum(1).clamp(min=1)
        return self.weight * energy.sum() / normaliser(prob.new_tensor(len(prob)))

    @torch.no_grad()
    def _table(self, ctx: MaskContext) -> Tensor:
        """Return (I, cells, 1 + D + 1): one, the features about their mean, and their squared length."""
        if self.features == "color":
            mean, deviation = (torch.tensor(rgb, device=ctx.images.images.device) for rgb in (RGB_MEAN, RGB_STD))
            feats = functional.avg_pool2d(ctx.images.images.float(), CELL)
            feats = (feats - mean[:, None, None]) / deviation[:, None, None]
        else:
            feats = pixel_feats(ctx, self.features)
        feats = feats.flatten(2).transpose(1, 2)
        feats = feats - feats.mean(1, keepdim=True)
        return torch.cat([torch.ones_like(feats[..., :1]), feats, feats.square().sum(2, keepdim=True)], 2)


def _spread(share: Tensor, table: Tensor, image: Tensor) -> Tensor:
    """Return (K,): the sum over cells of share times squared distance from the mean so weighted."""
    groups = torch.split(share, image.bincount(minlength=len(table)).tolist())
    sums = torch.cat([group @ one for group, one in zip(groups, table, strict=True)])
    total, first, second = sums[:, 0], sums[:, 1:-1], sums[:, -1]
    return (second - first.square().sum(1) / total.clamp(min=1e-6)).clamp(min=0)


class PseudoMask:
    """A mask should equal the pseudo mask of its object where that is sure.

    Args:
        high: pseudo probabilities above become 1.
        low: pseudo probabilities below become 0; between, the cell is left out.
        global_dice: one Dice over all samples together (published) instead of the mean of one per sample.
        entropy: cross-entropy beside Dice (MWSIS: yes, BoxTeacher: no).
        weight: factor of the loss.

    Source: MWSIS (AAAI 2024), IPG loss: 0.7, 0.3, cross-entropy plus Dice; Dice per sample is *corrected*: the
    published one over all samples lets large objects decide. An object counts with the weight of its pseudo mask
    (BoxTeacher, CVPR 2023), in the numerators only: many doubtful masks teach less, not more.
    """

    name = "pseudo_mask"
    needs: frozenset[str] = frozenset({"target"})

    def __init__(
        self,
        high: float = 0.7,
        low: float = 0.3,
        *,
        global_dice: bool = False,
        entropy: bool = True,
        weight: float = 1.0,
    ) -> None:
        self.high = high
        self.low = low
        self.global_dice = global_dice
        self.entropy = entropy
        self.weight = weight

    def __call__(self, ctx: MaskContext) -> Tensor:
        """Return cross-entropy over all sure cells plus Dice; objects without a pseudo mask contribute nothing."""
        if ctx.target is None:  # before the source's start
            return ctx.mask_logits.sum() * 0
        gt_index = ctx.positives.gt_index
        present = ctx.target.present[gt_index]
        logits, soft = ctx.mask_logits[present].flatten(1), ctx.target.per_gt[gt_index[present]].flatten(1)
        trust = ctx.target.weight[gt_index[present]].to(logits.dtype)[:, None]
        wanted = (soft > self.high).to(logits.dtype)
        sure = ((soft > self.high) | (soft < self.low)).to(logits.dtype)
        loss = self._dice(logits.sigmoid(), wanted, sure, trust, present)
        if self.entropy:
            entropy = functional.binary_cross_entropy_with_logits(logits, wanted, sure * trust, reduction="sum")
            loss = entropy / normaliser(sure.sum()) + loss
        return self.weight * loss

    def _dice(self, prob: Tensor, wanted: Tensor, sure: Tensor, trust: Tensor, present: Tensor) -> Tensor:
        if self.global_dice:
            rows = (part.reshape(1, -1) for part in (prob, wanted, sure * trust))
            return dice(*rows, whole_step=True)[0] * (not everywhere(not bool(present.any())))
        return (dice(prob, wanted, sure) * trust[:, 0]).sum() / normaliser(present.sum())
