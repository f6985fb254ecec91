"""The tables of Waymo v2: columns, Arrow types, keys, and the names of enum values, as facts.

A segment is one Parquet file per table, ``<root>/<component>/<segment>.parquet``. Columns are called ``key.<field>`` or
``[<Component>].<field>``; the rest of this project uses `short_name`, which leaves the bracket out. Files in the wild
differ: names where the format says numbers, float32 where it says float64; `fits` says what is accepted. Next:
`v2_table.py`, which opens the files.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pyarrow as pa

from mwsis.data.waymo.record import CameraName, LabelType, LidarName

__all__ = [
    "BOX_PARTS",
    "ENUMS",
    "FRAME",
    "INTRINSICS",
    "MAPPING",
    "ROW_NAME",
    "SCHEMAS",
    "SEGMENT",
    "VELOCITY",
    "fits",
    "is_nullable",
    "needed_columns",
    "short_name",
]

SEGMENT = "key.segment_context_name"
FRAME = "key.frame_timestamp_micros"
F32, F64, INT8, INT32, INT64 = pa.float32(), pa.float64(), pa.int8(), pa.int32(), pa.int64()
TEXT, BINARY = pa.string(), pa.binary()
TRANSFORM, SHAPE = pa.list_(F64, 16), pa.list_(INT32, 3)
KEY_TYPES = {"camera_name": INT8, "laser_name": INT8, "camera_object_id": TEXT, "laser_object_id": TEXT}
BOX_2D = "box.center.x box.center.y box.size.x box.size.y"
DIFFICULTY = "difficulty_level.detection difficulty_level.tracking"
MAPPING = "instance_id_to_global_id_mapping"
"""What the columns of global instance ids begin with."""
INTRINSICS = tuple(f"intrinsic.{part}" for part in ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3"))
VELOCITY = tuple(f"velocity.{kind}_velocity.{axis}" for kind in ("linear", "angular") for axis in "xyz")
"""Columns of the numbers of `CameraRecord.velocity`."""
BOX_PARTS = ("center.x", "center.y", "center.z", "size.x", "size.y", "size.z", "heading")
"""Columns of the numbers of `LaserLabel.box`, to be put behind the name of the box."""


def _schema(component: str, keys: str, *fields: tuple[pa.DataType, str]) -> pa.Schema:
    """Return the schema of a table with a row per frame and ``keys``; fields are types with their columns."""
    columns = [(SEGMENT, TEXT), (FRAME, INT64), *((f"key.{key}", KEY_TYPES[key]) for key in keys.split())]
    columns += [(f"[{component}].{name}", kind) for kind, names in fields for name in names.split()]
    return pa.schema(columns)


def _per_segment(schema: pa.Schema) -> pa.Schema:
    return schema.remove(schema.get_field_index(FRAME))


def _box_3d(name: str) -> str:
    return " ".join(f"{name}.{part}" for part in BOX_PARTS)


def _range_images(values: pa.DataType, returns: int = 2) -> list[tuple[pa.DataType, str]]:
    images = [f"range_image_return{number + 1}" for number in range(returns)]
    return [field for image in images for field in ((pa.list_(values), f"{image}.values"), (SHAPE, f"{image}.shape"))]


SCHEMAS: dict[str, pa.Schema] = {
    "vehicle_pose": _schema("VehiclePoseComponent", "", (TRANSFORM, "world_from_vehicle.transform")),
    "lidar": _schema("LiDARComponent", "laser_name", *_range_images(F32)),
    "lidar_camera_projection": _schema("LiDARCameraProjectionComponent", "laser_name", *_range_images(F32)),
    "lidar_pose": _schema("LiDARPoseComponent", "laser_name", *_range_images(F32, returns=1)),
    "lidar_segmentation": _schema("LiDARSegmentationLabelComponent", "laser_name", *_range_images(INT32)),
    "camera_image": _schema(
        "CameraImageComponent",
        "camera_name",
        (BINARY, "image"),
        (TRANSFORM, "pose.transform"),
        (F32, " ".join(VELOCITY[:3])),
        (F64, " ".join(VELOCITY[3:])),
        (F64, "pose_timestamp rolling_shutter_params.shutter rolling_shutter_params.camera_trigger_time"),
        (F64, "rolling_shutter_params.camera_readout_done_time"),
    ),
    "camera_segmentation": _schema(
        "CameraSegmentationLabelComponent",
        "camera_name",
        (INT32, "panoptic_label_divisor"),
        (BINARY, "panoptic_label"),
        (pa.list_(INT32), f"{MAPPING}.local_instance_ids {MAPPING}.global_instance_ids"),
        (pa.list_(pa.bool_()), f"{MAPPING}.is_tracked"),
        (TEXT, "sequence_id"),
        (BINARY, "num_cameras_covered"),
    ),
    "camera_box": _schema(
        "CameraBoxComponent", "camera_name camera_object_id", (F64, BOX_2D), (INT8, f"type {DIFFICULTY}")
    ),
    "projected_lidar_box": _schema(
        "ProjectedLiDARBoxComponent", "camera_name laser_object_id", (F64, BOX_2D), (INT8, "type")
    ),
    "camera_to_lidar_box_association": _schema(
        "CameraToLiDARBoxAssociationComponent", "camera_name camera_object_id laser_object_id"
    ),
    "lidar_box": _schema(
        "LiDARBoxComponent",
        "laser_object_id",
        (F64, _box_3d("box")),
        (INT8, "type"),
        (INT64, "num_lidar_points_in_box num_top_lidar_points_in_box"),
        (F64, "speed.x speed.y speed.z acceleration.x acceleration.y acceleration.z"),
        (INT8, DIFFICULTY),
    ),
    "lidar_camera_synced_box": _schema(
        "LiDARCameraSyncedBoxComponent",
        "laser_object_id",
        (INT8, "most_visible_camera_name"),
        (F64, _box_3d("camera_synced_box")),
    ),
    "stats": _schema(
        "StatsComponent",
        "",
        (TEXT, "time_of_day location weather"),
        (pa.list_(INT8), "lidar_object_counts.types"),
        (pa.list_(INT32), "lidar_object_counts.counts"),
        (pa.list_(INT8), "camera_object_counts.types"),
        (pa.list_(INT32), "camera_object_counts.counts"),
    ),
    "camera_calibration": _per_segment(
        _schema(
            "CameraCalibrationComponent",
            "camera_name",
            (F64, " ".join(INTRINSICS)),
            (TRANSFORM, "extrinsic.transform"),
            (INT32, "width height"),
            (INT8, "rolling_shutter_direction"),
        )
    ),
    "lidar_calibration": _per_segment(
        _schema(
            "LiDARCalibrationComponent",
            "laser_name",
            (TRANSFORM, "extrinsic.transform"),
            (F64, "beam_inclination.min beam_inclination.max"),
            (pa.list_(F64), "beam_inclination.values"),
        )
    ),
}
"""Columns of every table in their order; those without `FRAME` hold for a whole segment."""

ROW_NAME = {
    **dict.fromkeys(("lidar", "lidar_camera_projection", "lidar_pose", "lidar_segmentation"), "key.laser_name"),
    **dict.fromkeys(("camera_image", "camera_segmentation"), "key.camera_name"),
}
"""Tables of large rows, one per frame and sensor, and the column that names the sensor."""

UNUSED = ("lidar_object_counts.", "camera_object_counts.")
NULLABLE = (
    "range_image_return", "beam_inclination.values", "num_cameras_covered", MAPPING, "sequence_id", "speed.",
    "acceleration.", "difficulty_level.", "most_visible_camera_name", "camera_synced_box.", "time_of_day", "location",
    "weather",
)  # fmt: skip
"""Beginnings of the columns that may be null; everything else must have a value in every row."""


def _numbers(names: type[IntEnum], prefix: str = "") -> dict[str, int]:
    return {prefix + member.name: int(member) for member in names}


_SHUTTERS = ("UNKNOWN", "TOP_TO_BOTTOM", "LEFT_TO_RIGHT", "BOTTOM_TO_TOP", "RIGHT_TO_LEFT", "GLOBAL_SHUTTER")
_LEVELS = {"UNKNOWN": 0, "LEVEL_1": 1, "LEVEL_2": 2}
ENUMS: dict[str, dict[str, int]] = {
    "key.camera_name": _numbers(CameraName),
    "key.laser_name": _numbers(LidarName),
    "type": _numbers(LabelType) | _numbers(LabelType, "TYPE_"),
    "difficulty_level.detection": _LEVELS,
    "difficulty_level.tracking": _LEVELS,
    "most_visible_camera_name": _numbers(CameraName),
    "rolling_shutter_direction": {name: number for number, name in enumerate(_SHUTTERS)},
}
"""Short names of the enum columns, and the number of each name that files of an older release hold instead."""


def short_name(column: str) -> str:
    """Return a column's name without the component: ``[CameraBoxComponent].type`` is ``type``; keys stay."""
    return column.partition("].")[2] or column


def needed_columns(component: str) -> list[str]:
    """Return the full names of the columns that reading a table requires."""
    return [name for name in SCHEMAS[component].names if name != SEGMENT and not short_name(name).startswith(UNUSED)]


def is_nullable(short: str) -> bool:
    """Return whether a column may be null."""
    return short.startswith(NULLABLE)


def fits(short: str, expected: pa.DataType, actual: pa.DataType) -> bool:
    """Return whether a column of another type than the format's says the same.

    Accepted: names of enum values as text, either float width, any integer width but int64 for timestamps, large text,
    bytes and lists.

    Args:
        short: name of the column, see `short_name`.
        expected: type in `SCHEMAS`.
        actual: type in the file.
    """
    if short == FRAME:
        return bool(actual == INT64)
    if short in ENUMS and _is_text(actual):
        return True
    if pa.types.is_fixed_size_list(expected):
        same_size = pa.types.is_fixed_size_list(actual) and actual.list_size == expected.list_size
        return same_size and _same_kind(expected.value_type, actual.value_type)
    if pa.types.is_list(expected):
        return _is_list(actual) and _same_kind(expected.value_type, actual.value_type)
    return _same_kind(expected, actual)


def _same_kind(expected: pa.DataType, actual: pa.DataType) -> bool:
    if pa.types.is_floating(expected):
        return actual in (F32, F64)
    if pa.types.is_integer(expected):
        return bool(pa.types.is_integer(actual))
    if expected == TEXT:
        return _is_text(actual)
    if expected == BINARY:
        return bool(pa.types.is_binary(actual) or pa.types.is_large_binary(actual))
    return bool(actual == expected)


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
