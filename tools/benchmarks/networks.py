"""Suite ``networks``: a training pass of our sparse U-Nets, against the same layers written straight with spconv.

The plain networks are `tests/reference/plain_networks.py`. What differs is ours alone: choosing the algorithm, naming
the layers, the contexts around them. Memory on CPU is read from ``/proc`` (Linux).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lidar.fsd_unet import FSDUNet, padded_shape
from lidar.res8x_unet import Res8xUNet
from lidar.unet_v2 import UNetV2
from lidar.voxelize import Voxelizer
from mwsis.core.batch import PointBatch
from tests.reference.plain_networks import copy_weights, plain_network
from tools.benchmarks.measure import Array, Row, best_times, comparison, stop_if_different
from tools.benchmarks.street import street_frame

FINE = Voxelizer((0.1, 0.1, 0.15), (-75.2, -75.2, -2, 75.2, 75.2, 4))
COARSE = Voxelizer((0.25, 0.25, 0.2), (-80, -80, -2, 80, 80, 4))
NETWORKS: dict[str, tuple[Callable[..., nn.Module], Voxelizer, int, tuple[int, ...]]] = {
    "unet_v2": (UNetV2, FINE, 5, FINE.sparse_shape),
    "fsd_unet": (FSDUNet, COARSE, 64, padded_shape(COARSE.grid_shape_zyx)),
    "res8x_unet": (Res8xUNet, FINE, 5, FINE.sparse_shape),
}
"""Class, grid, features of a voxel, cells of the whole grid."""
PER = 100_000
"""Times and memory are given per so many voxels."""
TOLERANCE = {"cpu": 0.0, "cuda": 1e-3}
"""Largest difference of outputs and gradients, as a share of the largest value; on the GPU sums have no fixed order."""


@dataclass(frozen=True)
class Sizes:
    """What is run: networks, and the rows and columns of the street sweep whose voxels they get."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    street: tuple[int, int] = (64, 500)
    image_width: int = 384
    repeats: int = 5


@dataclass(frozen=True)
class Voxels:
    """``features`` (V, D) float32 at random, ``coords`` (V, 4) int32 of a sweep."""

    features: Tensor
    coords: Tensor


def run(folder: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """Compare on one thread or on the GPU, after comparing outputs and gradients."""
    torch.set_num_threads(1)
    facts: dict[str, Any] = {"device": device().type, "threads": 1}
    rows: list[Row] = []
    for name in sizes.networks:
        voxels = street_voxels(name, sizes)
        facts[f"voxels of {name}"] = len(voxels.coords)
        rows += compare(name, voxels, sizes.repeats)
    return facts, rows


def compare(name: str, voxels: Voxels, repeats: int) -> list[Row]:
    """Return the rows of a network: seconds of a forward and backward pass, and the memory that it takes."""
    ours, plain = networks(name)
    found, expected = training_pass(ours, voxels), training_pass(plain, voxels)
    differences = [difference(*pair) for pair in zip(found, expected, strict=True)]
    stop_if_different({name} if max(differences) > TOLERANCE[device().type] else set())
    times = best_times([partial(training_pass, network, voxels) for network in (ours, plain)], repeats)
    memory = [peak_in_own_process(name, is_plain, voxels) for is_plain in (False, True)]
    scale = PER / len(voxels.coords)
    return [
        comparison(f"{name}, 100k voxels / plain spconv", *(each * scale / 1000 for each in times), unit="s"),
        comparison(f"{name}, their memory / plain spconv", *(each * scale / 2**20 for each in memory), unit="MiB"),
    ]


def device() -> torch.device:
    """Return where the networks run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def street_voxels(name: str, sizes: Sizes) -> Voxels:
    """Return the voxels that a network gets of a sweep."""
    _, voxelizer, in_channels, _ = NETWORKS[name]
    points = street_frame(*sizes.street, sizes.image_width).points
    rows = torch.arange(len(points))
    batch = PointBatch(points.xyz, points.point_feats, torch.tensor([0, len(rows)]), rows, torch.full_like(rows, -1))
    coords = voxelizer(batch).voxel_coords
    features = torch.randn(len(coords), in_channels, generator=torch.Generator().manual_seed(0))
    return Voxels(features.to(device()), coords.to(device()))


def networks(name: str) -> tuple[nn.Module, nn.Module]:
    """Return ours and the plain one with the same weights."""
    make, _, in_channels, sparse_shape = NETWORKS[name]
    torch.manual_seed(0)
    ours, plain = make(in_channels, sparse_shape), plain_network(name, in_channels, sparse_shape)
    copy_weights(ours, plain)
    return ours.to(device()), plain.to(device())


def training_pass(network: nn.Module, voxels: Voxels) -> list[Tensor]:
    """Return the features of all voxels and the gradients of their squares, when they are there."""
    network.zero_grad()
    features = network(voxels.features, voxels.coords, 1)
    features.square().mean().backward()
    if device().type == "cuda":
        torch.cuda.synchronize()
    gradients = (parameter.grad for parameter in network.parameters())
    return [features.detach(), *(gradient for gradient in gradients if gradient is not None)]


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def peak_in_own_process(name: str, is_plain: bool, voxels: Voxels) -> int:
    """Return the bytes that the first training pass adds at its peak, in a process that does nothing else."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        coords, features = voxels.coords.cpu().numpy(), voxels.features.cpu().numpy()
        return pool.submit(peak_of_a_pass, name, is_plain, features, coords).result()


def peak_of_a_pass(name: str, is_plain: bool, features: Array, coords: Array) -> int:
    """Return what the first training pass of a new network adds to this process's memory, or to that of the GPU."""
    torch.set_num_threads(1)
    network = networks(name)[is_plain]
    voxels = Voxels(torch.from_numpy(features).to(device()), torch.from_numpy(coords).to(device()))
    if device().type == "cuda":
        before = torch.cuda.memory_allocated()
        training_pass(network, voxels)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_bytes("VmRSS")
    training_pass(network, voxels)
    return resident_bytes("VmHWM") - before


def resident_bytes(name: str) -> int:
    """Return a line of this process's status: ``VmRSS`` is now, ``VmHWM`` the peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
