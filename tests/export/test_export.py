"""The exported files: keys, shapes, layout, round trips, the manifest, and what must be refused."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lidar.unet_v2 import UNetV2
from mwsis.core.errors import ConfigError, WeightMismatchError
from mwsis.core.weights import load_weights, read_checkpoint
from mwsis.export.adapter import backbone_state, expected_keys, tensor_sha256, untrained_layers
from mwsis.export.neutral import ADAPTERS, NEUTRAL, ExportFacts, export_backbone, licence_note
from mwsis.export.openpcdet import UNET_V2, VOXEL_BACKBONE_8X

GOLDEN = json.loads(Path(__file__).with_name("unetv2_keys.json").read_text())
FACTS = ExportFacts(
    voxel_size=(0.25, 0.25, 0.25),
    point_cloud_range=(-4.0, -4.0, -2.0, 4.0, 4.0, 4.0),
    class_names=("Vehicle", "Pedestrian", "Cyclist"),
    weights_of="teacher",
    step=120,
    data_set="street",
    data_fingerprint="abc",
    config_hash="def",
    seed=7,
    label_type="2D boxes only",
    metrics={"lidar/instance_ap": 0.25},
)
SHAPE = (25, 32, 32)


def voxels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    coords = torch.randint(0, 24, (300, 4), generator=generator)
    coords[:, 0] %= 2
    coords = torch.unique(coords, dim=0).int()
    return torch.randn(len(coords), 5, generator=generator), coords


@pytest.fixture(scope="module")
def backbone() -> UNetV2:
    torch.manual_seed(3)
    net = UNetV2(5, SHAPE)
    for _ in range(3):
        net(*voxels(), 2)
    return net.eval()


@pytest.fixture(scope="module")
def folder(backbone: UNetV2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("export")
    paths = export_backbone(backbone, out_dir, FACTS)
    assert sorted(paths) == sorted(out_dir.iterdir())
    assert paths[-1].name == "manifest.json"
    return out_dir


def test_module_has_openpcdets_keys_shapes_and_dtypes(backbone: UNetV2) -> None:
    state = backbone.state_dict()
    assert list(state) == list(GOLDEN["keys"])
    assert len(state) == 168
    for key, entry in GOLDEN["keys"].items():
        assert list(state[key].shape) == entry["shape"]
        assert str(state[key].dtype) == f"torch.{entry['dtype']}"
    assert {key: list(shape) for key, shape in expected_keys().items()} == {
        key: entry["shape"] for key, entry in GOLDEN["keys"].items()
    }
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 1_923_216


def test_module_has_openpcdets_convolutions(backbone: UNetV2) -> None:
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
    assert found == GOLDEN["convolutions"]
    assert {(m.eps, m.momentum) for m in backbone.modules() if isinstance(m, nn.BatchNorm1d)} == {(1e-3, 0.01)}


@pytest.mark.real_data
def test_golden_list_equals_the_listing_taken_from_openpcdet() -> None:
    root = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[2] / ".." / "shared"))
    listings = [path / "specs" / "keys" / "pcdet_UNetV2_in5.json" for path in (root, root.parent)]
    listing = next((path for path in listings if path.exists()), None)
    if listing is None:
        pytest.skip("no listing of OpenPCDet's keys found; set MWSIS_SHARED")
    assert json.loads(listing.read_text())["keys"] == GOLDEN["keys"]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.file_name)
def test_from_target_undoes_to_target(backbone: UNetV2, adapter: object) -> None:
    state = backbone_state(backbone)
    back = adapter.from_target(adapter.to_target(state))
    assert all(torch.equal(state[key], tensor) for key, tensor in back.items())
    assert len(back) == (72 if adapter is VOXEL_BACKBONE_8X else 168)


@pytest.mark.parametrize("adapter", [UNET_V2, NEUTRAL], ids=["openpcdet", "neutral"])
def test_a_fresh_network_from_the_file_gives_identical_features(
    backbone: UNetV2, folder: Path, adapter: object
) -> None:
    fresh = UNetV2(5, SHAPE).eval()
    load_weights(fresh, adapter.from_target(adapter.read(folder / adapter.file_name)), adapter.file_name)
    with torch.no_grad():
        assert torch.equal(fresh(*voxels(), 2), backbone(*voxels(), 2))
        assert torch.equal(fresh.encode(*voxels(), 2), backbone.encode(*voxels(), 2))


def test_openpcdet_file_is_what_its_loader_expects(folder: Path) -> None:
    checkpoint = torch.load(folder / "openpcdet_unetv2.pth", weights_only=True)
    assert list(checkpoint) == ["model_state"]
    shapes = {key: list(tensor.shape) for key, tensor in checkpoint["model_state"].items()}
    assert shapes == {f"backbone_3d.{key}": entry["shape"] for key, entry in GOLDEN["keys"].items()}


def test_encoder_file_holds_the_72_keys_of_voxelbackbone8x(folder: Path) -> None:
    whole = read_checkpoint(folder / "openpcdet_unetv2.pth")["model_state"]
    encoder = read_checkpoint(folder / "openpcdet_voxelbackbone8x.pth")["model_state"]
    assert sorted(encoder) == sorted(f"backbone_3d.{key}" for key in GOLDEN["voxelbackbone8x"])
    assert all(torch.equal(tensor, whole[key]) for key, tensor in encoder.items())


def test_manifest_states_files_keys_and_input(backbone: UNetV2, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["num_keys"] for entry in manifest["files"]] == [168, 72, 168]
    for entry in manifest["files"]:
        assert hashlib.sha256((folder / entry["name"]).read_bytes()).hexdigest() == entry["sha256"]
    state = backbone.state_dict()
    assert list(manifest["keys"]) == list(state)
    assert all(tensor_sha256(state[key]) == entry["sha256"] for key, entry in manifest["keys"].items())
    assert manifest["input"]["sparse_shape"] == list(SHAPE)
    assert [feature["name"] for feature in manifest["input"]["features"]] == [
        *("x", "y", "z", "intensity", "elongation")
    ]
    assert manifest["training"]["weights_of"] == "teacher"
    assert manifest["architecture"]["num_parameters"] == 1_923_216


def test_manifest_says_that_conv_out_was_not_trained(backbone: UNetV2, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["architecture"]["at_initial_values"] == ["conv_out"]
    state = backbone.state_dict()
    state["conv_out.1.num_batches_tracked"] = torch.tensor(4)
    assert untrained_layers(state) == []
    assert untrained_layers(UNetV2(5, SHAPE).state_dict()).count("conv_up_t4") == 1


def test_equal_weights_give_equal_bytes(backbone: UNetV2, folder: Path, tmp_path: Path) -> None:
    for path in export_backbone(backbone, tmp_path, FACTS):
        assert path.read_bytes() == (folder / path.name).read_bytes()
        assert path.stat().st_mode & 0o044  # others may read it


def test_running_statistics_are_exported(backbone: UNetV2, folder: Path) -> None:
    weights = NEUTRAL.read(folder / NEUTRAL.file_name)
    assert torch.equal(weights["conv_input.1.running_mean"], backbone.conv_input[1].running_mean)
    assert float(weights["conv_input.1.running_mean"].abs().sum()) > 0


def test_a_shuffled_layout_is_noticed(backbone: UNetV2) -> None:
    """A wrong layout of equal shape loads without a word in most frameworks; the checksum tells."""
    weight = backbone.conv1[0][0].weight.detach()
    assert tensor_sha256(weight.permute(4, 1, 2, 3, 0)) != tensor_sha256(weight)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightMismatchError, match="expected the 168 keys of UNetV2"):
        export_backbone(nn.Linear(2, 2), tmp_path, FACTS)
    with pytest.raises(WeightMismatchError, match=r"conv_input.0.weight: expected shape \[16, 3, 3, 3, 5\]"):
        export_backbone(UNetV2(4, SHAPE), tmp_path, FACTS)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    net = UNetV2(5, SHAPE)
    with torch.no_grad():
        net.conv5[0][0].weight[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(WeightMismatchError, match=r"conv5\.0\.0\.weight: expected finite"):
        export_backbone(net, tmp_path, FACTS)


def test_another_grid_is_refused(backbone: UNetV2, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sparse_shape"):
        export_backbone(backbone, tmp_path, replace(FACTS, voxel_size=(0.5, 0.5, 0.5)))


def test_teacher_or_student_must_be_said() -> None:
    with pytest.raises(ConfigError, match="weights_of"):
        replace(FACTS, weights_of="both")


def test_a_file_without_model_state_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(WeightMismatchError, match="model_state"):
        UNET_V2.read(tmp_path / "other.pth")


def test_waymo_weights_carry_the_licence_note() -> None:
    assert "Waymo Dataset License Agreement" in licence_note("waymo-v2")
    assert "Waymo" not in licence_note("street")
