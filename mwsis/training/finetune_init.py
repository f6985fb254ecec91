"""Start fine-tuning from pretraining: the backbone of an export folder, held against its manifest, or a checkpoint.

A checkpoint of a pretraining run brings the point heads, too, which tasks on points go on training. Everything that
would make the weights mean something else is refused: another grid, other features, another network, other bytes.
Not here: writing an export folder (`mwsis.export`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import nn

from lidar.detection.detector import CenterPoint
from lidar.segmentor import LidarSegmentor
from lidar.start_weights import MANIFEST, NEUTRAL_FILE, VOXEL_ENCODER
from mwsis.core.errors import ConfigError, WeightMismatchError
from mwsis.core.weights import at_initial_length, load_weights
from mwsis.data.manifest import file_sha256
from mwsis.training.checkpoint import read_run_checkpoint
from mwsis.training.commands import restore_config
from mwsis.training.config import SCRATCH, RunConfig, labels_used, typed
from mwsis.training.lidar_branch import trained_lidar

__all__ = ["provenance", "start_from"]

FEATURES = ["x", "y", "z", "intensity", "elongation"]
"""Of a voxel, as `lidar.encoders.MeanEncoder` makes them."""


def read_manifest(run: RunConfig) -> dict[str, Any]:
    """Return the manifest of the folder that a run starts from, checked against the run; no weights are read.

    Raises:
        ConfigError: it is no export folder, or the backbone is for another grid or other features.
    """
    folder = _init(run)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        given, features = manifest["input"], [feature["name"] for feature in manifest["input"]["features"]]
        kind = manifest["format"]
    except FileNotFoundError:
        hint = f"give {folder / 'export'}" if (folder / "export" / MANIFEST).is_file() else "see tools/export.py"
        raise ConfigError(
            f"init={folder}: expected an export folder with {MANIFEST} in it, or a checkpoint of a run; {hint}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"init={folder}: {MANIFEST} cannot be read; export the backbone again") from None
    if kind != "mwsis-backbone":
        raise ConfigError(f"init={folder}: expected the manifest of a backbone, got one of '{kind}'")
    _require_grid(run, given)
    if features != FEATURES:
        raise ConfigError(f"init={folder}: the backbone takes the features {features}, got {FEATURES}; export another")
    return manifest


def _require_grid(run: RunConfig, given: dict[str, Any]) -> None:
    for key, wanted in (
        ("voxel_size", run.lidar.voxel_size),
        ("point_cloud_range", run.data.point_cloud_range),
    ):
        trained_with = list(given.get(key, []))
        if trained_with != list(wanted):
            setting = f"{'lidar' if key == 'voxel_size' else 'data'}.{key}"
            raise ConfigError(
                f"init={_init(run)}: the backbone was trained with {key} {trained_with}, got {list(wanted)}; "
                f"set {setting}"
            )


def _init(run: RunConfig) -> Path:
    assert run.finetune is not None
    return Path(run.finetune.init)


def start_from(run: RunConfig, model: LidarSegmentor | CenterPoint) -> None:
    """Load what a run starts from; nothing for ``scratch``.

    With ``finetune.initial_length`` the loaded layers then get the length of fresh ones (`at_initial_length`).

    Args:
        run: ``finetune.init`` is an export folder, or a checkpoint of a pretraining run.
        model: gets backbone and, where it is learned, the voxel encoder; of a checkpoint (the teacher's weights) a
            segmentor gets its head, too.

    Raises:
        ConfigError: see `read_manifest`; or the checkpoint is of a run without a LiDAR branch, or of other classes.
        WeightMismatchError: the file is not the one of the manifest, or holds another network's weights.
    """
    assert run.finetune is not None
    if run.finetune.init == SCRATCH:
        return
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if _init(run).is_file():
        _start_from_checkpoint(run, model)
    else:
        _start_from_export(run, model)
    if run.finetune.initial_length:
        at_initial_length(model, initial)


def _start_from_export(run: RunConfig, model: LidarSegmentor | CenterPoint) -> None:
    manifest, path = read_manifest(run), _init(run) / NEUTRAL_FILE
    weights = load(_content(path, manifest))
    encoder = {key.removeprefix(VOXEL_ENCODER): weights[key] for key in weights if key.startswith(VOXEL_ENCODER)}
    backbone = {key: weights[key] for key in weights if not key.startswith(VOXEL_ENCODER)}
    parts: tuple[tuple[nn.Module, dict[str, Any]], ...] = ((model.encoder, encoder), (model.backbone, backbone))
    for module, state in parts:
        load_weights(module, state, f"init={path}: lidar.network={run.lidar.network}")


def _start_from_checkpoint(run: RunConfig, model: LidarSegmentor | CenterPoint) -> None:
    path = _init(run)
    state, before = _pretraining(path)
    if before.finetune is not None or "lidar" not in before.method.branches:
        raise ConfigError(f"init={path}: expected a pretraining run with a LiDAR branch, got '{before.method.name}'")
    _require_grid(run, {"voxel_size": before.lidar.voxel_size, "point_cloud_range": before.data.point_cloud_range})
    trained, what = (
        trained_lidar(state, before, "teacher", str(path)),
        f"init={path}: lidar.network={run.lidar.network}",
    )
    if not isinstance(model, LidarSegmentor):
        load_weights(model.encoder, trained.encoder.state_dict(), what)
        load_weights(model.backbone, trained.backbone.state_dict(), what)
        return
    if trained.num_classes != model.num_classes:
        raise ConfigError(
            f"init={path}: trained on the {trained.num_classes} classes {', '.join(state['class_names'])}, and this "
            f"data set has {model.num_classes}; start from its backbone alone, exported by tools/export.py"
        )
    load_weights(model, trained.state_dict(), what)


def _pretraining(path: Path) -> tuple[dict[str, Any], RunConfig]:
    """Return a run's checkpoint and its configuration."""
    state = read_run_checkpoint(path)
    return state, typed(restore_config(state["config"]))


def provenance(run: RunConfig) -> dict[str, Any]:
    """Return what is known about the weights a run starts from; whether they fit it, `start_from` says."""
    path = _init(run)
    if not path.is_file():
        manifest = read_manifest(run)
        files = {file["name"]: file["sha256"] for file in manifest["files"]}
        return {"init": path.name, "files": files, "training": manifest["training"]}
    state, before = _pretraining(path)
    training = {
        "step": state["global_step"],
        "seed": before.seed,
        "data_set": before.data.name,
        "label_type": labels_used(before),
        "weights_of": "teacher" if before.method.ema else "student",
    }
    return {"init": path.name, "files": {path.name: file_sha256(path)}, "training": training}


def _content(path: Path, manifest: dict[str, Any]) -> bytes:
    try:
        content = path.read_bytes()
    except OSError:
        raise WeightMismatchError(f"{path}: no such file; export the backbone again") from None
    known = {file["name"]: file["sha256"] for file in manifest["files"]}
    if known.get(path.name) != hashlib.sha256(content).hexdigest():
        raise WeightMismatchError(f"{path}: its SHA-256 is not the one in {MANIFEST}; export the backbone again")
    return content
