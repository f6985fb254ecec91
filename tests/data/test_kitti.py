from __future__ import annotations

import math
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import Frame
from mwsis.core.geometry import points_in_boxes3d
from mwsis.core.instances import BACKGROUND, IGNORE
from mwsis.data.kitti import KittiSource
from mwsis.data.source import Source
from tests.data.frames_for_tests import png

SHARED = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "kitti_mini"

# A camera at the LiDAR's origin looking forward: u = 50 - 100 y / x, v = 20 - 100 z / x.
CALIB = """P0: 1 0 0 0 0 1 0 0 0 0 1 0
P2: 100 0 50 0 0 100 20 0 0 0 1 0
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0

"""
# Bottom centres in the camera frame x right, y down, z forward.
LABELS = """Car 0.00 0 0.0 30 10 70 30 2.0 2.0 4.0 0.0 1.0 10.0 0.0
Misc 0.00 0 0.0 10 10 20 30 2.0 2.0 2.0 -3.0 1.0 10.0 0.0
Pedestrian 0.00 0 0.0 40 5 60 35 2.0 4.0 4.0 1.0 1.0 12.0 1.5
Person_sitting 0.00 0 0.0 75 10 85 30 2.0 2.0 2.0 3.0 1.0 10.0 0.0
DontCare -1 -1 -10 88 0 99 39 -1 -1 -1 -1000 -1000 -1000 -10
"""
POINTS = np.array(
    [
        [10.0, 0.0, 0.0, 0.5],  # car
        [12.0, -1.0, 0.0, 0.0],  # pedestrian's centre; the car's box ends at x = 11
        [10.9, -0.5, 0.0, 0.0],  # both boxes; the car's centre is nearer
        [10.0, 3.0, 0.0, 0.0],  # misc
        [10.0, -3.0, 0.0, 0.0],  # person sitting
        [10.0, -4.5, 0.0, 0.0],  # DontCare region
        [10.0, -3.5, 1.5, 0.0],  # nothing
        [-10.0, 0.0, 0.0, 0.0],  # behind
        [10.0, 30.0, 0.0, 0.0],  # beside the image
    ],
    dtype=np.float32,
)


def make_folder(root: Path, count: int = 3) -> Path:
    for number in range(count):
        for folder, suffix, content in (
            ("image_2", "png", png(100, 40, number)),
            ("velodyne", "bin", POINTS.tobytes()),
            ("calib", "txt", CALIB.encode()),
            ("label_2", "txt", LABELS.encode()),
        ):
            path = root / "training" / folder / f"{number:06d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


@pytest.mark.filterwarnings("ignore:.*beams are taken from the elevation")
def test_a_small_frame(folder: Path) -> None:
    source = KittiSource(folder, val_frames=1)
    source.check()
    assert isinstance(source, Source)
    frame = source.read("000000")
    view, truth = frame.cameras[0], frame.truth
    assert truth is not None
    assert view.image == (folder / "training/image_2/000000.png").read_bytes()
    assert view.labels.labels.tolist() == [0, 1, -1, -1]
    assert view.labels.ignore.tolist() == [False, False, True, True]
    assert view.labels.boxes[0].tolist() == [30.5, 10.5, 70.5, 30.5]
    assert frame.pixels.camera_index[:, 0].tolist() == [0] * 7 + [-1, -1]
    assert frame.pixels.pixel_uv[0, 0].tolist() == [50.5, 20.5]
    ignored, empty = IGNORE, BACKGROUND
    assert truth.semantic_labels.tolist() == [0, 1, 0, ignored, ignored, ignored, empty, ignored, ignored]
    assert truth.instance_ids.tolist() == [0, 1, 0, -1, -1, -1, -1, -1, -1]
    assert truth.box_instance_ids[0].tolist() == [0, 1, -1, -1]
    assert truth.images == (None,)
    assert torch.allclose(truth.boxes3d[0], torch.tensor([10.0, 0.0, 0.0, 4.0, 2.0, 2.0, -math.pi / 2]), atol=1e-6)
    assert truth.box3d_labels.tolist() == truth.box3d_ids.tolist() == [0, 1]
    assert frame.points.point_feats[0].tolist() == pytest.approx([math.tanh(0.5), 0.0])


def test_splits(folder: Path) -> None:
    source = KittiSource(folder / "training")
    assert source.frame_ids("train") == ["000000"]
    assert source.frame_ids("val") == ["000001", "000002"]
    chosen = KittiSource(str(folder), val_frames=["000001"], frames=["000002", "000001", "000000"])
    assert chosen.frame_ids("all") == ["000000", "000002", "000001"]
    assert chosen.segment_of("000001") == "val_0000"
    assert KittiSource(folder, val_frames=0).frame_ids("val") == []
    parts = [KittiSource(folder, val_frames=f"{part}/2").frame_ids("val") for part in range(3)]
    assert parts == [["000000"], ["000001", "000002"], ["000000"]]
    assert KittiSource(folder, val_frames="1/2").frame_ids("train") == ["000000"]
    for wrong in ("1", "1/4", "a/2", "1/1", "-1/2"):
        with pytest.raises(ConfigError, match="expected a list of frames, a number, or a part such as 0/5"):
            KittiSource(folder, val_frames=wrong)
    for wrong, match in ((4, "expected 0 to 3"), (["000009"], "no frame '000009'")):
        with pytest.raises(ConfigError, match=match):
            KittiSource(folder, val_frames=wrong)
    with pytest.raises(DataError, match="no split 'vall'; did you mean 'val'"):
        source.frame_ids("vall")
    with pytest.raises(DataError, match="no frame '7'"):
        source.read("7")


def test_fingerprint_follows_content_and_settings(folder: Path) -> None:
    first = KittiSource(folder).fingerprint()
    assert KittiSource(folder).fingerprint() == first
    assert KittiSource(folder, val_frames=1).fingerprint() != first
    (folder / "training/label_2/000000.txt").write_text("")
    assert KittiSource(folder).fingerprint() != first
    assert pickle.loads(pickle.dumps(KittiSource(folder))).fingerprint() == KittiSource(folder).fingerprint()


@pytest.mark.filterwarnings("ignore:.*beams are taken from the elevation")
def test_a_frame_without_labels(folder: Path) -> None:
    (folder / "training/label_2/000000.txt").write_text("\n")
    truth = KittiSource(folder).read("000000").truth
    assert truth is not None
    assert truth.boxes3d.shape == (0, 7)
    assert set(truth.semantic_labels.tolist()) == {BACKGROUND, IGNORE}


def replaced(path: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / path).write_text((root / path).read_text().replace(old, new, 1))


LABEL, CALIBRATION = "training/label_2/000001.txt", "training/calib/000001.txt"


@pytest.mark.filterwarnings("ignore:.*beams are taken from the elevation")
@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda root: (root / "training/velodyne/000001.bin").unlink(), r"velodyne/000001\.bin: no such file"),
        (lambda root: (root / "training/image_2/000001.png").unlink(), r"image_2/000001\.png: no such file"),
        (lambda root: (root / LABEL).unlink(), r"label_2/000001\.txt: no such file"),
        (
            lambda root: (root / "training/velodyne/000001.bin").write_bytes(POINTS.tobytes()[:-3]),
            r"000001\.bin: expected a positive multiple of 16 bytes .* got 141; the file is truncated",
        ),
        (lambda root: (root / "training/velodyne/000001.bin").write_bytes(b""), "got 0; the file is truncated"),
        (
            lambda root: (root / "training/image_2/000001.png").write_bytes(b"<html>not found</html>"),
            r"000001\.png: expected a PNG or JPEG image",
        ),
        (replaced(LABEL, "Car 0.00 0 0.0 30", "Car 0.00 0 0.0 3x"), "line 1: x1: expected a number, got '3x'"),
        (replaced(LABEL, "12.0 1.5", "12.0"), r"000001\.txt: line 3: expected 15 columns, got 14"),
        (replaced(LABEL, "Misc", "Bike"), "line 2: type: 'Bike' is no KITTI type"),
        (replaced(LABEL, "40 5 60", "60 5 60"), "line 3: x2: expected more than x1 = 60.0, got 60.0"),
        (replaced(LABEL, "30 10 70 30", "30 nan 70 30"), "line 1: y1: expected a finite number"),
        (replaced(CALIBRATION, "R0_rect", "R_rect"), r"calib/000001\.txt: no key 'R0_rect'"),
        (replaced(CALIBRATION, "0 0 1 0\nR0", "0 0 1\nR0"), "line 2: P2: expected 12 numbers, got 11"),
        (replaced(CALIBRATION, "P2: 100", "P2: x"), "line 2: P2: expected 12 numbers, got 'x"),
        (lambda root: (root / LABEL).write_bytes(b"\xff\xfe\x00"), r"000001\.txt: expected text"),
    ],
)
def test_what_is_wrong_is_said_at_second_0(folder: Path, spoil: Callable[[Path], object], match: str) -> None:
    spoil(folder)
    source = KittiSource(folder)
    with pytest.raises(DataError, match=match) as caught:
        source.check()
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=match):
        source.read("000001")


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        KittiSource(tmp_path / "nowhere")
    (tmp_path / "training" / "velodyne").mkdir(parents=True)
    with pytest.raises(DataError, match="no folder 'image_2'"):
        KittiSource(tmp_path)
    for name in ("image_2", "calib", "label_2"):
        (tmp_path / "training" / name).mkdir()
    with pytest.raises(DataError, match="no frames"):
        KittiSource(tmp_path)


def test_sweep_with_nan_is_refused(folder: Path) -> None:
    points = POINTS.copy()
    points[3, 1] = np.nan
    (folder / "training/velodyne/000000.bin").write_bytes(points.tobytes())
    with pytest.raises(DataError, match=r"000000\.bin: point 3: expected finite numbers"):
        KittiSource(folder).read("000000")


def test_unrecoverable_rings_warn_and_fall_back_to_elevation(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"000000\.bin: .* beams are taken from the elevation"):
        frame = KittiSource(folder).read("000000")
    level, raised = frame.points.ring[0], frame.points.ring[6]
    assert 0 <= raised < level <= 63


def test_projection_folds_the_fourth_column(folder: Path) -> None:
    """With a shifted P2 and a turned rectification, pixels equal P2 R0 Tr x computed as KITTI says."""
    p2 = np.array([[721.5, 0, 609.6, 44.86], [0, 721.5, 172.9, 0.216], [0, 0, 1, 0.00274]])
    angle = 0.02
    r0 = np.array([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    tr = np.array([[0, -1, 0, -0.02], [0, 0, -1, -0.06], [1, 0, 0, -0.33]])
    lines = {"P2": p2, "R0_rect": r0, "Tr_velo_to_cam": tr}
    text = "\n".join(f"{key}: {' '.join(map(repr, value.ravel().tolist()))}" for key, value in lines.items())
    (folder / "training/calib/000000.txt").write_text(text)
    with pytest.warns(UserWarning, match="elevation"):
        frame = KittiSource(folder).read("000000")
    homogeneous = np.concatenate([POINTS[:, :3].astype(float), np.ones((len(POINTS), 1))], 1)
    rectified = np.concatenate([homogeneous @ tr.T @ r0.T, np.ones((len(POINTS), 1))], 1)
    image = rectified @ p2.T
    uv, depth, _ = frame.cameras[0].camera.project(frame.points.xyz)
    ahead = image[:, 2] > 0.1
    assert np.allclose(uv.numpy()[ahead], (image[:, :2] / image[:, 2:])[ahead] + 0.5, atol=1e-3)
    assert np.allclose(depth.numpy(), image[:, 2], atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Real frames
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_frames() -> list[Frame]:
    if not REAL.is_dir():
        pytest.skip(f"no KITTI frames at {REAL}; set MWSIS_SHARED")
    source = KittiSource(REAL)
    source.check()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [source.read(frame_id) for frame_id in source.frame_ids("all")]


@pytest.mark.real_data
def test_every_sweep_gives_64_rings_without_warning(real_frames: list[Frame]) -> None:
    visible = 0
    for frame in real_frames:
        counts = torch.bincount(frame.points.ring.long())
        assert len(counts) == 64
        assert counts.min() > 700
        elevation = torch.atan2(frame.points.xyz[:, 2], frame.points.xyz[:, :2].norm(dim=1))
        medians = torch.stack([elevation[frame.points.ring == ring].median() for ring in range(64)])
        assert (medians.diff() < 0).all()
        visible += int(frame.pixels.in_any_image.sum())
    assert visible == 192_373


@pytest.mark.real_data
def test_membership_equals_raw_kitti_pixels(real_frames: list[Frame]) -> None:
    """The half-pixel shift changes no point's membership in any labelled box."""
    for frame in real_frames:
        rows = [line.split() for line in (REAL / f"training/label_2/{frame.frame_id}.txt").read_text().splitlines()]
        raw_boxes = np.array([row[4:8] for row in rows if row[0] not in ("Misc", "Tram")], dtype=float)
        calib = (REAL / f"training/calib/{frame.frame_id}.txt").read_text().splitlines()
        numbers = {line.split(":")[0]: np.array(line.split(":")[1].split(), float) for line in calib if line}
        xyz = frame.points.xyz.double().numpy()
        camera = np.c_[xyz, np.ones(len(xyz))] @ numbers["Tr_velo_to_cam"].reshape(3, 4).T
        rectified = camera @ numbers["R0_rect"].reshape(3, 3).T
        image = np.c_[rectified, np.ones(len(xyz))] @ numbers["P2"].reshape(3, 4).T
        raw = image[:, :2] / image[:, 2:]
        raw_inside = ((raw[:, None] >= raw_boxes[:, :2]) & (raw[:, None] < raw_boxes[:, 2:])).all(2)
        raw_inside &= image[:, 2:] > 0.05
        boxes = frame.cameras[0].labels.boxes
        uv = frame.pixels.pixel_uv
        inside = ((uv >= boxes[:, :2]) & (uv < boxes[:, 2:])).all(2) & (frame.pixels.camera_index >= 0)
        assert np.array_equal(inside.numpy(), raw_inside)


@pytest.mark.real_data
def test_box_frustums_score_as_in_the_reference_study(real_frames: list[Frame]) -> None:
    """Mean IoU of 2D-box frustums and 3D-box points: Vehicle .630, Pedestrian .342, Cyclist .505 (20, 2, 2)."""
    scores: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for frame in real_frames:
        assert frame.truth is not None
        labels, uv = frame.cameras[0].labels, frame.pixels.pixel_uv
        inside = ((uv >= labels.boxes[:, :2]) & (uv < labels.boxes[:, 2:])).all(2)
        inside &= frame.pixels.camera_index >= 0
        for box in (~labels.ignore).nonzero()[:, 0].tolist():
            truth = frame.truth.instance_ids == box
            if truth.sum() >= 5:
                iou = (truth & inside[:, box]).sum() / (truth | inside[:, box]).sum()
                scores[int(labels.labels[box])].append(float(iou))
    assert [len(values) for values in scores.values()] == [20, 2, 2]
    assert [round(sum(values) / len(values), 3) for values in scores.values()] == [0.630, 0.342, 0.505]


@pytest.mark.real_data
def test_upright_boxes_hold_nearly_the_same_points(real_frames: list[Frame]) -> None:
    different = owned = 0
    for frame in real_frames:
        assert frame.truth is not None
        seen = frame.pixels.in_any_image
        inside = points_in_boxes3d(frame.points.xyz, frame.truth.boxes3d).any(1) & seen
        different += int((inside != (frame.truth.instance_ids >= 0)).sum())
        owned += int(inside.sum())
    assert different < 0.02 * owned
