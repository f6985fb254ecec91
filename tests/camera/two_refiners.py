"""Run by `test_prototypes.py` in two processes, each with half of the votes; writes down what each then holds."""

from __future__ import annotations

import os
import sys

import torch
from torch import distributed

from tests.camera.test_prototypes import refiner, votes_of_step


def main(out):
    distributed.init_process_group("gloo")
    rank, source = int(os.environ["RANK"]), refiner()
    for step in range(3):
        labels, feats = votes_of_step(step)
        half = slice(rank, None, 2)
        if step == 1:  # all votes of this step are process 1's
            half = slice(0, None) if rank else slice(0, 0)
        source._votes = [(labels[half], feats[half])]
        source.after_step()
    torch.save(source.state_dict(), f"{out}/{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
