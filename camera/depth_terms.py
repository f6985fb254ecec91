"""What a mask network learns from depth maps: how near each cell of an object's box is.

The network says so in a second output (`camera.condinst.DynamicMaskHead`, ``depth_gate``). That neighbours of equal
depth belong together is `camera.terms.Pairwise` with `camera.affinity.Depth`; matching detections by depth is
`matching.py`. Depth is asked for in training alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camera.context import MaskContext
from camera.terms import box_bands
from mwsis.core.batch import DepthMaps
from mwsis.core.distributed import normaliser

__all__ = ["DepthRegression", "nearness_in_boxes"]

NEAR, FAR = 0.05, 0.95
"""Quantiles of a box's depths that become 1 and 0."""
LEAST_CELLS = 8
"""Cells with a depth that a box needs."""
LEAST_RATIO = 0.02
"""Logarithm of the far over the near depth that a box needs: 2 % of the distance. Less is noise or nothing."""
GREY_LEVELS = 255.0


def nearness_in_boxes(depth: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return how near each cell is within the depths of its box, ``(ln z_95 - ln z) / (ln z_95 - ln z_5)`` in [0, 1].

    Args:
        depth: (G, h, w) float32, metres, above 0 where ``known``.
        known: (G, h, w) bool, the cells of each box that have a depth, background included.

    Returns:
        nearness: (G, h, w) float32, 1 at the box's nearest depths; 0 where not ``used``.
        used: (G, h, w) bool, ``known`` but in boxes with fewer than 8 cells or hardly any difference of depth.

    Complexity: O(M log M) for M known cells.

    Source: ours: over a whole image a car of 4 m at 40 m spans one grey level of 255; in its own box it spans them all.
    """
    owner = known.nonzero()[:, 0]
    logs = depth[known].log()
    order = logs.argsort()
    order = order[owner[order].argsort(stable=True)]
    count = owner.bincount(minlength=len(known))
    near, far = (_quantile(logs[order], count, share) for share in (NEAR, FAR))
    enough = (count >= LEAST_CELLS) & (far - near >= LEAST_RATIO)
    nearness = ((far[owner] - logs) / (far - near).where(enough, 1.0)[owner]).clamp(0, 1) * enough[owner]
    spread = torch.zeros_like(depth)
    spread[known] = nearness
    return spread, known & enough[:, None, None]


def _quantile(values: Tensor, count: Tensor, share: float) -> Tensor:
    """Return the quantile of each run of ascending values, between neighbours linearly; 0 of an empty run."""
    values = torch.cat([values, values.new_zeros(1)])
    place = share * (count - 1).clamp(min=0)
    low = place.long()
    first = count.cumsum(0) - count
    last = (first + count - 1).clamp(min=0)
    start, end = (values[(first + step).minimum(last)] for step in (low, low + 1))
    return torch.lerp(start, end, (place - low).to(values.dtype)).where(count > 0, 0.0)


class DepthRegression:
    """The depth output should say how near each cell of an object's box is.

    Metric maps: near and far are those of the box (`nearness_in_boxes`). Relative maps: inverse depth in grey levels
    over 255, as published.

    Args:
        weight: factor of the loss.

    Source: Pseudo-Depth (arXiv 2403.01214), depth regression ``sum_box |p - d|^2``. The mean over each object's cells,
    then over objects, is *corrected*: large objects do not decide.
    """

    name = "depth_regression"
    needs = frozenset({"depth", "depth_output"})

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, ctx: MaskContext) -> Tensor:
        """Return the mean squared error; zero, connected to the graph, without depth in any box."""
        assert ctx.depth_output is not None
        wanted, used = self._targets(ctx, ctx.depth)
        gt_index = ctx.positives.gt_index
        cells = used.flatten(1).sum(1)[gt_index]
        error = ((ctx.depth_output - wanted[gt_index]).square() * used[gt_index]).flatten(1).sum(1)
        return self.weight * (error / cells.clamp(min=1)).sum() / normaliser((cells > 0).sum())

    @torch.no_grad()
    def _targets(self, ctx: MaskContext, depth: DepthMaps) -> tuple[Tensor, Tensor]:
        """Return what the output should be on the cells of each object's box, (G, h, w), and which of them count."""
        on_row, on_col = box_bands(ctx.gt_boxes, *ctx.map_size)
        known = on_row[:, :, None] & on_col[:, None] & depth.valid[ctx.gt_image]
        value = depth.value[ctx.gt_image]
        return nearness_in_boxes(value, known) if depth.metric else (value / GREY_LEVELS, known)
