"""Waymo v1, a TFRecord file of `Frame` messages per segment: found, read and written without TensorFlow.

`index_segment` looks at a few bytes per frame and leaves the payloads alone; `read_record` gives one frame as the data
set recorded it; `write_segment` (in `v1_write.py`) makes files that the official readers accept. Messages are the
official package's own; range images, which make up most of a frame, are decoded from bytes (`wire.py`). Not here:
maps, keypoints, range image flow, points (`frame.py`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from mwsis.core.errors import DataError
from mwsis.data.waymo.messages import dataset_pb2
from mwsis.data.waymo.record import (
    Array,
    CameraBox,
    CameraName,
    CameraRecord,
    IndexedFrame,
    LaserLabel,
    LidarName,
    LidarRecord,
    LidarReturn,
    PanopticLabel,
    WaymoRecord,
)
from mwsis.data.waymo.tfrecord import read_at, record_spans
from mwsis.data.waymo.v1_write import (
    BOX,
    MATRICES,
    POSE,
    PROJECTION,
    SEGMENTATION,
    VALUES,
    VELOCITY,
    encode_record,
    write_segment,
)
from mwsis.data.waymo.wire import Buffer, content_of, decode_matrix, fields, varint

__all__ = ["DECODE_THREADS", "encode_record", "index_segment", "read_record", "write_segment"]

DECODE_THREADS = min(4, os.cpu_count() or 1)
"""Range images inflated at once; zlib lets other threads run."""

# Field numbers of the messages Frame, Context, CameraImage, CameraSegmentationLabel, Laser and RangeImage.
CONTEXT, TIMESTAMP, IMAGES, LASERS = 1, 2, 4, 5
CONTEXT_NAME = 1
PANOPTIC_PNG = (10, 2)
LASER_NAME = 1
FIRST_SEGMENTATION = (2, 6)

NUM_INTRINSICS = 9

Name = TypeVar("Name", bound=IntEnum)


# ---------------------------------------------------------------------------------------------------------------------
# Index
# ---------------------------------------------------------------------------------------------------------------------


def index_segment(path: Path) -> list[IndexedFrame]:
    """Return the frames of a file in its order, without parsing or even reading most of it.

    Of each record the length's checksum is verified, not the payload's; `read_record` does that. O(fields) per frame.

    Args:
        path: a segment of the data set, uncompressed.

    Raises:
        DataError: the file is missing, empty, truncated, or no TFRecord file, a record is no `Frame` or has no name or
            time, or two frames have the same.
    """
    spans = list(record_spans(path))
    if not spans:
        raise DataError(f"{path}: expected at least one frame, got an empty file")
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        frames = [_indexed(path, number, content, *span) for number, span in enumerate(spans)]
    times = Counter((frame.segment, frame.timestamp_micros) for frame in frames)
    (_, time), count = times.most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: frame {time}: timestamp_micros: expected different times, got this one {count} times")
    return frames


def _indexed(path: Path, number: int, content: Buffer, offset: int, length: int) -> IndexedFrame:
    segment, time, labelled, panoptic = "", 0, False, False
    try:
        for field, _, start, stop in fields(content, offset, offset + length):
            if field == CONTEXT:
                span = content_of(content, start, stop, CONTEXT_NAME) or (0, 0)
                segment = bytes(content[slice(*span)]).decode()
            elif field == TIMESTAMP:
                time, _ = varint(content, start, stop)
            elif field == IMAGES:
                panoptic = panoptic or _is_filled(content_of(content, start, stop, *PANOPTIC_PNG))
            elif field == LASERS and _is_top(content, start, stop):
                labelled = _is_filled(content_of(content, start, stop, *FIRST_SEGMENTATION))
    except ValueError as error:
        raise DataError(f"{path}: record {number}: expected a Frame message, got {error}") from None
    if not segment or not time:
        missing = "context.name" if not segment else "timestamp_micros"
        raise DataError(f"{path}: record {number}: {missing}: expected a value, got none; is this a file of v1 frames?")
    return IndexedFrame(segment, time, offset, length, labelled, panoptic)


def _is_top(content: Buffer, start: int, stop: int) -> bool:
    span = content_of(content, start, stop, LASER_NAME)
    return span is not None and varint(content, *span)[0] == LidarName.TOP


def _is_filled(span: tuple[int, int] | None) -> bool:
    return span is not None and span[1] > span[0]


# ---------------------------------------------------------------------------------------------------------------------
# One frame
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where errors happen."""

    path: Path
    frame: str

    def error(self, field: str, problem: str) -> DataError:
        return DataError(f"{self.path}: {self.frame}: {field}: {problem}")


def read_record(path: Path, entry: IndexedFrame, lidars: Collection[int] | None = None) -> WaymoRecord:
    """Return one frame, images still encoded, range images as arrays; both checksums of its record are verified.

    What the file does not hold is ``None``; `WaymoRecord.missing` says so in words. A frame without 3D boxes counts as
    labelled if it has an entry of projected boxes, which labelled frames have for every camera even where it is empty.

    Args:
        path: the file that was indexed.
        entry: a frame of `index_segment`.
        lidars: decode the range images of these only (`LidarName`), the others keep their calibration; None decodes
            all, `DECODE_THREADS` at a time.

    Raises:
        DataError: the record is damaged or not the one indexed, a camera or LiDAR has an unknown name, no calibration
            or appears twice, a label has an unknown type, or a range image is damaged or of the wrong shape.

    Source: Waymo Open Dataset, ``dataset.proto`` and ``label.proto`` of release 1.6.
    """
    place = _Place(path, f"frame {entry.timestamp_micros}")
    payload = read_at(path, entry.offset, entry.length, place.frame)
    try:
        frame = dataset_pb2.Frame.FromString(payload)
    except DecodeError:
        raise place.error("record", "expected a Frame message, got other bytes") from None
    if (frame.context.name, frame.timestamp_micros) != (entry.segment, entry.timestamp_micros):
        got = f"{frame.context.name} at {frame.timestamp_micros}"
        raise place.error("record", f"expected segment {entry.segment}, got {got}; the file was changed")
    labelled = frame.laser_labels or frame.projected_lidar_labels
    stats = frame.context.stats
    return WaymoRecord(
        segment=frame.context.name,
        timestamp_micros=frame.timestamp_micros,
        world_SE3_vehicle=_transform(place, frame.pose, "pose"),
        lidars=_lidars(place, frame, lidars),
        cameras=_cameras(place, frame),
        laser_labels=tuple(_laser_label(place, label) for label in frame.laser_labels) if labelled else None,
        no_label_zones=tuple(_zone(place, polygon) for polygon in frame.no_label_zones),
        time_of_day=stats.time_of_day,
        location=stats.location,
        weather=stats.weather,
    )


def _transform(place: _Place, message: Any, field: str) -> Array:
    if len(message.transform) != 16:
        raise place.error(field, f"expected 16 numbers, got {len(message.transform)}")
    return np.array(message.transform, np.float64).reshape(4, 4)


def _zone(place: _Place, polygon: Any) -> Array:
    if len(polygon.x) != len(polygon.y):
        raise place.error("no_label_zones", f"expected as many x as y, got {len(polygon.x)} and {len(polygon.y)}")
    return np.stack([np.array(polygon.x, np.float64), np.array(polygon.y, np.float64)], 1)


def _by_name(place: _Place, messages: Iterable[Any], names: type[Name], field: str) -> dict[Name, Any]:
    """Return messages by their ``name``; empty ones, which a stripped file may hold, are left out."""
    found: dict[Name, Any] = {}
    for message in messages:
        if not message.ListFields():
            continue
        if message.name not in set(names) - {0}:
            known = ", ".join(f"{name.value} {name.name}" for name in names if name)
            raise place.error(f"{field}.name", f"expected one of {known}, got {message.name} or an unknown number")
        name = names(message.name)
        if name in found:
            raise place.error(field, f"expected {name.name} once, got it twice")
        found[name] = message
    return found


def _require_calibrated(
    place: _Place, calibrations: Mapping[Name, Any], messages: Mapping[Name, Any], field: str
) -> None:
    for name in messages:
        if name not in calibrations:
            raise place.error(f"{field} {name.name}", "expected a calibration of the same name, got none")


# ---------------------------------------------------------------------------------------------------------------------
# Cameras and labels
# ---------------------------------------------------------------------------------------------------------------------


def _cameras(place: _Place, frame: Any) -> tuple[CameraRecord, ...]:
    calibrations = _by_name(place, frame.context.camera_calibrations, CameraName, "camera_calibrations")
    fields_by_camera = {
        field: _by_name(place, getattr(frame, field), CameraName, field)
        for field in ("images", "camera_labels", "projected_lidar_labels")
    }
    for field, messages in fields_by_camera.items():
        _require_calibrated(place, calibrations, messages, field)
    images, drawn, projected = fields_by_camera.values()
    return tuple(
        CameraRecord(
            **_camera_calibration(place, name, calibration),
            **(_image(place, name, images[name]) if name in images else {}),
            boxes=_camera_boxes(place, drawn.get(name), f"camera_labels {name.name}"),
            projected=_camera_boxes(place, projected.get(name), f"projected_lidar_labels {name.name}"),
        )
        for name, calibration in calibrations.items()
    )


def _camera_calibration(place: _Place, name: CameraName, calibration: Any) -> dict[str, Any]:
    field = f"camera_calibrations {name.name}"
    if len(calibration.intrinsic) != NUM_INTRINSICS:
        got = len(calibration.intrinsic)
        raise place.error(f"{field} intrinsic", f"expected {NUM_INTRINSICS} numbers, got {got}")
    return {
        "name": int(name),
        "width": calibration.width,
        "height": calibration.height,
        "intrinsics": np.array(calibration.intrinsic, np.float64),
        "vehicle_SE3_camera": _transform(place, calibration.extrinsic, f"{field} extrinsic"),
        "shutter_direction": calibration.rolling_shutter_direction,
    }


def _image(place: _Place, name: CameraName, image: Any) -> dict[str, Any]:
    posed, moving = image.HasField("pose"), image.HasField("velocity")
    velocity = np.array([getattr(image.velocity, axis) for axis in VELOCITY], np.float64)
    return {
        "image": image.image or None,
        "world_SE3_vehicle": _transform(place, image.pose, f"images {name.name} pose") if posed else None,
        "velocity": velocity if moving else None,
        "pose_timestamp": image.pose_timestamp,
        "shutter": image.shutter,
        "trigger_time": image.camera_trigger_time,
        "readout_done_time": image.camera_readout_done_time,
        "panoptic": _panoptic(image.camera_segmentation_label),
    }


def _panoptic(label: Any) -> PanopticLabel | None:
    if not label.panoptic_label:
        return None
    mapping = label.instance_id_to_global_id_mapping
    return PanopticLabel(
        png=label.panoptic_label,
        divisor=label.panoptic_label_divisor,
        local_ids=tuple(pair.local_instance_id for pair in mapping),
        global_ids=tuple(pair.global_instance_id for pair in mapping),
        is_tracked=tuple(pair.is_tracked for pair in mapping),
        sequence_id=label.sequence_id,
        num_cameras_covered=label.num_cameras_covered,
    )


def _camera_boxes(place: _Place, labels: Any | None, field: str) -> tuple[CameraBox, ...] | None:
    if labels is None:
        return None
    return tuple(
        CameraBox(
            center_x=label.box.center_x,
            center_y=label.box.center_y,
            length=label.box.length,
            width=label.box.width,
            type=_type(place, label, field),
            id=label.id,
            detection_difficulty=label.detection_difficulty_level,
            tracking_difficulty=label.tracking_difficulty_level,
            laser_object_id=label.association.laser_object_id,
        )
        for label in labels.labels
    )


def _laser_label(place: _Place, label: Any) -> LaserLabel:
    speed, acceleration = (
        np.array([getattr(label.metadata, f"{quantity}_{axis}") for axis in "xyz"], np.float64)
        for quantity in ("speed", "accel")
    )
    return LaserLabel(
        box=_box(label.box),
        type=_type(place, label, "laser_labels"),
        id=label.id,
        num_points=label.num_lidar_points_in_box,
        num_top_points=label.num_top_lidar_points_in_box,
        detection_difficulty=label.detection_difficulty_level,
        tracking_difficulty=label.tracking_difficulty_level,
        speed=speed,
        acceleration=acceleration,
        most_visible_camera=label.most_visible_camera_name,
        camera_synced_box=_box(label.camera_synced_box) if label.HasField("camera_synced_box") else None,
    )


def _box(box: Any) -> Array:
    return np.array([getattr(box, name) for name in BOX], np.float64)


def _type(place: _Place, label: Any, field: str) -> int:
    """Return the class of a box; the messages drop numbers they do not know."""
    if not label.HasField("type"):
        raise place.error(f"{field} {label.id} type", "expected a number from 0 to 4, got none or another")
    return int(label.type)


# ---------------------------------------------------------------------------------------------------------------------
# LiDARs
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Image:
    """One channel group of one return, still compressed."""

    lidar: LidarName
    number: int
    field: str
    compressed: bytes

    def __str__(self) -> str:
        return f"lasers {self.lidar.name} ri_return{self.number} {self.field}"


def _lidars(place: _Place, frame: Any, wanted: Collection[int] | None) -> tuple[LidarRecord, ...]:
    calibrations = _by_name(place, frame.context.laser_calibrations, LidarName, "laser_calibrations")
    lasers = _by_name(place, frame.lasers, LidarName, "lasers")
    _require_calibrated(place, calibrations, lasers, "lasers")
    images = [
        _Image(name, number, field, compressed)
        for name, laser in lasers.items()
        if wanted is None or name in wanted
        for number, scan in enumerate((laser.ri_return1, laser.ri_return2), 1)
        for field in MATRICES
        if (compressed := getattr(scan, field))
    ]
    decoded = _decoded(place, images)
    return tuple(_lidar(place, name, calibration, decoded) for name, calibration in calibrations.items())


def _decoded(place: _Place, images: list[_Image]) -> dict[tuple[int, int, str], Array]:
    """Return the arrays by LiDAR, return and field; large images first, so that threads end together."""
    images = sorted(images, key=lambda image: len(image.compressed), reverse=True)
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        arrays = list(pool.map(lambda image: _array(place, image), images))
    return {(image.lidar, image.number, image.field): array for image, array in zip(images, arrays, strict=True)}


def _array(place: _Place, image: _Image) -> Array:
    dtype, channels = MATRICES[image.field]
    try:
        array = decode_matrix(image.compressed, dtype)
    except ValueError as error:
        raise place.error(str(image), str(error)) from None
    if array.ndim != 3 or array.shape[2] != channels:
        raise place.error(str(image), f"expected (rows, columns, {channels}), got {array.shape}")
    return array


def _lidar(
    place: _Place, name: LidarName, calibration: Any, decoded: Mapping[tuple[int, int, str], Array]
) -> LidarRecord:
    beams = np.array(calibration.beam_inclinations, np.float64)
    first, second = (_return(place, name, number, decoded) for number in (1, 2))
    pose = decoded.get((name, 1, POSE))
    if first is not None and pose is not None and pose.shape[:2] != first.values.shape[:2]:
        problem = f"expected rows and columns {first.values.shape[:2]} as in {VALUES}, got {pose.shape[:2]}"
        raise place.error(f"lasers {name.name} ri_return1 {POSE}", problem)
    return LidarRecord(
        name=int(name),
        vehicle_SE3_lidar=_transform(place, calibration.extrinsic, f"laser_calibrations {name.name} extrinsic"),
        inclinations=beams if len(beams) else None,
        inclination_min=calibration.beam_inclination_min,
        inclination_max=calibration.beam_inclination_max,
        returns=(first, second),
        pixel_pose=pose,
    )


def _return(
    place: _Place, name: LidarName, number: int, decoded: Mapping[tuple[int, int, str], Array]
) -> LidarReturn | None:
    values, *others = (decoded.get((name, number, field)) for field in (VALUES, PROJECTION, SEGMENTATION))
    for field, other in zip((PROJECTION, SEGMENTATION), others, strict=True):
        want = None if values is None else values.shape[:2]
        if other is not None and other.shape[:2] != want:
            problem = f"expected rows and columns {want} as in {VALUES}, got {other.shape[:2]}"
            raise place.error(f"lasers {name.name} ri_return{number} {field}", problem)
    return None if values is None else LidarReturn(values, *others)
