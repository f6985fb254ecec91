"""Checkpoints that resume exactly: weights, teacher, optimisers, vote overlay, step and configuration in one file.

Everything random in training is a pure function of (seed, step), so nothing else needs saving. Files hold tensors and
plain values only and are read with ``weights_only=True``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from fusion.step import PretrainingStep
from mwsis.core.errors import WeightMismatchError
from mwsis.core.files import atomic_write
from mwsis.core.weights import load_weights, read_checkpoint

__all__ = ["FORMAT", "read_run_checkpoint", "restore", "save"]

FORMAT = "mwsis-run-1"


def save(
    path: Path, step: PretrainingStep, optimisers: dict[str, Optimizer], global_step: int, facts: dict[str, Any]
) -> None:
    """Write a checkpoint and only then let the vote history forget how to undo.

    Args:
        path: replaced in one move; a full disk keeps the previous file.
        step: student, teacher, vote history.
        optimisers: by branch.
        global_step: optimiser steps done.
        facts: plain values that describe the run, ``config`` (YAML) among them.
    """
    votes = step.vote_history.state_dict() if step.vote_history is not None else {}
    state = {
        "format": FORMAT,
        "global_step": global_step,
        "model": step.state_dict(),
        "optimisers": {name: optimiser.state_dict() for name, optimiser in optimisers.items()},
        "votes": votes,
        **facts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        torch.save(state, temporary)
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


def restore(state: dict[str, Any], step: PretrainingStep, what: str) -> None:
    """Load weights, teacher and vote overlay.

    Raises:
        WeightMismatchError: the checkpoint belongs to another architecture.
    """
    load_weights(step, state["model"], what)
    if step.vote_history is not None:
        step.vote_history.load_state_dict(state["votes"])
