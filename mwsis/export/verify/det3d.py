"""Check an export in the environment of det3d's CenterPoint (spconv 2): python verify_det3d.py [FOLDER] [--files-only]

Checks the files by the manifest, loads them into det3d's own class with its own loader, and compares the features with
parity.npz. Exit code 1 and one sentence otherwise.
"""

from __future__ import annotations

from typing import Any

from mwsis.export.verify.files import Holder, main


def build(entry: Any, arrays: dict[str, Any]) -> Any:
    """Return a model with det3d's class as ``backbone``."""
    from det3d.models.backbones import scn

    network = getattr(scn, entry["class"])(num_input_features=entry["in_channels"])
    z, y, x = (int(cells) for cells in arrays["sparse_shape"])
    network.input_shape = [x, y, z - 1]
    return Holder(entry["prefix"], network)


def load_checkpoint(model: Any, path: str, entry: Any) -> None:
    """Load as ``load_from`` does, but refuse what does not fit."""
    from det3d.torchie.trainer.checkpoint import load_checkpoint as load

    load(model, path, map_location="cpu", strict=True)


def run(model: Any, entry: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the features of the class."""
    network = model.at(entry["prefix"])
    voxels = (inputs["voxel_features"], inputs["voxel_coords"], inputs["num_frames"])
    return {"bev": network(*voxels, network.input_shape)[0]}


if __name__ == "__main__":
    main("det3d", {"load_checkpoint": load_checkpoint}, build, run)
