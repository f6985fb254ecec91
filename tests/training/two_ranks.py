"""Run by `test_ddp.py` in two processes: the training command, after which each process writes down what it holds."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from fusion.step import PretrainingStep
from tools import train

INTERRUPTED_STEP = 6


def main(out, mode, arguments):
    rank, held, steps = int(os.environ["RANK"]), {}, []
    update = PretrainingStep.update_teacher

    def watched_update(self, progress):
        update(self, progress)
        held.update({name: value.clone() for name, value in self.state_dict().items()})
        steps.append(progress)
        if mode == "interrupt" and rank == 1 and len(steps) == INTERRUPTED_STEP:
            os.kill(os.getpid(), signal.SIGINT)

    PretrainingStep.update_teacher = watched_update
    try:
        train.main(arguments)
    finally:
        torch.save(held, Path(out) / f"{mode}-{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
