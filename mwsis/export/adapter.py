"""One file for one class of a framework: how our weights are named, laid out and wrapped there, and back.

A `WeightAdapter` is a row of the table in `targets.py`; all of them are this one class. Not here: which rows there are,
what goes in (`network.py`), the folder and its manifest (`folder.py`).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lidar.start_weights import VOXEL_ENCODER
from mwsis.core.errors import WeightMismatchError
from mwsis.core.weights import read_checkpoint

__all__ = ["WeightAdapter", "in_krsc", "tensor_sha256"]

BIASED = re.compile(r"(conv\d\.\d\.)conv(\d)\.")
"""A convolution of `lidar.res8x_unet.Res8xUNet` that has a bias, and the number of its norm."""


@dataclass(frozen=True)
class WeightAdapter:
    """Writes our weights as another framework reads them, and reads them back.

    ``from_target`` undoes ``to_target`` on the keys that the target has, bit for bit; where biases are folded, up to
    the folding (`fold_biases`).

    Attributes:
        framework: who reads the file, as ``to=`` names it.
        target_class: the class there whose weights these are.
        architecture: our network (``lidar.network``) that it fits.
        file_name: name of the file in the export folder.
        container: key of the checkpoint that holds the weights; "" for a safetensors file.
        prefix: what the file puts before a key of the backbone.
        encoder_prefix: and before one of a learned voxel encoder; "" where the network has none.
        layout: axis order of convolution weights; KRSC is (out, kd, kh, kw, in), RSCK (kd, kh, kw, in, out).
        parts: the backbone's modules that the class has; () all.
        names: (start of our key, start of theirs), the first that fits counts; other keys are equal.
        fold_biases: the class has no convolution biases: a norm that follows takes one out of its running mean, which
            is exact in evaluation.
        checked_against: the commit whose key list this was compared with.
    """

    framework: str
    target_class: str
    architecture: str
    file_name: str
    container: str
    prefix: str
    encoder_prefix: str = ""
    layout: str = "KRSC"
    parts: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    fold_biases: bool = False
    checked_against: str = ""

    def to_target(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the target's flat dict from name to tensor, in the order of ``state``."""
        kept = {key: state[key] for key in state if not self.parts or key.split(".")[0] in self.parts}
        if self.fold_biases:
            kept = _without_biases(kept)
        return {self._their_name(key): self._as_laid_out(tensor) for key, tensor in kept.items()}

    def from_target(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our names and tensors; tensors of other parts of a detector are left out.

        Either layout is understood, told by the shape of the first convolution.
        """
        ours = {self._our_name(name): name for name in weights if self.is_ours(name)}
        state = in_krsc({key: weights[name] for key, name in ours.items()})
        return _with_zero_biases(state) if self.fold_biases else state

    def is_ours(self, name: str) -> bool:
        """Return whether a name of the file belongs to the backbone or its learned voxel encoder."""
        return name.startswith(self.prefix) or self._is_encoders(name)

    def _is_encoders(self, name: str) -> bool:
        return bool(self.encoder_prefix) and name.startswith(self.encoder_prefix)

    def write(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Write `to_target`'s result, tensors only: ``weights_only=True`` reads it, equal tensors give equal bytes."""
        if not self.container:
            # A second metadata entry would be written in any order; save_file would make the file its owner's alone.
            path.write_bytes(save(dict(weights), metadata={"format": "pt"}))
            return
        buffer = io.BytesIO()  # a path's own name would end up in the archive, and in its checksum
        torch.save({self.container: dict(weights)}, buffer)
        path.write_bytes(buffer.getvalue())

    def read(self, path: Path | str) -> dict[str, Tensor]:
        """Return the flat dict of a file of this kind, ours or a detector's checkpoint.

        Raises:
            WeightMismatchError: no such file, or it holds no weights under ``container``.
        """
        if not self.container:
            return dict(load_file(path))
        weights = read_checkpoint(path).get(self.container)
        if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
            raise WeightMismatchError(
                f"{path}: expected a checkpoint of {self.framework} with '{self.container}' in it"
            )
        return dict(weights)

    def _their_name(self, key: str) -> str:
        if key.startswith(VOXEL_ENCODER):
            return self.encoder_prefix + key.removeprefix(VOXEL_ENCODER)
        return self.prefix + _renamed(key, self.names)

    def _our_name(self, name: str) -> str:
        if self._is_encoders(name):
            return VOXEL_ENCODER + name.removeprefix(self.encoder_prefix)
        return _renamed(name.removeprefix(self.prefix), tuple((theirs, ours) for ours, theirs in self.names))

    def _as_laid_out(self, tensor: Tensor) -> Tensor:
        if tensor.dim() != 5 or self.layout == "KRSC":
            return tensor
        return tensor.permute(1, 2, 3, 4, 0).contiguous()


def _renamed(key: str, names: tuple[tuple[str, str], ...]) -> str:
    """Return the key with its start replaced by the first pair that fits."""
    for start, new in names:
        if key.startswith(start):
            return new + key[len(start) :]
    return key


def in_krsc(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights whose convolutions are laid out (out, kd, kh, kw, in), whichever layout they come in.

    Args:
        state: by our names; ``conv_input.0.weight``, 3x3x3 with 16 or more channels out, tells the layout.
    """
    first = state.get("conv_input.0.weight")
    if first is None or first.dim() != 5 or tuple(first.shape[:3]) != (3, 3, 3):
        return dict(state)
    return {
        key: tensor.permute(4, 0, 1, 2, 3).contiguous() if tensor.dim() == 5 else tensor
        for key, tensor in state.items()
    }


def _without_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    folded = dict(state)
    for key in state:
        if key.endswith(".bias") and BIASED.match(key):
            mean = BIASED.sub(r"\1bn\2.", key).removesuffix("bias") + "running_mean"
            folded[mean] = folded[mean] - folded.pop(key)
    return folded


def _with_zero_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    biased = dict(state)
    for key, tensor in state.items():
        if key.endswith(".weight") and BIASED.match(key):
            biased[key.removesuffix("weight") + "bias"] = tensor.new_zeros(len(tensor))
    return biased


def tensor_sha256(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's values, little-endian, in C order, as a hex string."""
    raw = tensor.detach().cpu().contiguous().numpy()
    return hashlib.sha256(raw.astype(raw.dtype.newbyteorder("<"), copy=False).tobytes()).hexdigest()
