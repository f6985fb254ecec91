"""Batch-norm statistics measured again: plain means over frames, of all layers that run, and nothing else changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mwsis.core.batch import PointBatch
from mwsis.core.errors import DataError
from mwsis.export.parity import surface_points
from mwsis.export.recalibrate import recalibrate_norms
from tests.export.networks import branch


def frames(count=3):
    voxelizer = branch("unet_v2").voxelizer
    return [surface_points(voxelizer, seed) for seed in range(10, 10 + count)]


def batch_statistics(lidar, points):
    """Return mean and unbiased variance of the input of every norm, the norms in training mode."""
    seen = {}
    hooks = []
    for name, layer in lidar.named_modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.train()
            hook = lambda _, inputs, name=name: seen.__setitem__(name, (inputs[0].mean(0), inputs[0].var(0)))  # noqa: E731
            hooks.append(layer.register_forward_pre_hook(hook))
    grid = lidar.voxelizer(points)
    with torch.no_grad():
        lidar.backbone(lidar.encoder(points, grid), grid.voxel_coords, grid.num_frames)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("network", ["unet_v2", "fsd_unet"])
def test_statistics_are_means_over_frames(network):
    lidar = copy.deepcopy(branch(network))
    momenta = {name: m.momentum for name, m in lidar.named_modules() if isinstance(m, nn.BatchNorm1d)}
    assert recalibrate_norms(lidar, frames()) == 3
    single = [batch_statistics(copy.deepcopy(branch(network)), points) for points in frames()]
    norms = dict(lidar.named_modules())
    for name in single[0]:
        for index, key in enumerate(("running_mean", "running_var")):
            expected = torch.stack([seen[name][index] for seen in single]).mean(0)
            assert torch.allclose(getattr(norms[name], key), expected, rtol=1e-4, atol=1e-5), name
    assert len(single[0]) == (36 if network == "fsd_unet" else 27)
    assert not any(module.training for module in (lidar.encoder, lidar.backbone, *norms.values()))
    assert momenta == {name: norms[name].momentum for name in momenta}


def test_weights_counters_and_layers_that_do_not_run_stay():
    lidar, before = copy.deepcopy(branch("unet_v2")), branch("unet_v2").state_dict()
    recalibrate_norms(lidar, frames(2))
    changed = {key for key, tensor in lidar.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed
    assert all(key.startswith("backbone.") and "running_" in key for key in changed)
    assert not any(key.startswith("backbone.conv_out") for key in changed)


def test_frames_without_points_do_not_count():
    lidar, other = (copy.deepcopy(branch("unet_v2")) for _ in range(2))
    none = torch.zeros(0)
    empty = PointBatch(none.view(0, 3), none.view(0, 2), torch.tensor([0, 0]), none.long(), none.long())
    assert recalibrate_norms(lidar, [empty, *frames(1), empty]) == 1
    recalibrate_norms(other, frames(1))
    assert all(torch.equal(a, b) for a, b in zip(lidar.state_dict().values(), other.state_dict().values()))
    with pytest.raises(DataError, match="none of the frames has a point"):
        recalibrate_norms(lidar, [empty])
