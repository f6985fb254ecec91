"""Start fine-tuning from a pretrained backbone: the neutral file of an export folder, held against its manifest.

Everything that would make the weights mean something else is refused: another grid, other features, another network,
other bytes. Not here: writing such a folder (`mwsis.export`).
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
from mwsis.core.weights import load_weights
from mwsis.training.config import SCRATCH, RunConfig

__all__ = ["read_manifest", "start_from"]

FEATURES = ["x", "y", "z", "intensity", "elongation"]
"""Of a voxel, as `lidar.encoders.MeanEncoder` makes them."""


def read_manifest(run: RunConfig) -> dict[str, Any]:
    """Return the manifest of the folder that a run starts from, checked against the run; no weights are read.

    Raises:
        ConfigError: it is no export folder, or the backbone is for another grid or other features.
    """
    assert run.finetune is not None
    folder = Path(run.finetune.init)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        given, features = manifest["input"], [feature["name"] for feature in manifest["input"]["features"]]
        kind = manifest["format"]
    except FileNotFoundError:
        hint = f"give {folder / 'export'}" if (folder / "export" / MANIFEST).is_file() else "see tools/export.py"
        raise ConfigError(f"init={folder}: expected an export folder with {MANIFEST} in it; {hint}") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"init={folder}: {MANIFEST} cannot be read; export the backbone again") from None
    if kind != "mwsis-backbone":
        raise ConfigError(f"init={folder}: expected the manifest of a backbone, got one of '{kind}'")
    for key, wanted in (
        ("voxel_size", run.lidar.voxel_size),
        ("point_cloud_range", run.data.point_cloud_range),
    ):
        trained_with = list(given.get(key, []))
        if trained_with != list(wanted):
            setting = f"{'lidar' if key == 'voxel_size' else 'data'}.{key}"
            raise ConfigError(
                f"init={folder}: the backbone was trained with {key} {trained_with}, got {list(wanted)}; set {setting}"
            )
    if features != FEATURES:
        raise ConfigError(f"init={folder}: the backbone takes the features {features}, got {FEATURES}; export another")
    return manifest


def start_from(run: RunConfig, model: LidarSegmentor | CenterPoint) -> None:
    """Load the backbone, and a learned voxel encoder, of the folder that a run starts from; nothing for ``scratch``.

    Raises:
        ConfigError: see `read_manifest`.
        WeightMismatchError: the file is not the one of the manifest, or holds another network's weights.
    """
    assert run.finetune is not None
    if run.finetune.init == SCRATCH:
        return
    manifest, path = read_manifest(run), Path(run.finetune.init) / NEUTRAL_FILE
    weights = load(_content(path, manifest))
    encoder = {key.removeprefix(VOXEL_ENCODER): weights[key] for key in weights if key.startswith(VOXEL_ENCODER)}
    backbone = {key: weights[key] for key in weights if not key.startswith(VOXEL_ENCODER)}
    parts: tuple[tuple[nn.Module, dict[str, Any]], ...] = ((model.encoder, encoder), (model.backbone, backbone))
    for module, state in parts:
        load_weights(module, state, f"init={path}: lidar.network={run.lidar.network}")


def _content(path: Path, manifest: dict[str, Any]) -> bytes:
    try:
        content = path.read_bytes()
    except OSError:
        raise WeightMismatchError(f"{path}: no such file; export the backbone again") from None
    known = {file["name"]: file["sha256"] for file in manifest["files"]}
    if known.get(path.name) != hashlib.sha256(content).hexdigest():
        raise WeightMismatchError(f"{path}: its SHA-256 is not the one in {MANIFEST}; export the backbone again")
    return content
