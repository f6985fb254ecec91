"""The export folder: the manifest, equal bytes, pages per framework, and what must be refused."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mwsis.core.errors import ConfigError, WeightMismatchError
from mwsis.export.adapter import tensor_sha256
from mwsis.export.folder import export_backbone, licence_note
from mwsis.export.guides import bev_channels
from mwsis.export.network import network_state, untrained_layers
from mwsis.export.targets import FRAMEWORKS, adapters_for
from tests.export.networks import FACTS, branch

NETWORKS = ("unet_v2", "res8x_unet", "fsd_unet")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for network in NETWORKS:
        made[network] = tmp_path_factory.mktemp(network)
        paths = export_backbone(branch(network), made[network], FACTS)
        assert sorted(paths) == sorted(made[network].iterdir())
        assert paths[-1].name == "manifest.json"
    return made


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("network", NETWORKS)
def test_manifest_states_files_keys_and_input(folders, network):
    folder, lidar = folders[network], branch(network)
    manifest, state = manifest_of(folder), network_state(lidar)
    for entry in [*manifest["files"], manifest["parity"]]:
        assert hashlib.sha256((folder / entry["name"]).read_bytes()).hexdigest() == entry["sha256"]
    neutral = manifest["files"][-1]
    assert neutral["name"] == "backbone.safetensors"
    assert {key: entry["sha256"] for key, entry in neutral["keys"].items()} == {
        key: tensor_sha256(tensor) for key, tensor in state.items()
    }
    for entry, adapter in zip(manifest["files"], adapters_for(network), strict=True):
        weights = adapter.read(folder / entry["name"])
        assert entry["num_keys"] == len(weights) == len(entry["keys"])
        assert (entry["framework"], entry["class"]) == (adapter.framework, adapter.target_class)
        assert (entry["prefix"], entry["convolution_layout"]) == (adapter.prefix, adapter.layout)
        assert len(entry["checked_against"]) == (0 if adapter.framework == "neutral" else 40)
        for key, tensor in weights.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            assert entry["keys"][key] == {
                "shape": list(tensor.shape), "dtype": dtype, "sha256": tensor_sha256(tensor)
            }  # fmt: skip
    given = manifest["input"]
    assert given["sparse_shape"] == list(lidar.backbone.sparse_shape)
    assert given["voxel_size"] == [0.25, 0.25, 0.2]
    assert given["point_cloud_range"] == [-5, -5, -2, 5, 5, 4]
    assert [feature["name"] for feature in given["features"]] == ["x", "y", "z", "intensity", "elongation"]
    assert given["voxel_features"]["kind"] == ("learned" if network == "fsd_unet" else "mean")
    assert manifest["architecture"]["name"] == network
    assert manifest["architecture"]["at_initial_values"] == []
    training = manifest["training"]
    assert (training["weights_of"], training["step"], training["frames_seen"]) == ("teacher", 120, 240)
    assert manifest["licence_note"]


def test_manifest_says_what_was_not_trained(tmp_path):
    lidar = copy.deepcopy(branch("unet_v2"))
    lidar.backbone.conv_out[1].num_batches_tracked.zero_()
    export_backbone(lidar, tmp_path, FACTS, ["neutral"])
    assert manifest_of(tmp_path)["architecture"]["at_initial_values"] == ["conv_out"]
    assert untrained_layers(lidar.backbone.state_dict()) == ["conv_out"]


def test_four_features_are_recorded(tmp_path):
    export_backbone(branch("unet_v2"), tmp_path, FACTS, ["openpcdet"], in_channels=4)
    manifest = manifest_of(tmp_path)
    assert [feature["name"] for feature in manifest["input"]["features"]] == ["x", "y", "z", "intensity"]
    assert {entry["in_channels"] for entry in manifest["files"]} == {4}
    assert np.load(tmp_path / "parity.npz")["voxel_features_0"].shape[1] == 4
    assert "4 features: `x`, `y`, `z`, `intensity`;" in (tmp_path / "README_openpcdet.md").read_text()


def test_equal_weights_give_equal_bytes(folders, tmp_path):
    for path in export_backbone(branch("unet_v2"), tmp_path, FACTS):
        assert path.read_bytes() == (folders["unet_v2"] / path.name).read_bytes()
        assert path.stat().st_mode & 0o044  # others may read it


@pytest.mark.parametrize("network", NETWORKS)
def test_parity_holds_three_scenes(folders, network):
    path = folders[network] / "parity.npz"
    assert path.stat().st_size < 600_000
    with np.load(path) as file:
        arrays = dict(file)
    for index in range(int(arrays["num_sets"])):
        coords = arrays[f"voxel_coords_{index}"]
        assert len(np.unique(coords, axis=0)) == len(coords) > 150
        assert set(coords[:, 0]) == {0, 1}
        cells = arrays["sparse_shape"] - [2 if network == "fsd_unet" else 1, 0, 0]
        assert (coords[:, 1:] == cells - 1).all(1).sum() == 2  # in the last corner, once a frame
        apart = np.abs(coords[:, None, 1:] - coords[None, :, 1:]).max(2) + 99 * (coords[:, None, 0] != coords[:, 0])
        assert (np.sort(apart, 1)[:, 1] > 5).any()  # one far from all others
        assert np.isfinite(arrays[f"unet_{index}"]).all()
        assert (f"bev_{index}" in arrays) == (network != "fsd_unet")
    assert not np.array_equal(arrays["voxel_coords_0"], arrays["voxel_coords_1"])


@pytest.mark.parametrize("network", NETWORKS)
def test_guides_name_what_is_there(folders, network):
    folder = folders[network]
    manifest = manifest_of(folder)
    for framework in dict.fromkeys(adapter.framework for adapter in adapters_for(network)[:-1]):
        page = (folder / f"README_{framework}.md").read_text()
        assert len(page.splitlines()) <= 40
        assert "$" not in page
        entries = [entry for entry in manifest["files"] if entry["framework"] == framework]
        assert set(re.findall(r"[\w.]+\.(?:pth|py|json)\b", page)) - {"train.py", "export.py"} == {
            *(entry["name"] for entry in entries), f"verify_{framework}.py", "manifest.json"
        }  # fmt: skip
        for entry in entries:
            assert f"`{entry['name']}`: {entry['class']}" in page
            assert str(entry["num_keys"]) in page
        prefixes = {entry[key] for entry in entries for key in ("prefix", "encoder_prefix")} - {""}
        assert prefixes <= set(re.findall(r"[\w.]+\.(?=['*])", page))
        for number in (manifest["input"]["voxel_size"], manifest["input"]["point_cloud_range"]):
            assert str(number) in page
        if network != "fsd_unet":
            assert str(bev_channels(manifest["input"]["sparse_shape"])) in page


def test_snippets_are_configurations_that_parse(folders):
    """Those of Python run, those of OpenPCDet are YAML, and say what the export says."""
    yaml = pytest.importorskip("yaml")
    for network, folder in folders.items():
        given = manifest_of(folder)["input"]
        for path in folder.glob("README_*.md"):
            for snippet in re.findall(r"```\n(.*?)```", path.read_text(), re.DOTALL):
                if path.name == "README_openpcdet.md":
                    command, _, config = snippet.partition("\n\n")
                    assert command.split("--pretrained_model ")[1] in {entry.name for entry in folder.iterdir()}
                    settings = yaml.safe_load(config)
                    assert settings["DATA_CONFIG"]["POINT_CLOUD_RANGE"] == given["point_cloud_range"]
                    names = [feature["name"] for feature in given["features"]]
                    assert settings["DATA_CONFIG"]["POINT_FEATURE_ENCODING"]["used_feature_list"] == names
                    continue
                names = {"dict": dict}
                exec(snippet, names)
                text = repr({key: names[key] for key in names if key not in ("dict", "__builtins__")})
                assert repr(given["sparse_shape"]) in text or path.name == "README_det3d.md"
                assert network == "fsd_unet" or "5" in text


def test_bev_channels_are_those_of_the_network():
    lidar = branch("unet_v2")
    voxels = (torch.ones(1, 5), torch.zeros(1, 4).int(), 1)
    assert bev_channels(lidar.backbone.sparse_shape) == lidar.backbone.encode(*voxels).shape[1]
    assert bev_channels((41, 1504, 1504)) == 256


def test_weights_that_are_not_finite_are_refused(tmp_path):
    lidar = copy.deepcopy(branch("unet_v2"))
    with torch.no_grad():
        lidar.backbone.conv5[0][0].weight[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(WeightMismatchError, match=r"conv5\.0\.0\.weight: expected finite"):
        export_backbone(lidar, tmp_path / "out", FACTS)
    with pytest.raises(ConfigError, match="to=det3d"):
        export_backbone(branch("unet_v2"), tmp_path / "out", FACTS, ["det3d"])
    assert not list(tmp_path.iterdir())


def test_teacher_or_student_must_be_said():
    with pytest.raises(ConfigError, match="weights_of"):
        replace(FACTS, weights_of="both")


def test_waymo_weights_carry_the_licence_note():
    assert "Waymo Dataset License Agreement" in licence_note("waymo-v2")
    assert "Waymo" not in licence_note("street")


def test_every_framework_has_a_target():
    assert FRAMEWORKS == ("openpcdet", "mmdet3d", "sst", "det3d")
