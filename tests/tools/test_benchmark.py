from __future__ import annotations

import json
from functools import partial
from importlib import import_module

import numpy as np
import pytest

from mwsis.core.errors import ConfigError
from tools import benchmark
from tools.benchmarks import decode

TINY = {
    "decode": {"top": (4, 30), "other": (3, 10)},
    "store": {"num_points": 40, "num_frames": 3, "image_bytes": 50},
    "labels": {"street": (8, 32), "few": (4, 16), "image_width": 64},
    "clustering": {"num_points": (50, 400), "street": (8, 32), "image_width": 64},
    "point_ap": {"num_frames": 2, "num_points": 2000, "num_objects": 6, "num_detections": 9},
    "mask_ap": {"num_images": 2, "height": 64, "width": 96, "num_objects": 9, "num_detections": 12},
    "networks": {"networks": ("unet_v2",), "street": (8, 32), "image_width": 64},
    "camera_losses": {"num_images": 2, "size": (64, 96), "masks_per_image": 6, "image_width": 96},
    "step": {"overrides": ("experiment=smoke",), "frames": 1, "variants": ()},
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for suite, sizes in TINY.items():
        module = import_module(f"tools.benchmarks.{suite}")
        monkeypatch.setattr(module, "Sizes", partial(module.Sizes, **sizes, repeats=2))


@pytest.mark.parametrize(
    ("suite", "num_rows"),
    [
        ("decode", 4),
        ("store", 3),
        ("labels", 3),
        ("clustering", 6),
        ("point_ap", 2),
        ("mask_ap", 3),
        ("networks", 2),
        ("camera_losses", 2),
        ("step", 9),
    ],
)
def test_rows_are_printed_and_written(suite, num_rows, tmp_path, capsys):
    benchmark.main([f"suite={suite}", f"json={tmp_path / 'rows.json'}"])
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["suite"] == suite
    assert len(written["rows"]) == num_rows
    printed = capsys.readouterr().out
    for row in written["rows"]:
        assert row.keys() == {"name", "unit", "ours", "reference", "ratio"}
        assert row["ratio"] == pytest.approx(row["ours"] / row["reference"])
        assert row["ours"] > 0
        assert row["name"] in printed
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_without_json_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    benchmark.main(["suite=store"])
    assert list(tmp_path.iterdir()) == []


def test_different_results_are_not_timed(monkeypatch, capsys):
    def wrong(path, lidars=None):
        arrays = right(path, lidars)
        name = "1 2 camera_projection_compressed"
        return arrays | {name: arrays[name] + 1}

    right = decode.read_with_messages
    monkeypatch.setattr(decode, "read_with_messages", wrong)
    monkeypatch.setattr(decode, "best_times", None)
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["suite=decode"])
    assert stopped.value.code == 1
    assert "different results: 1 2 camera_projection_compressed" in capsys.readouterr().err


def test_made_up_frame_has_what_waymo_has():
    arrays = decode.record_arrays(decode.made_up_record(decode.Sizes(top=(8, 50))))
    shapes = {name: array.shape for name, array in arrays.items() if name.startswith("1 ")}
    assert shapes == {
        "1 1 range_image_compressed": (8, 50, 4),
        "1 1 camera_projection_compressed": (8, 50, 6),
        "1 1 segmentation_label_compressed": (8, 50, 2),
        "1 1 range_image_pose_compressed": (8, 50, 6),
        "1 2 range_image_compressed": (8, 50, 4),
        "1 2 camera_projection_compressed": (8, 50, 6),
        "1 2 segmentation_label_compressed": (8, 50, 2),
    }
    assert len(arrays) == 7 + 4 * 4
    projection = arrays["1 1 camera_projection_compressed"]
    assert set(np.unique(projection[..., 0])) == set(range(6))
    assert 0 < projection[..., 1].max() < 1920


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["suite=decod"], "suite=decod: no such suite; did you mean 'decode'"),
        ([], "'suite=...' is required"),
        (["suite=store", "size=3"], "'size' is not a setting; known: json, suite"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        benchmark.main(arguments)
