"""What goes into an export: the three networks, their complete and finite weights, and a network made of weights again.

Not here: other frameworks' names (`targets.py`) and the folder (`folder.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lidar.blocks import UNet
from lidar.encoders import DynamicEncoder, MeanEncoder
from lidar.fsd_unet import FSDUNet
from lidar.res8x_unet import Res8xUNet
from lidar.segmentor import LidarSegmentor
from lidar.start_weights import VOXEL_ENCODER
from lidar.unet_v2 import UNetV2
from lidar.voxelize import Voxelizer
from mwsis.core.errors import ConfigError, WeightMismatchError
from mwsis.core.weights import load_weights

__all__ = [
    "ARCHITECTURES",
    "FEATURE_CHANNELS",
    "FIRST_WEIGHT",
    "architecture_of",
    "expected_shapes",
    "network_state",
    "rebuilt",
    "untrained_layers",
    "with_features",
]

ARCHITECTURES: dict[str, Callable[[int, Sequence[int]], UNet]] = {
    "unet_v2": UNetV2,
    "res8x_unet": Res8xUNet,
    "fsd_unet": FSDUNet,
}
"""The networks by ``lidar.network``."""
FEATURE_CHANNELS = 5
FIRST_WEIGHT = "conv_input.0.weight"
ANY_SHAPE = (41, 16, 16)


def architecture_of(backbone: nn.Module) -> str:
    """Return the name of a backbone's network.

    Raises:
        WeightMismatchError: it is none of `ARCHITECTURES`.
    """
    for name, network in ARCHITECTURES.items():
        if type(backbone) is network:
            return name
    known = ", ".join(ARCHITECTURES)
    raise WeightMismatchError(f"backbone: expected one of {known}, got {type(backbone).__name__}")


def expected_shapes(architecture: str, in_channels: int = FEATURE_CHANNELS) -> dict[str, tuple[int, ...]]:
    """Return the keys and shapes of a network's state, those of a learned voxel encoder last.

    Args:
        architecture: a key of `ARCHITECTURES`.
        in_channels: raw features of a voxel or point.
    """
    with torch.random.fork_rng(devices=[]):
        encoder, backbone = _fresh(architecture, in_channels, ANY_SHAPE)
    return {key: tuple(tensor.shape) for key, tensor in _state(encoder, backbone).items()}


def network_state(lidar: LidarSegmentor) -> dict[str, Tensor]:
    """Return the weights of backbone and voxel encoder on the CPU, after checking that they are complete and finite.

    Args:
        lidar: the student's or the teacher's LiDAR branch.

    Returns:
        168 (unet_v2), 238 (res8x_unet) or 204 + 12 (fsd_unet) contiguous tensors, detached copies.

    Raises:
        WeightMismatchError: the backbone is none of `ARCHITECTURES`, takes other features, or a weight is not finite.
    """
    architecture = architecture_of(lidar.backbone)
    state = {
        key: tensor.detach().cpu().contiguous().clone() for key, tensor in _state(lidar.encoder, lidar.backbone).items()
    }
    for key, shape in expected_shapes(architecture).items():
        if tuple(state[key].shape) != shape:
            raise WeightMismatchError(
                f"backbone: {key}: expected shape {list(shape)}, got {list(state[key].shape)}; "
                f"the exported network takes {FEATURE_CHANNELS} features"
            )
        if not bool(torch.isfinite(state[key]).all()):
            raise WeightMismatchError(
                f"backbone: {key}: expected finite values, got NaN or infinity; training diverged"
            )
    return state


def with_features(state: Mapping[str, Tensor], architecture: str, in_channels: int) -> dict[str, Tensor]:
    """Return the weights for detectors that feed fewer features: the column of elongation, the last one, is dropped.

    Args:
        state: of `network_state`.
        architecture: a key of `ARCHITECTURES`.
        in_channels: 5 (x, y, z, intensity, elongation) or 4.

    Raises:
        ConfigError: another number, or a network whose learned voxel encoder takes all five.
    """
    if in_channels not in (FEATURE_CHANNELS - 1, FEATURE_CHANNELS):
        raise ConfigError(f"in_channels={in_channels}: expected 4 (without elongation) or 5")
    if in_channels == FEATURE_CHANNELS:
        return dict(state)
    if any(key.startswith(VOXEL_ENCODER) for key in state):
        raise ConfigError(
            f"in_channels={in_channels}: the voxel encoder of {architecture} learned from all five features; "
            "leave in_channels out"
        )
    return {**state, FIRST_WEIGHT: state[FIRST_WEIGHT][..., :in_channels].contiguous()}


def rebuilt(
    architecture: str, state: Mapping[str, Tensor], voxelizer: Voxelizer, sparse_shape: Sequence[int]
) -> tuple[nn.Module, UNet]:
    """Return voxel encoder and backbone made of weights, in evaluation mode.

    Args:
        architecture: a key of `ARCHITECTURES`.
        state: of `network_state` or `with_features`.
        voxelizer: the grid that a learned voxel encoder measures in.
        sparse_shape: cells in z, y, x.
    """
    with torch.random.fork_rng(devices=[]):
        encoder, backbone = _fresh(architecture, state[FIRST_WEIGHT].shape[-1], sparse_shape, voxelizer)
    inner = {key.removeprefix(VOXEL_ENCODER): state[key] for key in state if key.startswith(VOXEL_ENCODER)}
    outer = {key: state[key] for key in state if not key.startswith(VOXEL_ENCODER)}
    load_weights(encoder, inner, VOXEL_ENCODER)
    load_weights(backbone, outer, architecture)
    return encoder.eval(), backbone.eval()


def _fresh(
    architecture: str, in_channels: int, sparse_shape: Sequence[int], voxelizer: Voxelizer | None = None
) -> tuple[nn.Module, UNet]:
    make = ARCHITECTURES[architecture]
    if architecture != "fsd_unet":
        return MeanEncoder(), make(in_channels, sparse_shape)
    encoder = DynamicEncoder(voxelizer or Voxelizer((1, 1, 1), (0, 0, 0, 1, 1, 1)))
    return encoder, make(encoder.out_channels, sparse_shape)


def _state(encoder: nn.Module, backbone: nn.Module) -> dict[str, Tensor]:
    inner = {VOXEL_ENCODER + key: tensor for key, tensor in encoder.state_dict().items()}
    return {**backbone.state_dict(), **inner}


def untrained_layers(state: Mapping[str, Tensor]) -> list[str]:
    """Return the layers that have never run in training mode, told by their norm's counter of batches."""
    counters = [key for key in state if key.endswith(".num_batches_tracked") and int(state[key]) == 0]
    layers = (key.removesuffix(".num_batches_tracked").rpartition(".")[0] for key in counters)
    return list(dict.fromkeys(layers))
