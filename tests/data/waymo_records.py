"""Small made-up Waymo records, and what makes two of them equal."""

from __future__ import annotations

import io
from dataclasses import fields, is_dataclass, replace
from typing import Any

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

SEGMENT = "100_0_120_0"
TIME = 1_550_000_000_000_000


def make_record(number: int = 0) -> WaymoRecord:
    """Return a frame with everything: TOP (4, 8) with pose and labels, FRONT (3, 5), two cameras."""
    rng = np.random.default_rng(number)
    return WaymoRecord(
        segment=SEGMENT,
        timestamp_micros=TIME + 100_000 * number,
        world_SE3_vehicle=_pose(rng),
        lidars=(_front(rng), _top(rng)),
        cameras=tuple(_camera(rng, name) for name in (CameraName.SIDE_LEFT, CameraName.FRONT)),
        laser_labels=(_label(rng, "car", "FRONT", synced=True), _label(rng, "walker", "", synced=False)),
        time_of_day="Day",
        location="location_sf",
        weather="sunny",
    )


def make_poor_record(number: int) -> WaymoRecord:
    """Return the frame without labels of pixels and points, second returns, links, and one image."""
    record = make_record(number)
    lidars = []
    for lidar in record.lidars:
        first = lidar.returns[0]
        assert first is not None
        lidars.append(replace(lidar, returns=(replace(first, segmentation=None), None)))
    cameras = [replace(camera, panoptic=None, boxes=()) for camera in record.cameras]
    cameras[0] = replace(bare(cameras[0]), boxes=(), projected=())
    return replace(record, lidars=tuple(lidars), cameras=tuple(cameras), laser_labels=())


def bare(camera: CameraRecord) -> CameraRecord:
    """Return the calibration alone."""
    return CameraRecord(
        camera.name, camera.width, camera.height, camera.intrinsics, camera.vehicle_SE3_camera, camera.shutter_direction
    )


def difference(first: Any, second: Any, where: str = "record") -> str:
    """Return where two records differ, "" if nowhere; arrays must agree bit for bit, in dtype and in shape."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        same = (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
        return "" if same else f"{where}: {first!r} {second!r}"
    if is_dataclass(first) and type(first) is type(second):
        parts = [(getattr(first, f.name), getattr(second, f.name), f"{where}.{f.name}") for f in fields(first)]
    elif isinstance(first, tuple) and isinstance(second, tuple) and len(first) == len(second):
        parts = [(a, b, f"{where}[{index}]") for index, (a, b) in enumerate(zip(first, second, strict=True))]
    else:
        same = not isinstance(first, np.ndarray) and not isinstance(second, np.ndarray) and first == second
        return "" if same else f"{where}: {first!r} {second!r}"
    return next((found for a, b, name in parts if (found := difference(a, b, name))), "")


def _pose(rng: np.random.Generator) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3] = rng.normal((0, 0, 0, 25_000.1), size=(3, 4))
    return matrix


def _returns(rng: np.random.Generator, rows: int, columns: int, labels: bool) -> tuple[LidarReturn, LidarReturn]:
    def one() -> LidarReturn:
        values = rng.normal(size=(rows, columns, 4)).astype(np.float32)
        values[0, 0] = -1
        projection = rng.integers(0, 1920, (rows, columns, 6)).astype(np.int32)
        segmentation = rng.integers(0, 23, (rows, columns, 2)).astype(np.int32) if labels else None
        return LidarReturn(values, projection, segmentation)

    return one(), one()


def _top(rng: np.random.Generator) -> LidarRecord:
    pose = rng.normal(size=(4, 8, 6)).astype(np.float32)
    inclinations = np.array([-0.3, -0.1, 0.0, 0.04])
    return LidarRecord(LidarName.TOP, np.eye(4) * 2, inclinations, -0.31, 0.05, _returns(rng, 4, 8, True), pose)


def _front(rng: np.random.Generator) -> LidarRecord:
    limits = (-np.pi / 2, np.pi / 6)
    return LidarRecord(LidarName.FRONT, np.eye(4) * 3, None, *limits, _returns(rng, 3, 5, False), None)


def _camera(rng: np.random.Generator, name: CameraName) -> CameraRecord:
    encoded = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8)).save(encoded, "JPEG")
    sizes = [CameraBox(*rng.uniform(1, 99, 4), LabelType.PEDESTRIAN, f"{name.name}-{k}", 2, 1) for k in range(2)]
    outline = CameraBox(*rng.uniform(1, 99, 4), LabelType.VEHICLE, f"car_{name.name}")
    panoptic = PanopticLabel(b"png", 1000, (1, 2), (7, 9), (True, False), "sequence", b"covered")
    return CameraRecord(
        name=name,
        width=6,
        height=4,
        intrinsics=np.arange(9.0) + 0.1 * name,
        vehicle_SE3_camera=np.eye(4) + 0.1 * name,
        shutter_direction=2,
        image=encoded.getvalue(),
        world_SE3_vehicle=_pose(rng),
        velocity=np.concatenate([rng.normal(size=3).astype(np.float32).astype(np.float64), rng.normal(size=3)]),
        pose_timestamp=1.55e9 + rng.uniform(),
        shutter=0.003,
        trigger_time=1.55e9 + rng.uniform(),
        readout_done_time=1.55e9 + rng.uniform(),
        boxes=(replace(sizes[0], laser_object_id="walker"), sizes[1]),
        projected=(outline,),
        panoptic=panoptic if name == CameraName.FRONT else None,
    )


def _label(rng: np.random.Generator, name: str, camera: str, synced: bool) -> LaserLabel:
    return LaserLabel(
        box=rng.normal(size=7),
        type=LabelType.VEHICLE,
        id=name,
        num_points=50,
        num_top_points=40,
        detection_difficulty=1,
        tracking_difficulty=2,
        speed=rng.normal(size=3),
        acceleration=rng.normal(size=3),
        most_visible_camera=camera,
        camera_synced_box=rng.normal(size=7) if synced else None,
    )
