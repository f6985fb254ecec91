"""A made-up but physically possible Waymo frame: a turning vehicle 25 km from the origin, two LiDARs, two cameras."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
from PIL import Image

from mwsis.data.waymo.record import (
    CameraBox,
    CameraName,
    CameraRecord,
    LabelType,
    LaserLabel,
    LidarName,
    LidarRecord,
    LidarReturn,
    PanopticLabel,
    WaymoRecord,
)

SEGMENT = "1001_20_40_20_40"
TIME = 1_550_000_000_000_000
HEIGHT, WIDTH = 64, 96
ROWS, COLUMNS = 6, 48
CAR, WALKER = 7, 9
"""Recorded instances."""


def rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rz(yaw) Ry(pitch) Rx(roll), spelled out."""
    cr, sr, cp, sp, cy, sy = (f(a) for a in (roll, pitch, yaw) for f in (math.cos, math.sin))
    x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    return np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]]) @ y @ x


def pose(angles: tuple[float, float, float], position: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(*angles), position
    return matrix


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(file, "PNG")
    return file.getvalue()


def jpeg(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 60)).save(file, "JPEG")
    return file.getvalue()


def make_drive(number: int = 0, offset: float = 17_000.0) -> WaymoRecord:
    """Return a frame with everything; lists are in no useful order, as in real files."""
    position = (offset, -offset, offset / 1000)
    return WaymoRecord(
        segment=SEGMENT,
        timestamp_micros=TIME + 100_000 * number,
        world_SE3_vehicle=pose((0.01, -0.02, 0.7), position),
        lidars=(_front(), _top(number, position)),
        cameras=(_camera(CameraName.SIDE_LEFT, 1.6, position), _camera(CameraName.FRONT, 0.0, position)),
        laser_labels=(
            laser_label("car", LabelType.VEHICLE, (12.0, 0.0, 1.0, 6.0, 6.0, 5.0, 0.3)),
            laser_label("sign", LabelType.SIGN, (9.0, 9.0, 2.0, 0.1, 1.0, 1.0, 0.0)),
            laser_label("ghost", LabelType.CYCLIST, (60.0, 30.0, 1.0, 2.0, 1.0, 2.0, 0.0)),
        ),
    )


def _top(number: int, position: tuple[float, float, float]) -> LidarRecord:
    rng = np.random.default_rng(number)
    poses = np.zeros((ROWS, COLUMNS, 6), np.float32)
    for column in range(COLUMNS):
        part = column / COLUMNS - 0.5
        poses[:, column] = (0.01, -0.02, 0.7 + 0.05 * part, *(np.array(position) + np.array([1.5, 0.5, 0.0]) * part))
    return LidarRecord(
        name=LidarName.TOP,
        vehicle_SE3_lidar=pose((0.002, 0.004, math.radians(148)), (1.4, 0.0, 2.2)),
        inclinations=np.array([-0.3, -0.2, -0.11, -0.05, 0.01, 0.04]),
        inclination_min=-0.31,
        inclination_max=0.05,
        returns=(_labelled(rng, 5.0), _labelled(rng, 7.0)),
        pixel_pose=poses,
    )


def _labelled(rng: np.random.Generator, nearest: float) -> LidarReturn:
    values = np.zeros((ROWS, COLUMNS, 4), np.float32)
    values[..., 0] = rng.uniform(nearest, nearest + 20, (ROWS, COLUMNS))
    values[..., 1:3] = rng.uniform(0, 3, (ROWS, COLUMNS, 2))
    values[..., 3] = -1
    values[0, :9, 0] = -1  # no return
    values[1, 3:7, 3] = 1  # no-label zone
    projection = np.zeros((ROWS, COLUMNS, 6), np.int32)
    projection[..., 20:28, :3] = np.stack(
        [np.full((ROWS, 8), CameraName.FRONT), *np.meshgrid(40 + np.arange(8), 20 + np.arange(ROWS))], -1
    )
    projection[2, 18:22, 3:] = (CameraName.SIDE_LEFT, WIDTH - 1, 0)
    segmentation = np.zeros((ROWS, COLUMNS, 2), np.int32)
    segmentation[..., 1] = 18  # road
    segmentation[:, 20:24] = (CAR, 1)
    segmentation[:, 24:28] = (WALKER, 7)
    segmentation[5, 20:22, 1] = 6  # part of the car's instance is a cyclist
    segmentation[4, 40:44] = (30, 12)  # a bicycle without rider
    segmentation[3, 44:46] = 0
    return LidarReturn(values, projection, segmentation)


def _front() -> LidarRecord:
    values = np.full((3, 5, 4), -1, np.float32)
    values[1:, :, :3] = (2.5, 0.2, 0.1)
    first = LidarReturn(values, np.zeros((3, 5, 6), np.int32), None)
    extrinsic = pose((0.0, 0.1, -0.4), (4.0, 0.1, 0.7))
    return LidarRecord(LidarName.FRONT, extrinsic, None, -math.pi / 2, math.pi / 6, (first, None), None)


def _camera(name: CameraName, yaw: float, position: tuple[float, float, float]) -> CameraRecord:
    start = TIME / 1e6 + 0.027
    front = name == CameraName.FRONT
    return CameraRecord(
        name=name,
        width=WIDTH,
        height=HEIGHT,
        intrinsics=np.array([80.0, 80.0, 47.0, 33.0, 0.04, -0.3, 0.001, -0.001, 0.0]),
        vehicle_SE3_camera=pose((0.0, 0.01, yaw), (1.5, 0.1, 2.1)),
        shutter_direction=2,
        image=jpeg(),
        world_SE3_vehicle=pose((0.01, -0.02, 0.71), (position[0] + 0.5, position[1] + 0.2, position[2])),
        velocity=np.array([12.0, 4.0, 0.1, 0.01, -0.02, 0.4]),
        pose_timestamp=start + 0.020,
        shutter=0.003,
        trigger_time=start,
        readout_done_time=start + 0.047,
        boxes=_boxes() if front else (),
        projected=(),
        panoptic=PanopticLabel(png(panoptic()), 1000) if front else None,
    )


def _boxes() -> tuple[CameraBox, ...]:
    """The car's points are pixels 40 to 43, the walker's 44 to 47, rows 20 to 25."""
    return (
        CameraBox(46.0, 23.0, 4.2, 6.4, LabelType.PEDESTRIAN, "b"),
        CameraBox(42.0, 23.0, 4.4, 6.4, LabelType.VEHICLE, "a"),
        CameraBox(90.0, 10.0, 30.0, 8.0, LabelType.VEHICLE, "cut by the edge"),
        CameraBox(10.0, 10.0, 5.0, 5.0, LabelType.SIGN, "sign"),
        CameraBox(20.0, 50.0, 6.0, 6.0, LabelType.UNKNOWN, "unknown"),
        CameraBox(-9.0, 10.0, 5.0, 5.0, LabelType.VEHICLE, "outside"),
    )


def panoptic() -> np.ndarray:
    """Sky, a car, a walker, a bicycle, unlabelled pixels, cars nobody told apart, and a car of 4 pixels."""
    values = np.full((HEIGHT, WIDTH), 25_000)
    values[20:26, 40:44] = 2_001
    values[20:26, 44:48] = 9_002
    values[50:56, 10:20] = 6_003
    values[60:, :] = 0
    values[40:44, 60:70] = 2_000
    values[30:32, 90:92] = 3_004
    return values


def laser_label(name: str, kind: int, box: tuple[float, ...]) -> LaserLabel:
    return LaserLabel(np.array(box), kind, name, 10, 8, 0, 0, np.zeros(3), np.zeros(3))


def without_labels(record: WaymoRecord) -> WaymoRecord:
    """Return the frame with 2D boxes as its only labels."""
    lidars = tuple(
        replace(lidar, returns=tuple(None if one is None else replace(one, segmentation=None) for one in lidar.returns))
        for lidar in record.lidars
    )
    cameras = tuple(replace(camera, panoptic=None) for camera in record.cameras)
    return replace(record, lidars=lidars, cameras=cameras, laser_labels=None)
