"""Training on images that are labelled in different ways: what teaches, what must not, what is said and refused."""

from __future__ import annotations

import json
import math

import pytest
import torch

from camera.sources import OfflineMasks
from mwsis.core.errors import ConfigError, DataError
from mwsis.data.dataset import FrameDataset
from mwsis.training.build import build_method, build_transform, check_training
from mwsis.training.callbacks import read_losses
from mwsis.training.checkpoint import read_run_checkpoint
from mwsis.training.commands import compose_run
from mwsis.training.config import labels_used, typed
from mwsis.training.evaluate import evaluate_run, trained_from
from mwsis.training.folder import RunFolder
from mwsis.training.prepare import build_source, labelled_images
from mwsis.training.run import train
from tests.data.mixed_folder import entry, masks_filled, mixed_folder, point_masks
from tests.training.kill_stress import assert_same
from tools.train import print_labels

SETTINGS = (
    *("data=coco", "method=mixed", "data.supervision=mixed", "data.image_widths=[96]", "trainer.max_steps=20"),
    *("trainer.frames_per_step=2", "trainer.report_frames=0", "data.source.annotations.train=train.json"),
    *("data.source.annotations.val=val.json", "data.source.images.train=images", "data.source.images.val=images"),
    "data.source.classes=[{Vehicle: [car]}, {Pedestrian: [person]}]",
)


@pytest.fixture
def compose(tmp_path):
    """Return the configuration of a run on a changed data set, with or without masks made of the points."""

    def composed(name="world", changes=(), masks=True, overrides=()):
        folder = mixed_folder(tmp_path / name, *changes)
        made = [f"data.masks={point_masks(folder / 'masks.json')}"] if masks else []
        cache = f"data.cache={folder / 'cache'}"
        return typed(compose_run([*SETTINGS, f"data.root={folder}", cache, *made, *overrides]))

    return composed


@pytest.fixture
def trained(tmp_path, prepare_tiny):
    def run_to_end(run, name):
        folder = RunFolder(tmp_path / f"run_{name}")
        assert train(run, folder, prepare_tiny(run))
        return folder

    yield run_to_end
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_only_what_images_declare_reaches_training(compose, trained):
    ends = {}
    for kind in ("", "boxes", "points", "masks"):
        folder = trained(compose(kind or "clean", [masks_filled(kind)] if kind else []), kind or "clean")
        ends[kind] = read_run_checkpoint(folder.checkpoint)["model"], read_losses(folder.losses)
    for kind in ("boxes", "points"):
        assert_same(ends[""][0], ends[kind][0])
        assert ends[""][1] == ends[kind][1]
    assert ends[""][1] != ends["masks"][1]
    losses = ends[""][1]
    assert {step for step, _, _ in losses} == set(range(20))
    assert all(math.isfinite(value) for _, _, value in losses)
    assert {name for step, name, _ in losses if step == 0} >= {f"camera/{one}" for one in ("masks", "projection")}


@pytest.mark.slow
def test_a_method_without_masks_is_the_same_whatever_masks_there_are(compose, trained):
    ends = []
    for name, kinds in (("clean", ()), ("filled", ("masks", "boxes", "points"))):
        overrides = ("method=boxinst", "data.supervision=boxes", "trainer.max_steps=6")
        folder = trained(compose(name, [masks_filled(kind) for kind in kinds], False, overrides), name)
        ends.append(read_run_checkpoint(folder.checkpoint)["model"])
    assert_same(*ends)


@pytest.mark.slow
def test_what_a_run_says_it_was_trained_from(compose, trained, prepare_tiny, capsys):
    run = compose(overrides=["trainer.max_steps=2"])
    folder = trained(run, "said")
    state, prepared = read_run_checkpoint(folder.checkpoint), prepare_tiny(run)
    metrics = evaluate_run(run, state, prepared, "test", lambda *_: None).metrics
    said = f"what each image has: gt_ masks, 2D boxes or points (and the pseudo_ masks of {run.data.masks})"
    assert labels_used(run) == said
    assert metrics["labels_used"] == f"{said}: masks of 2 images, boxes of 2, points of 3"
    assert trained_from(run, "camera") == f"{said}, pseudo_ masks of its teacher (IPG)"
    elsewhere = evaluate_run(run, {**state, "data_fingerprint": "another"}, prepared, "test", lambda *_: None)[0]
    assert elsewhere["labels_used"] == said
    capsys.readouterr()
    print_labels(run, prepared.source)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "labels: masks of 2 images, boxes of 2, points of 3"
    assert printed[1].startswith("warning: in 2 of the images with points an object has no mask in data.masks=")


def test_points_without_masks_are_counted_in_any_run(compose, capsys):
    run = compose(masks=False, overrides=["method=boxinst", "data.supervision=boxes"])
    check_training(run)
    print_labels(run, build_source(run))
    assert "in 3 of the images with points an object has no mask in data.masks=None" in capsys.readouterr().out


def test_a_data_set_that_says_nothing_prints_nothing(compose_tiny, capsys):
    run = compose_tiny()
    source = build_source(run)
    assert labelled_images(run, source) == {}
    print_labels(run, source)
    assert capsys.readouterr().out == ""


def unsaid(content):
    for image in content["images"]:
        del image["supervision"]


def test_what_is_refused(compose, compose_tiny, tmp_path):
    with pytest.raises(ConfigError, match="mixed: no training image of data=street says what it is labelled with"):
        check_training(compose_tiny("method=mixed", "data.supervision=mixed"))
    with pytest.raises(ConfigError, match="mixed: no training image of data=coco says what it is labelled with"):
        check_training(compose("unsaid", [unsaid], masks=False))
    with pytest.raises(ConfigError, match=r"\(Compose\) needs masks of the boxes; set data.supervision=masks \(mixed"):
        check_training(compose("boxes", masks=False, overrides=["data.supervision=boxes"]))
    with pytest.raises(DataError, match=r"images\[0\]: supervision: got \"mask\"; did you mean 'masks'"):
        check_training(compose("unknown", [entry(0, "images", supervision="mask")]))
    run = compose("given")
    for path in (point_masks(tmp_path / "gt.json", source="gt"), tmp_path / "given" / "train.json"):
        run.data.masks = str(path)
        with pytest.raises(DataError, match=r"needs data.supervision=masks|expected masks made elsewhere"):
            check_training(run)


def test_images_without_declared_masks_alone_are_refused(compose, prepare_tiny):
    changes = [entry(place, "images", supervision="boxes") for place in (0, 1)]
    run = compose("no_masks", changes, masks=False)
    frames = prepare_tiny(run).train.frames
    with pytest.raises(DataError, match=r"data.supervision=mixed .*: expected a mask for at least one training box"):
        FrameDataset(frames, None, build_transform(run, augment=True), seed=0)


def test_the_teacher_is_left_out_on_request(compose):
    run = compose(overrides=["method.ipg=false"])
    source = build_method(run).mask_source
    assert source.needs == OfflineMasks.needs
    assert trained_from(run, "camera") == labels_used(run)
    assert json.dumps(run.data.source)  # plain values, as every configuration
