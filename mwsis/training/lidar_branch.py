"""The LiDAR branch of a run, from its configuration or from a checkpoint; imports nothing of cameras and trainers."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import get_method
from torch import nn

from lidar.segmentor import LidarSegmentor, build_lidar_segmentor
from lidar.start_weights import load_lidar_weights
from mwsis.core.weights import load_weights
from mwsis.training.config import NETWORKS, RunConfig

__all__ = ["build_lidar", "set_bn_momentum", "trained_lidar"]

LIDAR_SEED = 2
PREFIXES = {"teacher": "teacher.module.lidar.", "student": "student.lidar."}
"""Of the branch's tensors in a checkpoint (`fusion.step.PretrainingStep`)."""


def build_lidar(run: RunConfig, num_classes: int, start: bool = True) -> LidarSegmentor:
    """Return the untrained branch; its seed is its own.

    Args:
        run: configuration.
        num_classes: C.
        start: load the weights a new run starts from (``lidar.weights``); false where those of a checkpoint follow.

    Raises:
        ConfigError, WeightMismatchError: a setting does not fit the others, or such weights are not there or not its.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed * 10 + LIDAR_SEED)
        lidar = build_lidar_segmentor(
            get_method(NETWORKS[run.lidar.network]),
            num_classes,
            voxel_size=tuple(run.lidar.voxel_size),
            point_cloud_range=tuple(run.data.point_cloud_range),
            hidden=run.lidar.hidden,
            prior=run.lidar.prior,
            radii=tuple(run.data.radii),
            min_points=run.lidar.min_points,
        )
    set_bn_momentum(lidar, run.lidar.bn_momentum)
    if start and run.lidar.weights is not None:
        load_lidar_weights(lidar, run.lidar.network, run.lidar.weights)
    return lidar


def trained_lidar(state: dict[str, Any], run: RunConfig, weights: str, what: str) -> LidarSegmentor:
    """Return the branch of a checkpoint, in training mode.

    Args:
        state: the checkpoint.
        run: its configuration, which trained a LiDAR branch.
        weights: ``teacher`` (the student where the run had none) or ``student``.
        what: the checkpoint's name in errors.

    Raises:
        WeightMismatchError: its weights do not fit its configuration.
    """
    prefix = PREFIXES[weights if run.method.ema else "student"]
    lidar = build_lidar(run, len(state["class_names"]), start=False)
    own = {name.removeprefix(prefix): state["model"][name] for name in state["model"] if name.startswith(prefix)}
    load_weights(lidar, own, what)
    return lidar


def set_bn_momentum(module: nn.Module, momentum: float) -> None:
    """Let running statistics follow the batch by ``momentum`` (torch's meaning) in all batch norms of a module."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.momentum = momentum
