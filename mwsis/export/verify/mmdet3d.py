"""Check an export in mmdetection3d's environment (1.x): python verify_mmdet3d.py [FOLDER] [--files-only]

Checks the files by the manifest, loads them into mmdetection3d's own class in both of its ways (``load_from`` and
``init_cfg``), and compares the features with parity.npz. Exit code 1 and one sentence otherwise.
"""

from __future__ import annotations

from typing import Any

from mwsis.export.verify.files import Holder, main

RESIDUAL: dict[str, Any] = {
    "block_type": "basicblock",
    "encoder_channels": ((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),
    "encoder_paddings": ((0, 0, 1), (0, 0, 1), (0, 0, (0, 1, 1)), (0, 0)),
}
"""CenterPoint's encoder."""


def build(entry: Any, arrays: dict[str, Any]) -> Any:
    """Return a model with mmdetection3d's class where its detectors have it."""
    from mmdet3d.models import middle_encoders

    settings = RESIDUAL if entry["biases_folded"] else {}
    shape = [int(cells) for cells in arrays["sparse_shape"]]
    network = getattr(middle_encoders, entry["class"])
    return Holder(entry["prefix"], network(in_channels=entry["in_channels"], sparse_shape=shape, **settings))


def load_from(model: Any, path: str, entry: Any) -> None:
    """Load as ``load_from`` does, but refuse what does not fit."""
    from mmengine.runner import load_checkpoint

    load_checkpoint(model, path, map_location="cpu", strict=True)


def init_cfg(model: Any, path: str, entry: Any) -> None:
    """Load as ``init_cfg`` of the encoder does."""
    from mmengine.model import PretrainedInit

    PretrainedInit(checkpoint=path, prefix=entry["prefix"], map_location="cpu")(model.at(entry["prefix"]))


def run(model: Any, entry: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the features of the class."""
    encoder = model.at(entry["prefix"])
    found = encoder(inputs["voxel_features"], inputs["voxel_coords"], inputs["num_frames"])
    if isinstance(found, dict):
        return {"bev": found["spatial_features"], "unet": found["seg_features"]}
    return {"bev": found}


if __name__ == "__main__":
    main("mmdet3d", {"load_from": load_from, "init_cfg": init_cfg}, build, run)
