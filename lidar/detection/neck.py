"""Two convolution blocks over the bird's-eye view, brought to one resolution and joined: SECOND's neck.

Before: `SparseUNet.encode`. After: `center_head.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lidar.blocks import BN_EPS, BN_MOMENTUM
from mwsis.core.errors import ConfigError

__all__ = ["BirdEyeNeck", "conv_unit"]


def conv_unit(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution without bias, its norm and a ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, BN_EPS, BN_MOMENTUM), nn.ReLU())


def _up_unit(in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
    conv = nn.ConvTranspose2d(in_channels, out_channels, factor, factor, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, BN_EPS, BN_MOMENTUM), nn.ReLU())


class BirdEyeNeck(nn.Module):
    """Features of bird's-eye-view cells from two resolutions, the input's and half of it.

    Args:
        in_channels: D of the input.
        layers: 3x3 convolutions of each block after its first one.
        channels: D of each block.
        up_channels: D of each block after it was brought to the output's resolution.
        upsample: cells of the output per cell of the input, along each axis.

    Attributes:
        out_channels: D of the output.

    Raises:
        ConfigError: not two blocks, or a number below 1.

    Source: SECOND (Yan et al., 2018) and CenterPoint (CVPR 2021), which take ``upsample`` 1; finer outputs, for coarse
    voxels, and odd sizes: *generalised*.
    """

    def __init__(
        self,
        in_channels: int,
        layers: Sequence[int] = (5, 5),
        channels: Sequence[int] = (128, 256),
        up_channels: Sequence[int] = (256, 256),
        upsample: int = 1,
    ) -> None:
        super().__init__()
        given = {"layers": layers, "channels": channels, "up_channels": up_channels}
        for name, values in given.items():
            if len(values) != 2 or min(values) < (name != "layers"):
                raise ConfigError(f"detector.neck_{name}: expected two numbers, one for each block, got {list(values)}")
        if upsample < 1:
            raise ConfigError(f"detector.upsample: expected at least 1, got {upsample}")
        self.upsample = upsample
        self.out_channels = sum(up_channels)
        before = (in_channels, channels[0])
        self.blocks = nn.ModuleList(
            nn.Sequential(
                conv_unit(before[block], channels[block], stride=block + 1),
                *(conv_unit(channels[block], channels[block]) for _ in range(layers[block])),
            )
            for block in range(2)
        )
        self.ups = nn.ModuleList(
            _up_unit(channels[block], up_channels[block], upsample * (block + 1)) for block in range(2)
        )

    def forward(self, bird_eye: Tensor) -> Tensor:
        """Return the features of the output's cells.

        Args:
            bird_eye: (B, D, rows, columns) float32.

        Returns:
            (B, out_channels, rows * upsample, columns * upsample) float32.
        """
        rows, columns = (size * self.upsample for size in bird_eye.shape[-2:])
        joined = []
        for block, up in zip(self.blocks, self.ups, strict=True):
            bird_eye = block(bird_eye)
            joined.append(up(bird_eye)[..., :rows, :columns])  # half of an odd size, doubled, is one too many
        return torch.cat(joined, 1)
