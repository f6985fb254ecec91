"""Check an export in OpenPCDet's environment: python verify_openpcdet.py [FOLDER] [--files-only]

Checks the files by the manifest, loads them into OpenPCDet's own class with its own loader, which drops what does not
fit without an error, and compares the features with parity.npz. Exit code 1 and one sentence otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mwsis.export.verify.files import main


def build(entry: Any, arrays: dict[str, Any]) -> Any:
    """Return a model with OpenPCDet's class as ``backbone_3d``."""
    from pcdet.models import backbones_3d
    from pcdet.models.detectors.detector3d_template import Detector3DTemplate

    class Detector(Detector3DTemplate):  # type: ignore[misc]
        """A detector of a 3D backbone alone."""

        def __init__(self, backbone: torch.nn.Module) -> None:
            torch.nn.Module.__init__(self)
            self.backbone_3d = backbone

    z, y, x = (int(cells) for cells in arrays["sparse_shape"])
    return Detector(
        backbones_3d.__all__[entry["class"]](
            model_cfg={},
            input_channels=entry["in_channels"],
            grid_size=np.array([x, y, z - 1]),
            voxel_size=arrays["voxel_size"],
            point_cloud_range=arrays["point_cloud_range"],
        )
    )


def load_params_from_file(model: Any, path: str, entry: Any) -> None:
    """Load as ``--pretrained_model`` does."""
    import logging

    model.load_params_from_file(path, logging.getLogger("verify"), to_cpu=True)


def run(model: Any, entry: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the features of the class."""
    found = model.backbone_3d(
        {
            "voxel_features": inputs["voxel_features"],
            "voxel_coords": inputs["voxel_coords"],
            "batch_size": inputs["num_frames"],
        }
    )
    features = {"bev": found["encoded_spconv_tensor"].dense().flatten(1, 2)}
    if "point_features" in found:
        features["unet"] = found["point_features"]
    return features


if __name__ == "__main__":
    main("openpcdet", {"load_params_from_file": load_params_from_file}, build, run)
