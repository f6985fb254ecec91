"""The exported backbones as dense convolutions, computed from a file's own names and layout.

A layer is `conv3d` or `conv_transpose3d` of torch on the whole grid, emptied where no voxel is. Which layers a class of
another framework has, and what it calls them, is written down here anew, from the listings of their keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-3
Down = tuple[int, int, int]
DOWN: dict[int, Down] = {2: (1, 1, 1), 3: (1, 1, 1), 4: (0, 1, 1), 5: (1, 1, 1)}
"""Padding of the convolution that enters a level."""


@dataclass(frozen=True)
class Plan:
    """What a class calls its layers; a convolution and its norm are one string, ``conv|norm``."""

    stages: list[list[tuple[str, str]]]
    decoder: list[tuple[str, str, str]]
    out: str | None


def unit(name: str) -> str:
    return f"{name}.0|{name}.1"


def plan(target: str) -> Plan:
    """Return the layers of a class, by the name of its key list."""
    mm = "encoder_layers.encoder_layer"
    levels = (2, 3, 4, 5) if target.startswith("sst") else (2, 3, 4)
    if target in ("pcdet_UNetV2", "pcdet_VoxelBackBone8x"):
        stages = [[("subm", unit("conv1.0"))]]
        stages += [[("down", unit(f"conv{n}.0"))] + [("subm", unit(f"conv{n}.{i}")) for i in (1, 2)] for n in levels]
        ups = {1: "conv5.0"} | {n: f"inv_conv{n}" for n in levels}
        decoder = [(f"conv_up_t{n}", unit(f"conv_up_m{n}"), unit(ups[n])) for n in (4, 3, 2, 1)]
        return Plan(stages, decoder if target.endswith("UNetV2") else [], unit("conv_out"))
    if target in ("mmdet3d_SparseUNet", "mmdet3d_SparseEncoder_default", "sst_SimpleSparseUNet"):
        stages = [[("subm", unit(f"{mm}1.0"))]]
        stages += [[("down", unit(f"{mm}{n}.0"))] + [("subm", unit(f"{mm}{n}.{i}")) for i in (1, 2)] for n in levels]
        decoder = [
            (f"lateral_layer{n}", unit(f"merge_layer{n}"), unit(f"upsample_layer{n}")) for n in (*levels[::-1], 1)
        ]
        return Plan(
            stages, [] if "Encoder" in target else decoder, None if target.startswith("sst") else unit("conv_out")
        )
    first, enter, blocks, out = {
        "pcdet_VoxelResBackBone8x": ("conv1.{i}", unit("conv{n}.0"), ("conv{n}.1", "conv{n}.2"), "conv_out"),
        "det3d_SpMiddleResNetFHD": ("conv1.{i}", "conv{n}.0|conv{n}.1", ("conv{n}.3", "conv{n}.4"), "extra_conv"),
        "mmdet3d_SparseEncoder_centerpoint": (
            mm + "1.{i}",
            unit(mm + "{m}.2"),
            (mm + "{n}.0", mm + "{n}.1"),
            "conv_out",
        ),
    }[target]
    stages = [[("block", first.format(i=i)) for i in (0, 1)]]
    for n in levels:
        stages.append([("down", enter.format(n=n, m=n - 1)), *(("block", block.format(n=n)) for block in blocks)])
    return Plan(stages, [], unit(out))


class DenseBackbone:
    """A class of another framework, with the weights of its file.

    Args:
        target: name of its key list.
        weights: by its names, without prefix.
        layout: KRSC or RSCK.
    """

    def __init__(self, target: str, weights: dict[str, Tensor], layout: str) -> None:
        self.plan = plan(target)
        to_krsc = (0, 1, 2, 3, 4) if layout == "KRSC" else (4, 0, 1, 2, 3)
        self.weights = {k: w.permute(to_krsc).float() if w.dim() == 5 else w.float() for k, w in weights.items()}

    def __call__(self, features: Tensor, coords: Tensor, shape: list[int], num_frames: int) -> dict[str, Tensor]:
        """Return ``unet`` (V, D) in the order of the input and ``bev`` (B, D, Y, X), as far as the class has them."""
        index = tuple(coords.long().unbind(1))
        volume = torch.zeros(num_frames, *shape, features.shape[1])
        volume = volume.index_put(index, features).permute(0, 4, 1, 2, 3)
        mask = torch.zeros(num_frames, *shape).index_put(index, torch.ones(len(coords)))
        mask = mask[:, None]
        volume = self.subm(volume, mask, "conv_input.0|conv_input.1")
        levels = []
        for number, stage in enumerate(self.plan.stages, 1):
            for kind, name in stage:
                if kind == "down":
                    volume, mask = self.down(volume, mask, name, 3, 2, DOWN[number])
                else:
                    volume = self.subm(volume, mask, name) if kind == "subm" else self.block(volume, mask, name)
            levels.append((volume, mask))
        found: dict[str, Tensor] = {}
        if self.plan.out:
            found["bev"] = self.down(volume, mask, self.plan.out, (3, 1, 1), (2, 1, 1), 0)[0].flatten(1, 2)
        if self.plan.decoder:
            found["unet"] = self.decode(levels).permute(0, 2, 3, 4, 1)[index]
        return found

    def decode(self, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
        below = levels[-1][0]
        for number, (lateral, merge, up) in zip(range(len(levels), 0, -1), self.plan.decoder, strict=True):
            volume, mask = levels[number - 1]
            both = torch.cat([below, self.block(volume, mask, lateral)], 1)
            merged = self.subm(both, mask, merge)
            frames, _, *cells = both.shape
            merged = merged + both.view(frames, merged.shape[1], -1, *cells).sum(2)
            if number == 1:
                return self.subm(merged, mask, up)
            below = self.up(merged, levels[number - 2][1], up, DOWN[number])
        raise AssertionError

    def subm(self, volume: Tensor, mask: Tensor, name: str) -> Tensor:
        conv, norm = name.split("|")
        return self.norm(self.conv(volume, conv, 1, 1), mask, norm).relu()

    def block(self, volume: Tensor, mask: Tensor, name: str) -> Tensor:
        inner = self.subm(volume, mask, f"{name}.conv1|{name}.bn1")
        return (self.norm(self.conv(inner, f"{name}.conv2", 1, 1), mask, f"{name}.bn2") + volume).relu()

    def down(
        self, volume: Tensor, mask: Tensor, name: str, kernel: Any, stride: Any, padding: Any
    ) -> tuple[Tensor, Tensor]:
        conv, norm = name.split("|")
        sizes = (kernel,) * 3 if isinstance(kernel, int) else kernel
        reached = (functional.conv3d(mask, torch.ones(1, 1, *sizes), None, stride, padding) > 0).float()
        return self.norm(self.conv(volume, conv, stride, padding), reached, norm).relu(), reached

    def up(self, volume: Tensor, finer: Tensor, name: str, padding: Down) -> Tensor:
        conv, norm = name.split("|")
        kernel = self.weights[f"{conv}.weight"].permute(4, 0, 1, 2, 3)
        back = zip(finer.shape[2:], volume.shape[2:], padding)
        extra = [size - ((small - 1) * 2 - 2 * pad + 3) for size, small, pad in back]
        spread = functional.conv_transpose3d(volume, kernel, None, 2, padding, extra)
        return self.norm(spread, finer, norm).relu()

    def conv(self, volume: Tensor, name: str, stride: Any, padding: Any) -> Tensor:
        kernel = self.weights[f"{name}.weight"].permute(0, 4, 1, 2, 3)
        return functional.conv3d(volume, kernel, self.weights.get(f"{name}.bias"), stride, padding)

    def norm(self, volume: Tensor, mask: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(volume, mean, var, weight, bias, eps=EPS) * mask


def voxel_encoder(weights: dict[str, Tensor], arrays: dict[str, Tensor], voxel_coords: Tensor) -> Tensor:
    """Return FSD's voxel features (V, 64), from the names of its file, one voxel after the other."""
    points, coords = arrays["points"].double(), arrays["point_coords"].long()
    low, edge = arrays["point_cloud_range"][:3].double(), arrays["voxel_size"].double()
    rows = []
    for voxel in voxel_coords.long():
        inside = points[(coords == voxel).all(1)]
        center = (voxel[[3, 2, 1]].double() + 0.5) * edge + low
        columns = torch.cat([inside, inside[:, :3] - inside[:, :3].mean(0), inside[:, :3] - center], 1)
        first = point_layer(weights, 0, columns)
        second = point_layer(weights, 1, torch.cat([first, first.amax(0).expand_as(first)], 1))
        rows.append(second.amax(0))
    return torch.stack(rows)


def point_layer(weights: dict[str, Tensor], number: int, columns: Tensor) -> Tensor:
    prefix = f"vfe_layers.{number}."
    own = {key.removeprefix(prefix): tensor.double() for key, tensor in weights.items() if key.startswith(prefix)}
    normed = functional.batch_norm(
        columns @ own["linear.weight"].T,
        *(own[f"norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")),
        eps=EPS,
    )
    return normed.relu()
