"""Sharper masks from the image itself: each object gets the colours it has, and pixels that look alike agree.

A short training leaves masks blurred at object borders although the colours show where the borders are. Here the mask
of each object is the unary term of a small conditional random field over its surroundings, together with a colour model
of the object and of what surrounds it; both are solved by mean field. Works on any model's masks; `segmentor.py` calls
it before masks are cut out at the recorded size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from camera.affinity import CELL, color_distance, rgb_to_lab
from camera.condinst import extent
from mwsis.core.errors import ConfigError

__all__ = ["ColorRefinement"]

SURE = 0.02
"""Mask probabilities are kept this far from 0 and 1, so that colours can overrule any of them."""
POSSIBLE = 0.1
"""Cells outside the extent of what lies above, widened by the longest step, are left as they are."""
FEW = 0.5
"""Cells that every colour counts beforehand inside and outside an object."""
BEYOND = 0.2
"""How far outside its box an object may reach, in widths and heights of the box: boxes of a short training are off."""
LOUDEST = 4.0
"""Most that a colour can say for or against an object, as a log ratio."""


class ColorRefinement:
    """Mean field, ``q_i = sigmoid(logit p_i - shrink + color r(c_i) + strength sum_j a_ij (2 q_j - 1))``.

    ``a_ij = exp(-sharpness |LAB_i - LAB_j|)``; j runs over the 8 neighbours at each distance of ``steps``. ``r(c)`` is
    the log of how much more frequent colour c is inside the object than around it, counted anew in every round with q.

    Args:
        strength: weight of the neighbours against the mask itself.
        sharpness: how fast the pull falls with the colour distance (BoxInst's affinity has 0.5).
        color: weight of the colour model; 0 leaves it out.
        bin_width: edge of the cubes of LAB that count as one colour.
        shrink: taken off every logit; masks learned from boxes come out too large.
        iterations: rounds of the mean field.
        steps: distances of paired cells, cells.
        cell: edge of a cell, pixels: 1, 2 or 4.

    Raises:
        ConfigError: a value out of range.

    Source: *generalised* from the pair affinity of BoxInst (arXiv 2012.02310, section 3.2), the mean field of dense
    CRFs (arXiv 1210.5644) and the colour models of GrabCut (SIGGRAPH 2004), here histograms; the constants were chosen
    on scenes of the street world that no reported figure uses.
    """

    def __init__(
        self,
        strength: float = 2.0,
        sharpness: float = 0.25,
        color: float = 1.0,
        bin_width: float = 10.0,
        shrink: float = 1.0,
        iterations: int = 5,
        steps: Sequence[int] = (4, 8, 16),
        cell: int = 1,
    ) -> None:
        if cell not in (1, 2, CELL):
            raise ConfigError(f"refinement.cell: expected 1, 2 or {CELL} pixels, got {cell}")
        if min(strength, sharpness, bin_width, iterations, *steps) <= 0:
            raise ConfigError("refinement: expected positive strength, sharpness, bin_width, iterations and steps")
        if color < 0:
            raise ConfigError(f"refinement.color: expected a weight of 0 or more, got {color}")
        self.strength = strength
        self.sharpness = sharpness
        self.color = color
        self.bin_width = bin_width
        self.shrink = shrink
        self.iterations = iterations
        self.cell = cell
        self.reach = max(steps)
        self.offsets = [
            (row * step, col * step) for step in steps for row in (-1, 0, 1) for col in (-1, 0, 1) if row or col
        ]

    @torch.no_grad()
    def __call__(self, prob: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        """Return refined masks; 0 well outside the boxes, where a road of one colour would carry them away.

        Args:
            prob: (K, h, w) float in [0, 1], stride 4.
            boxes: (K, 4) float xyxy, pixels of ``image``: where the objects are thought to be.
            image: (3, 4 h, 4 w) uint8 RGB, the image the masks lie on.

        Returns:
            (K, h * 4 / cell, w * 4 / cell) float32 in [0, 1], stride ``cell``.

        Complexity: pulls and colours once per image; time O(iterations x pairs x cells around the masks), not of K
        full images.
        """
        finer = CELL // self.cell
        prob = functional.interpolate(prob.float()[:, None], scale_factor=finer, mode="bilinear")[:, 0]
        near = _near_boxes(boxes / self.cell, *prob.shape[1:])
        possible = (prob > POSSIBLE) & near
        lab = rgb_to_lab(functional.avg_pool2d(image[None].float(), self.cell))[0]
        pull, color = self._pull(lab), self._color_index(lab)
        ends = torch.cat([torch.stack(extent(possible.any(axis))) for axis in (2, 1)])
        belief = prob.clone()
        for one, (first_row, last_row, first_col, last_col) in zip(belief, ends.T.tolist(), strict=True):
            if first_row <= last_row:
                rows = slice(max(first_row - self.reach, 0), last_row + self.reach + 1)
                cols = slice(max(first_col - self.reach, 0), last_col + self.reach + 1)
                self._solve(one, rows, cols, pull[:, rows, cols], color[rows, cols])
        return belief * near

    def _pull(self, lab: Tensor) -> Tensor:
        """Return the weight of each cell's neighbour at every offset, (offsets, h, w)."""
        around, height, width = self._widened(lab), *lab.shape[1:]
        pull = [
            (-self.sharpness * color_distance(around[..., r : r + height, c : c + width], lab)).exp()
            for r, c in self._corners(0, 0)
        ]
        return self.strength * torch.stack(pull)

    def _color_index(self, lab: Tensor) -> Tensor:
        """Return the number of each cell's colour among those of the image, (h, w) int64."""
        cube = (lab / self.bin_width).floor().long()
        cube -= cube.amin((1, 2), keepdim=True)
        rows, cols = cube[1].max() + 1, cube[2].max() + 1
        index: Tensor = torch.unique((cube[0] * rows + cube[1]) * cols + cube[2], return_inverse=True)[1]
        return index

    def _solve(self, belief: Tensor, rows: slice, cols: slice, pull: Tensor, color: Tensor) -> None:
        """Solve a window of an object's (h, w) belief in place; cells outside the window stay as they are."""
        height, width = color.shape
        spin = self._widened(2 * belief - 1)  # 0 outside the image: nothing pulls from there
        window = belief[rows, cols]
        unary = torch.logit(window, eps=SURE) - self.shrink
        corners = self._corners(rows.start, cols.start)
        inner = spin[rows.start + self.reach :, cols.start + self.reach :][:height, :width]
        for _ in range(self.iterations):
            total = unary + self.color * _color_ratio(window, color)
            for weight, (row, col) in zip(pull, corners, strict=True):
                total.addcmul_(weight, spin[row : row + height, col : col + width])
            window.copy_(total.sigmoid())
            inner.copy_(2 * window - 1)

    def _widened(self, maps: Tensor) -> Tensor:
        return functional.pad(maps, [self.reach] * 4)

    def _corners(self, row: int, col: int) -> list[tuple[int, int]]:
        """Return where on a widened map the neighbours of a window begin that begins at (row, col) of the map."""
        return [(row + self.reach + down, col + self.reach + right) for down, right in self.offsets]


def _near_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which cells of a (height, width) map have their centre in the (K, 4) widened boxes, cells; (K, h, w)."""
    low, high = boxes[:, :2], boxes[:, 2:]
    low, high = low - BEYOND * (high - low), high + BEYOND * (high - low)
    along = [torch.arange(size, device=boxes.device) + 0.5 for size in (width, height)]
    inside = [(low[:, axis, None] <= place) & (place < high[:, axis, None]) for axis, place in enumerate(along)]
    return inside[1][:, :, None] & inside[0][:, None, :]


def _color_ratio(belief: Tensor, color: Tensor) -> Tensor:
    """Return the log of how much more frequent each cell's colour is inside the object than outside, (h, w)."""
    weights = torch.stack([belief.flatten(), 1 - belief.flatten()])
    counts = weights.new_zeros(2, int(color.max()) + 1).index_add_(1, color.flatten(), weights)
    frequency = ((counts + FEW) / (counts.sum(1, keepdim=True) + FEW)).log()
    return (frequency[0] - frequency[1]).clamp(-LOUDEST, LOUDEST)[color]
