"""Two processes train what one process with the same frames trains, interrupts and skipped steps included.

Plain gradient descent, because AdamW turns the last bit of a gradient near zero into a whole step; one image size,
because a batch is padded to its largest image.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fusion.step import PretrainingStep
from mwsis.training.checkpoint import read_run_checkpoint
from mwsis.training.folder import RunFolder
from mwsis.training.launch import run_processes
from mwsis.training.run import train
from tests.training.conftest import MASK_RCNN, SIM_AT_ONCE
from tests.training.kill_stress import last_step
from tests.training.two_ranks import INTERRUPTED_STEP, SPOILT_STEP, STEPS, spoilt

PROJECT = Path(__file__).resolve().parents[2]
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
        return {(int(step), name): float(value) for step, name, value in list(csv.reader(file))[1:]}


def assert_same_losses(first, second):
    losses, others = read_losses(first), read_losses(second)
    assert losses.keys() == others.keys()
    for key, value in losses.items():
        assert others[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key


def in_two(mode, out, *arguments):
    command = [sys.executable, "-m", "tests.training.two_ranks", str(out), mode, *map(str, arguments)]
    return run_processes(command, 2)


def assert_same_weights(one, folder, mode):
    """Hold the weights of both processes, as `two_ranks` left them, against those of one process, and return these."""
    alone = read_run_checkpoint(one.checkpoint)["model"]
    first, second = (torch.load(folder / f"{mode}-{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), f"{name} differs between the processes"
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-5, msg=name)
    return alone


@pytest.fixture
def trained_in_one(tmp_path, compose_tiny, prepare_tiny, tiny_cache, monkeypatch):
    def train_one(*settings):
        """Train in one process; return its folder, that of the same run in two, and what the two are asked for."""
        run = compose_tiny(*settings)
        one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
        with monkeypatch.context() as patch:
            patch.setattr(PretrainingStep, "losses", spoilt(PretrainingStep.losses))
            assert train(run, one, prepare_tiny(run))
        monkeypatch.chdir(PROJECT)
        asked = ("experiment=smoke", f"data.cache={tiny_cache}", *settings, "trainer.devices=2", f"out={two.root}")
        return one, two, asked

    return train_one


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path, trained_in_one):
    one, two, asked = trained_in_one(*ARGUMENTS)
    assert in_two("interrupt", tmp_path, *asked) == 130  # process 1 was interrupted, and both stopped
    assert read_run_checkpoint(two.checkpoint)["global_step"] == INTERRUPTED_STEP
    assert in_two("resume", tmp_path, f"resume={two.root}") == 0
    assert two.metrics.is_file()

    assert_same_losses(one, two)
    names = {name for _, name in read_losses(one)}
    assert {"camera/ipg", "camera/from_lidar", "lidar/from_camera", "lidar/semantic", "lidar/vote"} <= names
    assert [key for key in read_losses(two) if key[0] == SPOILT_STEP] == [(SPOILT_STEP, "skipped")]
    assert one.votes.read_bytes() == two.votes.read_bytes()

    assert_same_weights(one, tmp_path, "resume")


@pytest.fixture
def trained_alike(tmp_path, trained_in_one):
    def train_both(*settings):
        """Train in one process and in two, hold losses and weights against each other, and return them."""
        one, two, asked = trained_in_one(*settings)
        assert in_two("whole", tmp_path, *asked) == 0
        assert_same_losses(one, two)
        return read_losses(two), assert_same_weights(one, tmp_path, "whole")

    return train_both


WITHOUT_METHOD = tuple(one for one in ARGUMENTS if "method." not in one)


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_paste_and_learn_prototypes_as_one(trained_alike):
    losses, weights = trained_alike(*WITHOUT_METHOD, *SIM_AT_ONCE, "camera.optim.lr=0.0001")
    assert max(value for (_, name), value in losses.items() if name == "camera/paste") > 0
    for name in ("mask_source.num_updates", "copy_paste.table", "copy_paste.place"):
        assert weights[name].any(), name


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_train_mask_rcnn_as_one(trained_alike):
    """Ten steps: later ones may differ, where rounding turns over which of two proposals is the better one."""
    masks = ("method=full", "data.supervision=masks", *MASK_RCNN)
    losses, _ = trained_alike(*masks, *WITHOUT_METHOD, "trainer.max_steps=10")
    assert max(value for (_, name), value in losses.items() if name == "camera/mask") > 0


@pytest.mark.ddp
@pytest.mark.slow
def test_a_run_continues_on_any_number_of_processes(tmp_path, compose_tiny, prepare_tiny, monkeypatch):
    run = compose_tiny(*ARGUMENTS)
    prepared = prepare_tiny(run)
    still, moved = RunFolder(tmp_path / "still"), RunFolder(tmp_path / "moved")
    assert train(run, still, prepared)

    interrupt_after(monkeypatch, 5)
    assert not train(run, moved, prepared)
    begun = moved.config.read_bytes()
    assert resumed(moved, "trainer.devices=2", interrupted_at=9) == 130
    stopped = read_run_checkpoint(moved.checkpoint)
    assert 9 < stopped["global_step"] < STEPS
    assert resumed(moved, "trainer.devices=1") == 0

    assert_same_losses(still, moved)
    assert still.votes.read_bytes() == moved.votes.read_bytes()
    ends = [read_run_checkpoint(folder.checkpoint) for folder in (still, moved)]
    for name, value in ends[0]["model"].items():
        torch.testing.assert_close(ends[1]["model"][name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert moved.config.read_bytes() == begun
    assert ends[1]["config"] == stopped["config"] == begun.decode()


def interrupt_after(monkeypatch, steps):
    update = PretrainingStep.update_teacher

    def interrupting_update(self, progress):
        update(self, progress)
        if round(progress * STEPS) == steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PretrainingStep, "update_teacher", interrupting_update)


def resumed(folder, devices, interrupted_at=None):
    """Resume a run with the command and return its exit code; SIGTERM reaches the command alone, not its processes."""
    arguments = [sys.executable, "tools/train.py", f"resume={folder.root}", devices]
    with subprocess.Popen(arguments, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        while interrupted_at is not None and last_step(folder) < interrupted_at:
            assert process.poll() is None
            time.sleep(0.05)
        if interrupted_at is not None:
            process.terminate()
        said = process.communicate()[0]
    assert (f"interrupted; continue with: uv run tools/train.py resume={folder.root}" in said) == bool(interrupted_at)
    return process.returncode
