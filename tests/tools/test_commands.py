"""The commands as a user runs them: a whole tiny run, and one sentence with exit code 2 for each kind of bad input."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mwsis.core.errors import DataError
from mwsis.training.command_line import progress_line, run_command
from tools import evaluate, export

FORMATS = ("coco", "labelme", "kitti", "nuscenes")
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
    methods = {row["method"] for rows in metrics["objects"].values() for row in rows}
    assert methods == {"teacher", "labels"}
    assert metrics["steps"] == 12
    assert json.loads((tiny_run / "export" / "manifest.json").read_text())["training"]["label_type"] == "2D boxes only"
    page = (tiny_run / "report.html").read_text()
    assert "data:image/" in page
    assert 'id="object-1"' in page
    assert 'href="#frame-1"' in page
    assert 'src="http' not in page


@pytest.mark.slow
def test_evaluate_again_gives_the_same_scores(tiny_run, tmp_path):
    evaluate.main([f"ckpt={tiny_run / 'checkpoints/last.ckpt'}", f"out={tmp_path}"])
    again, first = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, tiny_run))
    assert again["camera"] == first["camera"]
    assert again["lidar"] == first["lidar"]


@pytest.mark.slow
def test_evaluate_exports_what_the_teacher_found(tiny_run, tmp_path, run_tool):
    checkpoint = f"ckpt={tiny_run / 'checkpoints/last.ckpt'}"
    code, printed, _ = run_tool("evaluate", checkpoint, f"out={tmp_path}", "export=[coco,labelme,kitti,nuscenes]")
    assert code == 0
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("export ")] == [
        *("coco:", "labelme:", "kitti:", "nuscenes:")
    ]
    assert "note:" not in printed
    pages = {name: json.loads((tmp_path / f"export_{name}" / "export.json").read_text()) for name in FORMATS}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for page in pages.values():
        assert page["source"] == {"name": "street", "fingerprint": metrics["data"]["fingerprint"]}
        assert page["method"] == {"name": "mwsis", "network": "teacher", "steps": 12}
        assert len(page["frames"]) == metrics["data"]["val_frames"]
    results = json.loads((tmp_path / "export_coco" / "results.json").read_text())
    assert len(results) > 0
    for frame_id, entry in pages["kitti"]["frames"].items():
        codes = np.fromfile(tmp_path / "export_kitti" / entry["file"], "<u4")
        bytes_of = np.fromfile(tmp_path / "export_nuscenes" / pages["nuscenes"]["frames"][frame_id]["file"], np.uint8)
        assert len(codes) == len(bytes_of) == entry["num_points"]
        pairs = set(zip((codes & 0xFFFF).tolist(), bytes_of.tolist(), strict=True))
        assert pairs <= {(0, 0), (99, 29), (10, 17), (30, 2), (31, 14)}


@pytest.mark.slow
def test_evaluate_refuses_exports_before_any_work(tiny_run, tmp_path, refused):
    checkpoint, out = f"ckpt={tiny_run / 'checkpoints/last.ckpt'}", tmp_path / "out"
    assert "did you mean 'labelme'" in refused("evaluate", checkpoint, f"out={out}", "export=labelm")
    assert "no range images of Waymo's" in refused("evaluate", checkpoint, f"out={out}", "export=waymo")
    assert not out.exists()


@pytest.mark.slow
def test_export_and_a_checkpoint_of_another_architecture(tiny_run, tmp_path, refused):
    checkpoint = tiny_run / "checkpoints/last.ckpt"
    export.main([f"ckpt={checkpoint}", "to=openpcdet", f"out={tmp_path}"])
    again = (tmp_path / "backbone.safetensors").read_bytes()
    assert again == (tiny_run / "export" / "backbone.safetensors").read_bytes()

    state = torch.load(checkpoint, weights_only=True)
    state["config"] = state["config"].replace("hidden: 16", "hidden: 24")
    torch.save(state, tmp_path / "other.ckpt")
    assert "other.ckpt" in refused("export", f"ckpt={tmp_path / 'other.ckpt'}", "to=openpcdet", f"out={tmp_path}")


def test_a_mistake_is_one_sentence_on_the_command_line():
    done = command("train", "method=mwsi")
    assert done.returncode == 2
    assert done.stderr == "error: method=mwsi: no such method; did you mean 'mwsis'?\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("method=mwsi",), ("mwsi", "did you mean 'mwsis'")),
        (("trainer.max_stepz=3",), ("trainer.max_stepz", "did you mean 'trainer.max_steps'")),
        (("trainer.max_steps=many",), ("trainer.max_steps", "many")),
        (("trainer.max_steps=0",), ("trainer.max_steps", "at least 1")),
        (("data=kitti",), ("data.root",)),
        (("resume=nowhere",), ("nowhere", "config.yaml")),
        (("method=boxinst", "method.cscs.lidar_to_camera=true"), ("method.cscs.lidar_to_camera", "method.branches")),
        (("nonsense",), ("nonsense",)),
    ],
)
def test_wrong_settings(refused, arguments, words):
    sentence = refused("train", *arguments)
    for word in words:
        assert word in sentence


def kitti_folder(root):
    """A KITTI object folder of three tiny frames."""
    for name in ("image_2", "velodyne", "calib", "label_2"):
        (root / "training" / name).mkdir(parents=True)
    projection = "100 0 50 0 0 100 30 0 0 0 1 0"
    calibration = [f"P{camera}: {projection}" for camera in range(4)]
    calibration += ["R0_rect: 1 0 0 0 1 0 0 0 1", "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0"]
    points = np.random.default_rng(0).uniform((5, -2, -1, 0), (20, 2, 1, 1), (200, 4)).astype(np.float32)
    for index in range(3):
        stem = f"{index:06d}"
        Image.new("RGB", (100, 60), (90, 120, 90)).save(root / "training/image_2" / f"{stem}.png")
        points.tofile(root / "training/velodyne" / f"{stem}.bin")
        (root / "training/calib" / f"{stem}.txt").write_text("\n".join(calibration) + "\n")
        (root / "training/label_2" / f"{stem}.txt").write_text(
            "Car 0.00 0 0.00 20.00 10.00 60.00 40.00 1.50 1.60 4.00 0.00 1.00 12.00 0.00\n"
        )
    return root


def test_not_a_checkpoint(refused, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"not a checkpoint")
    assert "last.ckpt" in refused("export", f"ckpt={tmp_path / 'last.ckpt'}", "to=openpcdet", f"out={tmp_path}")


def test_unknown_export_target(refused, tmp_path):
    assert "did you mean 'openpcdet'" in refused("export", "ckpt=x", "to=openpcdt", f"out={tmp_path}")


def test_what_is_said_after_unfinished_work_has_a_line_of_its_own(monkeypatch, capsys):
    def broken(_):
        progress_line("label", 1, 5)
        raise DataError("file: expected a number, got none")

    def whole(_):
        progress_line("frames", 1, 5)
        progress_line("frames", 5, 5)
        print("skipped: one", file=sys.stderr)

    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit):
        run_command(broken, "")
    lines = capsys.readouterr().err.replace("\r", "\n").split("\n")
    assert "error: file: expected a number, got none" in lines
    run_command(whole, "")
    assert "skipped: one" in capsys.readouterr().err.replace("\r", "\n").split("\n")


@pytest.mark.parametrize("tool", ["train", "evaluate", "label", "export", "show"])
def test_help_explains(tool, monkeypatch, capsys):
    module = importlib.import_module(f"tools.{tool}")
    monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        run_command(module.main, module.__doc__)
    assert stop.value.code == 0
    assert f"tools/{tool}.py" in capsys.readouterr().out
