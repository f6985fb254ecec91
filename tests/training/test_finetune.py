"""Fine-tuning: whose labels are seen, what it starts from, exact resumption."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import save_file

from fusion.step import PretrainingStep
from mwsis.core.errors import ConfigError, DataError, WeightMismatchError
from mwsis.core.frame import FrameTruth
from mwsis.training import checkpoint
from mwsis.training.build import build_method, build_segmentor, check_training
from mwsis.training.checkpoint import read_run_checkpoint
from mwsis.training.config import labels_used
from mwsis.training.evaluate import trained_from
from mwsis.training.finetune import build_model, fine_tune, labelled_subset, score, with_lr_scale
from mwsis.training.finetune_data import LabelledFrames, labelled_segments
from mwsis.training.finetune_init import FEATURES, provenance, start_from
from mwsis.training.finetune_step import FineTuningStep
from mwsis.training.folder import RunFolder
from mwsis.training.prepare import Prepared, Split
from tests.training.kill_stress import assert_same

TINY = (
    *("data.source.train_segments=4", "data.source.train_frames_per_segment=1", "trainer.max_steps=6"),
    *("lidar.voxel_size=[0.4,0.4,0.25]", "trainer.checkpoint_every=2"),
)


@pytest.fixture(scope="module")
def compose_task(compose_tiny):
    def compose(task, *overrides):
        small = ["finetune.paste=[30,60,40]"] if task == "detection" else []
        return compose_tiny(f"finetune={task}", *TINY, *small, *overrides)

    return compose


class Poisoned:
    """Frames of which the ground truth of some is wrong everywhere."""

    def __init__(self, frames, indices):
        self.frames, self.indices = frames, set(indices)
        self.num_points, self.frame_ids = frames.num_points, frames.frame_ids

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        frame = self.frames[index]
        if index not in self.indices:
            return frame
        truth = frame.truth
        wrong = FrameTruth(
            torch.ones_like(truth.semantic_labels),
            torch.arange(len(truth.instance_ids)),
            truth.boxes3d + 0.7,
            truth.box3d_labels.flip(0),
            truth.box3d_ids,
            truth.box_instance_ids,
            truth.images,
        )
        return replace(frame, truth=wrong)


def trained(run, prepared, root):
    folder = RunFolder(root)
    while not fine_tune(run, folder, prepared):
        pass
    return read_run_checkpoint(folder.checkpoint)


@given(st.integers(1, 60), st.integers(0, 99), st.floats(0.001, 1), st.floats(0.001, 1))
def test_fractions_are_nested_and_rounded_up_to_whole_segments(count, seed, one, other):
    segments = [f"drive {index}" for index in range(count)]
    few, many = (labelled_segments(segments, fraction, seed) for fraction in sorted((one, other)))
    assert many[: len(few)] == few
    assert len(set(many)) == len(many) >= 1
    assert min(one, other) * count - 1e-6 <= len(few) < min(one, other) * count + 1


def test_a_tenth_of_thirty_is_three_and_seeds_take_others():
    segments = [str(index) for index in range(30)]
    assert [len(labelled_segments(segments, fraction, 0)) for fraction in (0.05, 0.1, 0.2, 0.7, 1)] == [2, 3, 6, 21, 30]
    assert labelled_segments(segments, 0.5, 0) != labelled_segments(segments, 0.5, 1)
    with pytest.raises(ConfigError, match="label_fraction: expected more than 0 and at most 1, got 0"):
        labelled_segments(segments, 0, 0)


def test_a_subset_holds_all_frames_of_its_segments(compose_task):
    class Source:
        def segment_of(self, frame_id):
            return frame_id.split("/")[0]

    ids = [f"{segment}/{frame}" for segment in "abcd" for frame in range(3)]
    for fraction in (0.25, 0.5, 1.0):
        subset = labelled_subset(compose_task("detection", f"finetune.label_fraction={fraction}"), Source(), ids)
        assert {ids[index].split("/")[0] for index in subset.indices} == set(subset.segments)
        assert len(subset.indices) == 3 * len(subset.segments) == 12 * fraction
        assert subset.num_segments == 4
    with pytest.raises(DataError, match="no frames"):
        LabelledFrames([], [])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "instance"])
def test_labels_of_other_segments_change_no_bit(tmp_path, compose_task, prepare_tiny, task):
    run = compose_task(task, "finetune.label_fraction=0.5")
    clean = prepare_tiny(run)
    labelled = labelled_subset(run, clean.source, clean.train.frames.frame_ids).indices
    others = [index for index in range(len(clean.train.frames)) if index not in labelled]
    assert len(others) == len(labelled) == 2

    def poisoned(indices):
        return Prepared(clean.source, Split(Poisoned(clean.train.frames, indices), clean.train.labels), clean.val)

    whole, same, different = (
        trained(run, prepared, tmp_path / name)
        for name, prepared in (("a", clean), ("b", poisoned(others)), ("c", poisoned(labelled)))
    )
    assert_same({"model": whole["model"]}, {"model": same["model"]})
    assert (tmp_path / "a" / "losses.csv").read_text() == (tmp_path / "b" / "losses.csv").read_text()
    with pytest.raises(AssertionError):
        assert_same({"model": whole["model"]}, {"model": different["model"]})
    said = json.loads((tmp_path / "a" / "labelled_segments.json").read_text())
    assert (len(said["segments"]), said["num_segments"], said["frames"]) == (2, 4, 2)


@pytest.mark.slow
def test_interrupts_change_nothing(tmp_path, compose_task, prepare_tiny, monkeypatch):
    run = compose_task("detection")
    prepared = prepare_tiny(run)
    whole = trained(run, prepared, tmp_path / "whole")
    pending, calls = [1, 4], []

    def interrupting(self, progress):
        calls.append(round(progress * run.trainer.max_steps))
        if pending and calls[-1] == pending[0]:
            pending.pop(0)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(FineTuningStep, "update_teacher", interrupting)
    pieces = trained(run, prepared, tmp_path / "pieces")
    assert pending == []
    assert calls == list(range(6))
    for part in ("model", "optimisers", "global_step"):
        assert_same({part: whole[part]}, {part: pieces[part]})
    losses = [(tmp_path / name / "losses.csv").read_text() for name in ("whole", "pieces")]
    assert losses[0] == losses[1]
    found = [score(run, RunFolder(tmp_path / name), prepared, lambda *_: None) for name in ("whole", "pieces")]
    assert json.dumps(found[0]) == json.dumps(found[1])
    assert {"ap_l2", "aph_l2", "ap_l2/Vehicle", "num_objects"} <= found[0]["scores"].keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "present"),
    [("instance", {"loss", "lidar/semantic", "lidar/vote"}), ("semantic", {"loss", "lidar/semantic"})],
)
def test_point_tasks_train_what_they_are_judged_by(tmp_path, compose_task, prepare_tiny, task, present):
    run = compose_task(task, "trainer.max_steps=2")
    prepared = prepare_tiny(run)
    trained(run, prepared, tmp_path)
    assert {line.split(",")[1] for line in (tmp_path / "losses.csv").read_text().splitlines()[1:]} == present
    found = score(run, RunFolder(tmp_path), prepared, lambda *_: None)
    assert {"miou", "instance_ap"} <= found["scores"].keys()
    assert found["steps"] == 2


@pytest.fixture
def exported(tmp_path, compose_task):
    """Return a maker of export folders of a backbone of random weights, with changes to the manifest's input."""

    def make(run=None, **changes):
        run = run or compose_task("detection")
        torch.manual_seed(1)
        backbone = build_model(replace(run, seed=7), 3).backbone
        folder = tmp_path / "export"
        folder.mkdir(exist_ok=True)
        save_file(backbone.state_dict(), folder / "backbone.safetensors")
        digest = hashlib.sha256((folder / "backbone.safetensors").read_bytes()).hexdigest()
        given = {
            "voxel_size": list(run.lidar.voxel_size),
            "point_cloud_range": list(run.data.point_cloud_range),
            "features": [{"name": name} for name in FEATURES],
        }
        manifest = {
            "format": "mwsis-backbone",
            "input": given | changes,
            "files": [{"name": "backbone.safetensors", "sha256": digest}],
            "training": {"step": 5},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder, backbone

    return make


@pytest.mark.parametrize("task", ["detection", "instance"])
def test_training_starts_from_the_exported_backbone(compose_task, exported, task):
    folder, backbone = exported()
    run = compose_task(task, f"finetune.init={folder}", "finetune.initial_length=false")
    model, scratch = build_model(run, 3), build_model(run, 3)
    assert_same(dict(model.state_dict()), dict(scratch.state_dict()))
    start_from(run, model)
    assert_same(dict(model.backbone.state_dict()), dict(backbone.state_dict()))
    for name, value in model.state_dict().items():
        if not name.startswith("backbone."):
            assert torch.equal(value, scratch.state_dict()[name]), name


def test_the_loaded_backbone_gets_the_length_of_a_fresh_one(compose_task, exported):
    folder, backbone = exported()
    run = compose_task("detection", f"finetune.init={folder}")
    model, scratch = build_model(run, 3), build_model(run, 3)
    start_from(run, model)
    conv, fresh, loaded = (one.conv2[0][0].weight for one in (model.backbone, scratch.backbone, backbone))
    torch.testing.assert_close(conv.norm(), fresh.norm())
    torch.testing.assert_close(conv / conv.norm(), loaded / loaded.norm())
    assert not torch.equal(loaded, conv)


@pytest.fixture
def pretrained(tmp_path, compose_tiny):
    def make(*overrides, class_names=("Vehicle", "Pedestrian", "Cyclist")):
        run = compose_tiny("method=mwsis_lidar", *TINY, "seed=9", *overrides)
        step = PretrainingStep(build_segmentor(run, len(class_names)), build_method(run), len(class_names))
        config = OmegaConf.to_yaml(OmegaConf.structured(run))
        facts = {"config": config, "class_names": list(class_names)}
        checkpoint.save(tmp_path / "last.ckpt", step, {}, {"global_step": 5, "skipped_steps": 0}, facts)
        return tmp_path / "last.ckpt", step.teacher.module.lidar

    return make


@pytest.mark.parametrize("task", ["detection", "semantic"])
def test_a_checkpoint_brings_heads_to_tasks_on_points(compose_task, compose_tiny, pretrained, task):
    path, teacher = pretrained()
    run = compose_task(task, f"finetune.init={path}", "finetune.initial_length=false")
    model, scratch = build_model(run, 3), build_model(run, 3)
    start_from(run, model)
    assert_same(dict(model.backbone.state_dict()), dict(teacher.backbone.state_dict()))
    if task == "semantic":
        assert_same(dict(model.state_dict()), dict(teacher.state_dict()))
        assert not torch.equal(model.head.state_dict()["classes.weight"], scratch.head.state_dict()["classes.weight"])
    known = provenance(run)
    assert known["files"] == {"last.ckpt": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert (known["training"]["step"], known["training"]["seed"]) == (5, 9)
    assert known["training"]["label_type"] == labels_used(compose_tiny("method=mwsis_lidar"))


def test_checkpoints_that_do_not_fit_are_refused(compose_task, pretrained):
    path, _ = pretrained("lidar.voxel_size=[0.5,0.5,0.25]")
    with pytest.raises(ConfigError, match=r"last.ckpt: the backbone was trained with voxel_size \[0.5, 0.5, 0.25\]"):
        start_from(run := compose_task("instance", f"finetune.init={path}"), build_model(run, 3))
    path, _ = pretrained("method=boxinst")
    with pytest.raises(ConfigError, match="expected a pretraining run with a LiDAR branch, got 'boxinst'"):
        start_from(run, build_model(run, 3))
    path, _ = pretrained("data.radii=[1,1]", "lidar.class_weights=[1,1]", class_names=("Car", "Walker"))
    with pytest.raises(ConfigError, match=r"trained on the 2 classes Car, Walker, and this data set has 3; start from"):
        start_from(run, build_model(run, 3))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"voxel_size": [0.1, 0.1, 0.15]}, r"trained with voxel_size \[0.1, 0.1, 0.15\], got .*; set lidar.voxel_size"),
        ({"point_cloud_range": [0, 0, 0, 1, 1, 1]}, r"trained with point_cloud_range .*; set data.point_cloud_range"),
        ({"features": [{"name": "x"}]}, r"takes the features \['x'\]"),
    ],
)
def test_another_input_is_refused(compose_task, exported, changes, sentence):
    folder, _ = exported(**changes)
    run = compose_task("detection", f"finetune.init={folder}")
    with pytest.raises(ConfigError, match=sentence):
        start_from(run, build_model(run, 3))


def test_other_bytes_and_other_networks_are_refused(compose_task, exported):
    folder, _ = exported()
    run = compose_task("detection", f"finetune.init={folder}", "lidar.network=res8x_unet")
    with pytest.raises(WeightMismatchError, match=r"lidar.network=res8x_unet: \d+ of \d+ tensors match"):
        start_from(run, build_model(run, 3))
    run = compose_task("detection", f"finetune.init={folder}")
    path = folder / "backbone.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightMismatchError, match=r"its SHA-256 is not the one in manifest.json"):
        start_from(run, build_model(run, 3))
    path.unlink()
    with pytest.raises(WeightMismatchError, match="no such file"):
        start_from(run, build_model(run, 3))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "expected an export folder with manifest.json in it, or a checkpoint of a run; see tools/export.py"),
        ("nothing", "manifest.json cannot be read"),
        ('{"format": "picture", "input": {"features": []}}', "got one of 'picture'"),
    ],
)
def test_what_is_no_export_is_refused(tmp_path, compose_task, content, sentence):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    run = compose_task("detection", f"finetune.init={tmp_path}")
    with pytest.raises(ConfigError, match=sentence):
        start_from(run, build_model(run, 3))


def test_the_folder_of_a_run_is_told_from_its_export(tmp_path, compose_task):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "manifest.json").write_text("{}")
    run = compose_task("detection", f"finetune.init={tmp_path}")
    with pytest.raises(ConfigError, match=r"give .*/export"):
        start_from(run, build_model(run, 3))


def test_a_rate_of_the_sweep_changes_nothing_else(compose_task):
    run = compose_task("detection", "finetune.lr_scale=[1,2]")
    twice = with_lr_scale(run, 2.0)
    assert twice.lidar.optim.lr == 2 * run.lidar.optim.lr
    assert twice.finetune.lr_scale == [2.0]
    assert replace(twice, lidar=run.lidar, finetune=run.finetune) == run


def test_what_was_learned_from_is_said(compose_task):
    run = compose_task("detection", "finetune.label_fraction=0.05", "finetune.init=somewhere")
    assert labels_used(run) == "gt_ 3D boxes of 5% of the segments, after pretraining"
    assert labels_used(compose_task("semantic")) == trained_from(compose_task("semantic"), "lidar")
    assert trained_from(compose_task("semantic"), "lidar") == "gt_ point labels of 100% of the segments"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("finetune.label_fraction=0", "finetune.label_fraction: expected more than 0, at most 1, got 0"),
        ("finetune.lr_scale=[1,1]", "finetune.lr_scale: expected different positive factors"),
        ("finetune.lr_scale=[]", "finetune.lr_scale: expected different positive factors"),
        ("finetune.task=detectoin", "no 'detectoin'.*detection"),
        ("lidar.weights=here.pt", "lidar.weights: fine-tuning starts from finetune.init"),
        ("trainer.score_every=0.25", "trainer.score_every: fine-tuning is scored at its end only"),
        ("finetune.paste=[-1,0,0]", "finetune.paste: expected a number of boxes for each class"),
    ],
)
def test_wrong_settings_are_refused(compose_task, override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        compose_task("detection", override)


def test_the_other_command_does_not_train_from_given_labels(compose_task):
    with pytest.raises(ConfigError, match=r"run tools/finetune.py"):
        check_training(compose_task("detection"))
