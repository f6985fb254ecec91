"""Small LiDAR branches with weights and statistics that matter, and the lists that their exports are held against."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from hydra.utils import get_method
from torch import Tensor

from lidar.blocks import SparseUNet
from lidar.segmentor import LidarSegmentor, build_lidar_segmentor
from mwsis.export.folder import ExportFacts
from mwsis.export.parity import surface_points
from mwsis.training.config import NETWORKS

KEYS = Path(__file__).with_name("keys")
FACTS = ExportFacts(
    class_names=("Vehicle", "Pedestrian", "Cyclist"),
    weights_of="teacher",
    step=120,
    frames_seen=240,
    data_set="street",
    split="train",
    data_fingerprint="abc",
    config_hash="def",
    seed=7,
    label_type="2D boxes only",
    metrics={"instance_ap": 0.25},
)
LISTINGS = {
    "openpcdet_unetv2.pth": "pcdet_UNetV2",
    "openpcdet_voxelbackbone8x.pth": "pcdet_VoxelBackBone8x",
    "openpcdet_voxelresbackbone8x.pth": "pcdet_VoxelResBackBone8x",
    "mmdet3d_sparseunet.pth": "mmdet3d_SparseUNet",
    "mmdet3d_sparseencoder.pth": "mmdet3d_SparseEncoder_default",
    "mmdet3d_sparseencoder_basicblock.pth": "mmdet3d_SparseEncoder_centerpoint",
    "sst_fsd.pth": "sst_SimpleSparseUNet",
    "det3d_spmiddleresnetfhd.pth": "det3d_SpMiddleResNetFHD",
}
"""The list of keys and shapes of each file's class, taken from the class itself; SST's as SST saves it."""


def listed(file_name: str) -> dict[str, tuple[int, ...]]:
    """Return keys and KRSC shapes of the class that a file is for, without prefix."""
    shapes = json.loads((KEYS / f"{LISTINGS[file_name]}.json").read_text())
    if file_name == "sst_fsd.pth":
        shapes = {key: [*shape[4:], *shape[:4]] if len(shape) == 5 else shape for key, shape in shapes.items()}
    return {key: tuple(shape) for key, shape in shapes.items()}


@cache
def branch(network: str) -> LidarSegmentor:
    """Return a LiDAR branch that ran a few steps in training, norms and convolution biases changed at random.

    Callers leave it as it is.
    """
    torch.manual_seed(3)
    lidar = build_lidar_segmentor(
        get_method(NETWORKS[network]), 3, (0.25, 0.25, 0.2), (-5.0, -5.0, -2.0, 5.0, 5.0, 4.0), hidden=8
    )
    with torch.no_grad():
        for name, tensor in lidar.named_parameters():
            if tensor.dim() == 1 and not name.startswith("head."):
                tensor.add_(0.1 * torch.randn(tensor.shape))
        for seed in range(3):
            points = surface_points(lidar.voxelizer, seed)
            grid = lidar.voxelizer(points)
            voxels = (lidar.encoder(points, grid), grid.voxel_coords, grid.num_frames)
            lidar.backbone(*voxels)
            if seed and isinstance(lidar.backbone, SparseUNet):
                lidar.backbone.encode(*voxels)
    return lidar.eval()


def tensors(arrays: dict[str, object]) -> dict[str, Tensor]:
    return {key: torch.as_tensor(value) for key, value in arrays.items()}
