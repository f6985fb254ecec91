"""Suite ``clustering``: exact connected components of points, against scipy's k-d tree and against all distances.

Two scenes of a street sweep in the ground plane, radius 0.6 m: the points of objects, each object a group, as labels
and predictions are clustered; and the whole sweep, thinned, whose ground is a group of its own and sparse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components as graph_components
from scipy.spatial import cKDTree
from torch import Tensor

from mwsis.core.clustering import connected_components
from tools.benchmarks.measure import Array, Row, best_times, comparison, require_same
from tools.benchmarks.street import street_frame

RADIUS = 0.6
CHUNK = 1000
"""Rows of the distance matrix at once."""


@dataclass(frozen=True)
class Sizes:
    """How much is clustered: points of each scene, of a street sweep of so many rows and columns."""

    num_points: tuple[int, ...] = (10_000, 40_000)
    street: tuple[int, int] = (64, 2650)
    image_width: int = 384
    repeats: int = 9


@dataclass(frozen=True)
class Scene:
    """``xy`` (N, 2) float64, metres; ``groups`` (N,) int64."""

    name: str
    xy: Tensor
    groups: Tensor


def run(folder: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """Compare on one thread, after comparing the partitions; the distance matrix is measured once."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for scene in street_scenes(sizes):
        rows += compare(scene, sizes)
    return {"threads": 1, "radius": RADIUS}, rows


def compare(scene: Scene, sizes: Sizes) -> list[Row]:
    """Return the rows of a scene; all distances only for the fewest points."""

    def cluster() -> Tensor:
        return connected_components(scene.xy, RADIUS, scene.groups)

    ours = cluster()
    require_same({scene.name: ours.numpy()}, {scene.name: with_tree(scene)})
    quick, tree = best_times([cluster, lambda: with_tree(scene)], sizes.repeats)
    rows = [comparison(f"{scene.name} / k-d tree", quick, tree)]
    if len(scene.xy) == min(sizes.num_points):
        require_same({scene.name: ours.numpy()}, {scene.name: with_all_distances(scene)})
        (dense,) = best_times([lambda: with_all_distances(scene)], 1)
        rows.append(comparison(f"{scene.name} / all distances", quick, dense))
    if torch.cuda.is_available():
        (on_cuda,) = best_times([cuda_call(scene, ours)], sizes.repeats)
        rows.append(comparison(f"{scene.name}, CUDA / k-d tree", on_cuda, tree))
    return rows


def street_scenes(sizes: Sizes) -> list[Scene]:
    """Return both scenes with each number of points."""
    frame = street_frame(*sizes.street, sizes.image_width)
    assert frame.truth is not None
    xy, groups = frame.points.xyz[:, :2].double(), frame.truth.instance_ids
    on_object = groups >= 0
    return [
        Scene(f"{count} points of {name}", *thinned(xy[part], groups[part], count))
        for count in sizes.num_points
        for name, part in (("objects", on_object), ("the sweep", torch.ones_like(on_object)))
    ]


def thinned(xy: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return ``count`` of the points at random; where there are fewer, copies of the scene lie beside it."""
    copies = -(-count // len(xy))
    width = xy.amax(0) - xy.amin(0) + 2 * RADIUS
    tiled = torch.cat([xy + copy * width for copy in range(copies)])
    keep = torch.randperm(len(tiled), generator=torch.Generator().manual_seed(0))[:count]
    return tiled[keep], groups.repeat(copies)[keep]


def with_tree(scene: Scene) -> Array:
    """Return the components from scipy's pairs of neighbours; groups lie ten radii apart on a third axis."""
    height = scene.groups.numpy()[:, None] * 10 * RADIUS
    tree = cKDTree(np.concatenate([scene.xy.numpy(), height], 1))
    first, second = tree.query_pairs(RADIUS * (1 - 1e-9), output_type="ndarray").T
    return components_of(first, second, len(height))


def with_all_distances(scene: Scene) -> Array:
    """Return the components from the distance of every point to every other."""
    x, y = scene.xy.numpy().T
    groups = scene.groups.numpy()
    found = []
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        squared = (x[rows, None] - x) ** 2 + (y[rows, None] - y) ** 2
        first, second = np.nonzero((squared < RADIUS**2) & (groups[rows, None] == groups))
        found.append((first + start, second))
    first, second = (np.concatenate(side) for side in zip(*found, strict=True))
    return components_of(first, second, len(x))


def components_of(first: Array, second: Array, count: int) -> Array:
    """Return the components of a graph's nodes, numbered in the order of their first nodes."""
    graph = coo_matrix((np.ones(len(first), bool), (first, second)), (count, count))
    component = graph_components(graph, directed=False)[1]
    first_node, index = np.unique(component, return_index=True, return_inverse=True)[1:]
    return first_node.argsort().argsort()[index]


def cuda_call(scene: Scene, expected: Tensor) -> Callable[[], Any]:
    """Return the clustering of a scene that is on the GPU already, after comparing its result."""
    xy, groups = scene.xy.cuda(), scene.groups.cuda()

    def cluster() -> Tensor:
        component = connected_components(xy, RADIUS, groups)
        torch.cuda.synchronize()
        return component

    require_same({"CUDA": cluster().cpu().numpy()}, {"CUDA": expected.numpy()})
    return cluster
