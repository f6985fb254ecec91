"""Check an export in the environment of SST and FSD: python verify_sst.py [FOLDER] [--files-only]

Checks the files by the manifest, loads them into SST's own classes with mmcv's loader, and compares the features, voxel
encoder included, with parity.npz. Exit code 1 and one sentence otherwise.
"""

from __future__ import annotations

from typing import Any

import torch

from mwsis.export.verify.files import Holder, main

NORM = {"type": "BN1d", "eps": 1e-3, "momentum": 0.01}
"""naiveSyncBN1d of FSD's configuration, on one process."""
NETWORK: dict[str, Any] = {
    "in_channels": 64,
    "norm_cfg": NORM,
    "base_channels": 64,
    "encoder_channels": ((64,), (64, 64, 64), (64, 64, 64), (128, 128, 128), (256, 256, 256)),
    "encoder_paddings": ((1,), (1, 1, 1), (1, 1, 1), ((0, 1, 1), 1, 1), (1, 1, 1)),
    "decoder_channels": ((256, 256, 128), (128, 128, 64), (64, 64, 64), (64, 64, 64), (64, 64, 64)),
    "decoder_paddings": ((1, 1), (1, 0), (1, 0), (0, 0), (0, 1)),
}


def build(entry: Any, arrays: dict[str, Any]) -> Any:
    """Return a model with SST's classes as ``segmentor.backbone`` and ``segmentor.voxel_encoder``."""
    from mmdet3d.models.middle_encoders import sparse_unet
    from mmdet3d.models.voxel_encoders import voxel_encoder

    shape = [int(cells) for cells in arrays["sparse_shape"]]
    model = Holder(entry["prefix"], getattr(sparse_unet, entry["class"])(sparse_shape=shape, **NETWORK))
    encoder = voxel_encoder.DynamicScatterVFE(
        in_channels=5,
        feat_channels=[64, 64],
        with_cluster_center=True,
        with_voxel_center=True,
        voxel_size=arrays["voxel_size"].tolist(),
        point_cloud_range=arrays["point_cloud_range"].tolist(),
        norm_cfg=NORM,
    )
    model.put(entry["encoder_prefix"], encoder)
    return model


def load_checkpoint(model: Any, path: str, entry: Any) -> None:
    """Load as ``load_from`` does, but refuse what does not fit."""
    from mmcv.runner import load_checkpoint as load

    load(model, path, map_location="cpu", strict=True)


def run(model: Any, entry: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the features of both classes, the voxels in the order of the stored ones."""
    encoder, network = model.at(entry["encoder_prefix"]), model.at(entry["prefix"])
    features, coords = encoder(inputs["points"], inputs["point_coords"])[:2]
    coords = coords.long()
    key = ((coords[:, 0] * 4096 + coords[:, 1]) * 4096 + coords[:, 2]) * 4096 + coords[:, 3]
    voxels = {"voxel_feats": inputs["voxel_features"], "voxel_coors": inputs["voxel_coords"]}
    return {"voxel_features": features[torch.argsort(key)], "unet": network(voxels)[0]["voxel_feats"]}


if __name__ == "__main__":
    main("sst", {"load_checkpoint": load_checkpoint}, build, run)
