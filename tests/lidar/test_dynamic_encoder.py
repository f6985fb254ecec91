"""The learned voxel encoder: its keys, a slow twin voxel by voxel, gradients, independence of the points' order."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from lidar.encoders import DynamicEncoder
from lidar.voxelize import Voxelizer
from mwsis.core.batch import PointBatch

SIZE, RANGE = (0.5, 0.25, 1.0), (-2.0, -2.0, -2.0, 2.0, 2.0, 4.0)
KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def make_points(num_points: int = 300, seed: int = 0) -> PointBatch:
    """Two frames, about a quarter of the points outside the range, and one voxel with several points in one place."""
    generator = torch.Generator().manual_seed(seed)
    xyz = (torch.rand(num_points, 3, generator=generator) - 0.5) * torch.tensor([4.4, 4.4, 6.0]) + torch.tensor(
        [0.0, 0, 1]
    )
    xyz[:5] = xyz[0]
    cut = num_points // 3
    return PointBatch(
        xyz,
        torch.rand(num_points, 2, generator=generator),
        torch.tensor([0, cut, num_points]),
        torch.arange(num_points),
        torch.full((num_points,), -1),
    )


def make_encoder() -> DynamicEncoder:
    """An encoder whose norms have non-trivial statistics and weights of both signs."""
    torch.manual_seed(1)
    encoder = DynamicEncoder(Voxelizer(SIZE, RANGE))
    for layer in encoder.vfe_layers:
        layer.norm.running_mean.normal_(0, 0.3)
        layer.norm.running_var.uniform_(0.5, 2.0)
        nn.init.normal_(layer.norm.weight)
        nn.init.normal_(layer.norm.bias)
    return encoder.eval()


def slow_layer(layer: nn.Module, columns: Tensor) -> Tensor:
    norm = layer.norm
    value = columns @ layer.linear.weight.double().T
    value = (value - norm.running_mean.double()) / (norm.running_var.double() + 1e-3).sqrt()
    return (value * norm.weight.double() + norm.bias.double()).clamp(min=0)


def slow_features(encoder: DynamicEncoder, points: PointBatch) -> dict[tuple[int, ...], Tensor]:
    """Return the (64,) float64 feature of each voxel [b, z, y, x], one voxel at a time, in evaluation mode."""
    members: dict[tuple[int, ...], list[int]] = {}
    low, edge = torch.tensor(RANGE[:3]), torch.tensor(SIZE)
    for row, (point, frame) in enumerate(zip(points.xyz, points.batch_index.tolist(), strict=True)):
        if bool((point >= low).all()) and bool((point < torch.tensor(RANGE[3:])).all()):
            x, y, z = ((point - low) / edge).floor().int().tolist()
            members.setdefault((frame, z, y, x), []).append(row)
    features = {}
    for (frame, z, y, x), rows in members.items():
        xyz = points.xyz[rows].double()
        center = low.double() + (torch.tensor([x, y, z]).double() + 0.5) * edge.double()
        columns = torch.cat([xyz, points.point_feats[rows].double(), xyz - xyz.mean(0), xyz - center], 1)
        first = slow_layer(encoder.vfe_layers[0], columns)
        beside = first.max(0).values.expand_as(first)
        second = slow_layer(encoder.vfe_layers[1], torch.cat([first, beside], 1))
        features[frame, z, y, x] = second.max(0).values
    return features


def test_keys_and_shapes_are_those_of_fsd() -> None:
    state = DynamicEncoder(Voxelizer(SIZE, RANGE)).state_dict()
    names = [
        f"vfe_layers.{layer}.{name}" for layer in (0, 1) for name in ("linear.weight", *(f"norm.{k}" for k in KEYS))
    ]
    assert list(state) == names
    assert state["vfe_layers.0.linear.weight"].shape == (64, 11)
    assert state["vfe_layers.1.linear.weight"].shape == (64, 128)
    encoder = make_encoder()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 9152
    assert {(layer.norm.eps, layer.norm.momentum) for layer in encoder.vfe_layers} == {(1e-3, 0.01)}


def test_equals_the_encoder_that_takes_one_voxel_at_a_time() -> None:
    encoder, points = make_encoder(), make_points()
    grid = encoder.voxelizer(points)
    want = slow_features(encoder, points)
    with torch.no_grad():
        got = encoder(points, grid)
    keys = [tuple(row) for row in grid.voxel_coords.tolist()]
    assert sorted(want) == keys
    assert max(torch.bincount(grid.point_to_voxel[grid.point_to_voxel >= 0])) >= 5
    assert int((grid.point_to_voxel < 0).sum()) > 10
    torch.testing.assert_close(got.double(), torch.stack([want[key] for key in keys]), rtol=1e-4, atol=1e-5)


def test_gradient_equals_the_slow_one() -> None:
    encoder, points = make_encoder(), make_points()
    twin = copy.deepcopy(encoder)
    grid = encoder.voxelizer(points)
    pull = torch.randn(len(grid), 64, generator=torch.Generator().manual_seed(2))
    (encoder(points, grid) * pull).sum().backward()
    want = slow_features(twin, points)
    rows = torch.stack([want[tuple(row)] for row in grid.voxel_coords.tolist()])
    (rows * pull.double()).sum().backward()
    for (name, mine), theirs in zip(encoder.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max()), msg=name
        )


def test_points_of_a_frame_may_come_in_any_order() -> None:
    encoder, points = make_encoder(), make_points()
    cut = int(points.batch_offsets[1])
    generator = torch.Generator().manual_seed(4)
    order = torch.cat([torch.randperm(cut, generator=generator), cut + torch.randperm(300 - cut, generator=generator)])
    mixed = replace(points, xyz=points.xyz[order], point_feats=points.point_feats[order])
    with torch.no_grad():
        straight = encoder(points, encoder.voxelizer(points))
        shuffled = encoder(mixed, encoder.voxelizer(mixed))
    torch.testing.assert_close(shuffled, straight, rtol=1e-4, atol=1e-5)


def test_points_outside_the_range_change_nothing() -> None:
    encoder, points = make_encoder().train(), make_points()
    moved = points.xyz.clone()
    outside = encoder.voxelizer(points).point_to_voxel < 0
    moved[outside] = 1000.0
    straight = encoder(points, encoder.voxelizer(points))
    far = replace(points, xyz=moved)
    torch.testing.assert_close(encoder(far, encoder.voxelizer(far)), straight, rtol=0, atol=0)
