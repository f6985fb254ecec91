"""How likely two near cells show the same object, and classes refined by it (I2S of P2Seg); pure functions.

A cell is compared with those within a radius alone: the matrix over all pairs of cells that P2Seg describes takes
446 MiB for an image of 416 x 416 pixels, this 4. Instances to learn from come from `instances_from_semantics.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from camera.point_to_mask.instances_from_semantics import UNKNOWN_CLASS
from mwsis.core.instances import BACKGROUND, IGNORE

__all__ = ["LocalAffinity", "affinity_loss", "local_affinity", "refined_loss"]

LEAST_PROB = 1e-6


@dataclass(frozen=True, eq=False)
class LocalAffinity:
    """Probabilities that a cell and a near one belong together.

    Every pair is held once: S shifts lead to the later cell, in the order of rows.

    Attributes:
        pairs: (S, B, h, w) float32 in [0, 1], of each cell with the one at `shifts`.
        inside: (S, B, h, w) bool, both cells of the pair are content.
        itself: (B, h, w) float32 in [0, 1], of each cell with itself.
        shifts: S rows and columns.
    """

    pairs: Tensor
    inside: Tensor
    itself: Tensor
    shifts: tuple[tuple[int, int], ...]

    def refined(self, prob: Tensor, beta: float = 1.0) -> Tensor:
        """Return the mean of the class probabilities of all near cells, weighted by affinity to the power ``beta``.

        Args:
            prob: (B, C+1, h, w) float32 in [0, 1], background included.
            beta: how much the likely pairs prevail.

        Returns:
            (B, C+1, h, w) float32; sums over classes are kept, since the weights of a cell add up to 1.

        Complexity: O(cells x near cells) time, O(cells) memory beside the affinities.

        Source: P2Seg (arXiv 2401.09709), instance-to-semantic, table 10: ``beta`` 1. *Corrected*: the released code
        leaves out the background and the exponent, and normalises along the wrong axis.
        """
        height, width = prob.shape[-2:]
        reach = max(max(abs(dy), abs(dx)) for dy, dx in self.shifts) if self.shifts else 0
        weights = self.pairs.pow(beta) * self.inside
        around = functional.pad(prob, (reach,) * 4)
        own = self.itself.pow(beta)
        mixed, total = own[:, None] * prob, own
        for weight, (dy, dx) in zip(weights, self.shifts, strict=True):
            back = _at(functional.pad(weight, (reach,) * 4), reach, (-dy, -dx), height, width)
            mixed = mixed + weight[:, None] * _at(around, reach, (dy, dx), height, width)
            mixed = mixed + back[:, None] * _at(around, reach, (-dy, -dx), height, width)
            total = total + weight + back
        return mixed / total[:, None]


def local_affinity(features: Tensor, content: Tensor, radius: int) -> LocalAffinity:
    """Compare each cell with those whose centres are at most ``radius`` cells away.

    Args:
        features: (B, D, h, w) float32.
        content: (B, h, w) bool, False in the padding.
        radius: cells, at least 1.

    Complexity: O(cells x near cells x D) time, O(cells x near cells) memory: 98 floats a cell for a radius of 8.

    Source: P2Seg (arXiv 2401.09709), sigmoid of the Gram matrix. *Simplified* to near cells, and the product divided by
    the root of D, without which it leaves the range where a sigmoid can be learned.
    """
    height, width = features.shape[-2:]
    shifts = _shifts(radius, height, width)
    root = math.sqrt(features.shape[1])
    around, content_around = functional.pad(features, (radius,) * 4), functional.pad(content, (radius,) * 4)
    products = [(features * _at(around, radius, shift, height, width)).sum(1) for shift in shifts]
    inside = [content & _at(content_around, radius, shift, height, width) for shift in shifts]
    itself = (features.square().sum(1) / root).sigmoid()
    if not shifts:
        none = features.new_zeros(0, *itself.shape)
        return LocalAffinity(none, none.bool(), itself, shifts)
    return LocalAffinity((torch.stack(products) / root).sigmoid(), torch.stack(inside), itself, shifts)


def _shifts(radius: int, height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return rows and columns to the later near cells, (0, 0) left out."""
    return tuple(
        (dy, dx)
        for dy in range(min(radius, height - 1) + 1)
        for dx in range(-min(radius, width - 1), min(radius, width - 1) + 1)
        if (dy, dx) > (0, 0) and dy * dy + dx * dx <= radius * radius
    )


def _at(padded: Tensor, reach: int, shift: tuple[int, int], height: int, width: int) -> Tensor:
    """Return a view of a map padded by ``reach`` on all sides, of which each cell shows the one at ``shift``."""
    row, column = reach + shift[0], reach + shift[1]
    return padded[..., row : row + height, column : column + width]


def affinity_loss(affinity: LocalAffinity, instances: Tensor) -> Tensor:
    """Return how far affinities are from 1 within objects and from 0 between an object and anything else.

    Args:
        affinity: of B images.
        instances: (B, h, w) int64, index of a point, `BACKGROUND` or `IGNORE`. Pairs with `IGNORE`, and of background
            with background, do not count: two cells of background need not look alike.

    Returns:
        Scalar, half the mean over pairs of one object plus half the mean over pairs of different ones.

    Source: P2Seg (arXiv 2401.09709), L_I2S. *Corrected*: the released code tells classes apart, not instances, takes
    all pairs of background for different, and applies the sigmoid twice.
    """
    height, width = instances.shape[-2:]
    reach = max((max(abs(dy), abs(dx)) for dy, dx in affinity.shifts), default=0)
    around = functional.pad(instances, (reach,) * 4, value=IGNORE)
    total = {True: affinity.pairs.new_zeros(()), False: affinity.pairs.new_zeros(())}
    count = dict(total)
    for pair, inside, shift in zip(affinity.pairs, affinity.inside, affinity.shifts, strict=True):
        other = _at(around, reach, shift, height, width)
        counted = inside & (instances != IGNORE) & (other != IGNORE) & (torch.maximum(instances, other) > BACKGROUND)
        for same in (True, False):
            chosen = counted & ((instances == other) == same)
            total[same] = total[same] + torch.where(chosen, 1 - pair if same else pair, 0).sum()
            count[same] = count[same] + chosen.sum()
    return sum((total[same] / count[same].clamp(min=1) for same in total), affinity.pairs.new_zeros(())) / 2


def refined_loss(refined: Tensor, semantic: Tensor) -> Tensor:
    """Return minus the mean log probability that refined classes give to the map of classes.

    Args:
        refined: (B, C+1, h, w) float32 in [0, 1].
        semantic: (B, h, w) int64, 0 background, c + 1 for class c, 255 unknown.

    Source: P2Seg (arXiv 2401.09709): the refined map is the semantic output, so it is what the map supervises.
    """
    count = (semantic != UNKNOWN_CLASS).sum().clamp(min=1)
    log_prob = refined.clamp(min=LEAST_PROB).log()
    return functional.nll_loss(log_prob, semantic, ignore_index=UNKNOWN_CLASS, reduction="sum") / count
