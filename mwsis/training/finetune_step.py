"""One step of fine-tuning: a model of the LiDAR branch and its losses on given labels; no teacher, no votes.

It is run by what runs pretraining (`module.py`, `run.py`): same optimiser, checkpoints, faults.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fusion.step import Method
from fusion.vote_history import VoteHistory
from lidar.detection.detector import CenterPoint
from lidar.point_head import vote_loss
from lidar.segmentor import LidarSegmentor
from mwsis.core.distributed import everywhere
from mwsis.training import build
from mwsis.training.config import RunConfig
from mwsis.training.finetune_data import LabelledBatch

__all__ = ["FineTuningStep", "TaskLosses", "task_losses"]

TaskLosses = Callable[[LabelledBatch], dict[str, Tensor]]


class FineTuningStep(nn.Module):
    """A student and what it minimises.

    Args:
        model: the LiDAR branch, or a detector in its place.
        task_losses: of a batch, by name; connected to ``model``.
    """

    vote_history: VoteHistory | None = None

    def __init__(self, model: nn.Module, task_losses: TaskLosses) -> None:
        super().__init__()
        self.student = nn.ModuleDict({"lidar": model})
        self.task_losses = task_losses

    def losses(self, batch: LabelledBatch, progress: float, with_lidar: bool = True) -> dict[str, Tensor]:
        """Return the weighted losses of one batch; none where the branch sits the step out.

        Args:
            batch: sweeps with given labels.
            progress: share of the run already done; losses do not depend on it.
            with_lidar: whether the LiDAR branch trains in this step.
        """
        if not (with_lidar and everywhere(len(batch.points.xyz) > 0)):
            return {}
        return {f"lidar/{name}": value for name, value in self.task_losses(batch).items()}

    @torch.no_grad()
    def update_teacher(self, progress: float) -> None:
        """Do nothing: there is no teacher."""


def task_losses(run: RunConfig, model: nn.Module) -> TaskLosses:
    """Return the losses of a run's task: boxes, points with votes (``instance``), or points alone (``semantic``)."""
    assert run.finetune is not None
    if isinstance(model, CenterPoint):
        return partial(_box_losses, model)
    assert isinstance(model, LidarSegmentor)
    return partial(_point_losses, model, build.build_method(run), run.finetune.task == "instance")


def _box_losses(model: CenterPoint, batch: LabelledBatch) -> dict[str, Tensor]:
    return model.losses(batch.points, batch.gt_boxes)


def _point_losses(model: LidarSegmentor, method: Method, votes: bool, batch: LabelledBatch) -> dict[str, Tensor]:
    output = model(batch.points)
    losses = {"semantic": method.semantic(output.class_logits, batch.gt.semantic_labels, valid=output.in_range)}
    if votes:
        losses["vote"] = method.vote_weight * vote_loss(
            output.vote_encoded,
            batch.points.xyz,
            batch.gt.semantic_labels,
            batch.gt.instance_ids,
            batch.points.batch_index,
            valid=output.in_range,
        )
    return losses
