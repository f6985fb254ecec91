"""What happens around a step: checkpoints, interrupts, the loss log; scores on the way are in `score_log.py`.

on_train_start       handlers for ctrl-C and SIGTERM are installed; under Slurm also for SIGUSR1
on_train_batch_end   losses are logged; every `every` steps, at an interrupt and at the end the run is saved
teardown             handlers are put back
"""

from __future__ import annotations

import csv
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch.utils.tensorboard import SummaryWriter

from mwsis.core.distributed import everywhere
from mwsis.core.files import atomic_write
from mwsis.training import checkpoint, launch
from mwsis.training.module import TrainingModule

__all__ = ["LossLog", "RowLog", "SaveAndStop", "read_losses", "read_rows"]


class SaveAndStop(Callback):
    """Saves the run; an interrupt saves after the step in progress and stops.

    Of several processes the first one saves, and all stop after the same step, whichever was interrupted; one whose
    starter is gone counts as interrupted. SIGUSR1 also asks Slurm to start the job again. (Lightning's own requeueing
    saves in the middle of a step, and not the votes.)

    Args:
        path: checkpoint file, replaced each time.
        every: steps between checkpoints.
        facts: plain values written into each checkpoint.
        slurm: heed SIGUSR1.
    """

    def __init__(self, path: Path, every: int, facts: dict[str, Any], slurm: bool = False) -> None:
        self.path = path
        self.every = every
        self.facts = facts
        self.interrupted = False
        self._signals = [signal.SIGINT, signal.SIGTERM] + [signal.SIGUSR1] * slurm
        self._requeue = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        done = pl_module.steps_done
        stop = not everywhere(not (self.interrupted or launch.is_orphan()))
        if stop or done % self.every == 0 or done == pl_module.max_steps:
            with launch.in_turns():
                self._save(pl_module)
        if stop:
            self.interrupted = trainer.should_stop = True
            requeue = not everywhere(not self._requeue)
            if requeue and launch.is_first():
                launch.requeue()

    def _save(self, module: TrainingModule) -> None:
        votes = module.step.vote_history
        if launch.is_first():
            counts = {"global_step": module.steps_done, "skipped_steps": module.skipped_steps}
            checkpoint.save(self.path, module.step, module.branch_optimisers, counts, self.facts)
        elif votes is not None:
            votes.commit(write=launch.is_first_of_node())

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, stack: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self._requeue = True
        elif self.interrupted:  # the second one does not wait
            raise KeyboardInterrupt
        self.interrupted = True


class RowLog:
    """A CSV file of a run whose first column is the step, continued by a resumed run.

    Rows at or after the step a run is resumed from are dropped first, so the file reads as if never interrupted. A disk
    without room for them ends the run (`launch.RunStopped`); the last checkpoint is kept.

    Args:
        path: of the file, made or continued.
        columns: their names.
        start_step: of the run.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], start_step: int) -> None:
        self.path = path
        rows = [row for row in read_rows(path, len(columns)) if row[0] < start_step] if path.exists() else []
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])

    def append(self, rows: Sequence[tuple[Any, ...]], what: str) -> None:
        """Write rows; ``what`` names them where that fails."""
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)
        except OSError as error:
            raise launch.RunStopped(
                f"{self.path}: {what} were not written ({error.strerror}); make room, then continue with "
                f"resume={self.path.parent}"
            ) from error


class LossLog(Callback):
    """Writes every loss to ``losses.csv`` (`RowLog`: step, name, value) and to TensorBoard, and every skipped step."""

    def __init__(self, folder: Path, start_step: int, every: int) -> None:
        self.every = every
        self.rows = RowLog(folder / "losses.csv", ("step", "name", "value"), start_step)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = pl_module.steps_done - 1
        if step % self.every and "skipped" not in outputs:
            return
        rows = [(step, name, float(value)) for name, value in outputs.items()]
        self.rows.append(rows, f"the losses of step {step}")
        for _, name, value in rows:
            self.board.add_scalar(name, value, step)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self.board.close()


def read_losses(path: Path) -> list[tuple[int, str, float]]:
    """Return the rows (step, name, value) of a loss log; a last line cut short by a crash is left out."""
    return read_rows(path, 3)


def read_rows(path: Path, num_columns: int) -> list[tuple[Any, ...]]:
    """Return the rows of a log, the first column as int, the last as float, those between as text.

    A last line cut short by a crash is left out.
    """
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        for row in list(csv.reader(file))[1:]:
            if len(row) == num_columns and row[-1]:
                rows.append((int(row[0]), *row[1:-1], float(row[-1])))
    return rows
