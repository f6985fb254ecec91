"""tools/export.py: what it takes and refuses, on a checkpoint of a LiDAR branch that was hardly trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fusion.step import PretrainingStep
from mwsis.data.dataset import FrameDataset
from mwsis.export.network import network_state
from mwsis.training.build import build_method, build_segmentor, build_transform
from mwsis.training.checkpoint import FORMAT, read_run_checkpoint
from mwsis.training.commands import compose_run, restore_config
from mwsis.training.config import typed
from mwsis.training.lidar_branch import trained_lidar
from mwsis.training.prepare import build_source, prepare
from tools import export

PROJECT = Path(__file__).resolve().parents[2]
SMOKE = ("experiment=smoke", "method=mwsis_lidar")


def checkpoint(folder, *overrides):
    """Write the checkpoint of an untrained run whose teacher differs from its student; return path and step."""
    run = typed(compose_run([*SMOKE, f"data.cache={folder / 'cache'}", *overrides]))
    step = PretrainingStep(build_segmentor(run, 3), build_method(run), 3)
    with torch.no_grad():
        for value in step.teacher.module.parameters():
            value.add_(0.01)
    facts = {"config": OmegaConf.to_yaml(OmegaConf.structured(run)), "class_names": ["a", "b", "c"]}
    facts |= {"data_fingerprint": "f", "global_step": 7, "skipped_steps": 0}
    path = folder / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"format": FORMAT, "model": step.state_dict(), "optimisers": {}, "votes": {}, **facts}, path)
    return path, step


@pytest.fixture(scope="module")
def unet_v2(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("unet_v2"))


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_left_out_targets_are_all_that_the_network_fits(unet_v2, tmp_path, capsys):
    path, step = unet_v2
    metrics = {"steps": 7, "lidar": {"teacher": {"miou": 0.5, "iou/a": None}}}
    (path.parents[1] / "metrics.json").write_text(json.dumps(metrics))
    export.main([f"ckpt={path}", f"out={tmp_path}"])
    manifest = manifest_of(tmp_path)
    assert [entry["name"] for entry in manifest["files"]] == [
        *("openpcdet_unetv2.pth", "openpcdet_voxelbackbone8x.pth", "mmdet3d_sparseunet.pth"),
        *("mmdet3d_sparseencoder.pth", "backbone.safetensors"),
    ]
    assert f"export: {tmp_path / 'verify_mmdet3d.py'}" in capsys.readouterr().out
    weights = torch.load(tmp_path / "openpcdet_unetv2.pth", weights_only=True)["model_state"]
    expected = step.teacher.module.lidar.backbone.state_dict()
    assert all(torch.equal(weights[f"backbone_3d.{key}"], tensor) for key, tensor in expected.items())
    training = manifest["training"]
    assert (training["weights_of"], training["metrics"], training["step"]) == ("teacher", {"miou": 0.5}, 7)
    assert training["label_type"] == "2D boxes only"
    assert manifest["input"]["point_filter"] == "in point_cloud_range, in at least one image"
    assert manifest["input"]["coordinate_frame"].startswith("vehicle")


def test_student_four_features_and_chosen_targets(unet_v2, tmp_path):
    path, step = unet_v2
    export.main([f"ckpt={path}", f"out={tmp_path}", "to=[SparseEncoder]", "weights=student", "in_channels=4"])
    manifest = manifest_of(tmp_path)
    assert [entry["name"] for entry in manifest["files"]] == ["mmdet3d_sparseencoder.pth", "backbone.safetensors"]
    weights = torch.load(tmp_path / "mmdet3d_sparseencoder.pth", weights_only=True)["state_dict"]
    expected = step.student.lidar.backbone.conv_input[0].weight[..., :4].permute(1, 2, 3, 4, 0)
    assert torch.equal(weights["middle_encoder.conv_input.0.weight"], expected)
    assert manifest["training"]["weights_of"] == "student"
    assert manifest["training"]["notes"] == {"in_channels": "4: the weights of elongation are left out"}
    assert manifest["training"]["metrics"] == {}


def test_layers_get_their_initial_length(unet_v2, tmp_path):
    path, step = unet_v2
    state = torch.load(path, weights_only=True)
    grown = [key for key in state["model"] if key.endswith("backbone.conv3.0.0.weight")]
    for key in grown:
        state["model"][key] *= 5
    torch.save(state, tmp_path / "grown.ckpt")
    lengths = []
    for option in ("false", "true"):
        arguments = [f"ckpt={tmp_path / 'grown.ckpt'}", f"out={tmp_path / option}", "to=UNetV2"]
        export.main([*arguments, f"initial_length={option}"])
        weights = torch.load(tmp_path / option / "openpcdet_unetv2.pth", weights_only=True)["model_state"]
        lengths.append(weights["backbone_3d.conv3.0.0.weight"].norm())
    assert grown
    fresh, taught = (one.lidar.backbone.conv3[0][0].weight.norm() for one in (step.student, step.teacher.module))
    torch.testing.assert_close(lengths, [5 * taught, fresh])
    assert manifest_of(tmp_path / "false")["training"]["notes"] == {}
    assert list(manifest_of(tmp_path / "true")["training"]["notes"]) == ["initial_length"]


@pytest.mark.slow
def test_norms_are_measured_on_whole_sweeps(unet_v2, tmp_path, monkeypatch):
    """All points in range, not only those on images; frames of the named data set."""
    path, step = unet_v2
    seen = []
    monkeypatch.setattr(export, "_points", lambda *given, inner=export._points: watched(inner(*given), seen))
    arguments = [f"ckpt={path}", "to=neutral", "recalibrate_bn=2"]
    export.main([*arguments, f"out={tmp_path / 'whole'}"])
    manifest = manifest_of(tmp_path / "whole")
    words = "2 frames of street (train), all points in point_cloud_range"
    assert manifest["training"]["notes"] == {"recalibrated_bn": words}
    assert len(seen) == 2
    assert all(len(points.xyz) > on_images for points, on_images in zip(seen, points_on_images(path), strict=True))
    limits = torch.tensor(manifest["input"]["point_cloud_range"])
    assert all(((points.xyz >= limits[:3]) & (points.xyz < limits[3:])).all() for points in seen)
    export.main([*arguments, "data.source.seed=1", f"out={tmp_path / 'other'}"])
    files = [manifest["files"][0], manifest_of(tmp_path / "other")["files"][0]]
    changed = {key for key in files[0]["keys"] if files[0]["keys"][key] != files[1]["keys"][key]}
    assert changed
    assert all("running_" in key for key in changed)
    kept = network_state(step.teacher.module.lidar)
    assert any("running_" in key and not torch.equal(kept[key], torch.zeros_like(kept[key])) for key in changed)


def points_on_images(path):
    """Return how many points of each training frame pretraining sees."""
    run = typed(restore_config(read_run_checkpoint(path)["config"]))
    assert run.data.only_in_image
    frames = prepare(run, build_source(run), lambda *_: None).train.frames
    samples = FrameDataset(frames, None, build_transform(run, augment=False), seed=0)
    return [len(samples[index].xyz) for index in range(len(frames))]


def watched(batches, seen):
    for points in batches:
        seen.append(points)
        yield points


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["to=det3d"], "to=det3d: SpMiddleResNetFHD cannot take the weights of unet_v2; train with lidar=res8x_unet"),
        (["to=VoxelResBackBone8x"], "cannot take the weights of unet_v2"),
        (["to=openpcdt"], "did you mean 'openpcdet'?"),
        (["in_channels=3"], "in_channels=3: expected 4 (without elongation) or 5"),
        (["in_channels=four"], "in_channels=four: expected a number"),
        (["initial_length=1"], "initial_length=1: expected true or false"),
        (["weights=both"], "weights=both: expected teacher or student"),
        (["data=kitti"], "argument 'data=kitti': a data set is for recalibrate_bn=N alone"),
        (["recalibrate_bn=1", "lidar.hidden=3"], "argument 'lidar.hidden=3': after training only these can change"),
        (["recalibrate_bn=1", "data=kitti"], "data.root"),
    ],
)
def test_wrong_requests(unet_v2, tmp_path, refused, arguments, words):
    assert words in refused("export", f"ckpt={unet_v2[0]}", f"out={tmp_path / 'out'}", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_run_without_lidar_has_nothing_to_export(tmp_path, refused):
    path, _ = checkpoint(tmp_path, "method=boxteacher")
    assert "trained no LiDAR branch" in refused("export", f"ckpt={path}", f"out={tmp_path / 'out'}")


@pytest.mark.parametrize("network", ["res8x_unet", "fsd_unet"])
def test_the_other_networks_go_out_too(network, tmp_path):
    path, step = checkpoint(tmp_path, f"lidar={network}", "lidar.voxel_size=[0.4,0.4,0.4]")
    export.main([f"ckpt={path}", f"out={tmp_path / 'out'}"])
    assert manifest_of(tmp_path / "out")["architecture"]["name"] == network
    state = torch.load(path, weights_only=True)
    run = typed(compose_run([*SMOKE, f"lidar={network}", "lidar.voxel_size=[0.4,0.4,0.4]"]))
    lidar = trained_lidar(state, run, "teacher", "last.ckpt").state_dict()
    assert all(torch.equal(lidar[key], tensor) for key, tensor in step.teacher.module.lidar.state_dict().items())


def test_the_command_starts_without_the_trainer():
    """Lightning and the camera's libraries would take most of the time that a whole export has."""
    code = (
        "import sys, tools.export, mwsis.export.folder, mwsis.export.recalibrate, mwsis.training.lidar_branch, "
        "mwsis.training.checkpoint; print('lightning' in sys.modules, 'torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.stdout == "False False\n", done.stderr
