"""Scores on the way: teacher and student on a few validation frames, several times during a run.

They show whether the teacher leads the student and whether a longer run would pay; the scores of the whole split are
`evaluate.py`'s. Scoring draws no random number and leaves every weight, statistic and mode as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import nn

from fusion.segmentor import MultimodalSegmentor
from fusion.step import PretrainingStep
from mwsis.evaluation.predictions import SplitScores
from mwsis.training import build
from mwsis.training.callbacks import RowLog, read_rows
from mwsis.training.config import RunConfig
from mwsis.training.inference import predict
from mwsis.training.module import TrainingModule
from mwsis.training.prepare import Prepared, ring_classes

__all__ = ["ScoreLog", "is_due", "read_scores"]

COLUMNS = ("step", "network", "branch", "name", "value")
HEADLINES = {"camera": ("mask_ap50", "matched_mask_iou"), "lidar": ("instance_ap50", "miou")}
"""The scores that are kept, by branch."""


class ScoreLog(Callback):
    """Writes headline scores of teacher and student to ``scores.csv`` (step, network, branch, name, value).

    A row's step is the last one taken, counted from 0 as in ``losses.csv``, whose rules hold (`RowLog`): to be called
    before the run is saved, so that what is scored once is not lost. Nothing is written where there is no ground truth.
    A method without a teacher has rows of the student only. Where several processes train, one of them scores and the
    others wait.

    Args:
        path: of the file.
        run: configuration; ``trainer.score_every`` says when, ``trainer.score_frames`` on how many frames.
        prepared: its validation split is scored on, on frames evenly spread.
    """

    def __init__(self, path: Path, run: RunConfig, prepared: Prepared) -> None:
        self.path, self.run, self.prepared = path, run, prepared
        available = len(prepared.val.frames)
        count = min(run.trainer.score_frames, available)
        self.frames = [number * available // count for number in range(count)]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.rows = RowLog(self.path, COLUMNS, pl_module.start_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step, done = pl_module.step, pl_module.steps_done
        if not is_due(done, pl_module.max_steps, self.run.trainer.score_every):
            return
        assert isinstance(step, PretrainingStep)
        student = step.student
        models = {"student": student} if step.teacher is None else {"teacher": step.teaching_model, "student": student}
        rows = [(done - 1, name, *row) for name, model in models.items() for row in self._scores(model)]
        self.rows.append(rows, f"the scores after step {done - 1}")

    def _scores(self, model: MultimodalSegmentor) -> Iterator[tuple[str, str, float]]:
        """Yield branch, name and value of each headline score there is."""
        split, run = self.prepared.val, self.run
        frames, labels = [split.frames[row] for row in self.frames], [split.labels[row] for row in self.frames]
        rsc = ring_classes(run) if run.method.rsc else ()
        scores = SplitScores(self.prepared.source.class_names)
        with modes_kept(model):
            for prediction in predict(model, frames, labels, build.build_transform(run, augment=False), rsc):
                scores.add(prediction)
        found: Mapping[str, Any] = scores.compute()
        for branch, names in HEADLINES.items():
            for name in names:
                value = (found[branch] or {}).get(name)
                if value is not None:
                    yield branch, name, value


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every part of a model back into the mode (training or evaluation) that it is in now."""
    modes = [(part, part.training) for part in model.modules()]
    yield
    for part, training in modes:
        part.training = training


def is_due(done: int, max_steps: int, every: float) -> bool:
    """Return whether a run scores after ``done`` of its steps: at each multiple of ``every``, a share of the run.

    A multiple between two steps counts for the later one.
    """
    passed, before = (math.floor(steps / max_steps / every + 1e-9) for steps in (done, done - 1))
    return passed > before


def read_scores(path: Path) -> list[dict[str, Any]]:
    """Return the rows of ``scores.csv`` by column; none where there is no file."""
    return [dict(zip(COLUMNS, row, strict=True)) for row in read_rows(path, len(COLUMNS))] if path.exists() else []
