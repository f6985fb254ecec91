"""tools/import_weights.py, LiDAR: a detector's backbone becomes a start for training, or one sentence says why not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from lidar.start_weights import load_lidar_weights
from mwsis.core.errors import WeightMismatchError
from mwsis.export.network import network_state
from mwsis.export.targets import ADAPTERS, adapters_for
from mwsis.training.build import build_segmentor, check_start
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from mwsis.training.lidar_branch import build_lidar
from tests.export.networks import branch

HEAD = {"dense_head.conv.weight": torch.ones(2), "dense_head.conv.bias": torch.ones(2), "global_step": torch.ones(1)}


@pytest.fixture
def command(run_tool):
    """Run the command in this process; return its exit code, what it printed and what it complained about."""
    return partial(run_tool, "import_weights")


def detector(adapter, path, turned=False, **changes):
    """Write a detector's checkpoint, as its framework does; ``turned`` takes the other layout of convolutions."""
    weights = adapter.to_target(network_state(branch(adapter.architecture)))
    axes = (4, 0, 1, 2, 3) if adapter.layout == "RSCK" else (1, 2, 3, 4, 0)
    if turned:
        weights = {key: w.permute(axes).contiguous() if w.dim() == 5 else w for key, w in weights.items()}
    torch.save({adapter.container: {**HEAD, **weights, **changes}, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.file_name)
def test_every_class_comes_back(command, tmp_path, adapter, turned):
    """The exporter's inverse, whichever layout; encoders alone say that they are a part."""
    path, out = detector(adapter, tmp_path / "detector.pth", turned), tmp_path / "start.pt"
    code, printed, complaint = command(
        f"ckpt={path}", f"from={adapter.framework}", f"out={out}", *["partial=true"] * bool(adapter.parts)
    )
    assert (code, complaint) == (0, "")
    assert "left out: dense_head (2), global_step (1)" in printed
    assert (
        f"of the {len(network_state(branch(adapter.architecture)))} tensors of lidar={adapter.architecture}" in printed
    )
    assert ("partial" in printed) == bool(adapter.parts)
    content = torch.load(out, weights_only=True)
    assert content["partial"] is bool(adapter.parts)
    assert (content["network"], content["class"]) == (adapter.architecture, adapter.target_class)
    expected = adapter.from_target(adapter.to_target(network_state(branch(adapter.architecture))))
    assert content["model"].keys() == expected.keys()
    assert all(torch.equal(content["model"][key], tensor) for key, tensor in expected.items())


def test_an_encoder_alone_needs_consent(command, tmp_path):
    adapter = adapters_for("unet_v2", ["VoxelBackBone8x"])[0]
    path, out = detector(adapter, tmp_path / "second.pth"), tmp_path / "start.pt"
    code, _, complaint = command(f"ckpt={path}", "from=openpcdet", f"out={out}")
    assert code == 2
    assert "VoxelBackBone8x of openpcdet has 72 of the 168 tensors of lidar=unet_v2; give partial=true" in complaint
    assert not out.exists()


@pytest.mark.parametrize(("index", "prefix"), [(4, "pts_middle_encoder."), (5, "middle_encoder."), (6, "backbone.")])
def test_other_places_in_a_detector_are_known(command, tmp_path, index, prefix):
    adapter = ADAPTERS[index]
    inner = adapter.encoder_prefix.replace("segmentor.", "")
    path = detector(replace(adapter, prefix=prefix, encoder_prefix=inner), tmp_path / "detector.pth")
    arguments = (f"ckpt={path}", f"from={adapter.framework}", f"out={tmp_path / 'start.pt'}")
    code, printed, complaint = command(*arguments, *["partial=true"] * bool(adapter.parts))
    assert (code, complaint) == (0, "")
    assert f"{adapter.target_class} of {adapter.framework}" in printed


def test_every_key_that_does_not_fit_is_listed(command, tmp_path):
    adapter = adapters_for("unet_v2", ["UNetV2"])[0]
    changes = {"backbone_3d.conv9.weight": torch.zeros(1), "backbone_3d.conv5.0.1.bias": torch.zeros(5)}
    path = detector(adapter, tmp_path / "detector.pth", **changes)
    content = torch.load(path, weights_only=True)
    del content["model_state"]["backbone_3d.conv4.0.0.weight"]
    torch.save(content, path)
    out = tmp_path / "start.pt"
    code, _, complaint = command(f"ckpt={path}", "from=openpcdet", f"out={out}")
    assert code == 2
    assert complaint.splitlines()[:3] == [
        "missing      conv4.0.0.weight",
        "unexpected   conv9.weight",
        "wrong shape  conv5.0.1.bias: expected (16,), got (5,)",
    ]
    assert "UNetV2 of openpcdet, as unet_v2: 166 of 168 tensors match; 1 missing" in complaint.splitlines()[3]
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["from=openpcdt"], "from=openpcdt: no such framework; did you mean 'openpcdet'?"),
        (["from=mmdet3d"], "expected a checkpoint of mmdet3d with 'state_dict' in it"),
        (["from=openpcdet", "classes=1"], "from=openpcdet: 'classes' is about cameras; leave it out"),
        (["from=openpcdet", "camera=condinst_tiny"], "'camera=condinst_tiny' is about cameras"),
        (["from=openpcdet", "partial=yes"], "partial=yes: expected true or false"),
        (["from=mmdet", "partial=true"], "partial=true: expected true or false, and one of openpcdet, mmdet3d"),
    ],
)
def test_wrong_requests(command, tmp_path, arguments, sentence):
    path = detector(ADAPTERS[0], tmp_path / "detector.pth")
    code, _, complaint = command(f"ckpt={path}", f"out={tmp_path / 'start.pt'}", *arguments)
    assert code == 2
    assert sentence in complaint
    assert not (tmp_path / "start.pt").exists()


def test_a_detector_without_a_sparse_backbone_is_refused(command, tmp_path):
    torch.save({"model_state": HEAD}, tmp_path / "pillar.pth")
    code, _, complaint = command(f"ckpt={tmp_path / 'pillar.pth'}", "from=openpcdet", f"out={tmp_path / 'start.pt'}")
    assert code == 2
    assert "expected one of UNetV2, VoxelBackBone8x, VoxelResBackBone8x of openpcdet under backbone_3d." in complaint
    assert "got tensors of dense_head, global_step" in complaint


def started(path, network="unet_v2"):
    """Return a run that begins with imported weights."""
    return typed(compose_run(["experiment=smoke", "method=mwsis_lidar", f"lidar={network}", f"lidar.weights={path}"]))


def imported(command, adapter, tmp_path):
    path, out = detector(adapter, tmp_path / "detector.pth"), tmp_path / "start.pt"
    options = ["partial=true"] * bool(adapter.parts)
    assert command(f"ckpt={path}", f"from={adapter.framework}", f"out={out}", *options)[0] == 0
    return out


@pytest.mark.parametrize("name", ["UNetV2", "SimpleSparseUNet"])
def test_a_training_begins_with_them_and_a_resumed_one_does_not_ask(command, tmp_path, name):
    adapter = next(adapter for adapter in ADAPTERS if adapter.target_class == name)
    out = imported(command, adapter, tmp_path)
    run = started(out, adapter.architecture)
    check_start(run, 3)
    begun = network_state(build_segmentor(run, 3).lidar)
    expected = network_state(branch(adapter.architecture))
    assert all(torch.equal(begun[key], tensor) for key, tensor in expected.items())
    out.unlink()
    with pytest.raises(WeightMismatchError, match=r"start\.pt"):
        check_start(run, 3)
    build_segmentor(run, 3, start=False)


def test_an_encoder_fills_its_part_and_the_rest_starts_as_without(command, tmp_path):
    adapter = adapters_for("unet_v2", ["VoxelBackBone8x"])[0]
    out = imported(command, adapter, tmp_path)
    run = started(out)
    begun, fresh = network_state(build_lidar(run, 3)), network_state(build_lidar(run, 3, start=False))
    taught = network_state(branch("unet_v2"))
    own = set(torch.load(out, weights_only=True)["model"])
    assert len(own) == 72
    for key, tensor in begun.items():
        assert torch.equal(tensor, taught[key] if key in own else fresh[key])


def test_weights_of_another_network_and_other_files_are_refused(command, tmp_path):
    out = imported(command, ADAPTERS[0], tmp_path)
    with pytest.raises(WeightMismatchError, match="its weights are of unet_v2, expected res8x_unet; set lidar"):
        check_start(started(out, "res8x_unet"), 3)
    content = torch.load(out, weights_only=True)
    del content["model"]["conv5.0.1.bias"]
    torch.save(content, out)
    with pytest.raises(WeightMismatchError, match=r"1 missing, first 'backbone.conv5.0.1.bias'"):
        check_start(started(out), 3)
    torch.save({"model_state": HEAD}, tmp_path / "other.pth")
    with pytest.raises(WeightMismatchError, match=r"expected a file of tools/import_weights.py"):
        load_lidar_weights(branch("unet_v2"), "unet_v2", tmp_path / "other.pth")
