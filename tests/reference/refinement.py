"""Mean field over colour pairs and colour counts, one cell and one pair at a time."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional

from camera.affinity import rgb_to_lab


def color_ratio(belief: list[list[float]], cubes: list[list[tuple[int, ...]]]) -> dict[tuple[int, ...], float]:
    """Return what each colour says for the object, log frequency inside over log frequency outside."""
    inside: Counter[tuple[int, ...]] = Counter()
    outside: Counter[tuple[int, ...]] = Counter()
    for belief_row, cube_row in zip(belief, cubes, strict=True):
        for value, cube in zip(belief_row, cube_row, strict=True):
            inside[cube] += value
            outside[cube] += 1 - value
    ratio = {}
    for cube in inside:
        share_inside = (inside[cube] + 0.5) / (sum(inside.values()) + 0.5)
        share_outside = (outside[cube] + 0.5) / (sum(outside.values()) + 0.5)
        ratio[cube] = min(max(math.log(share_inside / share_outside), -4.0), 4.0)
    return ratio


def refined(
    prob: Tensor,
    image: Tensor,
    *,
    strength: float,
    sharpness: float,
    color: float,
    bin_width: float,
    shrink: float,
    iterations: int,
    steps: tuple[int, ...],
    cell: int,
) -> Tensor:
    """Return one (h, w) mask at stride 4 refined on a (3, H, W) uint8 image, (h * 4 / cell, w * 4 / cell).

    All cells take part: the fast form does the same where cells above 0.1 come close to every border.
    """
    if cell < 4:
        prob = functional.interpolate(prob[None, None], scale_factor=4 // cell, mode="bilinear")[0, 0]
    lab = rgb_to_lab(functional.avg_pool2d(image[None].float(), cell))[0]
    height, width = prob.shape
    cubes = [
        [tuple(math.floor(float(value) / bin_width) for value in lab[:, y, x]) for x in range(width)]
        for y in range(height)
    ]
    belief = prob.tolist()
    for _ in range(iterations):
        ratio = color_ratio(belief, cubes)
        after = [row.copy() for row in belief]
        for y in range(height):
            for x in range(width):
                own = min(max(float(prob[y, x]), 0.02), 0.98)
                total = math.log(own / (1 - own)) - shrink + color * ratio[cubes[y][x]]
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
