"""What every export target has in common: the protocol, the check of what goes in, fingerprints of tensors.

One target is one small module beside this one (`openpcdet.py`, `neutral.py`); a new framework is a new adapter and no
change here. Not here: training, and any framework's own code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from lidar.unet_v2 import UNetV2
from mwsis.core.errors import WeightMismatchError

__all__ = ["WeightAdapter", "backbone_state", "expected_keys", "tensor_sha256", "untrained_layers"]

FEATURE_CHANNELS = 5


class WeightAdapter(Protocol):
    """Writes our backbone's state dict as another framework reads it, and reads that file back.

    ``from_target`` undoes ``to_target`` on the keys that the target has: ``from_target(to_target(state))`` equals
    ``state`` restricted to them, bit for bit.

    Attributes:
        file_name: name of the file in the export folder.
        framework: who reads it.
        target_class: the class there whose weights these are.
        layout: axis order of convolution weights; KRSC is (out, kd, kh, kw, in).
        prefix: what the file puts before our keys.
    """

    @property
    def file_name(self) -> str: ...
    @property
    def framework(self) -> str: ...
    @property
    def target_class(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def prefix(self) -> str: ...

    def to_target(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the target's flat dict from name to tensor."""
        ...

    def from_target(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our keys and tensors from the target's."""
        ...

    def write(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Write `to_target`'s result; equal tensors give equal bytes."""
        ...

    def read(self, path: Path) -> dict[str, Tensor]:
        """Return the flat dict that `write` wrote."""
        ...


def expected_keys(in_channels: int = FEATURE_CHANNELS) -> dict[str, tuple[int, ...]]:
    """Return the 168 keys of UNetV2 and their shapes, in order.

    Args:
        in_channels: features of a voxel.

    Returns:
        From key to shape.
    """
    with torch.random.fork_rng(devices=[]):
        reference = UNetV2(in_channels, (41, 16, 16)).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in reference.items()}


def backbone_state(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the backbone's weights on the CPU, after checking that they are UNetV2's, finite, and complete.

    Args:
        backbone: the student's or the teacher's backbone.

    Returns:
        168 contiguous tensors, detached copies.

    Raises:
        WeightMismatchError: a key is missing, unknown or of another shape, or a weight is not finite.
    """
    state = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in backbone.state_dict().items()}
    expected = expected_keys()
    strange = sorted(set(expected) ^ set(state))
    if strange:
        raise WeightMismatchError(
            f"backbone: expected the {len(expected)} keys of UNetV2, got {len(state)} keys, "
            f"first difference '{strange[0]}'; export a LidarSegmentor's `backbone`"
        )
    for key, shape in expected.items():
        if tuple(state[key].shape) != shape:
            raise WeightMismatchError(
                f"backbone: {key}: expected shape {list(shape)}, got {list(state[key].shape)}; "
                f"the exported architecture takes {FEATURE_CHANNELS} features a voxel"
            )
        if not bool(torch.isfinite(state[key]).all()):
            raise WeightMismatchError(
                f"backbone: {key}: expected finite values, got NaN or infinity; training diverged"
            )
    return {key: state[key] for key in expected}


def untrained_layers(state: Mapping[str, Tensor]) -> list[str]:
    """Return the layers that have never run in training mode, told by their norm's counter of batches."""
    counters = [key for key in state if key.endswith(".num_batches_tracked") and int(state[key]) == 0]
    layers = (key.removesuffix(".num_batches_tracked").rpartition(".")[0] for key in counters)
    return list(dict.fromkeys(layers))


def tensor_sha256(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's values, little-endian, in C order, as a hex string."""
    raw = tensor.detach().cpu().contiguous().numpy()
    return hashlib.sha256(raw.astype(raw.dtype.newbyteorder("<"), copy=False).tobytes()).hexdigest()
