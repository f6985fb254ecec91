"""Kill a tiny training with SIGKILL again and again, resume it each time, and compare its end with one left alone.

uv run python -m tests.training.kill_stress KILLS PROCESSES FOLDER
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mwsis.training.callbacks import read_losses
from mwsis.training.checkpoint import read_run_checkpoint
from mwsis.training.folder import RunFolder

PROJECT = Path(__file__).resolve().parents[2]
STEPS_A_LIFE = 3
"""A life is ended after one to so many steps more than any before, or while it starts."""


@dataclass
class Death:
    """How a training ended after one of its processes was killed.

    Attributes:
        rank: of the killed process.
        code: exit code of the command.
        seconds: from the kill to the end of the command.
        said: its standard error.
    """

    rank: int
    code: int
    seconds: float
    said: str


def stress(folder, cache, num_kills, num_processes=1, seed=0, say=lambda line: None):
    """Return the deaths of the training ``folder/killed``, which ended as ``folder/whole`` did."""
    whole, killed = RunFolder(Path(folder) / "whole"), RunFolder(Path(folder) / "killed")
    settings = [
        "experiment=smoke",
        f"data.cache={cache}",
        f"trainer.max_steps={STEPS_A_LIFE * num_kills + 6}",
        "trainer.checkpoint_every=2",
        "trainer.frames_per_step=2",
        "trainer.report_frames=0",
        "data.cameras_per_frame=1",
        f"trainer.devices={num_processes}",
    ]
    assert finish(command(whole, settings)) == 0
    draw, deaths, reached = random.Random(seed), [], 0
    for number in range(num_kills):
        reached += draw.randint(1, STEPS_A_LIFE)
        until = None if draw.random() < 0.25 else reached
        deaths.append(one_life(command(killed, settings), killed, until, draw, num_processes))
        where = "while it started" if until is None else f"in or after step {until}"
        say(f"kill {number + 1}: process {deaths[-1].rank} {where}, over after {deaths[-1].seconds:.1f} s")
    assert finish(command(killed, settings)) == 0
    assert_same_end(whole, killed)
    scores = [json.loads(one.metrics.read_text()) | {"wall_s": None} for one in (whole, killed)]
    assert scores[0] == scores[1]
    return deaths


def command(folder, settings):
    place = [f"resume={folder.root}"] if folder.config.is_file() else [*settings, f"out={folder.root}"]
    return [sys.executable, "tools/train.py", *place]


def finish(arguments):
    return subprocess.run(arguments, cwd=PROJECT, stdout=subprocess.DEVNULL, check=False).returncode


def one_life(arguments, folder, until, draw, num_processes):
    """Run until a step is logged, or for some seconds, and kill one of the processes that train."""
    started = subprocess.Popen(
        arguments, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while until is not None and last_step(folder) < until:
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.02)
    time.sleep(draw.uniform(0, 6 if until is None else 0.5))
    rank = draw.randrange(num_processes)
    victim = started.pid if num_processes == 1 else children(started.pid)[rank]
    Path(f"/proc/{victim}/stat").read_text()  # it lives
    began = time.monotonic()
    subprocess.run(["kill", f"-{signal.SIGKILL:d}", str(victim)], check=True)
    said = started.communicate()[1]
    return Death(rank, started.returncode, time.monotonic() - began, said)


def children(pid):
    """Return the processes that a process has started, oldest first; one per rank."""
    deadline = time.monotonic() + 60
    found = []
    while len(found) < 2 and time.monotonic() < deadline:
        found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        time.sleep(0.02)
    return found


def last_step(folder):
    return max((step for step, *_ in read_losses(folder.losses)), default=-1) if folder.losses.is_file() else -1


def assert_same_end(first, second):
    """Hold two runs to the same bits: weights, teacher, optimisers, votes, logged losses."""
    states = [read_run_checkpoint(one.checkpoint) for one in (first, second)]
    for part in ("global_step", "skipped_steps", "model", "optimisers"):
        assert_same(states[0][part], states[1][part], part)
    if first.votes.exists():
        assert first.votes.read_bytes() == second.votes.read_bytes()
    assert first.losses.read_text() == second.losses.read_text()


def assert_same(first, second, name=""):
    if isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key, value in first.items():
            assert_same(value, second[key], f"{name}/{key}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), name
    else:
        assert first == second, name


if __name__ == "__main__":
    kills, processes, where = sys.argv[1:]
    stress(where, Path(where) / "cache", int(kills), int(processes), say=print)
    print(f"{kills} kills, {processes} process(es): the same end, bit for bit")
