"""Which of a teacher's detections shows which object: the surest first, or all at once by overlap, depth and score.

A matcher is a part of `camera.sources.MatchedDetections`, which makes pseudo masks of the detections found.
"""

from __future__ import annotations

from typing import Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou

from camera.affinity import Depth
from camera.context import MaskContext
from camera.fcos import Cells
from camera.terms import box_bands
from mwsis.core.errors import ConfigError

__all__ = ["Greedy", "Hungarian", "Matcher", "match_greedily"]

FOREGROUND = 0.5
EVEN, EDGE = 0.5, 0.1
"""Similarity of depth above which two cells are on one surface, and below which there is an edge between them."""
LEAST_CELLS = 20
"""Cells of a mask with a depth that its consistency needs."""


class Matcher(Protocol):
    """What finds the detection of each object.

    Attributes:
        needs: what must be there, as for a source.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def match(self, ctx: MaskContext) -> Tensor:
        """Return the detection of each object: (G,) int64, row of ``ctx.teaching.found``, -1 without one.

        No detection is that of two objects.
        """
        ...


def match_greedily(iou: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return the detection of each object: best score first, nearest object first, each object and detection once.

    Args:
        iou: (D, G) float; zero where class or image differ.
        scores: (D,) float.
        threshold: smallest IoU of a match.

    Returns:
        (G,) int64, row of ``iou``, -1 without a detection.

    Complexity: O(D G) per round. All detections ask for their nearest object at once and each object keeps the best;
    the others ask again. As all objects agree on the order of detections, the outcome is that of one after the other.
    """
    num_found, num_objects = iou.shape
    order = scores.argsort(descending=True, stable=True)
    iou, free = iou[order], iou[order] >= threshold
    place = torch.arange(num_found, device=iou.device)
    while True:
        asking = free.any(1).nonzero()[:, 0]
        wish = iou.where(free, -1.0)[asking].argmax(1) if num_objects else asking
        taker = place.new_full((num_objects,), num_found).scatter_reduce(0, wish, place[asking], "amin")
        refused = taker[wish] != asking
        if not bool(refused.any()):
            return torch.cat([order, order.new_full((1,), -1)])[taker]
        free[asking[refused], wish[refused]] = False


class Greedy:
    """The best detection first takes the object that it overlaps most.

    Args:
        iou: smallest overlap of the detection's box with the object's.
        class_aware: a detection of another class does not match.

    Source: BoxTeacher (CVPR 2023), box-based assignment with IoU 0.5.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, iou: float = 0.5, class_aware: bool = True) -> None:
        self.iou = iou
        self.class_aware = class_aware

    @torch.no_grad()
    def match(self, ctx: MaskContext) -> Tensor:
        """Return the detection of each object, see `Matcher.match`."""
        found = ctx.teaching.found
        overlap = box_iou(found.boxes, ctx.gt_boxes)
        comparable = found.cells.image_index[:, None] == ctx.gt_image
        if self.class_aware:
            comparable &= found.labels[:, None] == ctx.gt_labels
        return match_greedily(overlap * comparable, found.scores, self.iou)


class Hungarian:
    """The matching of all objects of an image with the largest sum of utilities, less those that are not good enough.

    ``U = alpha IoU + beta(t) D + (1 - alpha - beta(t)) score`` with ``beta(t) = beta (1 - t)``, t the share of the run
    that is done. D says how far a mask agrees with the depth: the share of its known cells, weighted by the mask within
    the object's box, whose right neighbour is clearly on the same surface or clearly on another. Where fewer than 20
    cells of the mask are known, beta's part goes to the score.

    Args:
        alpha: weight of the overlap of the boxes.
        beta: weight of D at the start of the run.
        minimum: a match must be better.
        class_aware: a detection of another class does not match (published: false).
        depth: similarity of neighbouring cells; by default that of `camera.affinity.Depth`.

    Raises:
        ConfigError: a weight is negative or together they exceed 1, or ``minimum`` is negative.

    Source: Pseudo-Depth (arXiv 2403.01214), depth-aware matching; 0.1, 0.3, 0.5, and 0.5, 0.1 for surfaces and edges,
    are values of its code. *Corrected*: IoU, not GIoU, which goes from -1 to 1 among shares from 0 to 1; no detection
    is matched twice where there are few. *Simplified*: D at stride 4, where the code has full resolution.
    """

    needs = frozenset({"depth"})

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 0.3,
        minimum: float = 0.5,
        *,
        class_aware: bool = True,
        depth: Depth | None = None,
    ) -> None:
        if min(alpha, beta, minimum) < 0 or alpha + beta > 1:
            raise ConfigError(
                "Hungarian: expected alpha, beta and minimum of at least 0 and alpha + beta of at most 1, got "
                f"{alpha}, {beta} and {minimum}"
            )
        self.alpha = alpha
        self.beta = beta
        self.minimum = minimum
        self.class_aware = class_aware
        self.depth = depth or Depth()

    def weights(self, progress: float) -> tuple[float, float, float]:
        """Return the weights of overlap, depth and score at a point of the run."""
        beta = self.beta * (1 - progress)
        return self.alpha, beta, 1 - self.alpha - beta

    @torch.no_grad()
    def match(self, ctx: MaskContext) -> Tensor:
        """Return the detection of each object, see `Matcher.match`.

        Complexity: masks of one image's detections at a time, O(n^3) on the CPU for n of them.
        """
        found, clear = ctx.teaching.found, self._clear(ctx)
        match = torch.full_like(ctx.gt_labels, -1)
        for image in torch.unique(ctx.gt_image).tolist():
            objects = (ctx.gt_image == image).nonzero()[:, 0]
            rows = (found.cells.image_index == image).nonzero()[:, 0]
            overlap = box_iou(found.boxes[rows], ctx.gt_boxes[objects])
            if self.class_aware:
                overlap = overlap * (found.labels[rows][:, None] == ctx.gt_labels[objects])
            near = (overlap > 0).any(1)
            rows, overlap = rows[near], overlap[near]
            agreement, known = self._agreement(ctx, rows, objects, *(part[image] for part in clear))
            utility = self.utility(overlap, agreement, known, found.scores[rows], ctx.progress)
            row, col = assign(utility, self.minimum)
            match[objects[col]] = rows[row]
        return match

    def utility(self, overlap: Tensor, agreement: Tensor, known: Tensor, scores: Tensor, progress: float) -> Tensor:
        """Return how good each match is, (D, G) in [0, 1]; 0 without overlap.

        Args:
            overlap: (D, G) IoU of the boxes.
            agreement: (D, G) in [0, 1], of mask and depth.
            known: (D, G) bool, whether there is enough depth for it.
            scores: (D,) of the detections.
            progress: share of the run already done.
        """
        alpha, beta, rest = self.weights(progress)
        worth = alpha * overlap + rest * scores[:, None] + beta * agreement.where(known, scores[:, None])
        return worth * (overlap > 0)

    def _clear(self, ctx: MaskContext) -> tuple[Tensor, Tensor]:
        """Return where a cell and its right neighbour are clearly on one surface or on two, and where both are known.

        Both are (I, h, w) float32, 0 or 1.
        """
        similarity, known = self.depth.similarity(ctx.depth, *self.depth.offsets[0])
        return (known & ((similarity > EVEN) | (similarity < EDGE))).float(), known.float()

    @staticmethod
    def _agreement(
        ctx: MaskContext, rows: Tensor, objects: Tensor, clear: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return how far each detection's mask agrees with the depth in each object's box, and where that is known."""
        cells = ctx.teaching.found.cells
        prob = ctx.teaching.decode(Cells(cells.image_index[rows], cells.location_index[rows]))
        bands = [band[objects].to(prob.dtype) for band in box_bands(ctx.gt_boxes, *ctx.map_size)]
        total, good = (_sum_in_boxes(prob * one, *bands) for one in (known, clear))
        cells_known = _sum_in_boxes((prob > FOREGROUND) * known, *bands)
        return good / total.clamp(min=1e-6), cells_known >= LEAST_CELLS


def _sum_in_boxes(maps: Tensor, on_row: Tensor, on_col: Tensor) -> Tensor:
    """Return the sums of (D, h, w) maps over the cells of G boxes, (D, G)."""
    return ((maps @ on_col.T) * on_row.T).sum(1)


def assign(utility: Tensor, minimum: float) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the one-to-one matching with the largest sum, of it those above ``minimum``.

    Args:
        utility: (D, G) float, at least 0; 0 is as good as no match.
        minimum: at least 0.
    """
    pairs = linear_sum_assignment(utility.cpu().double().numpy(), maximize=True)
    row, col = (torch.from_numpy(side).to(utility.device) for side in pairs)
    good = utility[row, col] > minimum
    return row[good], col[good]
