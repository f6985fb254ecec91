"""Files that OpenPCDet's ``--pretrained_model`` loads: UNetV2 (Part-A2) and its encoder half VoxelBackBone8x.

OpenPCDet drops keys whose shape does not fit without an error; its log line "Done (loaded n/m)" is the only sign. Not
here: the neutral file and the manifest (`neutral.py`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mwsis.core.errors import WeightMismatchError
from mwsis.core.weights import read_checkpoint

__all__ = ["UNET_V2", "VOXEL_BACKBONE_8X", "OpenPcdetAdapter"]

ENCODER_PARTS = ("conv_input", "conv1", "conv2", "conv3", "conv4", "conv_out")
"""The modules of UNetV2 that are VoxelBackBone8x: equal keys, equal shapes, equal results."""


@dataclass(frozen=True)
class OpenPcdetAdapter:
    """A checkpoint ``{"model_state": {"backbone_3d.<key>": tensor}}`` with spconv 2 weights (KRSC).

    Attributes:
        file_name: name of the file in the export folder.
        target_class: OpenPCDet's class.
        parts: modules to keep; all when None.
    """

    file_name: str
    target_class: str
    parts: tuple[str, ...] | None = None
    framework: str = "OpenPCDet"
    layout: str = "KRSC"
    prefix: str = "backbone_3d."

    def to_target(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the kept modules under OpenPCDet's names."""
        kept = (key for key in state if self.parts is None or key.split(".")[0] in self.parts)
        return {self.prefix + key: state[key] for key in kept}

    def from_target(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under our names; keys of other parts of a detector are left out."""
        return {key.removeprefix(self.prefix): weights[key] for key in weights if key.startswith(self.prefix)}

    def write(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Write the checkpoint; only tensors and strings, so that ``weights_only=True`` reads it."""
        buffer = io.BytesIO()  # a path's own name would end up in the archive, and in its checksum
        torch.save({"model_state": dict(weights)}, buffer)
        path.write_bytes(buffer.getvalue())

    def read(self, path: Path) -> dict[str, Tensor]:
        """Return ``model_state`` of an OpenPCDet checkpoint.

        Raises:
            WeightMismatchError: the file is no checkpoint or holds no ``model_state``.
        """
        checkpoint = read_checkpoint(path)
        if not isinstance(checkpoint.get("model_state"), dict):
            raise WeightMismatchError(
                f"{path}: expected an OpenPCDet checkpoint with 'model_state', got keys {sorted(checkpoint)[:5]}"
            )
        return dict(checkpoint["model_state"])


UNET_V2 = OpenPcdetAdapter("openpcdet_unetv2.pth", "UNetV2")
VOXEL_BACKBONE_8X = OpenPcdetAdapter("openpcdet_voxelbackbone8x.pth", "VoxelBackBone8x", ENCODER_PARTS)
