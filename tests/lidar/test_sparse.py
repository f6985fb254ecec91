"""Sparse convolutions against torch's dense ones: values, gradients of inputs and weights, order of voxels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lidar.sparse import dense, inverse_conv, replace_feature, sequential, sparse_tensor, strided_conv, subm_conv

SHAPE = (9, 12, 10)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def random_voxels(num_voxels: int = 150, channels: int = 6, frames: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    cells = SHAPE[0] * SHAPE[1] * SHAPE[2] * frames
    key = torch.randperm(cells, generator=generator)[:num_voxels]
    columns = []
    for size in reversed(SHAPE):
        columns.append(key % size)
        key = key // size
    coords = torch.stack([key, *reversed(columns)], 1).int()
    return torch.randn(num_voxels, channels, generator=generator), coords


def at(volume: Tensor, coords: Tensor) -> Tensor:
    """Read a (B, D, Z, Y, X) volume at (V, 4) coordinates."""
    b, z, y, x = coords.long().unbind(1)
    return volume[b, :, z, y, x]


def kernel_of(weight: Tensor) -> Tensor:
    return weight.permute(0, 4, 1, 2, 3)


def check_gradients(sparse: Tensor, reference: Tensor, inputs: Tensor, weight: Tensor) -> None:
    torch.testing.assert_close(sparse, reference, **TOLERANCE)
    cotangent = torch.randn(sparse.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(sparse, [inputs, weight], cotangent, retain_graph=True)
    want = torch.autograd.grad(reference, [inputs, weight], cotangent, retain_graph=True)
    torch.testing.assert_close(got[0], want[0], **TOLERANCE)
    torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-4)


def test_subm_conv_equals_dense_conv() -> None:
    features, coords = random_voxels()
    features.requires_grad_()
    conv = subm_conv(6, 5, padding=1, key="subm")
    assert conv.weight.shape == (5, 3, 3, 3, 6)
    tensor = sparse_tensor(features, coords, SHAPE, 2)
    out = conv(tensor)
    assert torch.equal(out.indices, coords)
    reference = functional.conv3d(dense(tensor), kernel_of(conv.weight), padding=1)
    check_gradients(out.features, at(reference, coords), features, conv.weight)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 2, 1), (3, 2, (0, 1, 1)), ((3, 1, 1), (2, 1, 1), 0)],
    ids=["down", "down4", "conv_out"],
)
def test_strided_conv_equals_dense_conv(kernel: object, stride: object, padding: object) -> None:
    features, coords = random_voxels()
    features.requires_grad_()
    conv = strided_conv(6, 5, kernel=kernel, stride=stride, padding=padding, key="down")
    tensor = sparse_tensor(features, coords, SHAPE, 2)
    out = conv(tensor)
    reference = functional.conv3d(dense(tensor), kernel_of(conv.weight), stride=stride, padding=padding)
    assert dense(out).shape == reference.shape
    touched = functional.conv3d(
        dense(replace_feature(tensor, torch.ones_like(features))),
        torch.ones_like(kernel_of(conv.weight)),
        stride=stride,
        padding=padding,
    )
    assert len(out.indices) == int((touched[:, 0] > 0.5).sum())
    check_gradients(out.features, at(reference, out.indices), features, conv.weight)


def test_inverse_conv_equals_dense_transposed_conv() -> None:
    features, coords = random_voxels()
    down = strided_conv(6, 5, kernel=3, stride=2, padding=1, key="down")
    up = inverse_conv(5, 4, key="down")
    assert up.weight.shape == (4, 3, 3, 3, 5)
    below = down(sparse_tensor(features, coords, SHAPE, 2))
    below = replace_feature(below, below.features.detach().requires_grad_())
    out = up(below)
    assert torch.equal(out.indices, coords)
    kernel = up.weight.permute(4, 0, 1, 2, 3)
    size = [1 - (extent % 2) for extent in SHAPE]
    reference = functional.conv_transpose3d(dense(below), kernel, stride=2, padding=1, output_padding=size)
    assert reference.shape[2:] == SHAPE
    check_gradients(out.features, at(reference, coords), below.features, up.weight)


def test_repeated_runs_give_the_same_values() -> None:
    features, coords = random_voxels(600, 16)
    down = strided_conv(16, 16, kernel=3, stride=2, padding=1, key="down")
    up = inverse_conv(16, 16, key="down")
    with torch.no_grad():
        first = up(down(sparse_tensor(features, coords, SHAPE, 2))).features
        for _ in range(20):
            again = up(down(sparse_tensor(features, coords, SHAPE, 2))).features
            torch.testing.assert_close(again, first, rtol=0, atol=1e-5)


def test_sequential_numbers_its_layers_and_can_be_copied() -> None:
    layers = sequential(subm_conv(6, 5, padding=1, key="subm"), nn.BatchNorm1d(5), nn.ReLU())
    assert {key.split(".")[0] for key in layers.state_dict()} == {"0", "1"}
    features, coords = random_voxels()
    twin = copy.deepcopy(layers)
    out = layers(sparse_tensor(features, coords, SHAPE, 2)).features
    assert torch.equal(out, twin(sparse_tensor(features, coords, SHAPE, 2)).features)
    assert float(out.detach().min()) == 0


def test_dense_carries_gradients() -> None:
    features, coords = random_voxels()
    features.requires_grad_()
    dense(sparse_tensor(features, coords, SHAPE, 2)).square().sum().backward()
    torch.testing.assert_close(features.grad, 2 * features.detach())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_layer_built_on_the_cpu_gives_the_same_on_cuda() -> None:
    features, coords = random_voxels(600, 16)
    net = sequential(strided_conv(16, 16, kernel=3, stride=2, padding=1, key="down"), inverse_conv(16, 16, key="down"))
    with torch.no_grad():
        on_cpu = net(sparse_tensor(features, coords, SHAPE, 2)).features
        on_cuda = net.cuda()(sparse_tensor(features.cuda(), coords.cuda(), SHAPE, 2)).features
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, rtol=1e-3, atol=1e-3)
