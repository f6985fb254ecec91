"""FSD's U-Net: its keys, a dense twin of the whole with gradients, the order of its voxels, a training step."""

from __future__ import annotations

import copy
import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lidar.fsd_unet import FSDUNet, fsd_unet_parts, padded_shape
from lidar.point_head import vote_loss
from lidar.segmentor import build_lidar_segmentor
from mwsis.core.batch import PointBatch
from mwsis.core.errors import ConfigError
from mwsis.core.instances import BACKGROUND
from mwsis.training import build
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from mwsis.training.optim import build_optimiser, clip_gradients, set_learning_rate

SHAPE = (16, 32, 36)
LEVELS = (1, 2, 3, 4, 5)
PADDING = {2: (1, 1, 1), 3: (1, 1, 1), 4: (0, 1, 1), 5: (1, 1, 1)}
PAPER_VOXEL, PAPER_RANGE = (0.25, 0.25, 0.2), (-80, -80, -2, 80, 80, 4)


@cache
def listing() -> dict:
    """What SST's own class lists; the test is skipped where the specifications are not at hand."""
    root = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[2] / ".." / "shared"))
    candidates = [path / "specs" / "keys" / "sst_SimpleSparseUNet_fsd_waymo.json" for path in (root, root.parent)]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        pytest.skip("no listing of SST's keys found; set MWSIS_SHARED")
    return json.loads(found.read_text())


def make_net() -> FSDUNet:
    """A network whose norms have non-trivial statistics, so that evaluation mode tests them."""
    torch.manual_seed(0)
    net = FSDUNet(64, SHAPE)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.2, 1.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return net.eval()


@pytest.fixture(scope="module")
def net() -> FSDUNet:
    return make_net()


def blob_voxels(num_voxels: int = 500, frames: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Voxels scattered over a part of the grid, unsorted, one isolated and one in a corner of the grid."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(low, high, (num_voxels,), generator=generator) for low, high in ((0, 6), (2, 30), (2, 30))]
    coords = torch.stack([torch.randint(0, frames, (num_voxels,), generator=generator), *columns], 1)
    special = torch.tensor([[0, 15, 31, 35], [frames - 1, 12, 2, 34]])
    coords = torch.unique(torch.cat([coords, special]), dim=0)
    coords = coords[torch.randperm(len(coords), generator=generator)].int()
    return torch.randn(len(coords), 64, generator=generator), coords


class DenseTwin:
    """The same network with dense convolutions on masked volumes; norms see occupied cells only."""

    def __init__(self, weights: dict[str, Tensor], training: bool) -> None:
        self.weights = weights
        self.training = training

    def norm(self, volume: Tensor, mask: Tensor, name: str) -> Tensor:
        mean, var = (self.weights[f"{name}.running_{key}"].clone() for key in ("mean", "var"))
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        occupied = mask[:, 0] > 0
        rows = volume.permute(0, 2, 3, 4, 1)[occupied]
        rows = functional.batch_norm(rows, mean, var, weight, bias, self.training, eps=1e-3)
        filled = torch.zeros(*occupied.shape, rows.shape[1]).index_put((occupied,), rows)
        return filled.permute(0, 4, 1, 2, 3)

    def conv(self, volume: Tensor, name: str) -> Tensor:
        return functional.conv3d(volume, self.weights[f"{name}.weight"].permute(0, 4, 1, 2, 3), padding=1)

    def unit(self, volume: Tensor, mask: Tensor, name: str) -> Tensor:
        return self.norm(self.conv(volume, f"{name}.0"), mask, f"{name}.1").relu()

    def down(self, volume: Tensor, mask: Tensor, level: int) -> tuple[Tensor, Tensor]:
        name, padding = f"encoder_layers.encoder_layer{level}", PADDING[level]
        smaller = (functional.conv3d(mask, torch.ones(1, 1, 3, 3, 3), stride=2, padding=padding) > 0.5).float()
        kernel = self.weights[f"{name}.0.0.weight"].permute(0, 4, 1, 2, 3)
        volume = functional.conv3d(volume, kernel, stride=2, padding=padding)
        volume = self.norm(volume, smaller, f"{name}.0.1").relu()
        for index in (1, 2):
            volume = self.unit(volume, smaller, f"{name}.{index}")
        return volume, smaller

    def merged(self, skip: Tensor, bottom: Tensor, mask: Tensor, level: int) -> Tensor:
        name = f"lateral_layer{level}"
        inner = self.norm(self.conv(skip, f"{name}.conv1"), mask, f"{name}.bn1").relu()
        beside = (self.norm(self.conv(inner, f"{name}.conv2"), mask, f"{name}.bn2") + skip).relu()
        both = torch.cat([bottom, beside], 1)
        return self.unit(both, mask, f"merge_layer{level}") + both[:, 0::2] + both[:, 1::2]

    def up(self, volume: Tensor, mask: Tensor, level: int) -> Tensor:
        name, padding = f"upsample_layer{level}", PADDING[level]
        kernel = self.weights[f"{name}.0.weight"].permute(4, 0, 1, 2, 3)
        sizes = zip(mask.shape[2:], volume.shape[2:], padding, strict=True)
        extra = [want - ((have - 1) * 2 - 2 * pad + 3) for want, have, pad in sizes]
        volume = functional.conv_transpose3d(volume, kernel, stride=2, padding=padding, output_padding=extra)
        return self.norm(volume, mask, f"{name}.1").relu()

    def __call__(self, features: Tensor, coords: Tensor, num_frames: int) -> Tensor:
        b, z, y, x = coords.long().unbind(1)
        volume = torch.zeros(num_frames, *SHAPE, 64).index_put((b, z, y, x), features).permute(0, 4, 1, 2, 3)
        mask = torch.zeros(num_frames, 1, *SHAPE)
        mask[b, 0, z, y, x] = 1
        level1 = self.unit(self.unit(volume, mask, "conv_input"), mask, "encoder_layers.encoder_layer1.0")
        levels, masks = [level1], [mask]
        for level in LEVELS[1:]:
            deeper, smaller = self.down(levels[-1], masks[-1], level)
            levels.append(deeper)
            masks.append(smaller)
        bottom = levels[-1]
        for level in (5, 4, 3, 2):
            bottom = self.merged(levels[level - 1], bottom, masks[level - 1], level)
            bottom = self.up(bottom, masks[level - 2], level)
        last = self.unit(self.merged(level1, bottom, mask, 1), mask, "upsample_layer1")
        return last[b, :, z, y, x]


@pytest.mark.real_data
def test_keys_shapes_and_count_are_those_of_sst(net: FSDUNet) -> None:
    state, listed = net.state_dict(), listing()
    assert list(state) == list(listed["keys"])
    assert len(state) == listed["n_keys"] == 204
    for key, entry in listed["keys"].items():
        saved = state[key].permute(1, 2, 3, 4, 0) if state[key].ndim == 5 else state[key]
        assert list(saved.shape) == entry["shape"], key
        assert str(state[key].dtype) == f"torch.{entry['dtype']}", key
    assert sum(parameter.numel() for parameter in net.parameters()) == listed["n_params"] == 18_034_048


@pytest.mark.real_data
def test_convolutions_and_norms_are_those_of_sst(net: FSDUNet) -> None:
    found = {
        name: f"{type(conv).__name__}({conv.kernel_size}, {conv.stride}, {conv.padding}, "
        f"{conv.indice_key!r}, {conv.bias is not None})"
        for name, conv in net.named_modules()
        if hasattr(conv, "indice_key")
    }
    assert found == listing()["convs"]
    norms = {(norm.eps, norm.momentum) for norm in net.modules() if isinstance(norm, nn.BatchNorm1d)}
    assert norms == {tuple(pair) for pair in listing()["bn_eps_momentum"]} == {(1e-3, 0.01)}


def test_count_without_the_listing(net: FSDUNet) -> None:
    assert len(net.state_dict()) == 204
    assert sum(parameter.numel() for parameter in net.parameters()) == 18_034_048
    assert net.encoder_layers["encoder_layer5"][0][0].weight.shape == (256, 3, 3, 3, 128)
    assert net.merge_layer5[0].weight.shape == (256, 3, 3, 3, 512)


@pytest.mark.parametrize(
    ("cells", "want"), [((30, 640, 640), (32, 640, 640)), ((32, 8, 9), (32, 8, 9)), ((1, 4, 4), (16, 4, 4))]
)
def test_height_is_rounded_up_to_the_total_stride(cells: tuple, want: tuple) -> None:
    assert padded_shape(cells) == want


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_forward_and_backward_equal_the_dense_network(net: FSDUNet, training: bool) -> None:
    ours = copy.deepcopy(net).train(training)
    weights = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    names = [name for name, _ in net.named_parameters()]
    twins = [weights[name].requires_grad_() for name in names]
    features, coords = blob_voxels()
    one, other = features.clone().requires_grad_(), features.clone().requires_grad_()
    got, want = ours(one, coords, 2), DenseTwin(weights, training)(other, coords, 2)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.detach().abs().max()))
    pull = torch.randn(want.shape, generator=torch.Generator().manual_seed(3))
    got_grads = torch.autograd.grad((got * pull).sum(), [one, *ours.parameters()])
    want_grads = torch.autograd.grad((want * pull).sum(), [other, *twins])
    for name, mine, theirs in zip(["input", *names], got_grads, want_grads, strict=True):
        assert float(theirs.norm()) > 0, name
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-3, name


def test_no_voxels_give_no_features(net: FSDUNet) -> None:
    assert net(torch.zeros(0, 64), torch.zeros(0, 4, dtype=torch.int32), 1).shape == (0, 64)


def test_the_papers_grid_and_head() -> None:
    segmentor = build_lidar_segmentor(fsd_unet_parts, 3, PAPER_VOXEL, PAPER_RANGE, hidden=128, min_points=1)
    assert segmentor.backbone.sparse_shape == (32, 640, 640)
    assert [tuple(layer.weight.shape) for layer in segmentor.head.shared if isinstance(layer, nn.Linear)] == [
        (128, 67),
        (128, 128),
    ]
    assert (segmentor.head.classes.out_features, segmentor.head.votes.out_features) == (3, 9)
    with pytest.raises(ConfigError, match="radii: expected 2"):
        build_lidar_segmentor(fsd_unet_parts, 2, PAPER_VOXEL, PAPER_RANGE)


def scene() -> tuple[PointBatch, Tensor, Tensor]:
    """Two frames: rough ground, a block on it, one point outside the range."""
    generator = torch.Generator().manual_seed(0)
    ground = torch.rand(2, 150, 3, generator=generator) * torch.tensor([14.0, 14.0, 0.2]) - torch.tensor([7.0, 7, 0])
    block = torch.rand(2, 80, 3, generator=generator) * torch.tensor([3.0, 1.5, 1.4]) + torch.tensor([2.0, 1.0, 0.2])
    xyz = torch.cat([ground, block, torch.full((2, 1, 3), 90.0)], 1).flatten(0, 1)
    count = len(xyz) // 2
    feats = torch.rand(len(xyz), 2, generator=generator)
    offsets, index = torch.tensor([0, count, 2 * count]), torch.arange(count).repeat(2)
    points = PointBatch(xyz, feats, offsets, index, torch.full((len(xyz),), -1))
    labels = torch.tensor([BACKGROUND] * 150 + [0] * 81).repeat(2)
    return points, labels, torch.tensor([-1] * 150 + [0] * 80 + [-1]).repeat(2)


def test_a_training_step_from_the_configuration() -> None:
    lidar_only = ["method.branches=[lidar]", "method.cscs={camera_to_lidar:false,lidar_to_camera:false}"]
    grid = ["lidar.voxel_size=[0.5,0.5,0.4]", "data.point_cloud_range=[-8,-8,-2,8,8,4]"]
    run = typed(compose_run(["lidar=fsd_unet", *grid, *lidar_only]))
    lidar, optim = build.build_segmentor(run, 3).lidar, build.optim_settings(run)["lidar"]
    optimiser = build_optimiser(lidar, optim)
    set_learning_rate(optimiser, optim, 0.1)
    before = {name: parameter.detach().clone() for name, parameter in lidar.named_parameters()}
    points, labels, instances = scene()
    losses = []
    for _ in range(2):
        output = lidar(points)
        loss = build.build_method(run).semantic(output.class_logits, labels, valid=output.in_range) + vote_loss(
            output.vote_encoded, points.xyz, labels, instances, points.batch_index, valid=output.in_range
        )
        optimiser.zero_grad()
        loss.backward()
        clip_gradients(lidar, optim)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    assert [name for name, parameter in lidar.named_parameters() if torch.equal(parameter, before[name])] == []
    assert bool(output.in_range.sum() == len(labels) - 2)
    assert [len(found.semantic_labels) for found in lidar.eval().predict(points)] == [231, 231]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu(net: FSDUNet) -> None:
    features, coords = blob_voxels()
    with torch.no_grad():
        on_cpu = net(features, coords, 2)
        on_cuda = copy.deepcopy(net).cuda()(features.cuda(), coords.cuda(), 2).cpu()
    torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-3, atol=1e-3 * float(on_cpu.abs().max()))
