"""Mean field over colour pairs, one cell and one pair at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from camera.affinity import rgb_to_lab


def refined(
    prob: Tensor,
    image: Tensor,
    *,
    strength: float,
    sharpness: float,
    iterations: int,
    steps: tuple[int, ...],
    cell: int,
) -> Tensor:
    """Return one (h, w) mask at stride 4 refined on a (3, H, W) uint8 image, (h * 4 / cell, w * 4 / cell)."""
    if cell < 4:
        prob = functional.interpolate(prob[None, None], scale_factor=4 // cell, mode="bilinear")[0, 0]
    lab = rgb_to_lab(functional.avg_pool2d(image[None].float(), cell))[0]
    height, width = prob.shape
    belief = prob.tolist()
    for _ in range(iterations):
        after = [row.copy() for row in belief]
        for y in range(height):
            for x in range(width):
                own = min(max(float(prob[y, x]), 0.02), 0.98)
                total = math.log(own / (1 - own))
                for step in steps:
                    for dy in (-step, 0, step):
                        for dx in (-step, 0, step):
                            v, u = y + dy, x + dx
                            if (dy or dx) and 0 <= v < height and 0 <= u < width:
                                distance = float((lab[:, y, x] - lab[:, v, u]).norm())
                                total += strength * math.exp(-sharpness * distance) * (2 * belief[v][u] - 1)
                after[y][x] = 1 / (1 + math.exp(-total))
        belief = after
    return torch.tensor(belief)
