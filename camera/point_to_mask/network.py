"""The dense network of P2Seg: classes, offsets to the object's point and affinity features of each cell of 4 px.

Its losses and training step are `step.py`. It shares nothing with the segmentor (`camera.segmentor`), which is trained
on the masks that this one makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from camera.timm_network import PIXEL_STYLES, feature_network
from mwsis.core.errors import ConfigError

__all__ = ["STRIDE", "DenseOutput", "PointNetwork", "content_of", "on_recorded_image"]

STRIDE = 4
"""Pixels of a cell along each axis."""
STRIDES = (4, 8, 16, 32)
FINEST_BRANCH = "hrnet"
"""Networks that keep a map of stride 4 all the way; the others get a pyramid."""
FIRST_OUTPUT_STD = 1e-3


@dataclass(frozen=True, eq=False)
class DenseOutput:
    """What the network says about I images, a cell for 4 x 4 pixels.

    Attributes:
        class_logits: (I, C+1, h, w) float32, channel 0 background.
        offsets: (I, 2, h, w) float32, column and row, cells from the centre of a cell to its object's point.
        features: (I, D, h, w) float32, compared by `local_affinity`.
    """

    class_logits: Tensor
    offsets: Tensor
    features: Tensor


class PointNetwork(nn.Module):
    """A timm network with a map of stride 4, and three heads.

    Args:
        num_classes: C.
        backbone: timm model; of an ``hrnet_...`` the finest branch is used alone, as published with ``hrnet_w48``, any
            other gets a feature pyramid.
        pretrained, pixel_style: ImageNet weights, see `camera.timm_network.feature_network`.
        head_channels: inner depth of the class and offset heads, and depth of a pyramid (published: 256).
        affinity_channels: D (published: 256).

    Raises:
        ConfigError: no such network, none with maps of strides 4 to 32, or weights that cannot be had.

    Source: P2Seg (arXiv 2401.09709) and its released code: 3 x 3 convolution, ReLU, 1 x 1 convolution. *Simplified*: no
    head for centres, since the points are given; only the last convolutions begin near zero.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "hrnet_w48",
        pretrained: bool | str = False,
        pixel_style: str = "imagenet",
        head_channels: int = 256,
        affinity_channels: int = 256,
    ) -> None:
        super().__init__()
        options = {"feature_location": ""} if backbone.startswith(FINEST_BRANCH) else {}
        body = feature_network(backbone, pretrained, pixel_style, **options)
        self.body: nn.Module = body
        strides = list(body.feature_info.reduction())
        if not set(STRIDES) <= set(strides):
            raise ConfigError(
                f"camera.backbone: expected feature strides 4, 8, 16, 32, got {strides} from '{backbone}'"
            )
        self.picked = [strides.index(stride) for stride in STRIDES]
        channels = [body.feature_info.channels()[index] for index in self.picked]
        if backbone.startswith(FINEST_BRANCH):
            self.pyramid, depth = None, channels[0]
        else:
            self.pyramid, depth = _FinestOfPyramid(channels, head_channels), head_channels
        self.classes = _head(depth, head_channels, num_classes + 1)
        self.offsets = _head(depth, head_channels, 2)
        self.affinity = nn.Conv2d(depth, affinity_channels, 3, padding=1)
        mean, deviation, self.swap_channels = PIXEL_STYLES[pixel_style]
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(deviation).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> DenseOutput:
        """Return the dense output of images padded right and bottom.

        Args:
            images: (I, 3, H, W) uint8 RGB, H and W multiples of 32.
            sizes: (I, 2) int64, rows and columns of content; beyond it the mean colour is shown.
        """
        pixels = (images.float() - self.pixel_mean) / self.pixel_std
        pixels = pixels * content_of(sizes, *images.shape[-2:])[:, None]
        maps = self.body(pixels.flip(1) if self.swap_channels else pixels)
        picked = [maps[index] for index in self.picked]
        finest = picked[0] if self.pyramid is None else self.pyramid(picked)
        return DenseOutput(self.classes(finest), self.offsets(finest), self.affinity(finest))


def content_of(sizes: Tensor, height: int, width: int) -> Tensor:
    """Return (I, H, W) bool, False in the padding of images with (I, 2) rows and columns of content."""
    rows = torch.arange(height, device=sizes.device) < sizes[:, :1]
    columns = torch.arange(width, device=sizes.device) < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None]


def on_recorded_image(cells: Tensor, stride: int, content: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return what a network says of cells, bilinear, on the pixels of the recorded image.

    Args:
        cells: (I, K, h, w) float32.
        stride: pixels of a cell along each axis.
        content: rows and columns of the image that the network saw, without padding.
        size: rows and columns of the recorded one.

    Returns:
        (I, K, H, W) float32.
    """
    pixels = functional.interpolate(cells, scale_factor=float(stride), mode="bilinear")
    return functional.interpolate(pixels[:, :, : content[0], : content[1]], tuple(size), mode="bilinear")


def _head(depth: int, hidden: int, out: int) -> nn.Sequential:
    head = nn.Sequential(nn.Conv2d(depth, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, out, 1))
    last = head[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    nn.init.normal_(last.weight, std=FIRST_OUTPUT_STD)
    nn.init.zeros_(last.bias)
    return head


class _FinestOfPyramid(nn.Module):
    """The finest map of a feature pyramid (FPN)."""

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(depth, channels, 1) for depth in in_channels)

    def forward(self, features: list[Tensor]) -> Tensor:
        merged: Tensor = self.laterals[-1](features[-1])
        for lateral, feature in zip(self.laterals[-2::-1], features[-2::-1], strict=True):
            merged = lateral(feature) + functional.interpolate(merged, scale_factor=2.0)
        return merged
