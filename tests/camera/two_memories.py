"""Run by `test_copy_paste.py` in two processes, each with some of the images of three steps."""

from __future__ import annotations

import os
import sys

import torch
from torch import distributed

from tests.camera.test_copy_paste import entries_of_step, memory


def main(out):
    distributed.init_process_group("gloo")
    rank, kept = int(os.environ["RANK"]), memory()
    for step in range(3):
        kept._cut = entries_of_step(step)[rank::2]
        kept.after_step()
    torch.save(kept.state_dict(), f"{out}/{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
