"""Lightning wiring, nothing else: one backward, a clip and a step per branch, the teacher, the log.

Several processes average their gradients once, after the backward pass, instead of through torch's DDP wrapper: which
parameters a step reaches differs between processes (no object in one's images) and between steps (`lidar_every`), and
the exchanges of shared batch norms must not mix with those of a wrapper.

What is optimised is `fusion.step`; why a run can be interrupted anywhere is `checkpoint.py` and `callbacks.py`.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer

from fusion.step import PretrainingStep
from mwsis.core.batch import Batch, move
from mwsis.core.distributed import average_gradients, mean_over_processes
from mwsis.training.config import BranchOptimConfig
from mwsis.training.optim import build_optimiser, clip_gradients, set_learning_rate

__all__ = ["PretrainingModule"]


class PretrainingModule(lightning.LightningModule):
    """Trains the student of a `PretrainingStep`.

    Args:
        step: student, teacher, losses.
        optim: optimiser settings by branch.
        max_steps: length of the whole run in optimiser steps.
        lidar_every: the LiDAR branch trains on every k-th step.
        start_step: steps already done when the run was resumed.
        optimiser_states: saved states by branch, for a resumed run.
    """

    def __init__(
        self,
        step: PretrainingStep,
        optim: dict[str, BranchOptimConfig],
        max_steps: int,
        lidar_every: int = 1,
        start_step: int = 0,
        optimiser_states: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.step = step
        self.optim = optim
        self.max_steps = max_steps
        self.lidar_every = lidar_every
        self.start_step = start_step
        self.optimiser_states = optimiser_states or {}
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

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        progress = self.steps_done / self.max_steps
        losses = self.step.losses(batch, progress, with_lidar=self.steps_done % self.lidar_every == 0)
        total = sum(losses.values(), torch.zeros((), device=self.device))
        if not bool(torch.isfinite(total)):
            wrong = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
            raise FloatingPointError(f"step {self.steps_done}: {', '.join(wrong)} not finite on {batch.frame_ids}")
        self._optimise(total, progress)
        self.step.update_teacher(progress)
        return mean_over_processes({"loss": total.detach(), **{name: value.detach() for name, value in losses.items()}})

    def _optimise(self, total: Tensor, progress: float) -> None:
        for optimiser in self.branch_optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        if total.requires_grad:  # not where a LiDAR-only run skips its branch
            self.manual_backward(total)
        average_gradients(self.step.student.parameters())
        for branch, optimiser in self.branch_optimisers.items():
            clip_gradients(getattr(self.step.student, branch), self.optim[branch])
            set_learning_rate(optimiser, self.optim[branch], progress)
        # Lightning counts a step per wrapped optimiser; only the first is stepped through its wrapper.
        wrapped = self.optimizers()
        counting, *others = wrapped if isinstance(wrapped, list) else [wrapped]
        counting.step()
        for other in others:
            other.optimizer.step()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return move(batch, device)
