"""The U-Net: its keys, the order of its voxels, a dense twin of the whole, gradients, edge cases."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lidar.unet_v2 import UNetV2

SHAPE = (25, 32, 40)


def blob_voxels(num_voxels: int = 400, frames: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Voxels on rough surfaces, unsorted, one isolated and one in a corner of the grid."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(0, 6, (num_voxels,), generator=generator)
    y = torch.randint(4, 28, (num_voxels,), generator=generator)
    x = torch.randint(4, 30, (num_voxels,), generator=generator)
    b = torch.randint(0, frames, (num_voxels,), generator=generator)
    coords = torch.stack([b, z, y, x], 1)
    special = torch.tensor([[0, 24, 31, 39], [frames - 1, 18, 2, 36]])
    coords = torch.unique(torch.cat([coords, special]), dim=0)
    coords = coords[torch.randperm(len(coords), generator=generator)].int()
    return torch.randn(len(coords), 5, generator=generator), coords


def randomised(net: UNetV2) -> UNetV2:
    """Give norms non-trivial statistics, so that evaluation mode tests them."""
    generator = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            shape = module.running_mean.shape
            module.running_mean.copy_(0.1 * torch.randn(shape, generator=generator))
            module.running_var.copy_(0.2 + torch.rand(shape, generator=generator))
    return net


class DenseTwin:
    """The same network with dense convolutions on masked volumes, in evaluation mode."""

    def __init__(self, net: UNetV2) -> None:
        self.state = net.state_dict()

    def norm(self, volume: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(volume, mean, var, weight, bias, eps=1e-3)

    def kernel(self, name: str) -> Tensor:
        return self.state[f"{name}.weight"].permute(0, 4, 1, 2, 3)

    def unit(self, volume: Tensor, mask: Tensor, name: str) -> Tensor:
        conv = functional.conv3d(volume, self.kernel(f"{name}.0"), padding=1)
        return self.norm(conv, f"{name}.1").relu() * mask

    def down(self, volume: Tensor, mask: Tensor, name: str, padding: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        kernel = self.kernel(f"{name}.0.0")
        smaller = (functional.conv3d(mask, torch.ones(1, 1, 3, 3, 3), stride=2, padding=padding) > 0.5).float()
        volume = functional.conv3d(volume, kernel, stride=2, padding=padding)
        volume = self.norm(volume, f"{name}.0.1").relu() * smaller
        for index in (1, 2):
            volume = self.unit(volume, smaller, f"{name}.{index}")
        return volume, smaller

    def lateral(self, volume: Tensor, mask: Tensor, name: str) -> Tensor:
        inner = functional.conv3d(volume, self.kernel(f"{name}.conv1"), padding=1)
        inner = self.norm(inner, f"{name}.bn1").relu() * mask
        inner = functional.conv3d(inner, self.kernel(f"{name}.conv2"), padding=1)
        return (self.norm(inner, f"{name}.bn2") + volume).relu() * mask

    def merged(self, skip: Tensor, bottom: Tensor, mask: Tensor, level: int) -> Tensor:
        both = torch.cat([bottom, self.lateral(skip, mask, f"conv_up_t{level}")], 1)
        out = self.unit(both, mask, f"conv_up_m{level}")
        return out + both[:, 0::2] + both[:, 1::2]

    def up(self, volume: Tensor, mask: Tensor, level: int, padding: tuple[int, int, int]) -> Tensor:
        kernel = self.state[f"inv_conv{level}.0.weight"].permute(4, 0, 1, 2, 3)
        extra = [
            want - ((have - 1) * 2 - 2 * pad + 3)
            for want, have, pad in zip(mask.shape[2:], volume.shape[2:], padding, strict=True)
        ]
        volume = functional.conv_transpose3d(volume, kernel, stride=2, padding=padding, output_padding=extra)
        return self.norm(volume, f"inv_conv{level}.1").relu() * mask

    def __call__(self, features: Tensor, coords: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        b, z, y, x = coords.long().unbind(1)
        volume = torch.zeros(num_frames, *SHAPE, 5)
        volume[b, z, y, x] = features
        mask = torch.zeros(num_frames, 1, *SHAPE)
        mask[b, 0, z, y, x] = 1
        level1 = self.unit(self.unit(volume.permute(0, 4, 1, 2, 3), mask, "conv_input"), mask, "conv1.0")
        levels, masks = [level1], [mask]
        paddings = [(1, 1, 1), (1, 1, 1), (0, 1, 1)]
        for index, padding in enumerate(paddings, start=2):
            deeper, smaller = self.down(levels[-1], masks[-1], f"conv{index}", padding)
            levels.append(deeper)
            masks.append(smaller)
        bottom = levels[3]
        for level in (4, 3, 2):
            bottom = self.merged(levels[level - 1], bottom, masks[level - 1], level)
            bottom = self.up(bottom, masks[level - 2], level, paddings[level - 2])
        last = self.unit(self.merged(level1, bottom, mask, 1), mask, "conv5.0")
        bev = functional.conv3d(levels[3], self.kernel("conv_out.0"), stride=(2, 1, 1))
        occupied = (functional.conv3d(masks[3], torch.ones(1, 1, 3, 1, 1), stride=(2, 1, 1)) > 0.5).float()
        bev = self.norm(bev, "conv_out.1").relu() * occupied
        return last[b, :, z, y, x], bev.flatten(1, 2)


def test_equals_the_dense_network() -> None:
    torch.manual_seed(0)
    net = randomised(UNetV2(5, SHAPE)).eval()
    features, coords = blob_voxels()
    with torch.no_grad():
        want, want_bev = DenseTwin(net)(features, coords, 2)
        got, got_bev = net(features, coords, 2), net.encode(features, coords, 2)
    assert got.shape == (len(coords), 16)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    torch.testing.assert_close(got_bev, want_bev, rtol=1e-4, atol=1e-4 * float(want_bev.abs().max()))


def test_training_reaches_every_weight_but_conv_out() -> None:
    net = UNetV2(5, SHAPE)
    features, coords = blob_voxels()
    net(features, coords, 2).square().mean().backward()
    without = {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.grad is None}
    assert without == {"conv_out"}
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert not any(p.requires_grad for p in net.conv_out.parameters())
    assert int(net.state_dict()["conv_out.1.num_batches_tracked"]) == 0


def test_encode_trains_conv_out_when_asked() -> None:
    net = UNetV2(5, SHAPE, train_conv_out=True)
    features, coords = blob_voxels()
    net.encode(features, coords, 2).square().mean().backward()
    assert all(p.grad is not None for p in net.conv_out.parameters())


def test_bf16_autocast_does_not_reach_the_convolutions() -> None:
    net = randomised(UNetV2(5, SHAPE)).eval()
    features, coords = blob_voxels()
    with torch.no_grad():
        plain = net(features, coords, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = net(features, coords, 2)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0, atol=1e-5)


def test_no_voxels_give_no_features() -> None:
    net = UNetV2(5, SHAPE)
    assert net(torch.zeros(0, 5), torch.zeros(0, 4, dtype=torch.int32), 1).shape == (0, 16)


def test_a_copy_has_its_own_weights() -> None:
    net = UNetV2(5, SHAPE)
    teacher = copy.deepcopy(net)
    with torch.no_grad():
        net.conv_input[0].weight.add_(1)
    assert not torch.equal(net.conv_input[0].weight, teacher.conv_input[0].weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu() -> None:
    net = randomised(UNetV2(5, SHAPE)).eval()
    features, coords = blob_voxels()
    with torch.no_grad():
        on_cpu = net(features, coords, 2)
        on_cuda = net.cuda()(features.cuda(), coords.cuda(), 2).cpu()
    torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-3, atol=1e-3 * float(on_cpu.abs().max()))
