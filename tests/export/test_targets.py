"""Every target: keys, shapes, layout and types of its class, both directions, and its features computed anew."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lidar.unet_v2 import UNetV2
from mwsis.core.errors import ConfigError, WeightMismatchError
from mwsis.export.adapter import WeightAdapter, in_krsc
from mwsis.export.network import expected_shapes, network_state, with_features
from mwsis.export.parity import NUM_SETS, parity_arrays
from mwsis.export.targets import ADAPTERS, adapters_for, neutral
from tests.export.networks import KEYS, LISTINGS, branch, listed, tensors
from tests.reference.dense_backbones import DenseBackbone, voxel_encoder

CONVOLUTIONS = json.loads(Path(__file__).with_name("unetv2_convolutions.json").read_text())
SHARED = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[3] / "shared"))
NUM_KEYS = {"unet_v2": 168, "res8x_unet": 238, "fsd_unet": 204 + 12}
VOXEL_SIZE = (0.25, 0.25, 0.2)

every_target = pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.file_name)


def file_of(adapter: WeightAdapter, folder: Path, in_channels: int = 5) -> dict[str, torch.Tensor]:
    """Write a target's file and return what plain torch reads in it."""
    state = with_features(network_state(branch(adapter.architecture)), adapter.architecture, in_channels)
    adapter.write(adapter.to_target(state), folder / adapter.file_name)
    content = torch.load(folder / adapter.file_name, weights_only=True)
    assert list(content) == [adapter.container]
    assert type(content[adapter.container]) is dict  # no OrderedDict, whose `_metadata` mmdet3d would look at
    return content[adapter.container]


def inner(adapter: WeightAdapter, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(adapter.prefix): weights[key] for key in weights if key.startswith(adapter.prefix)}


@every_target
def test_keys_shapes_layout_and_types_are_those_of_the_class(adapter, tmp_path):
    weights = file_of(adapter, tmp_path)
    own = inner(adapter, weights)
    assert {key: tuple(tensor.shape) for key, tensor in in_krsc(own).items()} == listed(adapter.file_name)
    assert list(own) == list(listed(adapter.file_name)) or adapter.names
    for key, tensor in weights.items():
        counter = key.endswith("num_batches_tracked")
        assert tensor.dtype == (torch.int64 if counter else torch.float32)
        assert tensor.is_contiguous()
    first = weights[adapter.prefix + "conv_input.0.weight"]
    out, features = (64, 64) if adapter.framework == "sst" else (16, 5)
    krsc = (out, 3, 3, 3, features)
    assert tuple(first.shape) == (krsc if adapter.layout == "KRSC" else (3, 3, 3, features, out))
    assert adapter.layout == ("RSCK" if adapter.framework == "mmdet3d" else "KRSC")


def test_the_voxel_encoder_goes_with_fsds_backbone(tmp_path):
    adapter = adapters_for("fsd_unet", ["sst"])[0]
    weights = file_of(adapter, tmp_path)
    own = {key: tuple(tensor.shape) for key, tensor in weights.items() if not key.startswith(adapter.prefix)}
    sizes = {0: (64, 11), 1: (64, 128)}
    norm = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (64,)) | {"num_batches_tracked": ()}
    expected = {f"segmentor.voxel_encoder.vfe_layers.{i}.linear.weight": size for i, size in sizes.items()}
    for i in sizes:
        expected |= {f"segmentor.voxel_encoder.vfe_layers.{i}.norm.{key}": shape for key, shape in norm.items()}
    assert own == expected


@pytest.mark.real_data
def test_the_lists_are_those_taken_from_the_classes():
    folder = SHARED / "specs" / "keys"
    if not folder.is_dir():
        pytest.skip("no listings of the frameworks' keys found; set MWSIS_SHARED")
    for name in LISTINGS.values():
        path = folder / (f"{name}_fsd_waymo.json" if name.startswith("sst") else f"{name}_in5.json")
        taken = {key: entry["shape"] for key, entry in json.loads(path.read_text())["keys"].items()}
        assert json.loads((KEYS / f"{name}.json").read_text()) == taken


def test_unet_v2_has_openpcdets_convolutions():
    backbone = branch("unet_v2").backbone
    found = {
        name: {
            "type": type(module).__name__,
            "kernel": list(module.kernel_size),
            "stride": list(module.stride),
            "padding": list(module.padding),
            "indice_key": module.indice_key,
        }
        for name, module in backbone.named_modules()
        if hasattr(module, "indice_key")
    }
    assert found == CONVOLUTIONS
    assert {(m.eps, m.momentum) for m in backbone.modules() if isinstance(m, nn.BatchNorm1d)} == {(1e-3, 0.01)}
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 1_923_216


@every_target
def test_from_target_undoes_to_target(adapter):
    state = network_state(branch(adapter.architecture))
    kept = {key for key in state if not adapter.parts or key.split(".")[0] in adapter.parts}
    back = adapter.from_target(adapter.to_target(state))
    assert back.keys() == kept
    if not adapter.fold_biases:
        assert all(torch.equal(state[key], back[key]) for key in kept)
    again = adapter.to_target(back)
    assert all(torch.equal(tensor, again[key]) for key, tensor in adapter.to_target(state).items())


@pytest.mark.parametrize("network", NUM_KEYS)
def test_the_neutral_file_holds_everything_under_our_names(network, tmp_path):
    state = network_state(branch(network))
    adapter = neutral(network)
    adapter.write(adapter.to_target(state), tmp_path / adapter.file_name)
    read = adapter.from_target(adapter.read(tmp_path / adapter.file_name))
    assert len(read) == NUM_KEYS[network]
    assert all(torch.equal(read[key], tensor) for key, tensor in state.items())


def test_folding_moves_biases_into_running_means_and_comes_back_without():
    state = network_state(branch("res8x_unet"))
    adapter = adapters_for("res8x_unet", ["mmdet3d"])[0]
    assert float(state["conv2.1.conv1.bias"].abs().sum()) > 0
    weights = adapter.to_target(state)
    mean = weights["pts_middle_encoder.encoder_layers.encoder_layer2.0.bn1.running_mean"]
    assert torch.equal(mean, state["conv2.1.bn1.running_mean"] - state["conv2.1.conv1.bias"])
    back = adapter.from_target(weights)
    assert not back["conv2.1.conv1.bias"].any()
    assert torch.equal(back["conv2.1.bn1.running_mean"], mean)
    zero = {key: 0 * state[key] if "conv1.bias" in key or "conv2.bias" in key else state[key] for key in state}
    assert all(torch.equal(zero[key], tensor) for key, tensor in adapter.from_target(adapter.to_target(zero)).items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "in_channels"),
    [*((adapter, 5) for adapter in ADAPTERS), (ADAPTERS[1], 4)],
    ids=lambda value: getattr(value, "file_name", value),
)
def test_the_file_computes_our_features(adapter, in_channels, tmp_path):
    """Plain dense convolutions on the tensors of the file, under its names and in its layout."""
    learned = adapter.architecture == "fsd_unet"
    weights = file_of(adapter, tmp_path, in_channels)
    state = with_features(network_state(branch(adapter.architecture)), adapter.architecture, in_channels)
    arrays = tensors(parity_arrays(adapter.architecture, state, VOXEL_SIZE))
    dense = DenseBackbone(LISTINGS[adapter.file_name], inner(adapter, weights), adapter.layout)
    for index in range(1 if learned or in_channels == 4 else NUM_SETS):
        one = {key.removesuffix(f"_{index}"): tensor for key, tensor in arrays.items()}
        assert one["voxel_features"].shape[1] == (64 if learned else in_channels)
        shape = one["sparse_shape"].tolist()
        found = dense(one["voxel_features"], one["voxel_coords"], shape, int(one["num_frames"]))
        for key, features in found.items():
            assert float(one[key].abs().max()) > 0.1
            assert float((features - one[key]).abs().max()) <= 1e-5
        assert found.keys() == {"unet", "bev"} & one.keys() - ({"unet"} if adapter.parts else set())
    if learned:
        own = {key.removeprefix(adapter.encoder_prefix): weights[key] for key in weights}
        again = voxel_encoder(own, one, one["voxel_coords"])
        assert float((again - one["voxel_features"]).abs().max()) <= 1e-5


def test_a_shuffled_layout_computes_something_else(tmp_path):
    """Negative control of the test above."""
    adapter = adapters_for("unet_v2", ["UNetV2"])[0]
    weights = file_of(adapter, tmp_path)
    name = adapter.prefix + "conv1.0.0.weight"
    weights[name] = weights[name].permute(4, 1, 2, 3, 0).contiguous()
    arrays = tensors(parity_arrays("unet_v2", network_state(branch("unet_v2")), VOXEL_SIZE))
    dense = DenseBackbone("pcdet_UNetV2", inner(adapter, weights), "KRSC")
    found = dense(arrays["voxel_features_0"], arrays["voxel_coords_0"], arrays["sparse_shape"].tolist(), 2)
    assert float((found["unet"] - arrays["unet_0"]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("network", "name", "words"),
    [
        (
            "unet_v2",
            "VoxelResBackBone8x",
            ("cannot take the weights of unet_v2", "train with lidar=res8x_unet"),
        ),
        ("unet_v2", "det3d", ("SpMiddleResNetFHD cannot", "lidar=res8x_unet", "openpcdet, mmdet3d, neutral")),
        ("unet_v2", "sst", ("lidar=fsd_unet",)),
        ("res8x_unet", "VoxelBackBone8x", ("cannot take the weights of res8x_unet", "lidar=unet_v2")),
        ("fsd_unet", "openpcdet", ("lidar=unet_v2 or lidar=res8x_unet", "choose of sst, neutral")),
        ("unet_v2", "openpcdt", ("no such target; did you mean 'openpcdet'?",)),
    ],
)
def test_wrong_targets_are_refused_in_a_sentence(network, name, words):
    with pytest.raises(ConfigError) as refusal:
        adapters_for(network, [name])
    for word in words:
        assert word in str(refusal.value)


def test_targets_are_chosen_by_framework_or_class():
    names = [adapter.file_name for adapter in adapters_for("unet_v2", ["mmdet3d", "UNetV2"])]
    assert names == [
        *("mmdet3d_sparseunet.pth", "mmdet3d_sparseencoder.pth", "openpcdet_unetv2.pth", "backbone.safetensors")
    ]
    assert [adapter.file_name for adapter in adapters_for("unet_v2", ["neutral"])] == ["backbone.safetensors"]
    everything = [adapter.file_name for network in NUM_KEYS for adapter in adapters_for(network)[:-1]]
    assert sorted(everything) == sorted(LISTINGS)


def test_four_features_drop_the_column_of_elongation():
    state = network_state(branch("unet_v2"))
    fewer = with_features(state, "unet_v2", 4)
    assert torch.equal(fewer["conv_input.0.weight"], state["conv_input.0.weight"][..., :4])
    assert all(fewer[key] is state[key] for key in state if key != "conv_input.0.weight")
    with pytest.raises(ConfigError, match="in_channels=3: expected 4"):
        with_features(state, "unet_v2", 3)
    with pytest.raises(ConfigError, match="the voxel encoder of fsd_unet learned from all five"):
        with_features(network_state(branch("fsd_unet")), "fsd_unet", 4)


@pytest.mark.parametrize("network", NUM_KEYS)
def test_expected_shapes_are_those_of_the_network(network):
    state = network_state(branch(network))
    assert expected_shapes(network) == {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert len(state) == NUM_KEYS[network]


def test_a_file_without_weights_is_refused(tmp_path):
    torch.save({"optimizer": {}}, tmp_path / "other.pth")
    with pytest.raises(WeightMismatchError, match="expected a checkpoint of openpcdet with 'model_state'"):
        ADAPTERS[0].read(tmp_path / "other.pth")


def test_another_backbone_is_refused():
    lidar = branch("unet_v2")
    other = type(lidar)(lidar.voxelizer, lidar.encoder, nn.Linear(2, 2), lidar.head, 3)
    with pytest.raises(WeightMismatchError, match="expected one of unet_v2, res8x_unet, fsd_unet, got Linear"):
        network_state(other)
    four = type(lidar)(lidar.voxelizer, lidar.encoder, UNetV2(4, (41, 16, 16)), lidar.head, 3)
    with pytest.raises(WeightMismatchError, match=r"conv_input.0.weight: expected shape \[16, 3, 3, 3, 5\]"):
        network_state(four)


def test_a_prefix_can_be_another():
    """What `tools/import_weights.py` relies on."""
    adapter = replace(ADAPTERS[4], prefix="pts_middle_encoder.")
    state = network_state(branch("unet_v2"))
    assert len(adapter.from_target(adapter.to_target(state))) == 72
