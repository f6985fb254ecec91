"""Waymo records as frames: geometry against a slow twin and a real frame, labels and truth on a made-up one."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import Frame
from mwsis.core.instances import IGNORE
from mwsis.data.waymo import v1
from mwsis.data.waymo.camera import camera_model, project_boxes3d
from mwsis.data.waymo.classes import CAMERA_CLASSES, CLASS_MAPS, LIDAR_CLASSES
from mwsis.data.waymo.frame import FrameSettings, to_frame
from mwsis.data.waymo.range_image import beam_inclinations, lidar_points
from mwsis.data.waymo.record import CameraRecord, LidarName, LidarRecord, WaymoRecord
from tests.data.waymo_drive import COLUMNS, ROWS, make_drive
from tests.reference import waymo as slow

SHARED = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "waymo_frame"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there: a checkout carries no Waymo data")


def read_real(name: str) -> WaymoRecord:
    path = REAL / f"{name}.tfrecord"
    return v1.read_record(path, v1.index_segment(path)[0])


def frame_of(record: WaymoRecord, **settings: object) -> Frame:
    return to_frame(record, "a/1", FrameSettings(**settings))  # type: ignore[arg-type]


def top_of(record: WaymoRecord) -> LidarRecord:
    return next(lidar for lidar in record.lidars if lidar.name == LidarName.TOP)


def with_camera(record: WaymoRecord, position: int, **changes: object) -> WaymoRecord:
    cameras = list(record.cameras)
    cameras[position] = replace(cameras[position], **changes)  # type: ignore[arg-type]
    return replace(record, cameras=tuple(cameras))


# ---------------------------------------------------------------------------------------------------------------------
# Real files
# ---------------------------------------------------------------------------------------------------------------------


def outlines(camera: CameraRecord) -> dict[str, np.ndarray]:
    assert camera.projected is not None
    found = {}
    for box in camera.projected:
        centre, half = np.array([box.center_x, box.center_y]), np.array([box.length, box.width]) / 2
        found[box.id[:22]] = np.concatenate([centre - half, centre + half])
    return found


def box_iou(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    low, high = torch.maximum(one[:, None, :2], other[:, :2]), torch.minimum(one[:, None, 2:], other[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, other)]
    return shared / (area[0][:, None] + area[1] - shared)


@needs_real
@pytest.mark.real_data
def test_projected_3d_boxes_are_those_of_the_real_frame() -> None:
    """62 of 62 boxes, and no box more; the published camera model lets 59 be met without its rule for far corners."""
    record = read_real("pvps_data_one_frame")
    assert record.laser_labels is not None
    boxes3d = torch.from_numpy(np.stack([label.box for label in record.laser_labels]))
    errors = []
    for camera in record.cameras:
        got, shown = project_boxes3d(camera_model(camera, record.world_SE3_vehicle), boxes3d)
        found = {record.laser_labels[int(k)].id: got[k].numpy() for k in shown.nonzero()[:, 0]}
        wanted = outlines(camera)
        assert set(found) == set(wanted)
        errors += [float(np.abs(found[name] - wanted[name]).max()) for name in wanted]
    print(f"{len(errors)} boxes, worst edge {max(errors):.4f} px")
    assert len(errors) == 62
    assert max(errors) < 0.01


@needs_real
@pytest.mark.real_data
def test_the_real_frame_without_range_images() -> None:
    frame = frame_of(read_real("pvps_data_one_frame"))
    assert [view.name for view in frame.cameras] == ["FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT"]
    assert [len(view.labels) for view in frame.cameras] == [13, 29, 9, 3, 12]
    assert len(frame.points) == 0
    truth = frame.truth
    assert truth is not None
    assert len(truth.boxes3d) == 50  # 75 less 25 signs
    overlaps = []
    for view, image in zip(frame.cameras, truth.images, strict=True):
        assert image is not None
        large = ~image.labels.ignore & (image.masks.areas() > 1000)
        overlaps.append(box_iou(view.labels.boxes, image.labels.boxes[large]).amax(0))
    overlap = torch.cat(overlaps)
    print(f"{len(overlap)} masks above 1,000 px, IoU of their boxes with drawn ones: {overlap.sort().values}")
    assert float((overlap > 0.7).float().mean()) > 0.7  # 27 of 35: drawn apart, of the same objects


@needs_real
@pytest.mark.real_data
def test_a_real_frame_with_nothing_to_see_is_refused_in_one_sentence() -> None:
    with pytest.raises(DataError, match="no images and no range images of TOP; it lacks images, range images"):
        frame_of(read_real("val_stripped_one_frame"))


def test_class_tables_are_the_files_own() -> None:
    segmentation = pytest.importorskip("waymo_open_dataset.protos.segmentation_pb2").Segmentation.Type
    camera = pytest.importorskip("waymo_open_dataset.protos.camera_segmentation_pb2").CameraSegmentation.Type
    assert [f"TYPE_{name}" for name, *_ in LIDAR_CLASSES] == [segmentation.Name(k) for k in range(23)]
    assert [f"TYPE_{name}" for name, *_ in CAMERA_CLASSES] == [camera.Name(k) for k in range(29)]
    published = CLASS_MAPS["published"]
    for table, classes in (
        (published.lidar, ([1, 2, 3, 4, 5, 13], [7], [6])),
        (published.camera, ([2, 3, 4, 5, 7, 8, 11], [9, 16], [6, 10])),
    ):
        for label, numbers in enumerate(classes):
            assert [number for number, kind in enumerate(table) if kind == label] == numbers
        assert IGNORE not in table


# ---------------------------------------------------------------------------------------------------------------------
# Points
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 17_000.0])
@pytest.mark.parametrize("return_index", [0, 1])
def test_points_equal_the_slow_twin(offset: float, return_index: int) -> None:
    record = make_drive(offset=offset)
    for lidar in record.lidars:
        points = lidar_points(lidar, record.world_SE3_vehicle, return_index)
        if points is None:
            assert (lidar.name, return_index) == (LidarName.FRONT, 1)
            continue
        pixels = list(zip(points.row.tolist(), points.column.tolist(), strict=True))
        expected = [slow.range_image_point(lidar, record.world_SE3_vehicle, return_index, *pixel) for pixel in pixels]
        np.testing.assert_allclose(points.xyz, np.array(expected), atol=1e-5)


def test_missing_pixels_and_no_label_zones_are_left_out() -> None:
    record = make_drive()
    points = lidar_points(top_of(record), record.world_SE3_vehicle, 0)
    assert points is not None
    assert len(points) == ROWS * COLUMNS - 9 - 4
    pixels = set(zip(points.row.tolist(), points.column.tolist(), strict=True))
    assert not pixels & ({(0, column) for column in range(9)} | {(1, column) for column in range(3, 7)})
    assert points.segmentation is not None
    assert len(points.segmentation) == len(points)


def test_without_pixel_poses_points_would_be_elsewhere() -> None:
    """Negative control, and the reason that a TOP without poses is refused."""
    record = make_drive(offset=0.0)
    top = top_of(record)
    assert top.pixel_pose is not None
    still = np.broadcast_to(top.pixel_pose[:, COLUMNS // 2 : COLUMNS // 2 + 1], top.pixel_pose.shape)
    moving, frozen = (
        lidar_points(lidar, record.world_SE3_vehicle, 0) for lidar in (top, replace(top, pixel_pose=still))
    )
    assert moving is not None
    assert frozen is not None
    assert np.linalg.norm(moving.xyz - frozen.xyz, axis=1).max() > 0.3
    with pytest.raises(DataError, match="TOP: return 1: no range image pose"):
        lidar_points(replace(top, pixel_pose=None), record.world_SE3_vehicle, 0)


def test_row_0_is_the_highest_beam_with_and_without_a_table() -> None:
    front, top = make_drive().lidars
    assert beam_inclinations(top, ROWS).tolist() == [0.04, 0.01, -0.05, -0.11, -0.2, -0.3]
    step = (math.pi / 6 + math.pi / 2) / 3
    expected = [math.pi / 6 - (row + 0.5) * step for row in range(3)]
    np.testing.assert_allclose(beam_inclinations(front, 3), expected, atol=1e-12)
    with pytest.raises(DataError, match="TOP: beam_inclinations: expected 5, one per row, got 6"):
        beam_inclinations(top, 5)


def test_column_0_looks_back_and_columns_run_clockwise() -> None:
    record = make_drive(offset=0.0)
    record = replace(record, world_SE3_vehicle=np.eye(4))
    top = replace(top_of(record), pixel_pose=np.zeros((ROWS, COLUMNS, 6), np.float32))
    points = lidar_points(top, record.world_SE3_vehicle, 0)
    assert points is not None
    from_sensor = points.xyz.astype(np.float64) - top.vehicle_SE3_lidar[:3, 3]
    azimuth = np.arctan2(from_sensor[:, 1], from_sensor[:, 0])
    turned = np.angle(np.exp(1j * (azimuth - np.pi + (points.column + 0.5) * 2 * np.pi / COLUMNS)))
    assert np.abs(turned).max() < 0.01  # the sensor is tilted by as much


def test_the_frame_of_two_lidars() -> None:
    frame = frame_of(make_drive(), lidars=("TOP", "FRONT"))
    points = frame.points
    top = ROWS * COLUMNS - 13
    assert len(points) == 2 * top + 10
    assert (frame.lidar.num_rings, frame.lidar.num_columns) == (ROWS, COLUMNS)
    assert points.return_index.tolist() == [0] * top + [1] * top + [0] * 10
    assert set(points.ring[-10:].tolist()) == set(points.azimuth_column[-10:].tolist()) == {-1}
    assert (int(points.ring[:-10].min()), int(points.ring.max()), int(points.azimuth_column.max())) == (0, 5, 47)
    torch.testing.assert_close(points.point_feats[-10:], torch.tensor([[math.tanh(0.2), 0.1]]).expand(10, 2))
    assert len(frame_of(make_drive(), returns=1).points) == top


def test_settings_are_checked() -> None:
    for settings, message in (
        ({"lidars": ("TOPP",)}, "lidars: no 'TOPP'; did you mean 'TOP'"),
        ({"lidars": ()}, "at least one"),
        ({"lidars": ("TOP", "TOP")}, "different names"),
        ({"returns": 3}, "returns: expected 1 or 2, got 3"),
        ({"class_map": "publishd"}, "did you mean 'published'"),
        ({"min_mask_px": -1}, "min_mask_px"),
    ):
        with pytest.raises(ConfigError, match=message):
            FrameSettings(**settings)  # type: ignore[arg-type]
