"""Lightning wiring, nothing else: a backward pass per part of a step, a clip and a step per branch, the teacher.

Several processes average their gradients once, after the backward pass, instead of through torch's DDP wrapper: which
parameters a step reaches differs between processes (no object in one's images) and between steps (`lidar_every`), and
the exchanges of shared batch norms must not mix with those of a wrapper.

What is optimised is a `TrainingStep`: `fusion.step`, or `finetune_step.py` after it; why a run can be interrupted
anywhere is `checkpoint.py` and `callbacks.py`.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fusion.vote_history import VoteHistory
from mwsis.core.batch import move
from mwsis.core.distributed import average_gradients, gather, mean_over_processes
from mwsis.training import launch
from mwsis.training.config import BranchOptimConfig, TrainerConfig
from mwsis.training.optim import build_optimiser, clip_gradients, largest_gradient, set_learning_rate

__all__ = ["TrainingModule", "TrainingStep"]


class TrainingStep(Protocol):
    """An `nn.Module` that this machinery can train.

    Attributes:
        student: trained by gradient; its attributes named after the optimised branches are those branches.
        vote_history: see `fusion.step.PretrainingStep`; None where there is none.
    """

    @property
    def student(self) -> nn.Module: ...
    @property
    def vote_history(self) -> VoteHistory | None: ...

    def losses(self, batch: Any, progress: float, with_lidar: bool = True) -> dict[str, Tensor]:
        """Return the weighted losses of one batch; their sum is what the student minimises."""
        ...

    def update_teacher(self, progress: float) -> None:
        """Follow the student after an optimiser step."""
        ...

    def state_dict(self) -> dict[str, Any]: ...


class TrainingModule(lightning.LightningModule):
    """Trains the student of a `TrainingStep`.

    A step with a loss or gradient that is not finite, on any process, is skipped on all: weights, optimisers, teacher
    and running statistics stay as they were. It still counts as a step, so that all others see what they would have
    seen. The teacher's votes on its points stay: they were cast before, by other weights.

    Args:
        step: student, teacher, losses.
        optim: optimiser settings by branch.
        trainer: length of the run, how often the LiDAR branch trains, how many steps may be skipped.
        resumed: the checkpoint that the run continues from.

    Attributes:
        skipped_steps: those of ``steps_done`` that changed nothing.
    """

    def __init__(
        self,
        step: TrainingStep,
        optim: dict[str, BranchOptimConfig],
        trainer: TrainerConfig,
        resumed: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        resumed = resumed or {}
        self.step = step
        self.optim = optim
        self.max_steps = trainer.max_steps
        self.lidar_every = trainer.lidar_every
        self.max_skipped_steps = trainer.max_skipped_steps
        self.start_step: int = resumed.get("global_step", 0)
        self.skipped_steps: int = resumed.get("skipped_steps", 0)
        self.optimiser_states: dict[str, Any] = resumed.get("optimisers", {})
        self.branch_optimisers: dict[str, Optimizer] = {}

    @property
    def steps_done(self) -> int:
        """Optimiser steps since the start of the run, resumed or not."""
        return self.start_step + self.global_step

    def configure_optimizers(self) -> list[Optimizer]:
        for branch, config in self.optim.items():
            optimiser = build_optimiser(getattr(self.step.student, branch), config)
            if branch in self.optimiser_states:
                optimiser.load_state_dict(self.optimiser_states[branch])
            self.branch_optimisers[branch] = optimiser
        return list(self.branch_optimisers.values())

    def training_step(self, parts: list[Any], batch_index: int) -> dict[str, Tensor]:
        """Return the losses of the step over all parts and processes, or ``skipped`` in their place."""
        progress = self.steps_done / self.max_steps
        statistics = [buffer.clone() for buffer in self.step.student.buffers()]
        losses = mean_over_processes(self._backward(parts, progress))
        average_gradients(self.step.student.parameters())
        # Averages are the same on all processes, so they agree.
        finite = bool(torch.isfinite(losses["loss"] + largest_gradient(self.step.student)))
        if not finite:
            self._skip(losses, parts, statistics)
            losses = {"skipped": losses["loss"].new_ones(())}
        self._optimise(progress)  # a skipped step has no gradients: nothing moves, but Lightning counts it
        if finite:
            self.step.update_teacher(progress)
        return losses

    def _backward(self, parts: list[Any], progress: float) -> dict[str, Tensor]:
        """Add up the gradients of this process's parts and return their mean losses.

        Losses divide by the counts of their part (`mwsis.core.distributed.normaliser`), since those of the later parts
        are not known yet; so do all parts alike, however many objects they hold.
        """
        for optimiser in self.branch_optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        means: dict[str, Tensor] = {"loss": torch.zeros((), device=self.device)}
        for part in parts:
            losses = self.step.losses(part, progress, with_lidar=self.steps_done % self.lidar_every == 0)
            total = sum(losses.values(), torch.zeros((), device=self.device)) / len(parts)
            if total.requires_grad:  # not where a LiDAR-only run skips its branch
                self.manual_backward(total)
            means["loss"] += total.detach()
            for name, value in losses.items():
                means[name] = means.get(name, 0) + value.detach() / len(parts)
        return means

    @torch.no_grad()
    def _skip(self, losses: dict[str, Tensor], parts: list[Any], statistics: list[Tensor]) -> None:
        """Undo what the forward pass changed, drop the gradients and say so; end the run when it was one too many."""
        frames = [frame for own in gather([part.frame_ids for part in parts]) for part in own for frame in part]
        wrong = ", ".join(self._not_finite(losses)[:5])
        what = f"step {self.steps_done}: {wrong} not finite on frames {', '.join(frames)}"
        for buffer, kept in zip(self.step.student.buffers(), statistics, strict=True):
            buffer.copy_(kept)
        for optimiser in self.branch_optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        self.skipped_steps += 1
        if self.skipped_steps > self.max_skipped_steps:
            raise launch.RunStopped(
                f"{what}; that makes {self.skipped_steps} such steps, more than "
                f"trainer.max_skipped_steps={self.max_skipped_steps}; start again with a lower learning rate"
                if launch.is_first()
                else ""
            )
        if launch.is_first():
            sys.stderr.write(f"\nskipped {what}\n")

    def _not_finite(self, losses: dict[str, Tensor]) -> list[str]:
        """Return the names of the losses that are not finite, of the gradients where all losses are."""
        gradients = {
            f"the gradient of {name}": one.grad
            for name, one in self.step.student.named_parameters()
            if one.grad is not None
        }
        terms = {name: value for name, value in losses.items() if name != "loss"}
        for values in (terms, gradients):
            wrong = [name for name, value in values.items() if not bool(value.isfinite().all())]
            if wrong:
                return wrong
        return ["the sum of the losses"]

    def _optimise(self, progress: float) -> None:
        for branch, optimiser in self.branch_optimisers.items():
            clip_gradients(getattr(self.step.student, branch), self.optim[branch])
            set_learning_rate(optimiser, self.optim[branch], progress)
        # Lightning counts a step per wrapped optimiser; only the first is stepped through its wrapper.
        wrapped = self.optimizers()
        counting, *others = wrapped if isinstance(wrapped, list) else [wrapped]
        counting.step()
        for other in others:
            other.optimizer.step()

    def transfer_batch_to_device(self, batch: list[Any], device: torch.device, dataloader_idx: int) -> list[Any]:
        return [move(part, device) for part in batch]
