"""The command as a user runs it: a whole tiny sweep, one sentence for each kind of bad input."""

from __future__ import annotations

import json

import pytest

from mwsis.training.callbacks import read_losses

TINY = (
    *("experiment=smoke", "lidar.voxel_size=[0.4,0.4,0.25]", "data.source.train_segments=2"),
    *("data.source.train_frames_per_segment=1", "trainer.max_steps=3"),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def finetune(run_tool):
    """Run the command in this process; return its exit code and what it printed."""
    return lambda *arguments: run_tool("finetune", *arguments)[:2]


@pytest.mark.slow
def test_a_sweep_leaves_everything_it_promises_and_can_be_resumed(tmp_path, finetune, cache, refused):
    out = tmp_path / "run"
    settings = [*TINY, f"data.cache={cache}", f"out={out}"]
    code, printed = finetune("task=detection", "label_fraction=0.5", "lr_scale=[1,2]", *settings)
    assert code == 0
    assert printed.rstrip().endswith(f"run: {out}")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["labels_used"] == "gt_ 3D boxes of 50% of the segments"
    assert metrics["init"] == "scratch"
    assert len(metrics["labelled"]["segments"]) == 1
    assert metrics["lr_scales"].keys() == {"1", "2"}
    assert metrics["lr_scales"]["2"]["lr"] == 2 * metrics["lr_scales"]["1"]["lr"]
    for name, found in metrics["lr_scales"].items():
        assert found["steps"] == 3
        assert {"ap_l2", "aph_l2", "bev_aph_l2/Vehicle", "num_objects"} <= found["scores"].keys()
        place = out / f"lr_x{name}"
        assert {step for step, *_ in read_losses(place / "losses.csv")} == {0, 1, 2}
        for file in ("config.yaml", "checkpoints/last.ckpt", "labelled_segments.json"):
            assert (place / file).stat().st_size > 0
    table = (out / "table.md").read_text()
    assert table in printed
    assert table.count("\n") == 4
    assert "| scratch | 50% | 1 of 2 | 0 | 0.003 | 3 |" in table

    assert "already holds a run" in refused("finetune", "task=detection", *settings)
    before = (out / "lr_x1" / "losses.csv").read_text()
    (out / "metrics.json").unlink()
    assert finetune(f"resume={out}")[0] == 0
    assert (
        json.loads((out / "metrics.json").read_text())["lr_scales"]["1"]["scores"]
        == (metrics["lr_scales"]["1"]["scores"])
    )
    assert (out / "lr_x1" / "losses.csv").read_text() == before
    assert f"one run of a sweep; resume={out}" in refused("finetune", f"resume={out / 'lr_x2'}")
    assert "remove the others" in refused("finetune", f"resume={out}", "seed=1")


@pytest.mark.slow
def test_an_export_of_this_project_is_what_init_takes(tmp_path, finetune, cache):
    from tools import export, train

    place = [f"data.cache={cache}", "trainer.max_steps=1"]
    train.main([*TINY, *place, "method=frustum", f"out={tmp_path / 'pre'}"])
    ckpt = f"ckpt={tmp_path / 'pre' / 'checkpoints' / 'last.ckpt'}"
    export.main([ckpt, "to=openpcdet", f"out={tmp_path / 'export'}"])
    for folder in (tmp_path / "pre" / "export", tmp_path / "export"):
        out = tmp_path / f"fine of {folder.parent.name}"
        code, printed = finetune("task=instance", f"init={folder}", *TINY, *place, f"out={out}")
        assert code == 0, printed
        assert "| pretrained | 100% | 2 of 2 |" in (out / "table.md").read_text()
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["training"]["label_type"] == "2D boxes only"
        assert metrics["labels_used"].endswith("after pretraining")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "'task=...' is required, one of detection, instance, semantic"),
        (("task=detectoin",), "finetune=detectoin: no such finetune; did you mean 'detection'"),
        (("task=detection", "label_fraction=2"), "finetune.label_fraction: expected more than 0, at most 1"),
        (("task=detection", "label_fraction=few"), "label_fraction"),
        (("task=detection", "trainer.devices=2", "trainer.frames_per_step=2"), "fine-tuning runs in one process"),
        (("task=detection", "init=nowhere"), "init=nowhere: expected an export folder with manifest.json"),
        (("task=detection", "resume=nowhere"), "remove the others"),
        (("task=semantic", "finetune.nothing=1"), "'finetune.nothing' is not a setting"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, refused, cache, arguments, sentence):
    settings = [] if any("resume" in one for one in arguments) else [f"data.cache={cache}", f"out={tmp_path / 'run'}"]
    assert sentence in refused("finetune", *arguments, *(settings if arguments else ()))
    assert not (tmp_path / "run").exists()


def test_the_other_command_says_where_given_labels_are_trained_from(tmp_path, refused, cache):
    said = refused("train", "finetune=detection", *TINY, f"data.cache={cache}", f"out={tmp_path / 'run'}")
    assert "for given labels run tools/finetune.py" in said
