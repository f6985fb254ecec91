"""Two processes train what one process with the same frames trains, interrupts included.

Plain gradient descent, because AdamW turns the last bit of a gradient near zero into a whole step; one image size,
because a batch is padded to its largest image.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch

from mwsis.training.checkpoint import read_run_checkpoint
from mwsis.training.folder import RunFolder
from mwsis.training.launch import run_processes
from mwsis.training.run import train
from tests.training.two_ranks import INTERRUPTED_STEP

PROJECT = Path(__file__).resolve().parents[2]
STEPS = 20
ARGUMENTS = (
    f"trainer.max_steps={STEPS}",
    "trainer.frames_per_step=2",
    "trainer.lidar_every=2",
    "trainer.checkpoint_every=20",
    "trainer.report_frames=0",
    "data.cameras_per_frame=1",
    "data.pad_to=[128,192]",
    "camera.optim.kind=sgd",
    "camera.optim.lr=0.001",
    "lidar.optim.kind=sgd",
    "lidar.optim.lr=0.0001",
    # all terms take part, corrected labels too
    "method.camera_terms.ipg.start=0.2",
    "+method.camera_terms.ipg.term.global_dice=true",
    "method.lidar_to_camera.start=0.3",
    "method.camera_to_lidar.start=0.3",
    "method.pvc_start=0.5",
)


def read_losses(folder):
    with open(folder.losses, newline="") as file:
        return {(step, name): float(value) for step, name, value in list(csv.reader(file))[1:]}


def in_two(mode, out, *arguments):
    command = [sys.executable, "-m", "tests.training.two_ranks", str(out), mode, *map(str, arguments)]
    return run_processes(command, 2)


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path, compose_tiny, prepare_tiny, tiny_cache, monkeypatch):
    run = compose_tiny(*ARGUMENTS)
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    assert train(run, one, prepare_tiny(run))

    monkeypatch.chdir(PROJECT)
    asked = ("experiment=smoke", f"data.cache={tiny_cache}", *ARGUMENTS, "trainer.devices=2", f"out={two.root}")
    assert in_two("interrupt", tmp_path, *asked) == 130  # process 1 was interrupted, and both stopped
    assert read_run_checkpoint(two.checkpoint)["global_step"] == INTERRUPTED_STEP
    assert in_two("resume", tmp_path, f"resume={two.root}") == 0
    assert two.metrics.is_file()

    losses, shared = read_losses(one), read_losses(two)
    assert losses.keys() == shared.keys()
    names = {name for _, name in losses}
    assert {"camera/ipg", "camera/from_lidar", "lidar/from_camera", "lidar/semantic", "lidar/vote"} <= names
    for key, value in losses.items():
        assert shared[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    assert one.votes.read_bytes() == two.votes.read_bytes()

    alone, first, second = (
        read_run_checkpoint(one.checkpoint)["model"],
        *(torch.load(tmp_path / f"resume-{rank}.pt", weights_only=True) for rank in range(2)),
    )
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), f"{name} differs between the processes"
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-5, msg=name)
