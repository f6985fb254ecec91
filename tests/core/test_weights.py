from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from mwsis.core.errors import WeightMismatchError
from mwsis.core.weights import at_initial_length, compare_weights, load_weights, read_checkpoint


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_fills_the_module_and_reports():
    source, target = module(), module()
    report = load_weights(target, source.state_dict(), "a.ckpt")
    assert report.fits
    assert len(report.matched) == 7
    assert torch.equal(source[0].weight, target[0].weight)
    assert str(report) == "7 of 7 tensors match"


def test_every_kind_of_mismatch_is_named_and_nothing_is_loaded():
    target = module()
    state = {name: tensor.clone() + 1 for name, tensor in target.state_dict().items()}
    state["1.scale"] = state.pop("1.weight")
    state["0.weight"] = torch.zeros(4, 5)
    before = target[0].bias.clone()
    report = compare_weights(target, state)
    assert report.missing == ("1.weight",)
    assert report.unexpected == ("1.scale",)
    assert report.wrong_shape == (("0.weight", (4, 3), (4, 5)),)
    with pytest.raises(WeightMismatchError) as raised:
        load_weights(target, state, "run/last.ckpt")
    sentence = str(raised.value)
    assert sentence.startswith("run/last.ckpt: 5 of 7 tensors match; 1 missing, first '1.weight'")
    assert "'0.weight': expected (4, 3), got (4, 5)" in sentence
    assert "\n" not in sentence
    assert torch.equal(target[0].bias, before)


def test_reads_a_checkpoint(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": module().state_dict(), "step": 3}, path)
    content = read_checkpoint(path)
    assert content["step"] == 3
    assert content["state_dict"]["0.weight"].shape == (4, 3)


class Payload:
    """Something that a checkpoint has no business to hold."""


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "tensor", "object"])
def test_anything_else_is_one_sentence(kind: str, tmp_path: Path):
    path = tmp_path / f"{kind}.ckpt"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("hello, this is not a checkpoint")
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "object":
        torch.save({"hook": Payload()}, path)
    elif kind == "truncated":
        torch.save(module().state_dict(), path)
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(WeightMismatchError) as raised:
        read_checkpoint(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def a_network():
    return nn.Sequential(
        nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8, eps=1e-3), nn.ReLU()),
        nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5, eps=1e-3)),
        nn.Linear(5, 2),
    )


def test_layers_before_norms_get_their_initial_length_and_the_network_stays():
    torch.manual_seed(0)
    network, inputs = a_network(), torch.randn(400, 3)
    initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.02)
    for _ in range(50):
        optimiser.zero_grad()
        network(inputs).square().sum(1).sub(1).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        network[0][0].weight *= 6
        network[0][1].running_mean *= 6
        network[0][1].running_var *= 36
    trained = copy.deepcopy(network)
    assert at_initial_length(network, initial) == 2
    for layer, name in ((network[0][0], "0.0.weight"), (network[1][0], "1.0.weight")):
        torch.testing.assert_close(layer.weight.norm(), initial[name].norm())
    assert torch.equal(network[2].weight, trained[2].weight)
    torch.testing.assert_close(network.eval()(inputs), trained.eval()(inputs), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.train()(inputs), trained.train()(inputs), rtol=0.02, atol=0.02)
    before = copy.deepcopy(network.state_dict())
    assert at_initial_length(network, before) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
