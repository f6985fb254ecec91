"""Image features at strides 8 to 128: a timm network and a feature pyramid, pixels normalised inside.

Normalisation belongs to the weights, so it is done here and nowhere else. Detection heads are in `fcos.py`; how the
pieces are joined is in `segmentor.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from timm.layers.norm import GroupNorm
from torch import Tensor, nn
from torch.nn import functional

from mwsis.core.errors import ConfigError, closest_name

__all__ = ["FeaturePyramid", "ImageBackbone"]

BACKBONE_STRIDES = (8, 16, 32)
PIXEL_STYLES = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False),
    "caffe": ((123.675, 116.28, 103.53), (1.0, 1.0, 1.0), True),
}
"""RGB mean, RGB standard deviation (8-bit grey levels), and whether the network expects BGR."""
BACKBONE_GROUPS = 8
"""Divides the channel counts of every ResNet and RegNet of timm."""
NORMS = ("batch", "frozen", "group")


def _create(name: str, pretrained: bool, norm: str) -> Any:
    options: dict[str, Any] = {"norm_layer": partial(GroupNorm, num_groups=BACKBONE_GROUPS)} if norm == "group" else {}
    if pretrained and norm == "group":
        raise ConfigError("camera.norm: pretrained weights expect batch or frozen, got 'group'; use frozen")
    if not timm.is_model(name):
        raise ConfigError(
            f"camera.backbone: expected a timm model, got '{name}'{closest_name(name, timm.list_models())}"
        )
    try:
        return timm.create_model(name, features_only=True, pretrained=pretrained, **options)
    except (OSError, RuntimeError, TypeError) as error:
        if pretrained:
            raise ConfigError(
                f"camera.pretrained: expected ImageNet weights of '{name}' on disk or reachable, got "
                f"{type(error).__name__}; set camera.pretrained=false or run once with network access"
            ) from error
        raise ConfigError(f"camera.norm: '{name}' cannot be built with norm '{norm}'; use batch or frozen") from error


class ImageBackbone(nn.Module):
    """Features of strides 8, 16 and 32 from 8-bit RGB images.

    Args:
        name: timm model that can return feature maps, such as ``resnet18`` or ``resnet50``.
        pretrained: load timm's ImageNet weights (from its cache or the network).
        norm: ``batch``; ``frozen`` (running statistics fixed, scale and shift trained, for pretrained weights);
            ``group`` (8 groups, no running statistics, for short training from scratch).
        frozen_stages: 0 trains everything, 1 freezes the stem and the stride-4 stage, each further one the next stage.
        pixel_style: ``imagenet`` (RGB, mean and deviation of ImageNet) or ``caffe`` (BGR, mean only).

    Raises:
        ConfigError: unknown name, norm or style, or weights that cannot be had.

    Source: BoxInst and MWSIS use a Caffe-style ResNet-50, one frozen stage, frozen batch statistics.
    """

    def __init__(
        self,
        name: str = "resnet18",
        *,
        pretrained: bool = False,
        norm: str = "batch",
        frozen_stages: int = 0,
        pixel_style: str = "imagenet",
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ConfigError(
                f"camera.norm: expected one of {', '.join(NORMS)}, got '{norm}'{closest_name(norm, NORMS)}"
            )
        if pixel_style not in PIXEL_STYLES:
            raise ConfigError(f"camera.pixel_style: got '{pixel_style}'{closest_name(pixel_style, PIXEL_STYLES)}")
        body = _create(name, pretrained, norm)
        self.body: nn.Module = body
        strides, names = list(body.feature_info.reduction()), list(body.feature_info.module_name())
        if not set(BACKBONE_STRIDES) <= set(strides):
            raise ConfigError(f"camera.backbone: expected feature strides 8, 16, 32, got {strides} from '{name}'")
        self.feature_index = [strides.index(stride) for stride in BACKBONE_STRIDES]
        self.channels = [body.feature_info.channels()[index] for index in self.feature_index]
        self.norm = norm
        self.frozen_modules = self._stage_modules(frozen_stages, dict(zip(strides, names, strict=True)))
        for module in self.frozen_modules:
            module.requires_grad_(False)
        mean, deviation, self.swap_channels = PIXEL_STYLES[pixel_style]
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(deviation).reshape(1, 3, 1, 1), persistent=False)

    def _stage_modules(self, frozen_stages: int, module_of_stride: dict[int, str]) -> list[nn.Module]:
        if frozen_stages == 0:
            return []
        names = [name for name, _ in self.body.named_children()]
        last = module_of_stride.get(2 ** (frozen_stages + 1))
        if last not in names:
            raise ConfigError(f"camera.frozen_stages: expected 0 for this backbone, got {frozen_stages}; set it to 0")
        return [self.body.get_submodule(name) for name in names[: names.index(last) + 1]]

    def train(self, mode: bool = True) -> ImageBackbone:
        """Switch between training and evaluation; frozen parts and frozen batch statistics stay in evaluation."""
        super().train(mode)
        for module in self.frozen_modules:
            module.eval()
        if self.norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Return (I, 3, H, W) float32 network input with zeros (the mean colour) in the padding.

        Args:
            images: (I, 3, H, W) uint8 RGB.
            sizes: (I, 2) int64, rows and columns of content.
        """
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) < sizes[:, :1].to(images.device)
        cols = torch.arange(width, device=images.device) < sizes[:, 1:].to(images.device)
        pixels = (images.float() - self.pixel_mean) / self.pixel_std
        pixels = pixels * (rows[:, None, :, None] & cols[:, None, None, :])
        return pixels.flip(1) if self.swap_channels else pixels

    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """Return three feature maps, strides 8, 16 and 32, of (I, 3, H, W) uint8 RGB images."""
        features = self.body(self.normalise(images, sizes))
        return [features[index] for index in self.feature_index]


class FeaturePyramid(nn.Module):
    """Maps of equal depth at strides 8, 16, 32 and, by stride-2 convolutions, 64 and 128.

    Args:
        in_channels: depth of the backbone's three maps.
        channels: depth of the output (published: 256).
        num_levels: 3 to 5; 5 is published, fewer save time where no object is large.

    Source: CondInst (the stride-64 map is made from the stride-32 output, the stride-128 map after a ReLU).
    """

    def __init__(self, in_channels: list[int], channels: int = 256, num_levels: int = 5) -> None:
        super().__init__()
        if not 3 <= num_levels <= 5:
            raise ConfigError(f"camera.num_levels: expected 3, 4 or 5, got {num_levels}")
        self.laterals = nn.ModuleList(nn.Conv2d(depth, channels, 1) for depth in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.downs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(num_levels - 3))
        self.strides = tuple(8 * 2**level for level in range(num_levels))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_uniform_(parameter, a=1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the pyramid, finest first, of three maps whose sizes halve exactly."""
        merged = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        for level in (1, 0):
            merged[level] = merged[level] + functional.interpolate(merged[level + 1], scale_factor=2.0)
        pyramid = [output(feature) for output, feature in zip(self.outputs, merged, strict=True)]
        for index, down in enumerate(self.downs):
            pyramid.append(down(pyramid[-1].relu() if index else pyramid[-1]))
        return pyramid
