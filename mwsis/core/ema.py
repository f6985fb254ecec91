"""The teacher: a frozen copy of the student that follows it as an exponential moving average.

A module of its own, so its weights can be evaluated, saved and exported under the student's names. Not here: how fast
it follows (`schedule.EMADecay`) and whether it runs in training mode (the published teacher does; its owner decides).
"""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn

__all__ = ["EMATeacher"]


class EMATeacher(nn.Module):
    """A copy of the student, never trained by gradients.

    Attributes:
        module: the copy, same class and parameter names as the student.

    Args:
        student: module to copy, with its weights as they are now.

    Source: mean teacher (Tarvainen and Valpola, NeurIPS 2017); MWSIS averages parameters and float buffers alike.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def update(self, student: nn.Module, decay: float) -> None:
        """Move towards the student: ``teacher = decay * teacher + (1 - decay) * student``.

        Float buffers (running statistics) are averaged too, integer buffers (counters) are copied.

        Args:
            student: the module this one was copied from, after its optimiser step, on the same device.
            decay: share of the teacher that stays, in [0, 1]; 0 copies the student exactly.
        """
        pairs = list(zip(_tensors(self.module), _tensors(student), strict=True))
        floats = [(ours, theirs) for ours, theirs in pairs if ours.is_floating_point()]
        if floats:
            followers, leaders = map(list, zip(*floats, strict=True))
            torch._foreach_lerp_(followers, leaders, 1 - decay)
        for ours, theirs in pairs:
            if not ours.is_floating_point():
                ours.copy_(theirs)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach() for tensor in chain(module.parameters(), module.buffers())]
