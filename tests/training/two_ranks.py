"""Run by `test_ddp.py` in two processes: the training command, after which each process writes down what it holds."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from fusion.step import PretrainingStep
from tools import train

STEPS = 20
SPOILT_STEP = 4
"""Its losses are not finite, on process 1 only."""
INTERRUPTED_STEP = 6


def spoilt(losses):
    """Return `PretrainingStep.losses` with one step that is not finite."""

    def spoilt_losses(self, batch, progress, with_lidar=True):
        found = losses(self, batch, progress, with_lidar)
        factor = float("nan") if round(progress * STEPS) == SPOILT_STEP else 1.0
        return {name: value * factor for name, value in found.items()}

    return spoilt_losses


def main(out, mode, arguments):
    rank, held = int(os.environ["RANK"]), {}
    update = PretrainingStep.update_teacher

    def watched_update(self, progress):
        update(self, progress)
        held.update({name: value.clone() for name, value in self.state_dict().items()})
        if mode == "interrupt" and rank == 1 and round(progress * STEPS) == INTERRUPTED_STEP - 1:
            os.kill(os.getpid(), signal.SIGINT)

    PretrainingStep.update_teacher = watched_update
    if rank == 1:
        PretrainingStep.losses = spoilt(PretrainingStep.losses)
    try:
        train.main(arguments)
    finally:
        torch.save(held, Path(out) / f"{mode}-{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
