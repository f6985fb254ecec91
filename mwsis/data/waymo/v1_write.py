"""Waymo v1 files from records: the inverse of `v1.py`, in the shape that the official readers expect.

Range images are serialised matrices in zlib streams, pixel poses belong to the first return only, 2D boxes have centre,
length and width and nothing else, 3D boxes all seven numbers. The counts of objects in ``context.stats`` follow from
the labels.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mwsis.data.waymo.messages import dataset_pb2
from mwsis.data.waymo.record import Array, CameraBox, CameraRecord, LaserLabel, LidarRecord, LidarReturn, WaymoRecord
from mwsis.data.waymo.tfrecord import write_tfrecord

__all__ = ["encode_record", "write_segment"]

VALUES, PROJECTION, SEGMENTATION, POSE = (
    "range_image_compressed", "camera_projection_compressed", "segmentation_label_compressed",
    "range_image_pose_compressed",
)  # fmt: skip
MATRICES: dict[str, tuple[type[np.float32] | type[np.int32], int]] = {
    VALUES: (np.float32, 4),
    PROJECTION: (np.int32, 6),
    SEGMENTATION: (np.int32, 2),
    POSE: (np.float32, 6),
}
"""Fields of a return with the dtype and the channels of their images."""
BOX = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")
VELOCITY = ("v_x", "v_y", "v_z", "w_x", "w_y", "w_z")


def write_segment(path: Path, records: Iterable[WaymoRecord]) -> None:
    """Write a segment, atomically: a reader sees the old file or the complete new one.

    Args:
        path: the ``.tfrecord`` file to write or replace.
        records: of one segment, in order of time; consumed one at a time.
    """
    write_tfrecord(path, map(encode_record, records))


def encode_record(record: WaymoRecord) -> bytes:
    """Return a record as a serialised ``Frame``, the same bytes for the same record.

    What v1 cannot tell apart comes back from `read_record` in one form: ``no_label_zones=None`` as no polygons;
    ``laser_labels=()`` as ``None`` unless a camera has ``projected``; linear velocities rounded to float32.

    Args:
        record: arrays of the dtypes and shapes that `WaymoRecord` promises.
    """
    frame = dataset_pb2.Frame(timestamp_micros=record.timestamp_micros)
    frame.context.name = record.segment
    frame.pose.transform.extend(record.world_SE3_vehicle.ravel().tolist())
    _add_stats(frame.context.stats, record)
    for camera in record.cameras:
        _add_camera(frame, camera)
    for lidar in record.lidars:
        _add_lidar(frame, lidar)
    for label in record.laser_labels or ():
        _add_laser_label(frame.laser_labels.add(), label)
    for polygon in record.no_label_zones or ():
        zone = frame.no_label_zones.add()
        zone.x.extend(polygon[:, 0].tolist())
        zone.y.extend(polygon[:, 1].tolist())
    content: bytes = frame.SerializeToString(deterministic=True)
    return content


def _add_stats(stats: Any, record: WaymoRecord) -> None:
    for field in ("time_of_day", "location", "weather"):
        if text := getattr(record, field):
            setattr(stats, field, text)
    for messages, counts in zip(
        (stats.laser_object_counts, stats.camera_object_counts), record.object_counts(), strict=True
    ):
        for kind, count in counts.items():
            messages.add(type=kind, count=count)


# ---------------------------------------------------------------------------------------------------------------------
# Cameras and labels
# ---------------------------------------------------------------------------------------------------------------------


def _add_camera(frame: Any, camera: CameraRecord) -> None:
    calibration = frame.context.camera_calibrations.add(
        name=camera.name,
        width=camera.width,
        height=camera.height,
        rolling_shutter_direction=camera.shutter_direction,
        intrinsic=camera.intrinsics.tolist(),
    )
    calibration.extrinsic.transform.extend(camera.vehicle_SE3_camera.ravel().tolist())
    if any(part is not None for part in (camera.image, camera.world_SE3_vehicle, camera.panoptic)):
        _add_image(frame.images.add(name=camera.name), camera)
    for messages, boxes in ((frame.camera_labels, camera.boxes), (frame.projected_lidar_labels, camera.projected)):
        if boxes is not None:
            labels = messages.add(name=camera.name).labels
            for box in boxes:
                _add_camera_box(labels.add(), box)


def _add_image(image: Any, camera: CameraRecord) -> None:
    image.pose_timestamp = camera.pose_timestamp
    image.shutter = camera.shutter
    image.camera_trigger_time = camera.trigger_time
    image.camera_readout_done_time = camera.readout_done_time
    if camera.image is not None:
        image.image = camera.image
    if camera.world_SE3_vehicle is not None:
        image.pose.transform.extend(camera.world_SE3_vehicle.ravel().tolist())
    if camera.velocity is not None:
        _set(image.velocity, VELOCITY, camera.velocity)
    if camera.panoptic is not None:
        _add_panoptic(image.camera_segmentation_label, camera)


def _add_panoptic(label: Any, camera: CameraRecord) -> None:
    panoptic = camera.panoptic
    assert panoptic is not None
    label.panoptic_label = panoptic.png
    label.panoptic_label_divisor = panoptic.divisor
    label.sequence_id = panoptic.sequence_id
    if panoptic.num_cameras_covered:
        label.num_cameras_covered = panoptic.num_cameras_covered
    for local, shared, tracked in zip(panoptic.local_ids, panoptic.global_ids, panoptic.is_tracked, strict=True):
        label.instance_id_to_global_id_mapping.add(
            local_instance_id=local, global_instance_id=shared, is_tracked=tracked
        )


def _add_camera_box(label: Any, box: CameraBox) -> None:
    _set(label.box, ("center_x", "center_y", "length", "width"), (box.center_x, box.center_y, box.length, box.width))
    _set_kind(label, box)
    if box.laser_object_id:
        label.association.laser_object_id = box.laser_object_id


def _add_laser_label(label: Any, made: LaserLabel) -> None:
    _set(label.box, BOX, made.box)
    _set(label.metadata, ("speed_x", "speed_y", "speed_z"), made.speed)
    _set(label.metadata, ("accel_x", "accel_y", "accel_z"), made.acceleration)
    _set_kind(label, made)
    label.num_lidar_points_in_box = made.num_points
    label.num_top_lidar_points_in_box = made.num_top_points
    if made.most_visible_camera:
        label.most_visible_camera_name = made.most_visible_camera
    if made.camera_synced_box is not None:
        _set(label.camera_synced_box, BOX, made.camera_synced_box)


def _set_kind(label: Any, made: CameraBox | LaserLabel) -> None:
    """Set class, id and difficulties; unknown difficulties stay unset, as in the data set."""
    label.type = made.type
    label.id = made.id
    if made.detection_difficulty:
        label.detection_difficulty_level = made.detection_difficulty
    if made.tracking_difficulty:
        label.tracking_difficulty_level = made.tracking_difficulty


def _set(message: Any, names: Iterable[str], values: Iterable[float]) -> None:
    for name, value in zip(names, values, strict=True):
        setattr(message, name, float(value))


# ---------------------------------------------------------------------------------------------------------------------
# LiDARs
# ---------------------------------------------------------------------------------------------------------------------


def _add_lidar(frame: Any, lidar: LidarRecord) -> None:
    calibration = frame.context.laser_calibrations.add(
        name=lidar.name,
        beam_inclination_min=lidar.inclination_min,
        beam_inclination_max=lidar.inclination_max,
        beam_inclinations=[] if lidar.inclinations is None else lidar.inclinations.tolist(),
    )
    calibration.extrinsic.transform.extend(lidar.vehicle_SE3_lidar.ravel().tolist())
    if lidar.returns == (None, None) and lidar.pixel_pose is None:
        return
    laser = frame.lasers.add(name=lidar.name)
    for scan, made in zip((laser.ri_return1, laser.ri_return2), lidar.returns, strict=True):
        if made is not None:
            _add_return(scan, made)
    if lidar.pixel_pose is not None:
        laser.ri_return1.range_image_pose_compressed = _compressed(POSE, lidar.pixel_pose)


def _add_return(scan: Any, made: LidarReturn) -> None:
    for field, array in ((VALUES, made.values), (PROJECTION, made.projection), (SEGMENTATION, made.segmentation)):
        if array is not None:
            setattr(scan, field, _compressed(field, array))


def _compressed(field: str, array: Array) -> bytes:
    dtype, channels = MATRICES[field]
    assert array.dtype == dtype, (field, array.dtype)
    assert array.shape[2:] == (channels,), (field, array.shape)
    matrix = dataset_pb2.MatrixFloat() if dtype is np.float32 else dataset_pb2.MatrixInt32()
    matrix.data.extend(array.ravel().tolist())
    matrix.shape.dims.extend(array.shape)
    return zlib.compress(matrix.SerializeToString())
