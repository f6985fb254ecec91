"""Weights of the backbone that a training starts from: a file of `tools/import_weights.py`.

Not here: other frameworks' names (`mwsis.export`). The camera's counterpart is in `camera.mmdet_weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidar.segmentor import LidarSegmentor
from mwsis.core.errors import WeightMismatchError
from mwsis.core.files import atomic_write
from mwsis.core.weights import LoadReport, load_weights, read_checkpoint

__all__ = ["MANIFEST", "NEUTRAL_FILE", "VOXEL_ENCODER", "load_lidar_weights", "save_lidar_weights"]

FORMAT = "mwsis-lidar-1"
MANIFEST, NEUTRAL_FILE = "manifest.json", "backbone.safetensors"
"""Of an export folder (`mwsis.export.folder`), from which fine-tuning starts."""
VOXEL_ENCODER = "voxel_encoder."
"""What stands before the keys of a learned voxel encoder; the backbone's keys have nothing before them."""


def save_lidar_weights(path: Path | str, network: str, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write weights that a training can start from.

    Args:
        path: the file.
        network: their ``lidar.network``.
        state: of the backbone, and of a learned voxel encoder behind `VOXEL_ENCODER`.
        facts: plain values; ``partial`` among them: whether parts of the network are left out on purpose.
    """
    with atomic_write(path) as unfinished:
        torch.save({"format": FORMAT, "network": network, "model": dict(state), **facts}, unfinished)


def load_lidar_weights(segmentor: LidarSegmentor, network: str, path: Path | str) -> LoadReport:
    """Fill backbone and voxel encoder with weights of `save_lidar_weights`; those left out on purpose stay as they are.

    Args:
        segmentor: changed in place; its head stays as it is.
        network: its ``lidar.network``.
        path: the file.

    Raises:
        WeightMismatchError: the file is none of these, or its weights are of another network.
    """
    content = read_checkpoint(path)
    if content.get("format") != FORMAT:
        raise WeightMismatchError(
            f"{path}: expected a file of tools/import_weights.py (format {FORMAT}), got keys {list(content)[:5]}"
        )
    if content["network"] != network:
        raise WeightMismatchError(f"{path}: its weights are of {content['network']}, expected {network}; set lidar")
    inner = {VOXEL_ENCODER + key: tensor for key, tensor in segmentor.encoder.state_dict().items()}
    own = {**segmentor.backbone.state_dict(), **inner}
    state = {**own, **content["model"]} if content["partial"] else content["model"]
    whole = torch.nn.ModuleDict({"backbone": segmentor.backbone, "voxel_encoder": segmentor.encoder})
    named = {key if key.startswith(VOXEL_ENCODER) else f"backbone.{key}": tensor for key, tensor in state.items()}
    return load_weights(whole, named, str(path))
