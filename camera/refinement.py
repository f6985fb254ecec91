"""Sharper masks from the image itself: pixels that look alike come to agree on what they belong to.

A short training leaves masks blurred at object borders although the colours show where the borders are. Here the mask
of each object is the unary term of a small conditional random field over its surroundings, solved by mean field. Works
on any model's masks; `segmentor.py` calls it before masks are cut out at the recorded size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from camera.affinity import CELL, rgb_to_lab
from camera.condinst import extent
from mwsis.core.errors import ConfigError

__all__ = ["ColorRefinement"]

SURE = 0.02
"""Mask probabilities are kept this far from 0 and 1, so that colours can overrule any of them."""
POSSIBLE = 0.1
"""Cells outside the extent of what lies above, widened by the longest step, are left as they are."""


class ColorRefinement:
    """Mean field over pairs of cells, ``q_i = sigmoid(logit p_i + strength sum_j a_ij (2 q_j - 1))``.

    ``a_ij = exp(-sharpness |LAB_i - LAB_j|)``; j runs over the 8 neighbours at each distance of ``steps``.

    Args:
        strength: weight of the neighbours against the mask itself.
        sharpness: how fast the pull falls with the colour distance (BoxInst's affinity has 0.5).
        iterations: rounds of the mean field.
        steps: distances of paired cells, cells.
        cell: edge of a cell, pixels: 1, 2 or 4.

    Raises:
        ConfigError: a value out of range.

    Source: *generalised* from the pair affinity of BoxInst (arXiv 2012.02310, section 3.2) and the mean field of dense
    CRFs (arXiv 1210.5644); the constants were chosen on scenes of the street world that no reported figure uses.
    """

    def __init__(
        self,
        strength: float = 2.0,
        sharpness: float = 0.35,
        iterations: int = 3,
        steps: Sequence[int] = (2, 4, 8),
        cell: int = 2,
    ) -> None:
        if cell not in (1, 2, CELL):
            raise ConfigError(f"refinement.cell: expected 1, 2 or {CELL} pixels, got {cell}")
        if min(strength, sharpness, iterations, *steps) <= 0:
            raise ConfigError("refinement: expected positive strength, sharpness, iterations and steps")
        self.strength = strength
        self.sharpness = sharpness
        self.iterations = iterations
        self.cell = cell
        self.offsets = [
            (row * step, col * step) for step in steps for row in (-1, 0, 1) for col in (-1, 0, 1) if row or col
        ]
        self.reach = max(steps)

    @torch.no_grad()
    def __call__(self, prob: Tensor, image: Tensor) -> Tensor:
        """Return refined masks.

        Args:
            prob: (K, h, w) float in [0, 1], stride 4.
            image: (3, 4 h, 4 w) uint8 RGB, the image the masks lie on.

        Returns:
            (K, h * 4 / cell, w * 4 / cell) float32 in [0, 1], stride ``cell``.

        Complexity: time O(iterations x pairs x cells around the masks), not of K full images.
        """
        factor = CELL // self.cell
        prob = prob.float()
        if factor > 1:
            prob = functional.interpolate(prob[:, None], scale_factor=factor, mode="bilinear")[:, 0]
        height, width = prob.shape[1:]
        mask, row, col = self._around(prob > POSSIBLE)
        steps = torch.tensor(self.offsets, device=prob.device)
        rows, cols = row + steps[:, :1], col + steps[:, 1:]
        onto = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        rows, cols = rows.clamp(0, height - 1), cols.clamp(0, width - 1)
        lab = rgb_to_lab(functional.avg_pool2d(image[None].float(), self.cell))[0].permute(1, 2, 0)
        distance = (lab[row, col] - lab[rows, cols]).norm(dim=-1)
        pull = self.strength * (-self.sharpness * distance).exp() * onto
        place, neighbour = (mask * height + row) * width + col, (mask * height + rows) * width + cols
        belief = prob.flatten().clone()
        unary = torch.logit(belief[place], eps=SURE)
        for _ in range(self.iterations):
            belief[place] = (unary + (pull * (2 * belief[neighbour] - 1)).sum(0)).sigmoid()
        return belief.view_as(prob)

    def _around(self, possible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mask, row and column of the cells within reach of the extent of each (K, h, w) bool map, (N,) each."""
        height, width = possible.shape[1:]
        inside = []
        for line, size in ((possible.any(2), height), (possible.any(1), width)):
            ticks = torch.arange(size, device=possible.device)
            first, last = (end[:, None] for end in extent(line))
            inside.append((ticks >= first - self.reach) & (ticks <= last + self.reach) & (first <= last))
        mask, row, col = (inside[0][:, :, None] & inside[1][:, None, :]).nonzero(as_tuple=True)
        return mask, row, col
