"""Sparse 3D convolutions: the only place that imports spconv.

Weights are laid out KRSC, (out, kd, kh, kw, in), for every algorithm, as OpenPCDet writes them. What is not here: any
network (`unet_v2.py` is next) and any dense convolution (the tests hold these layers against torch's own).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch  # before spconv: spconv brings its own libgomp, and the first one loaded sets the number of threads
from spconv import core
from spconv.constants import ALL_WEIGHT_IS_KRSC
from spconv.core import ConvAlgo
from torch import Tensor, nn

if not torch.cuda.is_available():
    # The import that follows describes each of these CUDA kernels to itself, which takes eight seconds.
    core.ALL_NATIVE_PARAMS.clear()
    core.ALL_IMPGEMM_PARAMS.clear()

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # spconv decorates with a deprecated spelling of custom_fwd
    import spconv.pytorch as spconv
    from spconv.pytorch.core import SparseConvTensor as SparseTensor
    from spconv.pytorch.modules import is_spconv_module

__all__ = [
    "SparseTensor",
    "dense",
    "inverse_conv",
    "replace_feature",
    "sequential",
    "sparse_precision",
    "sparse_tensor",
    "strided_conv",
    "subm_conv",
]

# Making an spconv tensor triggers torch's advice on how to ask for symbolic tracing, which nobody here does.
logging.getLogger("torch.fx._symbolic_trace").addFilter(lambda record: "is_fx_tracing" not in record.getMessage())

assert ALL_WEIGHT_IS_KRSC, "spconv older than 2.2 stores weights in another layout"


def _algorithm(device: torch.device) -> ConvAlgo:
    return ConvAlgo.MaskImplicitGemm if device.type == "cuda" else ConvAlgo.Native


def _follow_device(conv: nn.Module, inputs: tuple[SparseTensor]) -> None:
    """Pick the algorithm where the features are: the implicit GEMM has no CPU kernel, `Native` is slower on CUDA."""
    conv.algo = _algorithm(inputs[0].features.device)


def _on_any_device(conv: nn.Module) -> nn.Module:
    conv.register_forward_pre_hook(_follow_device)
    return conv


def subm_conv(in_channels: int, out_channels: int, *, padding: int, key: str) -> nn.Module:
    """Return a 3x3x3 convolution without bias whose output voxels are its input voxels, in the same order.

    Args:
        in_channels: D of the input.
        out_channels: D of the output.
        padding: has no effect; kept because exported manifests and OpenPCDet's listings state it.
        key: layers with one key on one tensor share the neighbour table.

    Returns:
        A module from `SparseTensor` to `SparseTensor`; ``weight`` is (out, 3, 3, 3, in) float32.
    """
    return _on_any_device(
        spconv.SubMConv3d(
            in_channels, out_channels, 3, padding=padding, bias=False, indice_key=key, algo=ConvAlgo.Native
        )
    )


def strided_conv(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    key: str,
) -> nn.Module:
    """Return a strided convolution without bias; every cell with an occupied cell under its kernel becomes a voxel.

    Args:
        in_channels: D of the input.
        out_channels: D of the output.
        kernel: cells, one number or (z, y, x).
        stride: cells, one number or (z, y, x).
        padding: cells, one number or (z, y, x).
        key: names the neighbour table that `inverse_conv` walks back.

    Returns:
        A module from `SparseTensor` to `SparseTensor`; ``weight`` is (out, kd, kh, kw, in) float32.
    """
    return _on_any_device(
        spconv.SparseConv3d(
            in_channels, out_channels, kernel, stride, padding, bias=False, indice_key=key, algo=ConvAlgo.Native
        )
    )


def inverse_conv(in_channels: int, out_channels: int, *, key: str) -> nn.Module:
    """Return the 3x3x3 transposed convolution that restores the voxels, and their order, from before `strided_conv`.

    Args:
        in_channels: D of the input.
        out_channels: D of the output.
        key: the key of the strided convolution to undo.

    Returns:
        A module from `SparseTensor` to `SparseTensor`; ``weight`` is (out, 3, 3, 3, in) float32.
    """
    return _on_any_device(
        spconv.SparseInverseConv3d(in_channels, out_channels, 3, indice_key=key, bias=False, algo=ConvAlgo.Native)
    )


class _Sequential(nn.Sequential):
    """Layers in a row: sparse ones take the tensor, others (norms, activations) its features."""

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        for layer in self:
            if isinstance(layer, _Sequential) or is_spconv_module(layer):
                tensor = layer(tensor)
            else:
                tensor = tensor.replace_feature(layer(tensor.features))
        return tensor


def sequential(*layers: nn.Module) -> nn.Module:
    """Return the layers in a row, their keys numbered from 0; norms and activations are applied to the features.

    Args:
        layers: sparse layers, other `sequential` modules, or modules on (V, D) features.

    Returns:
        A module from `SparseTensor` to `SparseTensor`.
    """
    return _Sequential(*layers)


def sparse_tensor(
    voxel_features: Tensor, voxel_coords: Tensor, sparse_shape: Sequence[int], num_frames: int
) -> SparseTensor:
    """Return voxels as the input of a sparse layer.

    Args:
        voxel_features: (V, D) float32.
        voxel_coords: (V, 4) int32, [b, z, y, x], each row once.
        sparse_shape: cells in z, y, x.
        num_frames: B.

    Returns:
        The tensor; it keeps the order of the voxels.
    """
    return SparseTensor(voxel_features.contiguous(), voxel_coords.contiguous(), list(sparse_shape), num_frames)


def replace_feature(tensor: SparseTensor, features: Tensor) -> SparseTensor:
    """Return the same voxels and neighbour tables with (V, D) ``features`` in their place."""
    return tensor.replace_feature(features)


def dense(tensor: SparseTensor) -> Tensor:
    """Return the features on the whole grid, (B, D, Z, Y, X), 0 where no voxel is; gradients flow through it."""
    z, y, x = tensor.spatial_shape
    volume = tensor.features.new_zeros(tensor.batch_size, z, y, x, tensor.features.shape[1])
    filled: Tensor = volume.index_put(tuple(tensor.indices.long().unbind(1)), tensor.features)
    return filled.permute(0, 4, 1, 2, 3)


def sparse_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast context in which sparse layers give right values on ``device``.

    spconv casts to float16 under any autocast. That has no CPU kernel, and under bfloat16 no loss scaling guards its
    gradients: both run in float32. Float16 autocast on CUDA stays on.

    Args:
        device: where the features are.

    Returns:
        A context manager.
    """
    half = device.type == "cuda" and torch.get_autocast_dtype("cuda") == torch.float16
    return torch.autocast(device.type, enabled=half and torch.is_autocast_enabled("cuda"))
