"""Box files: each is read back by a reader that knows nothing of the writer."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from waymo_open_dataset.protos import metrics_pb2

from mwsis.core.errors import DataError
from mwsis.core.frame import CameraView
from mwsis.core.geometry import CameraModel
from mwsis.data.box_files import BoxWriter, FrameBoxes
from mwsis.data.kitti import KittiSource
from mwsis.evaluation.waymo_detection import detection_rows
from tests.data.frames_for_tests import png, random_frame

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")
WIDTH, HEIGHT = 400, 240
BOXES = [
    [12.0, 1.0, -0.6, 4.2, 1.9, 1.6, 0.3],
    [8.0, -1.5, -0.5, 0.7, 0.6, 1.8, -1.2],
    [25.0, 3.0, -0.4, 1.8, 0.6, 1.7, 1.57],
    [6.0, 4.5, -0.6, 4.2, 1.9, 1.6, 0.0],  # cut by the image's left edge
    [-10.0, 0.0, -0.6, 4.2, 1.9, 1.6, 0.0],  # behind the camera
    [10.0, 40.0, -0.6, 4.2, 1.9, 1.6, 0.0],  # beside the image
]
LABELS = [0, 1, 2, 0, 0, 0]
SEEN = 4


def front_camera(pitch=0.0):
    """x forward to depth, y left to -u, z up to -v; 1.5 m ahead of the vehicle's origin."""
    optical = torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)
    down = torch.tensor(
        [[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]], dtype=torch.float64
    )
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = down @ optical
    pose[:3, 3] = pose[:3, :3] @ torch.tensor([-1.5, 0.0, -0.3], dtype=torch.float64)
    intrinsics = torch.tensor([300.0, 310.0, 200.5, 121.5], dtype=torch.float64)
    return CameraModel(WIDTH, HEIGHT, intrinsics, torch.zeros(5, dtype=torch.float64), pose)


def frame(frame_id="000003", segment="drive", pitch=0.0):
    one = random_frame(1, num_cameras=1)
    view = CameraView("FRONT", front_camera(pitch), png(WIDTH, HEIGHT), one.cameras[0].labels)
    return replace(one, frame_id=frame_id, segment=segment, cameras=(view,))


def some_boxes(rows=BOXES, labels=LABELS):
    count = len(rows)
    return FrameBoxes(
        torch.tensor(rows).reshape(-1, 7),
        torch.tensor(labels, dtype=torch.int64),
        torch.linspace(0.9, 0.4, count),
        torch.arange(10, 10 + count),
    )


def written(folder, *frames):
    writer = BoxWriter(folder, CLASSES)
    for one, boxes in frames:
        writer.add(one, boxes)
    writer.finish({"method": {"name": "spg"}})
    return folder


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "boxes", (frame(), some_boxes()), (frame("drive/77"), some_boxes([], [])))


def test_the_kitti_reader_finds_the_boxes_again(folder, tmp_path):
    root = tmp_path / "as_kitti" / "training"
    for name in ("label_2", "calib"):
        (root / name).mkdir(parents=True)
        (root / name / "000003.txt").write_bytes((folder / "kitti" / name / "000003.txt").read_bytes())
    for name in ("image_2", "velodyne"):
        (root / name).mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "image_2" / "000003.png")
    np.random.default_rng(0).uniform((5, -2, -1, 0), (20, 2, 1, 1), (90, 4)).astype("<f4").tofile(
        root / "velodyne" / "000003.bin"
    )
    with pytest.warns(UserWarning, match="order of the points"):
        again = KittiSource(root.parent, val_frames=0).read("000003")
    assert again.truth.box3d_labels.tolist() == LABELS[:SEEN]
    expected = torch.tensor(BOXES[:SEEN])
    torch.testing.assert_close(again.truth.boxes3d, expected, atol=2e-3, rtol=0)
    camera, ours = again.cameras[0].camera, front_camera()
    xyz = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([9.0, 0, 0])
    torch.testing.assert_close(camera.project(xyz)[0], ours.project(xyz)[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("pitch", [0.0, 0.03])
def test_kitti_lines_agree_with_their_own_calibration(tmp_path, pitch):
    """By hand from the readme: the corners of the 3D box through P2 span the 2D box, less what the image cuts."""
    folder = written(tmp_path, (frame(pitch=pitch), some_boxes()))
    calibration = {
        line.split(":")[0]: np.array(line.split(":")[1].split(), float)
        for line in (folder / "kitti/calib/000003.txt").read_text().splitlines()
    }
    lines = [line.split() for line in (folder / "kitti/label_2/000003.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == ["Car", "Pedestrian", "Cyclist", "Car"]
    for words in lines:
        truncated, occluded, alpha, *box = (float(word) for word in words[1:8])
        assert occluded == 0
        height, width, length, x, y, z, turn = (float(word) for word in words[8:])
        corners = [
            [sx * length / 2 * math.cos(turn) + sz * width / 2 * math.sin(turn) + x, y - up * height,
             -sx * length / 2 * math.sin(turn) + sz * width / 2 * math.cos(turn) + z, 1]
            for sx in (-1, 1) for sz in (-1, 1) for up in (0, 1)
        ]  # fmt: skip
        image = np.array(corners) @ calibration["P2"].reshape(3, 4).T
        u, v = (image[:, :2] / image[:, 2:]).T
        free = [u.min(), v.min(), u.max(), v.max()]
        cut = np.clip(free, 0, [WIDTH - 1, HEIGHT - 1] * 2)
        assert box == pytest.approx(cut.tolist(), abs=4 if pitch else 0.1)  # boxes stand upright in the camera's frame
        share = (cut[2] - cut[0]) * (cut[3] - cut[1]) / ((free[2] - free[0]) * (free[3] - free[1]))
        assert truncated == pytest.approx(1 - share, abs=0.05 if pitch else 0.011)
        assert math.cos(alpha - (turn - math.atan2(x, z))) == pytest.approx(1, abs=1e-5)
    assert float(lines[3][1]) > 0.1
    assert float(lines[0][1]) == 0


def test_openpcdet_infos_are_what_its_loader_takes(folder):
    """As WaymoDataset does: mask every annotation by name, take boxes and names."""
    with (folder / "openpcdet" / "infos.pkl").open("rb") as file:
        infos = pickle.load(file)
    assert [info["frame_id"] for info in infos] == ["000003", "drive/77"]
    assert [info["point_cloud"]["sample_idx"] for info in infos] == [0, 1]
    for info, rows, labels in zip(infos, (BOXES, []), (LABELS, []), strict=True):
        annos = info["annos"]
        kept = [row for row, name in enumerate(annos["name"]) if name != "unknown"]
        annos = {key: values[kept] for key, values in annos.items()}
        assert annos["gt_boxes_lidar"].shape == (len(rows), 7)
        assert annos["gt_boxes_lidar"] == pytest.approx(np.array(rows).reshape(-1, 7), abs=1e-6)
        assert annos["name"].tolist() == [CLASSES[label] for label in labels]
        assert len(annos["num_points_in_gt"]) == len(rows)
    assert infos[0]["annos"]["num_points_in_gt"].tolist() == [10, 11, 12, 13, 14, 15]


def test_waymo_objects_are_read_by_its_own_messages_and_score_1_against_themselves(folder):
    path = folder / "waymo" / "objects.bin"
    objects = metrics_pb2.Objects.FromString(path.read_bytes()).objects
    assert [(item.context_name, item.frame_timestamp_micros) for item in objects] == [("drive", 3)] * len(BOXES)
    assert [item.object.type for item in objects] == [1, 2, 4, 1, 1, 1]
    for item, row in zip(objects, BOXES, strict=True):
        box = item.object.box
        centre = (box.center_x, box.center_y, box.center_z)
        assert (*centre, box.length, box.width, box.height, box.heading) == pytest.approx(row, abs=1e-6)
    assert len({item.object.id for item in objects}) == len(BOXES)
    rows = [row for row in detection_rows(path, path) if row["range"] == "all"]
    assert {(row["class"], row["objects"]) for row in rows} == {("VEHICLE", 4), ("PEDESTRIAN", 1), ("CYCLIST", 1)}
    assert {(round(row["ap"], 6), round(row["aph"], 6)) for row in rows} == {(1, 1)}


def test_times_are_those_of_the_frames_where_they_have_one(tmp_path):
    names = ("seg_a/1558017621622379", "val_000_00", "val_000_01")
    folder = written(tmp_path, *((frame(name, "seg_a"), some_boxes(BOXES[:1], [0])) for name in names))
    objects = metrics_pb2.Objects.FromString((folder / "waymo/objects.bin").read_bytes()).objects
    assert [item.frame_timestamp_micros for item in objects] == [1558017621622379, 1, 2]
    assert (folder / "kitti" / "label_2" / "seg_a%2F1558017621622379.txt").is_file()


def test_the_index_is_written_last_and_files_of_an_earlier_run_go(folder):
    index = json.loads((folder / "boxes.json").read_text())
    assert index["method"] == {"name": "spg"}
    assert (index["num_frames"], index["num_boxes"]) == (2, len(BOXES))
    for name in index["files"]:
        assert (folder / name).is_dir()
    writer = BoxWriter(folder, CLASSES)
    assert not (folder / "boxes.json").exists()
    writer.add(frame("000009"), some_boxes())
    assert [path.name for path in (folder / "kitti" / "label_2").iterdir()] == ["000009.txt"]


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(DataError, match="class Tram: box files know Vehicle, Pedestrian, Cyclist only"):
        BoxWriter(tmp_path, ("Vehicle", "Tram"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected a folder for box files, got a file"):
        BoxWriter(tmp_path / "file", CLASSES)
