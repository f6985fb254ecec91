"""What to put where, per framework: a page of the export folder, with the names and numbers of this export in it.

`common.md` begins every page; then comes one section per file, named after it. ``$name`` is filled in below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from lidar.blocks import SparseUNet, bird_eye_cells
from mwsis.export.adapter import WeightAdapter

__all__ = ["bev_channels", "guide"]

TITLES = {"openpcdet": "OpenPCDet", "mmdet3d": "mmdetection3d", "sst": "SST and FSD", "det3d": "det3d's CenterPoint"}
HERE = Path(__file__).parent


def guide(framework: str, adapters: Sequence[WeightAdapter], manifest: Mapping[str, Any]) -> str:
    """Return the text of ``README_<framework>.md``.

    Args:
        framework: who reads the files.
        adapters: its files.
        manifest: of the export.
    """
    given, network = manifest["input"], manifest["architecture"]
    files = {entry["name"]: entry for entry in manifest["files"]}
    common = {
        "framework": framework,
        "title": TITLES[framework],
        "voxel_size": given["voxel_size"],
        "point_cloud_range": given["point_cloud_range"],
        "sparse_shape": given["sparse_shape"],
        "bev_channels": bev_channels(given["sparse_shape"]),
        "points": given["point_filter"],
        "in_channels": len(given["features"]),
        "features": ", ".join(f"`{feature['name']}`" for feature in given["features"]),
        "feature_list": [feature["name"] for feature in given["features"]],
        "untrained": ", ".join(f"`{layer}`" for layer in network["at_initial_values"]) or "none",
        "licence": manifest["licence_note"],
    }
    sections = [_filled("common", common)]
    for adapter in adapters:
        names = {"file": adapter.file_name, "prefix": adapter.prefix, "encoder_prefix": adapter.encoder_prefix}
        names |= {"class": adapter.target_class, "num_keys": files[adapter.file_name]["num_keys"]}
        sections.append(_filled(Path(adapter.file_name).stem, {**common, **names}))
    return "\n".join(sections)


def bev_channels(sparse_shape: Sequence[int]) -> int:
    """Return the channels of the encoder's bird's-eye view: 128 for each cell of height that remains."""
    return SparseUNet.bev_channels * bird_eye_cells(sparse_shape)[0]


def _filled(name: str, values: Mapping[str, Any]) -> str:
    return Template((HERE / f"{name}.md").read_text(encoding="utf-8")).substitute(values)
