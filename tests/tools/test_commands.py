"""The commands as a user runs them: a whole tiny run, and one sentence with exit code 2 for each kind of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def command(tool, *arguments, cwd=None):
    return subprocess.run(
        [sys.executable, str(PROJECT / "tools" / f"{tool}.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd or PROJECT,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools")
    out = folder / "run"
    done = command("train", "experiment=smoke", f"data.cache={folder / 'cache'}", f"out={out}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.rstrip().endswith(f"run: {out}")
    return out


@pytest.mark.slow
def test_train_leaves_everything_it_promises(tiny_run):
    for name in ("config.yaml", "metrics.json", "report.html", "losses.csv", "checkpoints/last.ckpt"):
        assert (tiny_run / name).stat().st_size > 0
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    for model in ("teacher", "student"):
        assert {"mask_ap", "mask_ap50", "mask_ap75", "matched_mask_iou", "matched_box_iou"} <= metrics["camera"][
            model
        ].keys()
        assert {"instance_ap", "instance_ap50", "instance_ap25", "miou", "iou/Vehicle"} <= metrics["lidar"][
            model
        ].keys()
    assert {"labels", "data", "seed", "steps", "wall_s"} <= metrics.keys()
    assert metrics["steps"] == 12
    page = (tiny_run / "report.html").read_text()
    assert "data:image/" in page
    assert 'src="http' not in page


@pytest.mark.slow
def test_evaluate_again_gives_the_same_scores(tiny_run, tmp_path):
    done = command("evaluate", f"ckpt={tiny_run / 'checkpoints/last.ckpt'}", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    again, first = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, tiny_run))
    assert again["camera"] == first["camera"]
    assert again["lidar"] == first["lidar"]


@pytest.mark.slow
def test_export_and_a_checkpoint_of_another_architecture(tiny_run, tmp_path):
    checkpoint = tiny_run / "checkpoints/last.ckpt"
    done = command("export", f"ckpt={checkpoint}", "to=openpcdet", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    again = (tmp_path / "backbone.safetensors").read_bytes()
    assert again == (tiny_run / "export" / "backbone.safetensors").read_bytes()

    import torch

    state = torch.load(checkpoint, weights_only=True)
    state["config"] = state["config"].replace("hidden: 16", "hidden: 24")
    torch.save(state, tmp_path / "other.ckpt")
    assert_one_sentence(
        command("export", f"ckpt={tmp_path / 'other.ckpt'}", "to=openpcdet", f"out={tmp_path}"), "other.ckpt"
    )


@pytest.mark.slow
def test_label_scores_three_methods(tiny_run, tmp_path):
    cache = tiny_run.parent / "cache"
    done = command("label", "experiment=smoke", f"data.cache={cache}", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "quality.json").read_text())
    assert {row["method"] for row in rows} == {"frustum", "clustering", "spg"}
    assert set(rows[0]) == {"method", "class", "objects", "point_iou", "precision", "recall", "pooled_iou"}
    assert len(list((tmp_path / "labels").glob("*.npz"))) == 3


def assert_one_sentence(done, *words):
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("method=mwsi",), ("mwsi", "did you mean 'mwsis'")),
        (("trainer.max_stepz=3",), ("trainer.max_stepz", "did you mean 'trainer.max_steps'")),
        (("trainer.max_steps=many",), ("trainer.max_steps", "many")),
        (("data=kitti",), ("data.root",)),
        (("resume=nowhere",), ("nowhere", "config.yaml")),
    ],
)
def test_wrong_settings(arguments, words):
    assert_one_sentence(command("train", *arguments), *words)


def test_missing_folder():
    assert_one_sentence(command("label", "data=kitti", "data.root=no/such/folder", "out=x"), "no/such/folder")


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"not a checkpoint")
    assert_one_sentence(
        command("export", f"ckpt={tmp_path / 'last.ckpt'}", "to=openpcdet", f"out={tmp_path}"), "last.ckpt"
    )


@pytest.mark.parametrize("tool", ["train", "evaluate", "label", "export"])
def test_help_explains(tool):
    done = command(tool, "--help")
    assert done.returncode == 0
    assert f"tools/{tool}.py" in done.stdout
