"""The document on one's own data as a reader follows it: its commands, on a folder laid out as it says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from mwsis.data.label_files import read_labels
from mwsis.data.street import StreetSource
from tests.data.custom_folder import write_folder

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "guides" / "own_data.md"
YOLO = ("car", "person", "bicycle")
SMALL = {
    "label": (),
    "train": (
        "data.image_widths=[96]",
        "data.point_cloud_range=[-24,-24,-2,24,24,4]",
        "lidar.voxel_size=[0.4,0.4,0.4]",
        "lidar.hidden=16",
        "trainer.max_steps=3",
        "trainer.lidar_every=1",
        "trainer.report_frames=1",
    ),
}
"""What makes a run of the document's last commands short; everything else is as written."""


def commands():
    """Return tool and arguments of each command of the document's block of five."""
    block = re.search(r"## Five commands\n.*?```\n(.*?)```", DOCUMENT.read_text(), re.S).group(1)
    lines = [shlex.split(line) for line in block.strip().splitlines()]
    assert all(line[:2] == ["uv", "run"] for line in lines)
    return [(Path(line[2]).stem, line[3:]) for line in lines]


@pytest.fixture
def folder(tmp_path):
    """Street frames as a reader would have them: images, sweeps, a calibration, YOLO's text files and no truth."""
    street = StreetSource(
        train_segments=2, train_frames_per_segment=1, val_segments=1, val_frames_per_segment=1,
        lidar_columns=90, image_width=96,
    )  # fmt: skip
    frames = {split: [street.read(name) for name in street.frame_ids(split)] for split in ("train", "val")}
    root = write_folder(tmp_path / "FOLDER", frames, street.class_names)
    content = json.loads((root / "boxes.json").read_text())
    (root / "boxes.json").unlink()
    for image in content["images"]:
        rows = [one for one in content["annotations"] if one["image_id"] == image["id"] and not one["iscrowd"]]
        lines = [yolo_line(one["category_id"] - 1, one["bbox"], image["width"], image["height"]) for one in rows]
        path = (root / "labels" / image["file_name"]).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))
    for path in sorted((root / "truth").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return root


def yolo_line(label, bbox, width, height):
    x, y, w, h = bbox
    return f"{label} {(x + w / 2) / width:.9f} {(y + h / 2) / height:.9f} {w / width:.9f} {h / height:.9f}\n"


@pytest.mark.slow
def test_the_five_commands(folder, run_tool, monkeypatch):
    monkeypatch.chdir(folder.parent)
    written = commands()
    assert [tool for tool, _ in written] == ["boxes", "convert", "convert", "label", "train"]
    said = {}
    for number, (tool, arguments) in enumerate(written):
        code, said[number], complaint = run_tool(tool, *arguments, *SMALL.get(tool, ()))
        assert code == 0, (tool, complaint[-2000:])
    assert re.search(r"15 images, \d+ boxes: \d+ Vehicle, \d+ Pedestrian, \d+ Cyclist", said[0])
    assert said[1].splitlines()[-1] == "valid: FOLDER"
    assert "(3 frames, complete)" in said[2]
    assert "(3 frames, spg_default, from 2D boxes only)" in said[3]
    labels = [read_labels(path) for path in Path("LABELS/labels").glob("*.label")]
    assert len(labels) == 3
    assert all(int((one.instance_ids >= 0).sum()) > 50 for one in labels)
    page = Path("RUN/report.html").read_text()
    assert "data:image/" in page
    assert "no ground truth" in said[4]


def test_validate_says_everything_and_writes_nothing(folder, run_tool, monkeypatch):
    monkeypatch.chdir(folder.parent)
    tool, arguments = commands()[1]
    before = sorted(str(path) for path in folder.parent.rglob("*"))
    (folder / "train.txt").write_text("train_000_00\ntrain_000_00\nnowhere\n")
    code, said, complaint = run_tool(tool, *arguments)
    assert (code, said) == (2, "")
    lines = [line for line in complaint.replace("\r", "\n").splitlines() if line.startswith(("problem: ", "error: "))]
    assert any("FOLDER/boxes.json: no such file" in line for line in lines)
    assert any("FOLDER/train.txt: line 2: frame 'train_000_00' again, as in line 1" in line for line in lines)
    assert any("FOLDER/sweeps/nowhere: no such file" in line for line in lines)
    assert [line.partition(":")[0] for line in lines] == ["problem"] * (len(lines) - 1) + ["error"]
    assert re.fullmatch(r"error: FOLDER: problems: \d+; mend them and run the same command again", lines[-1])
    assert sorted(str(path) for path in folder.parent.rglob("*")) == before


def test_mistakes_of_the_boxes_command(folder, refused, run_tool):
    given = (f"root={folder}", "from=yolo", f"labels={folder / 'labels'}")
    assert "expected YOLO's classes in order" in refused("boxes", *given)
    assert "no class 'lorry'" in refused("boxes", *given, "names=car,person,bicycle", "classes=lorry:Vehicle")
    assert "no such format; did you mean 'yolo'" in refused("boxes", *given, "from=yol")
    assert "'name' is no key of this command; did you mean 'names'" in refused("boxes", *given, "name=car")
    assert "no such folder" in refused("boxes", f"root={folder}", "from=yolo", "labels=nowhere")
    assert "no such file" in refused("boxes", f"root={folder}", "from=coco", "labels=nowhere")
    assert "problems:" in refused("boxes", *given, "names=car")
    assert not (folder / "boxes.json").exists()
    assert run_tool("boxes", *given, f"names={','.join(YOLO)}")[0] == 0
    assert "is there already" in refused("boxes", *given, f"names={','.join(YOLO)}")


def test_other_data_sets_name_the_first_problem(refused):
    assert "only source=custom" in refused("convert", "source=street", "validate=true")
