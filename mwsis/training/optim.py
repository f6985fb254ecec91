"""Optimisers of the two branches; the learning rate is a pure function of progress, so it needs no saved state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from mwsis.core.errors import ConfigError
from mwsis.core.schedule import one_cycle
from mwsis.training.config import BranchOptimConfig

__all__ = ["build_optimiser", "clip_gradients", "largest_gradient", "set_learning_rate"]


def build_optimiser(module: nn.Module, config: BranchOptimConfig) -> Optimizer:
    """Return SGD or AdamW over the trainable parameters; biases and norms are not decayed (*generalised*)."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.kind == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum)
    if config.kind == "adamw":
        return AdamW(groups, lr=config.lr, fused=True)
    raise ConfigError(f"optim.kind: expected 'sgd' or 'adamw', got '{config.kind}'")


def set_learning_rate(optimiser: Optimizer, config: BranchOptimConfig, progress: float) -> float:
    """Set and return the learning rate at ``progress`` of the run."""
    rate = one_cycle(progress, config.lr, config.start_factor, config.final_factor, config.rise)
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate


def clip_gradients(module: nn.Module, config: BranchOptimConfig) -> None:
    """Clip the L2 norm of one branch's gradients (MWSIS: LiDAR at 10, camera not)."""
    if config.clip_norm > 0:
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)


def largest_gradient(module: nn.Module) -> Tensor:
    """Return the largest absolute value among a module's gradients, a scalar; NaN if any is, 0 without gradients."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))
