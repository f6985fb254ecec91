"""Image features at strides 8 to 128: a timm network and a feature pyramid, pixels normalised inside.

Any timm network with feature maps of strides 8, 16 and 32 (Mask R-CNN: 4, too) that takes every image size will do
(ResNet, ConvNeXt, Swin, and others); it is tried on two small images when it is built. Normalisation of pixels belongs
to the weights, so it is done here and nowhere else. Detection heads are in `fcos.py`; how the pieces are joined is in
`segmentor.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers.format import Format
from timm.layers.norm import GroupNorm
from torch import Tensor, nn
from torch.nn import functional

from camera.timm_network import PIXEL_STYLES, feature_network
from mwsis.core.errors import ConfigError, closest_name

__all__ = ["FeaturePyramid", "ImageBackbone"]

BACKBONE_STRIDES = (8, 16, 32)
BACKBONE_GROUPS = 8
"""Divides the channel counts of every ResNet and RegNet of timm."""
NORMS = ("batch", "frozen", "frozen_affine", "group")
TRIAL_SIZES = ((64, 96), (160, 64))
"""Rows and columns on which a new backbone is tried."""


def _create(name: str, pretrained: bool | str, norm: str, pixel_style: str) -> Any:
    if pretrained and norm == "group":
        raise ConfigError("camera.norm: pretrained weights expect batch or frozen, got 'group'; use frozen")
    options: dict[str, Any] = {"norm_layer": partial(GroupNorm, num_groups=BACKBONE_GROUPS)} if norm == "group" else {}
    if name.startswith("swin"):  # any image size; windows shift even on the map that is one window in pretraining
        options |= {"strict_img_size": False, "always_partition": True}
    return feature_network(name, pretrained, pixel_style, **options)


class ImageBackbone(nn.Module):
    """Features of some strides, 8, 16 and 32 if not said otherwise, from 8-bit RGB images.

    Args:
        name: timm model that can return feature maps, such as ``resnet50``, ``convnext_tiny`` or
            ``swin_tiny_patch4_window7_224``.
        pretrained: ImageNet weights, see `camera.timm_network.feature_network`.
        norm: ``batch``; ``frozen`` (running statistics fixed, scale and shift trained, for pretrained weights);
            ``frozen_affine`` (scale and shift fixed, too); ``group`` (8 groups, no running statistics, for short
            training from scratch). Layer norms stay what they are; a Swin cannot have ``group``.
        frozen_stages: 0 trains everything, 1 freezes the stem and the stride-4 stage, each further one the next stage.
        pixel_style: ``imagenet`` (RGB, mean and deviation of ImageNet), ``half`` (RGB, -1 to 1) or ``caffe`` (BGR,
            mean only). timm's weights have one of the first two; another than theirs is refused.
        strides: of the maps, pixels, ascending.

    Raises:
        ConfigError: unknown name, norm or style, weights that cannot be had or want another style, or a network
            that does not take images of any size.

    Source: BoxInst uses a Caffe-style ResNet-50, one frozen stage, ``frozen_affine``; MWSIS the same with ``frozen``.
    """

    def __init__(
        self,
        name: str = "resnet18",
        *,
        pretrained: bool | str = False,
        norm: str = "batch",
        frozen_stages: int = 0,
        pixel_style: str = "imagenet",
        strides: Sequence[int] = BACKBONE_STRIDES,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ConfigError(
                f"camera.norm: expected one of {', '.join(NORMS)}, got '{norm}'{closest_name(norm, NORMS)}"
            )
        body = _create(name, pretrained, norm, pixel_style)
        self.body: nn.Module = body
        self.strides = tuple(strides)
        given = list(body.feature_info.reduction())
        if not set(strides) <= set(given):
            wanted = ", ".join(map(str, strides))
            raise ConfigError(f"camera.backbone: expected feature strides {wanted}, got {given} from '{name}'")
        self.feature_index = [given.index(stride) for stride in strides]
        self.channels = [body.feature_info.channels()[index] for index in self.feature_index]
        self.channels_last = getattr(body, "output_fmt", None) == Format.NHWC
        self._require_any_size(name, norm)
        self.norm = norm
        stages = dict(zip(given, body.feature_info.module_name(), strict=True))
        self.frozen_modules = self._stage_modules(name, frozen_stages, stages)
        for module in self.frozen_modules:
            module.requires_grad_(False)
        if norm == "frozen_affine":
            for module in self._batch_norms():
                module.requires_grad_(False)
        mean, deviation, self.swap_channels = PIXEL_STYLES[pixel_style]
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(deviation).reshape(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def _require_any_size(self, name: str, norm: str) -> None:
        """Refuse a network whose maps do not follow the size of the image."""
        self.body.eval()
        for height, width in TRIAL_SIZES:
            wanted = [
                (1, depth, height // stride, width // stride)
                for depth, stride in zip(self.channels, self.strides, strict=True)
            ]
            found: list[tuple[Any, ...]]
            try:
                found = [tuple(one.shape) for one in self._features(torch.zeros(1, 3, height, width))]
            except (RuntimeError, AssertionError, ValueError, IndexError) as error:
                found = [(str(error).splitlines()[0],)]
            if found != wanted:
                raise ConfigError(
                    f"camera.backbone: expected maps of strides {', '.join(map(str, self.strides))} for images of any "
                    f"size, got {found} from '{name}' with camera.norm '{norm}' at {height} x {width}; use "
                    "camera.norm=batch, or a backbone such as resnet50, convnext_tiny, swin_tiny_patch4_window7_224"
                )
        self.body.train()

    def _stage_modules(self, name: str, frozen_stages: int, module_of_stride: dict[int, str]) -> list[nn.Module]:
        if frozen_stages == 0:
            return []
        inner = dict(self.body.named_modules())
        stages = [module_of_stride.get(stride, "") for stride in (4, *BACKBONE_STRIDES)]
        names = [stage if stage in inner else stage.replace(".", "_") for stage in stages]
        most = len(names) if set(names) <= set(inner) - {""} else 0
        if not 0 < frozen_stages <= most:
            expected = f"0 to {most}" if most else "0"
            raise ConfigError(f"camera.frozen_stages: expected {expected} with '{name}', got {frozen_stages}")
        last = names[frozen_stages - 1]
        end = max(index for index, found in enumerate(inner) if f"{found}.".startswith(f"{last}."))
        # all that comes before the stage's end, without what holds the stage
        return [inner[found] for found in list(inner)[: end + 1] if not (found == "" or last.startswith(f"{found}."))]

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def train(self, mode: bool = True) -> ImageBackbone:
        """Switch between training and evaluation; frozen parts and frozen batch statistics stay in evaluation."""
        super().train(mode)
        for module in [*self.frozen_modules, *(self._batch_norms() if self.norm.startswith("frozen") else [])]:
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

    def _features(self, pixels: Tensor) -> list[Tensor]:
        maps = self.body(pixels)
        picked = [maps[index] for index in self.feature_index]
        return [one.permute(0, 3, 1, 2) for one in picked] if self.channels_last else picked

    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """Return a feature map of each stride of (I, 3, H, W) uint8 RGB images."""
        return self._features(self.normalise(images, sizes))


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
