"""The export folder: a file per target, features to compare with, a check and a guide per framework, and a manifest.

The manifest holds what a user needs to feed the backbone the right numbers (grid, features, units, transforms), to tell
which training it came from, and every tensor's checksum, by which the checks (`verify/`) go. Each file is written
atomically and the manifest last: where a manifest is, the folder is complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidar.blocks import BN_EPS, BN_MOMENTUM
from lidar.segmentor import LidarSegmentor
from lidar.start_weights import MANIFEST, VOXEL_ENCODER
from mwsis.core.errors import ConfigError
from mwsis.core.files import atomic_write, write_json
from mwsis.data.manifest import file_sha256
from mwsis.export.adapter import WeightAdapter, tensor_sha256
from mwsis.export.guides import guide
from mwsis.export.network import (
    FEATURE_CHANNELS,
    FIRST_WEIGHT,
    architecture_of,
    network_state,
    untrained_layers,
    with_features,
)
from mwsis.export.parity import parity_arrays
from mwsis.export.targets import adapters_for
from mwsis.export.verify import verify_script

__all__ = ["FORMAT_VERSION", "ON_THE_GROUND", "PARITY", "ExportFacts", "export_backbone", "licence_note"]

FORMAT_VERSION = 2
PARITY = "parity.npz"

FEATURES = (
    {"name": "x", "unit": "m", "transform": "none"},
    {"name": "y", "unit": "m", "transform": "none"},
    {"name": "z", "unit": "m", "transform": "none"},
    {"name": "intensity", "unit": "1", "transform": "tanh(recorded intensity)"},
    {"name": "elongation", "unit": "1", "transform": "none; 0 where the sensor has none"},
)
MEAN_FEATURES = {
    "kind": "mean",
    "max_points_per_voxel": None,
    "note": "mean over all points of a voxel; OpenPCDet's MeanVFE averages its first MAX_POINTS_PER_VOXEL",
}
LEARNED_FEATURES = {
    "kind": "learned",
    "max_points_per_voxel": None,
    "note": "FSD's DynamicScatterVFE (64, 64): features, offset from the voxel's mean, offset from the voxel's centre",
}

ON_THE_GROUND = "vehicle: x forward, y left, z up, origin on the ground under the vehicle"
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
    """What the manifest states about a backbone beside its weights and its grid.

    Attributes:
        class_names: classes of the training labels, by index.
        weights_of: ``"teacher"`` (moving average) or ``"student"``.
        step: optimiser steps taken.
        frames_seen: frames of all steps together.
        data_set: name of the training data set.
        split: of it.
        data_fingerprint: of its content and settings.
        config_hash: of the resolved configuration.
        seed: of the training run.
        label_type: what the labels were made from, in words (`mwsis.training.config.labels_used`).
        coordinate_frame: axes and origin of x, y, z.
        point_filter: which points the network was trained on.
        metrics: the last evaluation's numbers by name.
        git_commit: of the code that exports, "" unknown.
        notes: anything else, by name; ``recalibrated_bn`` where norms were measured again.
    """

    class_names: tuple[str, ...]
    weights_of: str
    step: int
    frames_seen: int
    data_set: str
    split: str
    data_fingerprint: str
    config_hash: str
    seed: int
    label_type: str
    coordinate_frame: str = ON_THE_GROUND
    point_filter: str = "all points in point_cloud_range"
    metrics: Mapping[str, float] = field(default_factory=dict)
    git_commit: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weights_of not in ("teacher", "student"):
            raise ConfigError(f"weights_of: expected 'teacher' or 'student', got '{self.weights_of}'")


def export_backbone(
    lidar: LidarSegmentor,
    out_dir: Path,
    facts: ExportFacts,
    wanted: Sequence[str] = (),
    in_channels: int = FEATURE_CHANNELS,
) -> list[Path]:
    """Write backbone and voxel encoder for the targets, what checks and explains them, and the manifest.

    Args:
        lidar: the LiDAR branch; the teacher's, as a rule.
        out_dir: folder, made if need be; files of an earlier export are replaced.
        facts: what the manifest states.
        wanted: targets (`mwsis.export.targets.adapters_for`); empty for all that the network fits.
        in_channels: 5, or 4 to leave elongation out.

    Returns:
        The files, the manifest last.

    Raises:
        WeightMismatchError: the network is none that is exported, or holds NaN.
        ConfigError: no such target, one that takes another network, or ``in_channels`` that this one cannot have.
    """
    architecture = architecture_of(lidar.backbone)
    adapters = adapters_for(architecture, wanted)
    state = with_features(network_state(lidar), architecture, in_channels)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / MANIFEST).unlink(missing_ok=True)
    paths = [_write(adapter, state, out_dir) for adapter in adapters]
    with atomic_write(out_dir / PARITY) as unfinished:
        arrays: dict[str, Any] = dict(parity_arrays(architecture, state, lidar.voxelizer.voxel_size))
        np.savez_compressed(unfinished, **arrays)
    manifest = _manifest(state, lidar, facts, dict(zip(paths, adapters, strict=True)))
    paths.append(out_dir / PARITY)
    for framework in dict.fromkeys(adapter.framework for adapter in adapters if adapter.container):
        files = [adapter for adapter in adapters if adapter.framework == framework]
        paths.append(_write_text(out_dir / f"verify_{framework}.py", verify_script(framework)))
        paths.append(_write_text(out_dir / f"README_{framework}.md", guide(framework, files, manifest)))
    write_json(out_dir / MANIFEST, manifest)
    return [*paths, out_dir / MANIFEST]


def _write(adapter: WeightAdapter, state: Mapping[str, Tensor], out_dir: Path) -> Path:
    path = out_dir / adapter.file_name
    with atomic_write(path) as unfinished:
        adapter.write(adapter.to_target(state), unfinished)
    return path


def _write_text(path: Path, text: str) -> Path:
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def _manifest(
    state: Mapping[str, Tensor], lidar: LidarSegmentor, facts: ExportFacts, files: Mapping[Path, WeightAdapter]
) -> dict[str, Any]:
    parity = next(iter(files)).with_name(PARITY)
    return {
        "format": "mwsis-backbone",
        "format_version": FORMAT_VERSION,
        "architecture": _architecture(state, lidar),
        "input": _input(state, lidar, facts),
        "files": [_file(path, adapter, state) for path, adapter in files.items()],
        "parity": {
            "name": PARITY,
            "sha256": file_sha256(parity),
            "tolerance": "of the largest feature: 1e-4 on a CPU, 1e-3 on a GPU",
        },
        "training": _training(facts),
        "licence_note": licence_note(facts.data_set),
    }


def _architecture(state: Mapping[str, Tensor], lidar: LidarSegmentor) -> dict[str, Any]:
    untrained = untrained_layers(state)
    return {
        "name": architecture_of(lidar.backbone),
        "in_channels": state[FIRST_WEIGHT].shape[-1],
        "num_parameters": sum(t.numel() for key, t in state.items() if key.endswith((".weight", ".bias"))),
        "convolution_layouts": {"KRSC": "out, kd, kh, kw, in", "RSCK": "kd, kh, kw, in, out"},
        "batch_norm": {"eps": BN_EPS, "momentum": BN_MOMENTUM},
        "at_initial_values": untrained,
        "at_initial_values_note": (
            "These layers never ran in training mode and hold their random initial values; conv_out ends the encoder "
            "for a bird's-eye-view detector and pretraining does not use it."
            if untrained
            else ""
        ),
    }


def _input(state: Mapping[str, Tensor], lidar: LidarSegmentor, facts: ExportFacts) -> dict[str, Any]:
    learned = any(key.startswith(VOXEL_ENCODER) for key in state)
    sparse_shape: Any = lidar.backbone.sparse_shape
    raw = FEATURE_CHANNELS if learned else state[FIRST_WEIGHT].shape[-1]
    return {
        "features": list(FEATURES[:raw]),
        "coordinate_frame": facts.coordinate_frame,
        "voxel_size": list(lidar.voxelizer.voxel_size),
        "voxel_size_order": "x, y, z (m)",
        "point_cloud_range": list(lidar.voxelizer.point_cloud_range),
        "point_cloud_range_order": "x0, y0, z0, x1, y1, z1 (m), vehicle frame",
        "grid_shape_zyx": list(lidar.voxelizer.grid_shape_zyx),
        "sparse_shape": list(sparse_shape),
        "voxel_coords": "int32 [batch, z, y, x]; floor((p - min) / voxel_size) in float32",
        "voxel_features": LEARNED_FEATURES if learned else MEAN_FEATURES,
        "point_filter": facts.point_filter,
    }


def _file(path: Path, adapter: WeightAdapter, state: Mapping[str, Tensor]) -> dict[str, Any]:
    weights = adapter.to_target(state)
    return {
        "name": path.name,
        "framework": adapter.framework,
        "class": adapter.target_class,
        "checked_against": adapter.checked_against,
        "container": adapter.container,
        "prefix": adapter.prefix,
        "encoder_prefix": adapter.encoder_prefix,
        "convolution_layout": adapter.layout,
        "biases_folded": adapter.fold_biases,
        "in_channels": state[FIRST_WEIGHT].shape[-1],
        "num_keys": len(weights),
        "sha256": file_sha256(path),
        "keys": {
            key: {"shape": list(tensor.shape), "dtype": _dtype(tensor), "sha256": tensor_sha256(tensor)}
            for key, tensor in weights.items()
        },
    }


def _training(facts: ExportFacts) -> dict[str, Any]:
    return {
        "weights_of": facts.weights_of,
        "step": facts.step,
        "frames_seen": facts.frames_seen,
        "data_set": facts.data_set,
        "split": facts.split,
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
