"""The sparse U-Nets written straight with spconv: what our layers, hooks and contexts cost is measured against these.

Parameters are registered in the order of `lidar.unet_v2`, `lidar.fsd_unet` and `lidar.res8x_unet`, so that weights can
be copied one after the other; ``conv_out``, which pretraining does not run, is missing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lidar.sparse  # noqa: F401  (prepares the import of spconv, which takes eight seconds otherwise)

import spconv.pytorch as spconv  # isort: skip
from spconv.core import ConvAlgo  # isort: skip

ALGORITHM = ConvAlgo.MaskImplicitGemm if torch.cuda.is_available() else ConvAlgo.Native
BEFORE_DOWN = {2: 1, 3: 1, 4: (0, 1, 1), 5: 1}


def unit(conv: nn.Module, channels: int) -> nn.Module:
    return spconv.SparseSequential(conv, nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01), nn.ReLU())


def subm(in_channels: int, out_channels: int, level: int, bias: bool = False) -> nn.Module:
    conv = spconv.SubMConv3d(
        in_channels, out_channels, 3, padding=1, bias=bias, indice_key=f"subm{level}", algo=ALGORITHM
    )
    if bias:
        conv.bias.requires_grad_(False)
    return conv


def down(in_channels: int, out_channels: int, level: int) -> nn.Module:
    conv = spconv.SparseConv3d(
        in_channels, out_channels, 3, 2, BEFORE_DOWN[level], bias=False, indice_key=f"down{level}", algo=ALGORITHM
    )
    return unit(conv, out_channels)


def up(in_channels: int, out_channels: int, level: int) -> nn.Module:
    conv = spconv.SparseInverseConv3d(
        in_channels, out_channels, 3, bias=False, indice_key=f"down{level}", algo=ALGORITHM
    )
    return unit(conv, out_channels)


class Residual(spconv.SparseModule):
    def __init__(self, channels: int, level: int, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = subm(channels, channels, level, bias)
        self.bn1 = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)
        self.conv2 = subm(channels, channels, level, bias)
        self.bn2 = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)

    def forward(self, x):
        out = self.conv1(x)
        out = out.replace_feature(self.bn1(out.features).relu())
        out = self.conv2(out)
        return out.replace_feature((self.bn2(out.features) + x.features).relu())


class PlainUNet(nn.Module):
    """Levels of ``widths`` channels; each has two layers of ``inner`` after it was entered, the first has ``first``."""

    def __init__(self, in_channels, sparse_shape, widths, out_channels, inner, first):
        super().__init__()
        self.shape = list(sparse_shape)
        self.entry = unit(subm(in_channels, widths[0], 1), widths[0])
        self.stages = nn.ModuleList([spconv.SparseSequential(*(inner(widths[0], 1) for _ in range(first)))])
        for level in range(2, len(widths) + 1):
            above, here = widths[level - 2 : level]
            self.stages.append(
                spconv.SparseSequential(down(above, here, level), inner(here, level), inner(here, level))
            )
        self.decoder = nn.ModuleList()
        for level in range(len(widths), 0, -1):
            here = widths[level - 1]
            leave = up(here, widths[level - 2], level) if level > 1 else unit(subm(here, out_channels, 1), out_channels)
            merge = unit(subm(2 * here, here, level), here)
            self.decoder.append(nn.ModuleList([Residual(here, level), merge, leave]))

    def forward(self, voxel_features: Tensor, voxel_coords: Tensor, num_frames: int) -> Tensor:
        x = self.entry(spconv.SparseConvTensor(voxel_features, voxel_coords, self.shape, num_frames))
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        for skip, (lateral, merge, leave) in zip(reversed(levels), self.decoder, strict=True):
            beside = lateral(skip)
            both = beside.replace_feature(torch.cat([x.features, beside.features], 1))
            merged = merge(both)
            pairs = both.features.view(len(both.features), merged.features.shape[1], -1)
            x = leave(merged.replace_feature(merged.features + pairs.sum(2)))
        return x.features


def plain_unit(channels: int, level: int) -> nn.Module:
    return unit(subm(channels, channels, level), channels)


def residual_with_bias(channels: int, level: int) -> nn.Module:
    return Residual(channels, level, bias=True)


def plain_network(name: str, in_channels: int, sparse_shape: tuple[int, ...]) -> nn.Module:
    """Return the plain twin of ``lidar=name``."""
    settings = {
        "unet_v2": ((16, 32, 64, 64), 16, plain_unit, 1),
        "fsd_unet": ((64, 64, 64, 128, 256), 64, plain_unit, 1),
        "res8x_unet": ((16, 32, 64, 128), 16, residual_with_bias, 2),
    }
    return PlainUNet(in_channels, sparse_shape, *settings[name])


def copy_weights(source: nn.Module, twin: nn.Module) -> None:
    """Copy parameters and buffers in the order of their registration."""
    values = [tensor for name, tensor in source.state_dict().items() if not name.startswith("conv_out.")]
    twin.load_state_dict(dict(zip(twin.state_dict(), values, strict=True)))
