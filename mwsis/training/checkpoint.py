"""Checkpoints that resume exactly: weights, teacher, optimisers, vote overlay, step and configuration in one file.

Everything random in training is a pure function of (seed, step), so nothing else needs saving. Files hold tensors and
plain values only and are read with ``weights_only=True``. A disk without room for one ends the run and keeps the last.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from mwsis.core.errors import WeightMismatchError
from mwsis.core.files import atomic_write
from mwsis.core.weights import load_weights, read_checkpoint
from mwsis.training.launch import RunStopped

if TYPE_CHECKING:
    from mwsis.training.module import TrainingStep

__all__ = ["FORMAT", "read_run_checkpoint", "restore", "save"]

FORMAT = "mwsis-run-1"


def save(
    path: Path, step: TrainingStep, optimisers: dict[str, Optimizer], counts: dict[str, int], facts: dict[str, Any]
) -> None:
    """Write a checkpoint and only then let the vote history forget how to undo.

    Args:
        path: replaced in one move; a full disk keeps the previous file.
        step: student, teacher, vote history.
        optimisers: by branch.
        counts: ``global_step`` and ``skipped_steps``, optimiser steps done and those among them that changed nothing.
        facts: plain values that describe the run, ``config`` (YAML) among them.

    Raises:
        RunStopped: the file cannot be written.
    """
    votes = step.vote_history.state_dict() if step.vote_history is not None else {}
    state = {
        "format": FORMAT,
        **counts,
        "model": step.state_dict(),
        "optimisers": {name: optimiser.state_dict() for name, optimiser in optimisers.items()},
        "votes": votes,
        **facts,
    }
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):  # torch covers a full disk with an error of its own
            cause = cause.__context__
        if cause is None:
            raise
        free = shutil.disk_usage(path.parent).free
        raise RunStopped(
            f"{path}: the checkpoint of step {counts['global_step']} was not written ({cause.strerror}, "
            f"{free / 1e9:.3g} GB free), and what was there before is kept; make room, then continue with "
            f"resume={path.parent.parent}"
        ) from error
    if step.vote_history is not None:
        step.vote_history.commit()


def read_run_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the content of a checkpoint written by `save`.

    Raises:
        WeightMismatchError: no such file, or it was not written by a run of this project.
    """
    state = read_checkpoint(Path(path))
    if state.get("format") != FORMAT:
        raise WeightMismatchError(
            f"{path}: expected a checkpoint of a run (format {FORMAT}); give RUN/checkpoints/last.ckpt"
        )
    return state


def restore(state: dict[str, Any], step: TrainingStep, what: str) -> None:
    """Load weights, teacher and vote overlay.

    Raises:
        WeightMismatchError: the checkpoint belongs to another architecture.
    """
    assert isinstance(step, nn.Module)
    load_weights(step, state["model"], what)
    if step.vote_history is not None:
        step.vote_history.load_state_dict(state["votes"])
