"""Train a run, from its first step or from where it was interrupted: Lightning around `fusion.step`, or any step.

Before: `folder.py` (where it is kept), `prepare.py` (frames and labels). After: `evaluate.py`.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset

from fusion.segmentor import MultimodalSegmentor
from fusion.step import PretrainingStep
from fusion.vote_history import VoteHistory
from mwsis.core.distributed import num_processes, process_rank, share_batch_norms, share_state
from mwsis.data.dataset import FrameDataset, collate
from mwsis.data.sampler import ResumableSampler
from mwsis.data.source import Source
from mwsis.training import build, checkpoint, launch
from mwsis.training.batching import collate_padded
from mwsis.training.callbacks import LossLog, SaveAndStop
from mwsis.training.config import RunConfig
from mwsis.training.folder import RunFolder
from mwsis.training.module import TrainingModule, TrainingStep
from mwsis.training.prepare import Prepared
from mwsis.training.score_log import ScoreLog

__all__ = ["build_step", "fit", "load_run", "train"]

Join = Callable[[list[Any]], Any]


def train(run: RunConfig, folder: RunFolder, prepared: Prepared) -> bool:
    """Train from 2D boxes, or continue, until ``trainer.max_steps``; see `fit`."""
    samples = FrameDataset(
        prepared.train.frames, prepared.train.labels, build.build_transform(run, augment=True), run.seed
    )
    join = partial(collate_padded, size=tuple(run.data.pad_to)) if run.data.pad_to else collate
    log = [ScoreLog(folder.scores, run, prepared)] if run.trainer.score_every and launch.is_first() else []
    return fit(run, folder, prepared.source, partial(build_step, run, prepared, folder), samples, join, log)


def fit(
    run: RunConfig,
    folder: RunFolder,
    source: Source,
    new_step: Callable[[], TrainingStep],
    samples: Dataset[Any],
    join: Join,
    after_steps: Sequence[Callback] = (),
) -> bool:
    """Train, or continue, until ``trainer.max_steps``; each of several processes calls this (`launch.join`).

    Args:
        run: configuration.
        folder: where the run is kept.
        source: the data set, for the facts in a checkpoint.
        new_step: makes the untrained step, a function of the configuration alone.
        samples: F training samples by (index, position), see `ResumableSampler`.
        join: makes a batch, with ``frame_ids``, of some samples.
        after_steps: called after each step, before the run is saved.

    Returns:
        True when the run is complete, False when it was interrupted and can be resumed.

    Raises:
        RunStopped: the machine, or losses that are not finite, ended it.
    """
    torch.manual_seed(run.seed)
    # Makes CPU threads add in one order; without it a resumed run could differ in the last bit.
    torch.use_deterministic_algorithms(run.trainer.accelerator == "cpu")
    # The fill of new memory that comes with it is a debugging aid and costs a fifth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with launch.in_turns():
        folder.keep_config(run)
        step, state = _restored_step(new_step, folder)
    module = TrainingModule(step, build.optim_settings(run), run.trainer, state)
    start_step = module.start_step
    if start_step >= run.trainer.max_steps:
        return True
    if run.trainer.shared_norms:
        share_batch_norms(step.student)
    facts = {
        "config": folder.config.read_text(encoding="utf-8"),  # as it was begun, whatever it is resumed on
        "class_names": list(source.class_names),
        "data_fingerprint": source.fingerprint(),
    }
    save_and_stop = SaveAndStop(folder.checkpoint, run.trainer.checkpoint_every, facts, run.trainer.slurm)
    with _faults_explained(run.trainer.workers, folder):
        _trainer(run, folder, start_step, [*after_steps, save_and_stop]).fit(
            module, _loader(run, samples, join, start_step)
        )
    return not save_and_stop.interrupted


@contextmanager
def _faults_explained(workers: int, folder: RunFolder) -> Iterator[None]:
    """Say in a sentence what a machine can do to a run in training; other errors pass as they are."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split()).rstrip(".")
        if text.startswith("DataLoader worker (pid"):
            what = f"a process that loads frames ended ({text}); if memory ran out, lower trainer.workers={workers}"
        elif isinstance(error, torch.distributed.DistError) or "gloo/" in text:
            what = f"process {process_rank()} lost another one, which ended or cannot be reached ({text})"
        else:
            raise
        raise launch.RunStopped(f"{what}; continue with resume={folder.root}") from error


def _restored_step(
    new_step: Callable[[], TrainingStep], folder: RunFolder
) -> tuple[TrainingStep, dict[str, Any] | None]:
    """Return the step and the checkpoint it continues from; the votes of a new run are emptied."""
    state = checkpoint.read_run_checkpoint(folder.checkpoint) if folder.checkpoint.exists() else None
    step = new_step()
    if state:
        checkpoint.restore(state, step, str(folder.checkpoint))
    elif step.vote_history is not None and launch.is_first_of_node():
        step.vote_history.reset()
    return step, state


def build_step(run: RunConfig, prepared: Prepared, folder: RunFolder) -> PretrainingStep:
    """Return student, teacher and losses of a run, untrained."""
    student = build.build_segmentor(run, prepared.num_classes, start=not folder.checkpoint.exists())
    method = build.build_method(run)
    votes = None
    if method.record_votes_from is not None:
        votes = VoteHistory(_votes_path(folder), prepared.train.frames.num_points, prepared.num_classes)
    return PretrainingStep(student, method, prepared.num_classes, votes)


def _votes_path(folder: RunFolder) -> Path:
    """Return this machine's vote history: the run's, or on further machines a copy, since they do not share memory.

    Every process knows all votes (`fusion.step`); the first of each machine writes that machine's file.
    """
    if int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))) == 0:
        return folder.votes
    copy = Path(tempfile.gettempdir()) / f"mwsis-{folder.root.name}-{folder.votes.name}"
    if launch.is_first_of_node():
        shutil.copyfile(folder.votes, copy)
    return copy


def load_run(
    state: dict[str, Any], run: RunConfig, num_classes: int, what: str
) -> tuple[MultimodalSegmentor, MultimodalSegmentor]:
    """Return (teacher, student) of a checkpoint; the same object twice when the run had no teacher.

    Raises:
        WeightMismatchError: the checkpoint's weights do not fit its configuration.
    """
    step = PretrainingStep(build.build_segmentor(run, num_classes, start=False), build.build_method(run), num_classes)
    checkpoint.restore(state, step, what)
    return step.teaching_model, step.student


def _loader(run: RunConfig, samples: Dataset[Any], join: Join, start_step: int) -> DataLoader[Any]:
    frames_per_step, shares, num_parts = run.trainer.frames_per_step, num_processes(), run.trainer.accumulate
    positions, start = run.trainer.max_steps * frames_per_step, start_step * frames_per_step
    num_frames = len(samples)  # type: ignore[arg-type]
    sampler = ResumableSampler(num_frames, positions, run.seed, start, process_rank(), shares)
    return DataLoader(
        samples,
        batch_size=frames_per_step // shares,
        sampler=sampler,
        num_workers=run.trainer.workers,
        collate_fn=partial(_in_parts, num_parts=num_parts, join=join),
        worker_init_fn=_leave_signals_alone,
    )


def _in_parts(samples: list[Any], num_parts: int, join: Join) -> list[Any]:
    """Return the batches of one step, in the order of the samples."""
    size = len(samples) // num_parts
    return [join(samples[start : start + size]) for start in range(0, len(samples), size)]


def _leave_signals_alone(worker: int) -> None:
    """Let a worker go on when ctrl-C or Slurm signals the whole group: the process that trains still takes a step."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _trainer(run: RunConfig, folder: RunFolder, start_step: int, after_steps: Sequence[Callback]) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    callbacks: list[Callback] = [TQDMProgressBar(refresh_rate=5), *after_steps]
    if launch.is_first():
        callbacks.insert(1, LossLog(folder.root, start_step, run.trainer.log_every))
    return lightning.Trainer(
        accelerator=run.trainer.accelerator,
        devices=run.trainer.devices,
        num_nodes=run.trainer.nodes,
        strategy=_Unwrapped() if num_processes() > 1 else "auto",
        plugins=[LightningEnvironment()],
        use_distributed_sampler=False,
        max_steps=run.trainer.max_steps - start_step,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=folder.root,
    )


class _Unwrapped(DDPStrategy):
    """Processes that begin with the same weights; their gradients are averaged by the module itself (`module.py`)."""

    def configure_ddp(self) -> None:
        assert self.model is not None
        share_state(self.model)
