"""Connected components from the dense distance matrix: slow and obvious."""

from __future__ import annotations

import torch
from torch import Tensor


def connected_components(positions: Tensor, radius: float, groups: Tensor | None = None) -> Tensor:
    step = positions.double()[:, None] - positions.double()[None]
    joined = (step * step).sum(-1) < radius * radius
    if groups is not None:
        joined &= groups[:, None] == groups[None]
    component = torch.full((len(positions),), -1)
    num_components = 0
    for start in range(len(positions)):
        if component[start] >= 0:
            continue
        waiting = [start]
        component[start] = num_components
        while waiting:
            for neighbour in joined[waiting.pop()].nonzero()[:, 0].tolist():
                if component[neighbour] < 0:
                    component[neighbour] = num_components
                    waiting.append(neighbour)
        num_components += 1
    return component
