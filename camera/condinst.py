"""A mask for every picked location: shared pixel features and a tiny network whose weights the location predicts.

Nothing here knows about losses or labels; the last function cuts predicted masks out at the size of the recorded
image. How locations are picked is in `fcos.py`; box-supervised losses on the masks
are in `terms.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from camera.fcos import Cells, Locations, norm_groups
from mwsis.core.errors import ConfigError, closest_name
from mwsis.core.instances import MaskSet

__all__ = [
    "Controller",
    "DynamicMaskHead",
    "MaskBranch",
    "MaskOutput",
    "aligned_bilinear",
    "extent",
    "num_dynamic_params",
    "paste_masks",
]

HIDDEN = 8
"""Width of the two hidden layers (CondInst, section 4); mmdet's BoxInst has 16."""
FEATURE_STRIDE = 8
MASK_STRIDE = 4
MASK_THRESHOLD = 0.5
DEPTH_GATES = ("half", "product")


def _layer_sizes(mask_channels: int, hidden: int, depth: bool) -> list[tuple[int, int]]:
    """Return (numbers, inputs per unit) of a mask network's parts: weights, biases of two layers and each output."""
    wide = mask_channels + 2
    layers = [(hidden * wide, wide), (hidden, 0), (hidden * hidden, hidden), (hidden, 0)]
    return layers + [(hidden, hidden), (1, 0)] * (1 + depth)


def num_dynamic_params(mask_channels: int, hidden: int = HIDDEN, depth: bool = False) -> int:
    """Return how many numbers a location predicts for its mask network.

    169 for 8 mask channels, 233 for 16, 242 for 16 with a depth output.
    """
    return sum(size for size, _ in _layer_sizes(mask_channels, hidden, depth))


@dataclass(frozen=True, eq=False)
class MaskOutput:
    """Masks at picked locations.

    Attributes:
        logits: (K, H/4, W/4).
        depth: (K, H/4, W/4) in [0, 1], the object's relative inverse depth; None of a network without that output.
    """

    logits: Tensor
    depth: Tensor | None = None


def aligned_bilinear(maps: Tensor, factor: int) -> Tensor:
    """Return maps enlarged so that cell i of the input is cell ``factor i + factor // 2`` of the output.

    Args:
        maps: (K, D, h, w) float.
        factor: 1 returns the input.

    Returns:
        (K, D, factor h, factor w).

    Source: CondInst's code, `aligned_bilinear`.
    """
    if factor == 1:
        return maps
    height, width = maps.shape[-2:]
    maps = functional.pad(maps, (0, 1, 0, 1), mode="replicate")
    size = (factor * height + 1, factor * width + 1)
    maps = functional.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    maps = functional.pad(maps, (factor // 2, 0, factor // 2, 0), mode="replicate")
    return maps[..., : factor * height, : factor * width]


def _conv_unit(in_channels: int, channels: int, norm: str) -> nn.Sequential:
    layer = nn.GroupNorm(norm_groups(channels), channels) if norm == "group" else nn.BatchNorm2d(channels)
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, layer, nn.ReLU(inplace=True))


class MaskBranch(nn.Module):
    """Pixel features at stride 8 that all objects of an image share.

    Args:
        in_channels: depth of the pyramid.
        channels: inner depth (published: 128).
        num_convs: depth of the tower (published: 4).
        out_channels: 16 for box supervision, 8 for full supervision (published).
        norm: ``batch`` (published) or ``group``.
    """

    def __init__(
        self, in_channels: int, *, channels: int = 128, num_convs: int = 4, out_channels: int = 16, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.refine = nn.ModuleList(_conv_unit(in_channels, channels, norm) for _ in range(3))
        tower: list[nn.Module] = [_conv_unit(channels, channels, norm) for _ in range(num_convs)]
        self.tower = nn.Sequential(*tower, nn.Conv2d(channels, out_channels, 1))

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Return (I, out_channels, H/8, W/8) of the three finest pyramid maps."""
        merged = self.refine[0](pyramid[0])
        for level in (1, 2):
            merged = merged + aligned_bilinear(self.refine[level](pyramid[level]), 2**level)
        features: Tensor = self.tower(merged)
        return features


class Controller(nn.Module):
    """The mask network's weights, computed by a 3 by 3 convolution at the picked locations only.

    Equal to a convolution over all locations followed by picking, without its cost and memory.

    Args:
        channels: depth of the box tower.
        mask_channels: depth of the mask features.
        hidden: width of the mask networks.
        depth: they have a second output, see `DynamicMaskHead`.
        random_start: let every object start from one random mask network instead of from none. With the published zero
            bias the three layers start near zero, where only the last bias has a gradient, and masks that fill the
            image are often never left; pretrained weights and thousands of steps get over it, short training does not.

    Source: CondInst, section 3; N(0, 0.01) weights and zero bias there, ``random_start`` is *generalised* (bias drawn
    as the weights of a ReLU network, He et al. 2015).
    """

    def __init__(
        self,
        channels: int,
        mask_channels: int,
        *,
        hidden: int = HIDDEN,
        depth: bool = False,
        random_start: bool = True,
    ) -> None:
        super().__init__()
        layers = _layer_sizes(mask_channels, hidden, depth)
        num_params = num_dynamic_params(mask_channels, hidden, depth)
        self.weight = nn.Parameter(torch.empty(num_params, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(num_params))
        nn.init.normal_(self.weight, std=0.01)
        if random_start:
            gain = [math.sqrt(2 / inputs) if inputs else 0.0 for _, inputs in layers]
            gain[4::2] = [math.sqrt(1 / hidden)] * (1 + depth)  # no ReLU follows an output
            parts = [factor * torch.randn(size) for factor, (size, _) in zip(gain, layers)]
            self.bias.data.copy_(torch.cat(parts))

    def forward(self, tower_feats: Tensor, locations: Locations, cells: Cells) -> Tensor:
        """Return (K, num_params).

        Args:
            tower_feats: (I, L, D).
            locations: L cells.
            cells: K picked locations.
        """
        neighbours = locations.neighbours(cells.location_index)
        inside = neighbours < tower_feats.shape[1]
        patches = tower_feats[cells.image_index[:, None], neighbours.where(inside, 0)] * inside[..., None]
        return torch.addmm(self.bias, patches.flatten(1), self.weight.permute(2, 3, 1, 0).flatten(0, 2))


class DynamicMaskHead(nn.Module):
    """Mask logits at stride 4 from predicted weights.

    The first layer is applied to the shared features image by image and to the relative position separately (it is
    linear), so the features are never repeated per object.

    Args:
        mask_channels: depth of the mask features.
        position_scale: pixels by which relative positions are divided, per pyramid level.
        hidden: width of the mask networks (published: 8).
        depth_gate: a second output on the same layers says how near each cell is, p in [0, 1], and at stride 8 the
            mask's logit is multiplied by p (``product``, published; a mask is then undecided where p is 0) or by
            (1 + p) / 2 (``half``: at p = 0 it is half as sure). None: there is no such output.

    Raises:
        ConfigError: no such gate.

    Source: CondInst, section 3.2; hidden width 8, three layers; published scales 64, 128, 256, 512, 1024. Depth:
    arXiv 2403.01214, depth-guided mask head; ``half`` is ours (*generalised*), since far objects have small p.
    """

    def __init__(
        self,
        mask_channels: int,
        position_scale: tuple[float, ...],
        hidden: int = HIDDEN,
        depth_gate: str | None = None,
    ) -> None:
        super().__init__()
        if depth_gate is not None and depth_gate not in DEPTH_GATES:
            raise ConfigError(f"camera.depth_gate: no '{depth_gate}'{closest_name(depth_gate, DEPTH_GATES)}")
        self.mask_channels = mask_channels
        self.hidden = hidden
        self.depth_gate = depth_gate
        self.position_scale: Tensor
        self.register_buffer("position_scale", torch.tensor(position_scale), persistent=False)

    def forward(self, mask_feats: Tensor, params: Tensor, locations: Locations, cells: Cells) -> MaskOutput:
        """Return the masks of K locations.

        Args:
            mask_feats: (I, D, H/8, W/8).
            params: (K, num_params): first layer's weights (x, y, features), bias, second layer's, each output's.
            locations: L cells.
            cells: K picked locations, ascending image index.
        """
        sizes = [size for size, _ in _layer_sizes(self.mask_channels, self.hidden, self.depth_gate is not None)]
        first, first_bias, second, second_bias, *outputs = torch.split(params, sizes, 1)
        first = first.reshape(len(cells), self.hidden, self.mask_channels + 2)
        hidden = self._position(first[..., :2], first_bias, mask_feats, locations, cells)
        hidden = hidden + self._per_image(first[..., 2:], mask_feats, cells.image_index)
        hidden = hidden.flatten(2).relu()
        hidden = torch.baddbmm(second_bias[..., None], second.reshape(-1, self.hidden, self.hidden), hidden).relu()
        maps = [
            torch.baddbmm(bias[..., None], weight[:, None], hidden).reshape(-1, 1, *mask_feats.shape[-2:])
            for weight, bias in zip(outputs[0::2], outputs[1::2], strict=True)
        ]
        if self.depth_gate is None:
            return MaskOutput(aligned_bilinear(maps[0], 2)[:, 0])
        depth = maps[1].sigmoid()
        gate = (1 + depth) / 2 if self.depth_gate == "half" else depth
        return MaskOutput(aligned_bilinear(maps[0] * gate, 2)[:, 0], aligned_bilinear(depth, 2)[:, 0])

    def _position(self, weight: Tensor, bias: Tensor, mask_feats: Tensor, locations: Locations, cells: Cells) -> Tensor:
        """Return the first layer's response to the relative position, (K, hidden, h, w)."""
        height, width = mask_feats.shape[-2:]
        scale = self.position_scale[locations.level[cells.location_index]][:, None]
        centre = locations.xy[cells.location_index]
        ticks = torch.arange(max(height, width), device=centre.device) * FEATURE_STRIDE + FEATURE_STRIDE // 2
        across = (centre[:, :1] - ticks[:width]) / scale
        along = (centre[:, 1:] - ticks[:height]) / scale
        columns = weight[..., :1] * across[:, None] + bias[..., None]
        return columns[:, :, None] + (weight[..., 1:] * along[:, None])[..., None]

    @staticmethod
    def _per_image(weight: Tensor, mask_feats: Tensor, image_index: Tensor) -> Tensor:
        """Return the first layer's response to the mask features, (K, hidden, h, w)."""
        counts = image_index.bincount(minlength=len(mask_feats)).tolist()
        groups = torch.split(weight, counts)
        parts = [group.flatten(0, 1) @ feature.flatten(1) for group, feature in zip(groups, mask_feats, strict=True)]
        return torch.cat(parts).reshape(-1, weight.shape[1], *mask_feats.shape[-2:])


def extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and last True of each row of (K, n) bool, (K,) int64 each; first > last where there is none."""
    place = torch.arange(line.shape[1], device=line.device)
    return place.where(line, line.shape[1]).amin(1), place.where(line, -1).amax(1)


def _pixel_range(first: Tensor, last: Tensor, size: int, original: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return the half-open range of recorded pixels that a bilinear reading of cells first..last can touch."""
    ratio = original / size
    centre = stride // 2 + 0.5
    begin = ((stride * (first - 1) + centre) * ratio - 0.5).floor().long().clamp(0, original)
    end = ((stride * (last + 1) + centre) * ratio - 0.5).ceil().long().clamp(-1, original - 1) + 1
    return begin, end


def _interpolate(prob: Tensor, begin: int, end: int, size: int, original: int, stride: int) -> Tensor:
    """Return rows ``begin`` to ``end`` of the recorded image from an (h, w) map, linearly."""
    pixel = torch.arange(begin, end, device=prob.device, dtype=prob.dtype)
    cell = ((pixel + 0.5) * (size / original) - 0.5 - stride // 2) / stride
    cell = cell.clamp(0, prob.shape[0] - 1)
    low = cell.floor().long()
    return torch.lerp(prob[low], prob[(low + 1).clamp(max=prob.shape[0] - 1)], (cell - low)[:, None])


def paste_masks(prob: Tensor, size: tuple[int, int], original: tuple[int, int], stride: int = MASK_STRIDE) -> MaskSet:
    """Return masks on the recorded image, each computed only where it can be set.

    A bilinear reading exceeds the threshold only next to a cell that does, so the crop loses nothing.

    Args:
        prob: (K, h, w) float in [0, 1], of the padded image.
        size: rows and columns of the resized content.
        original: rows and columns of the recorded image.
        stride: pixels per cell of ``prob``.

    Returns:
        K masks, on the CPU.

    Complexity: time and memory of the masks' extents, not of K full images.

    Source: CondInst enlarges to the input, then to the recorded size; here in one step (*simplified*), threshold 0.5.
    """
    likely = prob > MASK_THRESHOLD
    rows = _pixel_range(*extent(likely.any(2)), size[0], original[0], stride)
    cols = _pixel_range(*extent(likely.any(1)), size[1], original[1], stride)
    boxes = torch.stack([cols[0], rows[0], cols[1], rows[1]], 1)
    boxes = boxes * ((boxes[:, 2:] > boxes[:, :2]).all(1) & likely.flatten(1).any(1))[:, None]
    boxes, crops = boxes.cpu(), []
    for one, (x1, y1, x2, y2) in zip(prob, boxes.tolist(), strict=True):
        rows_done = _interpolate(one, y1, y2, size[0], original[0], stride)
        across = _interpolate(rows_done.T, x1, x2, size[1], original[1], stride)
        crops.append((across.T > MASK_THRESHOLD).cpu())
    return MaskSet.from_crops(original[0], original[1], boxes, crops)
