"""The convert command: what it says, what it leaves, and how it ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mwsis.data import conversion_checks
from mwsis.data.street import StreetSource
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from mwsis.training.prepare import build_source, prepare
from tests.tools.test_commands import kitti_folder

STREET = (
    "data.source.train_segments=2",
    "data.source.val_segments=1",
    "data.source.lidar_columns=64",
    "data.source.image_width=64",
)
WAYMO = ("source=street", "segments=1", "val_segments=1", "frames=1", "top=8x32", "side=4x16", "image_width=48")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_training_opens_what_was_converted(command, tmp_path, monkeypatch):
    code, said, _ = command("source=street", f"out={tmp_path}", *STREET)
    assert code == 0
    for words in (
        "train: 2 segments, 2 frames labelled with 2D boxes, 3D boxes, image masks, point classes",
        "to do: 3 segments on 1 processes",
        "GB free",
        "hours",
        "memory per worker",
        "(3 frames, complete)",
    ):
        assert words in said
    assert "Waymo" not in said
    written = files(tmp_path)

    def read(self, frame_id):
        raise AssertionError("the data set is read again")

    monkeypatch.setattr(StreetSource, "read", read)
    run = typed(compose_run(["data=street", f"data.cache={tmp_path}", *STREET]))
    prepared = prepare(run, build_source(run), lambda *progress: None)
    assert len(prepared.train.frames) == len(prepared.train.labels) == 2
    assert command("source=street", f"out={tmp_path}", *STREET)[0] == 0
    assert files(tmp_path) == written
    assert "verified: 3 frames" in command("source=street", f"out={tmp_path}", "verify=true", *STREET)[1]


def test_damage_is_found(command, tmp_path):
    command("source=street", f"out={tmp_path}", *STREET)
    (path,) = tmp_path.glob("*/train/train_001.arrow")
    content = bytearray(path.read_bytes())
    content[5000] ^= 4
    path.write_bytes(content)
    code, said, complaint = command("source=street", f"out={tmp_path}", "verify=true", *STREET)
    assert code == 3
    assert complaint.count("damaged: ") == 1
    assert str(path) in complaint
    assert "1 damaged files" in said


def test_unreadable_segment_is_listed(command, tmp_path):
    root = kitti_folder(tmp_path / "it's kitti")
    sweep = root / "training/velodyne/000002.bin"
    points = np.fromfile(sweep, dtype=np.float32)
    np.where(np.arange(points.size) == 80, np.nan, points).astype(np.float32).tofile(sweep)
    out = tmp_path / "out"
    code, said, complaint = command("source=kitti", f"root={root}", f"out={out}", "data.source.val_frames=1")
    assert code == 3
    assert "skipped: val/val_0000: segment 'val_0000', frame '000002': " in complaint
    assert "point 20: expected finite numbers" in complaint
    assert "1 segments skipped" in complaint
    assert "complete" not in said
    assert len(list(out.glob("*/train/index.json"))) == 1
    points.tofile(sweep)
    code, said, _ = command("source=kitti", f"root={root}", f"out={out}", "data.source.val_frames=1")
    assert (code, "(3 frames, complete)" in said) == (0, True)


def test_full_disk_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    code, said, complaint = command("source=street", f"out={tmp_path / 'out'}", *STREET)
    assert code == 2
    assert "GB are needed, the disk has 1e-06 GB free" in complaint
    assert "train: 2 segments" in said
    assert not (tmp_path / "out").exists()


def test_shards(command, tmp_path):
    assert "lacks 1 segments of other shards" in command("source=street", f"out={tmp_path}", "shard=0/2", *STREET)[1]
    assert "(3 frames, complete)" in command("source=street", f"out={tmp_path}", "shard=1/2", *STREET)[1]


@pytest.mark.parametrize("version", ["waymo_v1", "waymo_v2"])
def test_street_as_waymo_files_and_back(command, tmp_path, version):
    out = tmp_path / "waymo"
    code, said, _ = command(*WAYMO, f"to={version}", f"out={out}")
    assert (code, "to do: 2 segments of 1 frames" in said) == (0, True)
    written = files(out)
    (out / "validation/manifest.json").unlink()
    command(*WAYMO, f"to={version}", f"out={out}")
    assert files(out) == written
    assert "to do: 0 segments" in command(*WAYMO, f"to={version}", f"out={out}")[1]
    code, _, complaint = command(*WAYMO, f"to={version}", f"out={out}", "seed=1")
    assert (code, "other settings" in complaint) == (2, True)
    code, said, complaint = command(f"source={version}", f"root={out}", f"out={tmp_path / 'store'}")
    assert code == 0, complaint
    assert "(2 frames, complete)" in said
    assert "1 segments, 0 unreadable, 1 frames, 0 without lidar segmentation, 0 without panoptic, 1 chosen" in said
    assert "non-commercial" in said


def test_interrupted_waymo_segments_leave_nothing(command, tmp_path, monkeypatch):
    def interrupted(job):
        raise KeyboardInterrupt

    out = tmp_path / "waymo"
    command(*WAYMO, "to=waymo_v1", f"out={out}")
    (left,) = out.glob("training/*.tfrecord")
    left.rename(left.with_name(f".{left.stem}.0123abcd.tfrecord"))
    command(*WAYMO, "to=waymo_v1", f"out={out}")
    assert list(out.rglob(".*")) == []
    assert left.is_file()
    left.unlink()
    monkeypatch.setattr("mwsis.data.waymo.street_files.write_segment", interrupted)
    assert command(*WAYMO, "to=waymo_v1", f"out={out}")[0] == 130


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("source=street",), ("'out=...' is required",)),
        (("source=kitt", "out=x"), ("kitt", "did you mean 'kitti'")),
        (("source=kitti", "out=x"), ("data.root",)),
        (("source=street", "out=x", "workers=0"), ("workers=0", "at least 1")),
        (("source=street", "out=x", "parallel=dsk"), ("dsk", "did you mean 'dask'")),
        (("source=street", "out=x", "shard=2/2"), ("shard=2/2", "0/n")),
        (("source=street", "out=x", "shard=half"), ("shard=half", "0/n")),
        (("source=street", "out=x", "verify=maybe"), ("verify=maybe", "true or false")),
        (("source=street", "out=x", "verify=true"), ("manifest.json", "convert first")),
        (("source=street", "out=x", "to=waymo"), ("to=waymo", "did you mean 'waymo_v")),
        (("source=kitti", "out=x", "to=waymo_v1"), ("only source=street",)),
        (("source=street", "out=x", "to=waymo_v1", "top=64"), ("top=64", "top=64x2650")),
        (("source=street", "out=x", "to=waymo_v1", "frame=2"), ("frame", "did you mean 'frames'")),
        (("source=street", "out=x", "to=waymo_v1", "frames=0"), ("frames", "1 to 200")),
        (("source=street", "out=x", "data.source.sed=1"), ("data.source.sed",)),
    ],
)
def test_wrong_settings(command, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, complaint = command(*arguments)
    assert code == 2
    assert complaint.startswith("error: ")
    for word in words:
        assert word in complaint
    assert list(tmp_path.iterdir()) == []


def test_help_explains(command):
    code, said, _ = command("--help")
    assert code == 0
    assert "tools/convert.py" in said


def test_nothing_to_estimate_where_nothing_can_be_read(command, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion_checks, "estimate", lambda jobs, pool: None)
    code, said, _ = command("source=street", f"out={tmp_path}", *STREET)
    assert (code, "hours" in said) == (0, False)
