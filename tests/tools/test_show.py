"""The command that shows frames, with nothing extra installed; recordings are tested in tests/report."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from mwsis.data.kitti import KittiSource
from tests.tools.test_commands import kitti_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*order of the points:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return kitti_folder(tmp_path_factory.mktemp("kitti"))


@pytest.fixture
def show(run_tool, folder, tmp_path):
    def run(*arguments):
        return run_tool("show", "data=kitti", f"data.root={folder}", f"data.cache={tmp_path / 'cache'}", *arguments)

    return run


def test_pictures_of_one_frame(show, tmp_path):
    code, printed, _ = show("frame=000001", "backend=png", f"out={tmp_path / 'out'}")
    assert code == 0
    assert printed == f"pictures: {tmp_path / 'out'} (4 files)\n"
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert made == [
        "000001/birds_eye_gt.png",
        "000001/birds_eye_pseudo.png",
        "000001/image_2_boxes.png",
        "000001/image_2_points.png",
    ]
    for name in made:
        with Image.open(tmp_path / "out" / name) as picture:
            assert np.asarray(picture).std() > 0
    assert not (tmp_path / "cache").exists()  # nothing is converted


def test_a_segment_and_by_default_one_frame(show, folder, tmp_path):
    source = KittiSource(folder)
    segment = source.segment_of("000001")
    code, _, _ = show(f"segment={segment}", "backend=png", f"out={tmp_path / 'segment'}")
    assert code == 0
    expected = {name for name in source.frame_ids("all") if source.segment_of(name) == segment}
    assert {path.name for path in (tmp_path / "segment").iterdir()} == expected
    code, _, _ = show("backend=png", f"out={tmp_path / 'first'}")
    assert code == 0
    assert [path.name for path in (tmp_path / "first").iterdir()] == source.frame_ids("val")[:1]
    code, _, complaint = show("segment=nowhere", "backend=png", f"out={tmp_path / 'none'}")
    assert code == 2
    assert segment in complaint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("backend=png",), ("out=DIR",)),
        (("backend=reurn",), ("did you mean 'rerun'",)),
        (("backend=open3d", "clouds=obj"), ("clouds=obj", "ply or pcd")),
        (("backend=png", "out={out}", "frame=1", "segment=2"), ("frame and segment",)),
        (("backend=png", "out={out}", "frame=000009"), ("000009",)),
        (("backend=png", "out={out}", "run=nowhere"), ("run=nowhere", "no such folder")),
        (("backend=png", "out={out}", "run={folder}"), ("last.ckpt",)),
    ],
)
def test_wrong_settings(show, folder, tmp_path, arguments, words):
    given = [argument.format(out=tmp_path / "out", folder=folder) for argument in arguments]
    code, _, complaint = show(*given)
    assert code == 2
    for word in words:
        assert word in complaint, complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backend", ["rerun", "open3d"])
def test_a_missing_viewer_is_said_before_anything_is_read(show, monkeypatch, tmp_path, backend):
    monkeypatch.setitem(sys.modules, backend, None)
    code, _, complaint = show("data.root=/nowhere", f"backend={backend}", f"out={tmp_path / 'out'}")
    assert code == 2
    assert complaint.startswith(f"error: backend={backend}: ")
    assert "install the extra 'viz'" in complaint
    assert len(complaint.strip().splitlines()) == 1
