"""The residual U-Net: OpenPCDet's keys, a dense twin of values and gradients, biases, order, one step of a run."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fusion.step import PretrainingStep
from lidar.res8x_unet import Res8xUNet, res8x_unet_parts
from lidar.segmentor import build_lidar_segmentor
from mwsis.core.batch import Batch, ImageBatch, PointBatch
from mwsis.core.instances import BACKGROUND, PointLabels
from mwsis.training.build import build_method, build_segmentor
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from mwsis.training.optim import build_optimiser, clip_gradients

SHAPE = (25, 16, 24)
ENCODER_PARTS = {"conv_input", "conv1", "conv2", "conv3", "conv4", "conv_out"}
SHARED = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[3] / "shared"))


def blob_voxels(num_voxels: int = 300, frames: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Voxels on rough surfaces, unsorted, one isolated and one in a corner of the grid."""
    generator = torch.Generator().manual_seed(seed)
    limits = (frames, 6, SHAPE[1], SHAPE[2] - 6)
    coords = torch.stack([torch.randint(0, limit, (num_voxels,), generator=generator) for limit in limits], 1)
    special = torch.tensor([[0, SHAPE[0] - 1, SHAPE[1] - 1, SHAPE[2] - 1], [frames - 1, 18, 2, SHAPE[2] - 3]])
    coords = torch.unique(torch.cat([coords, special]), dim=0)
    coords = coords[torch.randperm(len(coords), generator=generator)].int()
    return torch.randn(len(coords), 5, generator=generator), coords


def make_net(**settings: bool) -> Res8xUNet:
    """A network whose norms and biases matter, as in one that was loaded from elsewhere."""
    torch.manual_seed(0)
    net = Res8xUNet(5, SHAPE, **settings)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                tensor.copy_(0.1 * torch.randn(tensor.shape))
            elif name.endswith("running_var"):
                tensor.copy_(0.2 + torch.rand(tensor.shape))
    return net


def conv_biases(net: nn.Module) -> dict[str, nn.Parameter]:
    named = dict(net.named_parameters())
    return {name: named[name] for name in named if name.endswith(("conv1.bias", "conv2.bias"))}


class DenseTwin:
    """The same network with dense convolutions on masked volumes, differentiable, in the net's mode."""

    def __init__(self, net: Res8xUNet) -> None:
        self.state = dict(net.named_parameters()) | dict(net.named_buffers())
        self.training = net.training

    def norm(self, volume: Tensor, mask: Tensor, name: str) -> Tensor:
        """Normalise the occupied cells, empty the others."""
        rows = volume.permute(0, 2, 3, 4, 1)
        occupied = mask[:, 0] > 0
        mean, var, weight, bias = (
            self.state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        stats = (None, None) if self.training else (mean, var)
        normed = functional.batch_norm(rows[occupied], *stats, weight, bias, training=self.training, eps=1e-3)
        return torch.zeros_like(rows).index_put((occupied,), normed).permute(0, 4, 1, 2, 3)

    def conv(self, volume: Tensor, name: str, stride: int | tuple = 1, padding: int | tuple = 1) -> Tensor:
        kernel = self.state[f"{name}.weight"].permute(0, 4, 1, 2, 3)
        return functional.conv3d(volume, kernel, self.state.get(f"{name}.bias"), stride, padding)

    def unit(self, volume: Tensor, mask: Tensor, name: str) -> Tensor:
        return self.norm(self.conv(volume, f"{name}.0"), mask, f"{name}.1").relu()

    def residual(self, volume: Tensor, mask: Tensor, name: str) -> Tensor:
        inner = self.norm(self.conv(volume, f"{name}.conv1"), mask, f"{name}.bn1").relu()
        return (self.norm(self.conv(inner, f"{name}.conv2"), mask, f"{name}.bn2") + volume).relu()

    def down(self, volume: Tensor, mask: Tensor, name: str, kernel: tuple, stride: tuple, padding: tuple) -> tuple:
        smaller = (functional.conv3d(mask, torch.ones(1, 1, *kernel), None, stride, padding) > 0.5).float()
        volume = self.conv(volume, f"{name}.0", stride, padding)
        return self.norm(volume, smaller, f"{name}.1").relu(), smaller

    def merged(self, skip: Tensor, bottom: Tensor, mask: Tensor, level: int) -> Tensor:
        both = torch.cat([bottom, self.residual(skip, mask, f"conv_up_t{level}")], 1)
        return self.unit(both, mask, f"conv_up_m{level}") + both[:, 0::2] + both[:, 1::2]

    def up(self, volume: Tensor, mask: Tensor, level: int, padding: tuple) -> Tensor:
        kernel = self.state[f"inv_conv{level}.0.weight"].permute(4, 0, 1, 2, 3)
        sizes = zip(mask.shape[2:], volume.shape[2:], padding, strict=True)
        extra = [want - ((have - 1) * 2 - 2 * pad + 3) for want, have, pad in sizes]
        volume = functional.conv_transpose3d(volume, kernel, stride=2, padding=padding, output_padding=extra)
        return self.norm(volume, mask, f"inv_conv{level}.1").relu()

    def __call__(self, features: Tensor, coords: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        b, z, y, x = coords.long().unbind(1)
        volume = torch.zeros(num_frames, *SHAPE, 5).index_put((b, z, y, x), features).permute(0, 4, 1, 2, 3)
        mask = torch.zeros(num_frames, 1, *SHAPE)
        mask[b, 0, z, y, x] = 1
        tensor = self.unit(volume, mask, "conv_input")
        paddings = {2: (1, 1, 1), 3: (1, 1, 1), 4: (0, 1, 1)}
        levels, masks = [], []
        for level in (1, 2, 3, 4):
            if level > 1:
                tensor, mask = self.down(tensor, mask, f"conv{level}.0", (3, 3, 3), (2, 2, 2), paddings[level])
            for index in (0, 1):
                tensor = self.residual(tensor, mask, f"conv{level}.{index + (level > 1)}")
            levels.append(tensor)
            masks.append(mask)
        bev, _ = self.down(tensor, mask, "conv_out", (3, 1, 1), (2, 1, 1), (0, 0, 0))
        bottom = tensor
        for level in (4, 3, 2):
            bottom = self.merged(levels[level - 1], bottom, masks[level - 1], level)
            bottom = self.up(bottom, masks[level - 2], level, paddings[level])
        last = self.unit(self.merged(levels[0], bottom, masks[0], 1), masks[0], "conv5.0")
        return last[b, :, z, y, x], bev.flatten(1, 2)


def listing() -> dict:
    path = SHARED / "specs" / "keys" / "pcdet_VoxelResBackBone8x_in5.json"
    if not path.exists():
        pytest.skip("no listing of OpenPCDet's keys found; set MWSIS_SHARED")
    listed: dict = json.loads(path.read_text())
    return listed


def encoder_state(net: Res8xUNet) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in net.state_dict().items() if key.split(".")[0] in ENCODER_PARTS}


def test_keys_and_parameters_are_counted() -> None:
    net = Res8xUNet(5, (41, 1504, 1504))
    assert (len(net.state_dict()), sum(p.numel() for p in net.parameters())) == (238, 5_344_304)
    encoder = [p.numel() for name, p in net.named_parameters() if name.split(".")[0] in ENCODER_PARTS]
    assert (len(encoder_state(net)), sum(encoder)) == (142, 2_695_312)
    assert (len(conv_biases(net)), sum(p.numel() for p in conv_biases(net).values())) == (16, 960)


@pytest.mark.real_data
def test_encoder_has_the_listed_keys_shapes_and_dtypes() -> None:
    listed = listing()["keys"]
    state = encoder_state(Res8xUNet(5, (41, 1504, 1504)))
    assert list(state) == list(listed)
    for key, entry in listed.items():
        assert list(state[key].shape) == entry["shape"], key
        assert str(state[key].dtype) == f"torch.{entry['dtype']}", key


@pytest.mark.real_data
def test_encoder_has_the_listed_convolutions_and_norms() -> None:
    listed, net = listing(), Res8xUNet(5, SHAPE)
    found = {}
    for name, module in net.named_modules():
        if hasattr(module, "indice_key") and name.split(".")[0] in ENCODER_PARTS:
            cells = f"{list(module.kernel_size)}, {list(module.stride)}, {list(module.padding)}"
            found[name] = f"{type(module).__name__}({cells}, '{module.indice_key}', {module.bias is not None})"
    assert found == listed["convs"]
    norms = {(m.eps, m.momentum) for m in net.modules() if isinstance(m, nn.BatchNorm1d)}
    assert norms == {tuple(pair) for pair in listed["bn_eps_momentum"]}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_values_and_gradients_equal_the_dense_network(training: bool) -> None:
    net = make_net(train_conv_out=True).requires_grad_(True).train(training)
    features, coords = blob_voxels()
    want, want_bev = DenseTwin(net)(features, coords, 2)
    got, got_bev = net(features, coords, 2), net.encode(features, coords, 2)
    assert got.shape == (len(coords), 16)
    assert got_bev.shape[1] == 128
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.detach().abs().max()))
    torch.testing.assert_close(got_bev, want_bev, rtol=1e-4, atol=1e-4 * float(want_bev.detach().abs().max()))

    generator = torch.Generator().manual_seed(3)
    pull, pull_bev = (torch.randn(out.shape, generator=generator) for out in (got, got_bev))
    # In training mode the norm behind a bias takes it out: what is left of its gradient is round-off.
    names = [name for name, _ in net.named_parameters() if not (training and name in conv_biases(net))]
    parameters = [net.get_parameter(name) for name in names]
    got_grads = torch.autograd.grad((got * pull).sum() + (got_bev * pull_bev).sum(), parameters)
    want_grads = torch.autograd.grad((want * pull).sum() + (want_bev * pull_bev).sum(), parameters)
    for name, ours, twin in zip(names, got_grads, want_grads, strict=True):
        scale = float(twin.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(ours, twin, rtol=1e-3, atol=1e-3 * scale, msg=lambda text, name=name: name + text)


def test_training_reaches_every_weight_but_conv_out_and_the_biases() -> None:
    net = Res8xUNet(5, SHAPE)
    features, coords = blob_voxels()
    net(features, coords, 2).square().mean().backward()
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == set(conv_biases(net)) | {"conv_out.0.weight", "conv_out.1.weight", "conv_out.1.bias"}
    for name, parameter in net.named_parameters():
        if name in frozen:
            assert parameter.grad is None, name
        else:
            assert bool(torch.isfinite(parameter.grad).all()), name
            assert float(parameter.grad.abs().max()) > 0, name
    assert int(net.state_dict()["conv_out.1.num_batches_tracked"]) == 0


def test_no_loss_sees_a_bias_in_training() -> None:
    net = Res8xUNet(5, SHAPE).requires_grad_(True)
    biases = conv_biases(net)
    assert all(float(bias.detach().abs().max()) == 0 for bias in biases.values())
    net(*blob_voxels(), 2).square().mean().backward()
    for name, bias in biases.items():
        weight = net.get_parameter(name.replace("bias", "weight"))
        assert float(bias.grad.abs().max()) < 1e-4 * float(weight.grad.abs().max()), name


def test_a_loaded_bias_is_added_in_both_modes() -> None:
    features, coords = blob_voxels()
    net = make_net().eval()
    with torch.no_grad():
        before = net(features, coords, 2)
        for bias in conv_biases(net).values():
            bias.add_(0.5)
        # A norm that expects the bias takes it out again.
        for name, tensor in net.state_dict().items():
            if name.endswith(("bn1.running_mean", "bn2.running_mean")) and name.split(".")[0] in ENCODER_PARTS:
                tensor.add_(0.5)
        torch.testing.assert_close(net(features, coords, 2), before, rtol=1e-4, atol=1e-4)
        net.get_parameter("conv3.1.conv2.bias").add_(0.5)
        assert float((net(features, coords, 2) - before).abs().max()) > 1e-2


def test_encode_trains_conv_out_when_asked() -> None:
    net = Res8xUNet(5, SHAPE, train_conv_out=True)
    net.encode(*blob_voxels(), 2).square().mean().backward()
    assert all(p.grad is not None for p in net.conv_out.parameters())


def test_no_voxels_give_no_features() -> None:
    net = Res8xUNet(5, SHAPE)
    assert net(torch.zeros(0, 5), torch.zeros(0, 4, dtype=torch.int32), 1).shape == (0, 16)


def test_a_copy_has_its_own_weights_and_equal_results() -> None:
    net = make_net().eval()
    teacher = copy.deepcopy(net)
    features, coords = blob_voxels()
    with torch.no_grad():
        assert torch.equal(teacher(features, coords, 2), net(features, coords, 2))
        net.get_parameter("conv1.0.conv1.bias").add_(1)
    assert not torch.equal(net.conv1[0].conv1.bias, teacher.conv1[0].conv1.bias)


def lidar_batch() -> Batch:
    """One frame without images: a box of points on the ground."""
    generator = torch.Generator().manual_seed(0)
    ground = torch.rand(150, 3, generator=generator) * torch.tensor([20.0, 20.0, 0.1]) - torch.tensor([10.0, 10, 0])
    car = torch.rand(80, 3, generator=generator) * torch.tensor([3.0, 1.5, 1.4]) + torch.tensor([2.0, 1.0, 0.2])
    count = len(ground) + len(car)
    points = PointBatch(
        torch.cat([ground, car]),
        torch.rand(count, 2, generator=generator),
        torch.tensor([0, count]),
        torch.arange(count),
        torch.full((count,), -1),
    )
    on_car = torch.arange(count) >= len(ground)
    pseudo = PointLabels(torch.where(on_car, 0, BACKGROUND), torch.where(on_car, 0, -1))
    no_sizes = torch.zeros(0, 2, dtype=torch.int64)
    images = ImageBatch(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), no_sizes, no_sizes, ())
    nowhere = torch.full((count, 1), -1)
    return Batch(torch.tensor([0]), ("frame",), points, images, torch.zeros(count, 1, 2), nowhere, pseudo)


def test_a_configured_run_builds_it_and_trains_a_step() -> None:
    run = typed(compose_run(["experiment=smoke", "lidar=res8x_unet", "method=frustum"]))
    step = PretrainingStep(build_segmentor(run, 3), build_method(run), 3)
    assert isinstance(step.student.lidar.backbone, Res8xUNet)
    before = {name: tensor.clone() for name, tensor in step.student.lidar.named_parameters()}
    optimiser = build_optimiser(step.student.lidar, run.lidar.optim)
    losses = step.losses(lidar_batch(), progress=0.0)
    assert sorted(losses) == ["lidar/semantic", "lidar/vote"]
    sum(losses.values()).backward()
    clip_gradients(step.student.lidar, run.lidar.optim)
    optimiser.step()
    step.update_teacher(0.0)
    for name, tensor in step.student.lidar.named_parameters():
        assert torch.equal(tensor, before[name]) != tensor.requires_grad, name
    found = step.teaching_model.eval().lidar.predict(lidar_batch().points)
    assert len(found[0].semantic_labels) == 230


def test_configured_voxels_are_openpcdets() -> None:
    run = typed(compose_run(["lidar=res8x_unet"]))
    waymo = (-75.2, -75.2, -2.0, 75.2, 75.2, 4.0)
    segmentor = build_lidar_segmentor(res8x_unet_parts, 3, run.lidar.voxel_size, waymo)
    assert segmentor.backbone.sparse_shape == (41, 1504, 1504)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu() -> None:
    net = make_net().eval()
    features, coords = blob_voxels()
    with torch.no_grad():
        on_cpu = net(features, coords, 2)
        on_cuda = net.cuda()(features.cuda(), coords.cuda(), 2).cpu()
    torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-3, atol=1e-3 * float(on_cpu.abs().max()))
