"""The export folder: every target's file, a neutral safetensors file, and a manifest that says what they are.

The manifest holds what a user needs to feed the backbone the right numbers (grid, features, units, transforms) and to
tell which training it came from. Each file is written atomically and the manifest last: where a manifest is, the
folder is complete. Not here: how a target names its weights (`openpcdet.py`, `adapter.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lidar.unet_v2 import BN_EPS, BN_MOMENTUM
from lidar.voxelize import Voxelizer
from mwsis.core.errors import ConfigError
from mwsis.core.files import atomic_write, write_json
from mwsis.export.adapter import WeightAdapter, backbone_state, tensor_sha256, untrained_layers
from mwsis.export.openpcdet import UNET_V2, VOXEL_BACKBONE_8X

__all__ = ["ADAPTERS", "FORMAT_VERSION", "NEUTRAL", "ExportFacts", "NeutralAdapter", "export_backbone", "licence_note"]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

FEATURES = (
    {"name": "x", "unit": "m", "transform": "none"},
    {"name": "y", "unit": "m", "transform": "none"},
    {"name": "z", "unit": "m", "transform": "none"},
    {"name": "intensity", "unit": "1", "transform": "tanh(recorded intensity)"},
    {"name": "elongation", "unit": "1", "transform": "none; 0 where the sensor has none"},
)

WAYMO_NOTE = (
    "Trained on the Waymo Open Dataset: the Waymo Dataset License Agreement covers these weights too. Most open-source "
    "detectors decline to publish Waymo-trained weights because of it. Do not upload these files before reading it."
)
OTHER_NOTE = "The licence of the training data set applies to weights trained on it; check it before you publish them."


def licence_note(data_set: str) -> str:
    """Return what the manifest says about passing the weights on.

    Args:
        data_set: name of the training data set.

    Returns:
        One or two sentences.
    """
    return WAYMO_NOTE if "waymo" in data_set.lower() else OTHER_NOTE


@dataclass(frozen=True)
class ExportFacts:
    """What the manifest states about a backbone beside its weights.

    Attributes:
        voxel_size: x, y, z, metres.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres, vehicle frame.
        class_names: classes of the training labels, by index.
        weights_of: ``"teacher"`` (moving average) or ``"student"``.
        step: optimiser steps taken.
        data_set: name of the training data set.
        data_fingerprint: of its content and settings.
        config_hash: of the resolved configuration.
        seed: of the training run.
        label_type: what the labels were made from, in words (`mwsis.training.evaluate.labels_used`).
        coordinate_frame: axes and origin of x, y, z (KITTI: its velodyne frame, 1.73 m above the ground).
        point_filter: which points the network was trained on.
        metrics: the last evaluation's numbers by name.
        git_commit: of the code that trained, "" unknown.
        notes: anything else, by name.
    """

    voxel_size: tuple[float, float, float]
    point_cloud_range: tuple[float, float, float, float, float, float]
    class_names: tuple[str, ...]
    weights_of: str
    step: int
    data_set: str
    data_fingerprint: str
    config_hash: str
    seed: int
    label_type: str
    coordinate_frame: str = "vehicle: x forward, y left, z up, origin on the ground under the vehicle"
    point_filter: str = "all points in point_cloud_range"
    metrics: Mapping[str, float] = field(default_factory=dict)
    git_commit: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weights_of not in ("teacher", "student"):
            raise ConfigError(f"weights_of: expected 'teacher' or 'student', got '{self.weights_of}'")


@dataclass(frozen=True)
class NeutralAdapter:
    """A safetensors file with our own keys, which are UNetV2's."""

    file_name: str = "backbone.safetensors"
    framework: str = "any"
    target_class: str = "UNetV2"
    layout: str = "KRSC"
    prefix: str = ""

    def to_target(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state as it is."""
        return dict(state)

    def from_target(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights as they are."""
        return dict(weights)

    def write(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Write the tensors, which must be contiguous and on the CPU."""
        # A second metadata entry would be written in any order; save_file would make the file private to its owner.
        path.write_bytes(save(dict(weights), metadata={"format": "pt"}))

    def read(self, path: Path) -> dict[str, Tensor]:
        """Return all tensors of the file, on the CPU."""
        return dict(load_file(path))


NEUTRAL = NeutralAdapter()
ADAPTERS: tuple[WeightAdapter, ...] = (UNET_V2, VOXEL_BACKBONE_8X, NEUTRAL)
"""The targets `export_backbone` writes."""


def export_backbone(
    backbone: nn.Module, out_dir: Path, facts: ExportFacts, adapters: Sequence[WeightAdapter] = ADAPTERS
) -> list[Path]:
    """Write the backbone for every target, and the manifest.

    Args:
        backbone: a `lidar.unet_v2.UNetV2`; the teacher's, as a rule.
        out_dir: folder, made if need be; files of an earlier export are replaced.
        facts: what the manifest states.
        adapters: the targets.

    Returns:
        The files, the manifest last.

    Raises:
        WeightMismatchError: the module is not a UNetV2 of five input features, or holds NaN.
        ConfigError: the grid of ``facts`` is not the one the backbone was built for.
    """
    state = backbone_state(backbone)
    voxelizer = Voxelizer(facts.voxel_size, facts.point_cloud_range)
    built_for = tuple(getattr(backbone, "sparse_shape", voxelizer.sparse_shape))
    if built_for != voxelizer.sparse_shape:
        raise ConfigError(
            f"export: voxel_size and point_cloud_range: expected the grid the backbone was trained on, sparse_shape "
            f"{list(built_for)}, got {list(voxelizer.sparse_shape)}; take both from the training configuration"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / MANIFEST).unlink(missing_ok=True)
    paths = [_write(adapter, state, out_dir) for adapter in adapters]
    write_json(out_dir / MANIFEST, _manifest(state, voxelizer, facts, adapters, paths))
    return [*paths, out_dir / MANIFEST]


def _write(adapter: WeightAdapter, state: Mapping[str, Tensor], out_dir: Path) -> Path:
    path = out_dir / adapter.file_name
    with atomic_write(path) as unfinished:
        adapter.write(adapter.to_target(state), unfinished)
    return path


def _manifest(
    state: Mapping[str, Tensor],
    voxelizer: Voxelizer,
    facts: ExportFacts,
    adapters: Sequence[WeightAdapter],
    paths: Sequence[Path],
) -> dict[str, Any]:
    return {
        "format": "mwsis-backbone",
        "format_version": FORMAT_VERSION,
        "architecture": _architecture(state),
        "input": _input(voxelizer, facts),
        "files": [_file(adapter, state, path) for adapter, path in zip(adapters, paths, strict=True)],
        "training": _training(facts),
        "licence_note": licence_note(facts.data_set),
        "keys": {
            key: {"shape": list(tensor.shape), "dtype": _dtype(tensor), "sha256": tensor_sha256(tensor)}
            for key, tensor in state.items()
        },
    }


def _architecture(state: Mapping[str, Tensor]) -> dict[str, Any]:
    untrained = untrained_layers(state)
    return {
        "framework": "OpenPCDet",
        "class": "UNetV2",
        "keys_compared_with": "OpenPCDet 8cacccec11db6f59bf6934600c9a175dae254806",
        "in_channels": state["conv_input.0.weight"].shape[-1],
        "num_parameters": sum(t.numel() for key, t in state.items() if key.endswith((".weight", ".bias"))),
        "convolution_layouts": {"KRSC": "out, kd, kh, kw, in"},
        "batch_norm": {"eps": BN_EPS, "momentum": BN_MOMENTUM},
        "at_initial_values": untrained,
        "at_initial_values_note": (
            "These layers never ran in training mode and hold their random initial values; conv_out ends the encoder "
            "for a bird's-eye-view detector and pretraining does not use it."
            if untrained
            else ""
        ),
    }


def _input(voxelizer: Voxelizer, facts: ExportFacts) -> dict[str, Any]:
    return {
        "features": list(FEATURES),
        "coordinate_frame": facts.coordinate_frame,
        "voxel_size": list(facts.voxel_size),
        "voxel_size_order": "x, y, z (m)",
        "point_cloud_range": list(facts.point_cloud_range),
        "point_cloud_range_order": "x0, y0, z0, x1, y1, z1 (m), vehicle frame",
        "grid_shape_zyx": list(voxelizer.grid_shape_zyx),
        "sparse_shape": list(voxelizer.sparse_shape),
        "voxel_coords": "int32 [batch, z, y, x]; floor((p - min) / voxel_size) in float32",
        "voxel_features": {
            "kind": "mean",
            "max_points_per_voxel": None,
            "note": "mean over all points of a voxel; OpenPCDet's MeanVFE averages its first MAX_POINTS_PER_VOXEL",
        },
        "point_filter": facts.point_filter,
    }


def _file(adapter: WeightAdapter, state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    return {
        "name": path.name,
        "framework": adapter.framework,
        "class": adapter.target_class,
        "prefix": adapter.prefix,
        "convolution_layout": adapter.layout,
        "num_keys": len(adapter.to_target(state)),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _training(facts: ExportFacts) -> dict[str, Any]:
    return {
        "weights_of": facts.weights_of,
        "step": facts.step,
        "data_set": facts.data_set,
        "data_fingerprint": facts.data_fingerprint,
        "class_names": list(facts.class_names),
        "label_type": facts.label_type,
        "config_hash": facts.config_hash,
        "seed": facts.seed,
        "git_commit": facts.git_commit,
        "metrics": dict(facts.metrics),
        "notes": dict(facts.notes),
        "torch": torch.__version__,
    }


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
