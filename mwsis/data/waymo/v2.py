"""Frames of Waymo v2: the Parquet tables of a segment joined into one `WaymoRecord`.

Each table is optional: what it would say is None or empty in the record, and `WaymoRecord.missing` names it. Only the
vehicle's pose must be there. The format does not tell an object-free frame from an unlabelled one: where the table of
labels exists, a frame without rows has none. It has no polygons of no-label zones and no maps. Next: `v2_write.py`, the
other direction, and `v2_table.py` for files.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mwsis.core.errors import DataError, closest_name
from mwsis.data.waymo.record import (
    Array,
    CameraBox,
    CameraName,
    CameraRecord,
    IndexedFrame,
    LabelType,
    LaserLabel,
    LidarName,
    LidarRecord,
    LidarReturn,
    PanopticLabel,
    WaymoRecord,
)
from mwsis.data.waymo.v2_schema import BOX_PARTS, INTRINSICS, MAPPING, VELOCITY
from mwsis.data.waymo.v2_table import ComponentTable, Row, open_table, table_path
from mwsis.data.waymo.v2_write import write_segment

__all__ = ["INDEXING", "index_segment", "list_segments", "read_record", "write_segment"]

INDEXING = ("vehicle_pose", "camera_image", "lidar")
"""Tables that have a row for every frame; the first that is there says which frames exist."""
VALUE_CHANNELS, PROJECTION_CHANNELS, SEGMENTATION_CHANNELS, POSE_CHANNELS = 4, 6, 2, 6


def list_segments(root: Path) -> list[str]:
    """Return the segments of a split, ascending.

    Args:
        root: the folder that holds the component folders, such as ``<data set>/training``.

    Raises:
        DataError: none of the folders that list frames is there.
    """
    for component in INDEXING:
        folder = Path(root) / component
        if folder.is_dir():
            return sorted(path.stem for path in folder.glob("*.parquet") if not path.name.startswith("."))
    raise DataError(f"{root}: no folder '{INDEXING[0]}'; expected the components of Waymo v2, such as training/lidar")


def index_segment(root: Path, segment: str) -> list[IndexedFrame]:
    """Return the frames of a segment in order of time, from the key columns alone.

    Args:
        root: see `list_segments`.
        segment: its name.

    Raises:
        DataError: the segment has none of the tables that list frames, or a table cannot be read or is another's.
    """
    tables = (open_table(root, component, segment) for component in INDEXING)
    table = next((found for found in tables if found is not None), None)
    if table is None:
        known = list_segments(root)
        near = closest_name(segment, known, known[:5])
        raise DataError(f"{table_path(root, INDEXING[0], segment)}: no such file{near}")
    table.check_segment(segment)
    points = open_table(root, "lidar_segmentation", segment)
    pixels = open_table(root, "camera_segmentation", segment)
    with_points = set(points.timestamps(LidarName.TOP)) if points else set()
    with_pixels = set(pixels.timestamps()) if pixels else set()
    return [IndexedFrame(segment, time, 0, 0, time in with_points, time in with_pixels) for time in table.timestamps()]


def read_record(root: Path, entry: IndexedFrame, lidars: Collection[int] | None = None) -> WaymoRecord:
    """Return one frame.

    Outlines of 3D boxes get the id that v1 gives them, ``<3D box>_<camera>``.

    Args:
        root: see `list_segments`.
        entry: of `index_segment`.
        lidars: decode the range images of these `LidarName` only; None for all.

    Returns:
        The frame; range images are read-only views of decoded memory. Null speeds are 0, as absent ones are in v1.

    Raises:
        DataError: the frame has no pose, a table lacks a column or has one of a wrong type, or a value is impossible.
    """
    tables = _FrameTables(Path(root), entry)
    pose = tables.one_row("vehicle_pose")
    if pose is None:
        path = table_path(Path(root), "vehicle_pose", entry.segment)
        raise DataError(f"{path}: expected a row for frame {entry.timestamp_micros}, got none")
    stats = tables.one_row("stats") or {}
    return WaymoRecord(
        segment=entry.segment,
        timestamp_micros=entry.timestamp_micros,
        world_SE3_vehicle=_transform(pose["world_from_vehicle.transform"]),
        lidars=_lidars(tables, lidars),
        cameras=_cameras(tables),
        laser_labels=_laser_labels(tables),
        time_of_day=stats.get("time_of_day") or "",
        location=stats.get("location") or "",
        weather=stats.get("weather") or "",
    )


class _FrameTables:
    """The rows of one frame in the tables of its segment."""

    def __init__(self, root: Path, entry: IndexedFrame) -> None:
        self._root, self._segment, self._time = root, entry.segment, entry.timestamp_micros

    def table(self, component: str) -> ComponentTable | None:
        return open_table(self._root, component, self._segment)

    def path(self, component: str) -> Path:
        return table_path(self._root, component, self._segment)

    def rows(self, component: str) -> list[Row] | None:
        """Return the rows; None where there is no such table."""
        table = self.table(component)
        return None if table is None else table.rows(self._time)

    def one_row(self, component: str) -> Row | None:
        rows = self.rows(component) or []
        if len(rows) > 1:
            raise DataError(f"{self.path(component)}: expected one row for frame {self._time}, got {len(rows)}")
        return rows[0] if rows else None

    def by_sensor(self, component: str, key: str, names: Collection[int] | None = None) -> dict[int, Row]:
        table = self.table(component)
        return {} if table is None else table.rows_by_name(key, self._time, names)

    def calibrations(self, component: str, key: str) -> dict[int, Row]:
        table = self.table(component)
        return {} if table is None else table.rows_by_name(key, None)


# ---------------------------------------------------------------------------------------------------------------------
# LiDAR
# ---------------------------------------------------------------------------------------------------------------------


def _lidars(tables: _FrameTables, names: Collection[int] | None) -> tuple[LidarRecord, ...]:
    key = "key.laser_name"
    calibrations = tables.calibrations("lidar_calibration", key)
    wanted = [name for name in calibrations if names is None or name in names]
    images = tables.by_sensor("lidar", key, wanted)
    projections = tables.by_sensor("lidar_camera_projection", key, wanted)
    labels = tables.by_sensor("lidar_segmentation", key, wanted)
    poses = tables.by_sensor("lidar_pose", key, wanted)
    records = []
    for name, calibration in calibrations.items():
        first, second = (
            _lidar_return(tables, number, images.get(name), projections.get(name), labels.get(name))
            for number in (1, 2)
        )
        pose = _image(tables.path("lidar_pose"), poses.get(name), 1, POSE_CHANNELS, np.float32)
        records.append(
            LidarRecord(
                name=LidarName(name),
                vehicle_SE3_lidar=_transform(calibration["extrinsic.transform"]),
                inclinations=_inclinations(calibration["beam_inclination.values"]),
                inclination_min=calibration["beam_inclination.min"],
                inclination_max=calibration["beam_inclination.max"],
                returns=(first, second),
                pixel_pose=pose,
            )
        )
    return tuple(records)


def _inclinations(values: Array | None) -> Array | None:
    return None if values is None or not len(values) else np.array(values, dtype=np.float64)


def _lidar_return(
    tables: _FrameTables, number: int, image: Row | None, projection: Row | None, labels: Row | None
) -> LidarReturn | None:
    path = tables.path
    values = _image(path("lidar"), image, number, VALUE_CHANNELS, np.float32)
    if values is None:
        return None
    table = path("lidar_camera_projection")
    pixels = _image(table, projection, number, PROJECTION_CHANNELS, np.float64)
    classes = _image(path("lidar_segmentation"), labels, number, SEGMENTATION_CHANNELS, np.int32)
    for other, component in ((pixels, "lidar_camera_projection"), (classes, "lidar_segmentation")):
        if other is not None and other.shape[:2] != values.shape[:2]:
            got = f"expected the {values.shape[:2]} rows and columns of the range image, got {other.shape[:2]}"
            raise DataError(f"{path(component)}: range_image_return{number}.shape: {got}")
    return LidarReturn(values, None if pixels is None else _whole_numbers(table, pixels), classes)


def _image(path: Path, row: Row | None, number: int, channels: int, dtype: npt.DTypeLike) -> Array | None:
    """Return one range image of a row as (H, W, channels); None where the row or the return is absent."""
    column = f"range_image_return{number}"
    values = row[f"{column}.values"] if row else None
    if row is None or values is None:
        return None
    shape = row[f"{column}.shape"]
    if shape is None or shape[2] != channels or (shape < 0).any() or int(shape.prod(dtype=np.int64)) != len(values):
        got = "none" if shape is None else f"{shape.tolist()} for {len(values)} values"
        raise DataError(f"{path}: {column}.shape: expected rows, columns, {channels}, got {got}")
    return values.reshape(shape).astype(dtype, copy=False)


def _whole_numbers(path: Path, pixels: Array) -> Array:
    """Return projections, which v2 stores as float32, as the integers they are."""
    with np.errstate(invalid="ignore"):
        whole = pixels.astype(np.int32)
    wrong = whole != pixels
    if wrong.any():
        raise DataError(f"{path}: expected whole numbers in projections, got {float(pixels[wrong][0])}")
    return whole


def _transform(values: Array) -> Array:
    return np.array(values, dtype=np.float64).reshape(4, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Cameras and boxes
# ---------------------------------------------------------------------------------------------------------------------


def _cameras(tables: _FrameTables) -> tuple[CameraRecord, ...]:
    key = "key.camera_name"
    calibrations = tables.calibrations("camera_calibration", key)
    images = tables.by_sensor("camera_image", key)
    panoptic = tables.by_sensor("camera_segmentation", key)
    boxes, projected = _drawn_boxes(tables), _projected_boxes(tables)
    return tuple(
        CameraRecord(
            name=CameraName(name),
            width=row["width"],
            height=row["height"],
            intrinsics=np.array([row[part] for part in INTRINSICS], dtype=np.float64),
            vehicle_SE3_camera=_transform(row["extrinsic.transform"]),
            shutter_direction=row["rolling_shutter_direction"],
            boxes=None if boxes is None else tuple(boxes.get(name, ())),
            projected=None if projected is None else tuple(projected.get(name, ())),
            panoptic=_panoptic(tables.path("camera_segmentation"), panoptic.get(name)),
            **_exposure(images.get(name)),
        )
        for name, row in calibrations.items()
    )


def _exposure(row: Row | None) -> Row:
    """Return the fields of a `CameraRecord` that come with its image."""
    if row is None:
        return {}
    shutter = "rolling_shutter_params"
    return {
        "image": row["image"],
        "world_SE3_vehicle": _transform(row["pose.transform"]),
        "velocity": np.array([row[part] for part in VELOCITY], dtype=np.float64),
        "pose_timestamp": row["pose_timestamp"],
        "shutter": row[f"{shutter}.shutter"],
        "trigger_time": row[f"{shutter}.camera_trigger_time"],
        "readout_done_time": row[f"{shutter}.camera_readout_done_time"],
    }


def _panoptic(path: Path, row: Row | None) -> PanopticLabel | None:
    if row is None:
        return None
    columns = [f"{MAPPING}.{part}" for part in ("local_instance_ids", "global_instance_ids", "is_tracked")]
    lists = [[] if row[column] is None else row[column].tolist() for column in columns]
    if len({len(values) for values in lists}) != 1:
        raise DataError(f"{path}: {MAPPING}: expected lists of one length, got {[len(values) for values in lists]}")
    return PanopticLabel(
        png=row["panoptic_label"],
        divisor=row["panoptic_label_divisor"],
        local_ids=tuple(lists[0]),
        global_ids=tuple(lists[1]),
        is_tracked=tuple(lists[2]),
        sequence_id=row["sequence_id"] or "",
        num_cameras_covered=row["num_cameras_covered"] or b"",
    )


def _drawn_boxes(tables: _FrameTables) -> dict[int, list[CameraBox]] | None:
    rows = tables.rows("camera_box")
    if rows is None:
        return None
    links = {
        (link["key.camera_name"], link["key.camera_object_id"]): link["key.laser_object_id"]
        for link in tables.rows("camera_to_lidar_box_association") or []
    }
    boxes: dict[int, list[CameraBox]] = {}
    for row in rows:
        camera, name = row["key.camera_name"], row["key.camera_object_id"]
        detection, tracking = _difficulty(row)
        link = links.get((camera, name), "")
        boxes.setdefault(camera, []).append(
            CameraBox(*_outline(row), LabelType(row["type"]), name, detection, tracking, laser_object_id=link)
        )
    return boxes


def _projected_boxes(tables: _FrameTables) -> dict[int, list[CameraBox]] | None:
    rows = tables.rows("projected_lidar_box")
    if rows is None:
        return None
    boxes: dict[int, list[CameraBox]] = {}
    for row in rows:
        camera = CameraName(row["key.camera_name"])
        name = f"{row['key.laser_object_id']}_{camera.name}"
        boxes.setdefault(camera, []).append(CameraBox(*_outline(row), LabelType(row["type"]), name))
    return boxes


def _outline(row: Row) -> tuple[float, float, float, float]:
    return row["box.center.x"], row["box.center.y"], row["box.size.x"], row["box.size.y"]


def _difficulty(row: Row) -> tuple[int, int]:
    return row["difficulty_level.detection"] or 0, row["difficulty_level.tracking"] or 0


def _laser_labels(tables: _FrameTables) -> tuple[LaserLabel, ...] | None:
    rows = tables.rows("lidar_box")
    if rows is None:
        return None
    synced = {row["key.laser_object_id"]: row for row in tables.rows("lidar_camera_synced_box") or []}
    path = tables.path("lidar_camera_synced_box")
    labels = []
    for row in rows:
        name = row["key.laser_object_id"]
        camera, camera_box = _seen_by_camera(path, synced.get(name))
        detection, tracking = _difficulty(row)
        labels.append(
            LaserLabel(
                box=np.array(_box_3d("box", row), dtype=np.float64),
                type=LabelType(row["type"]),
                id=name,
                num_points=row["num_lidar_points_in_box"],
                num_top_points=row["num_top_lidar_points_in_box"],
                detection_difficulty=detection,
                tracking_difficulty=tracking,
                speed=np.array([row[f"speed.{axis}"] or 0.0 for axis in "xyz"]),
                acceleration=np.array([row[f"acceleration.{axis}"] or 0.0 for axis in "xyz"]),
                most_visible_camera=camera,
                camera_synced_box=camera_box,
            )
        )
    return tuple(labels)


def _seen_by_camera(path: Path, row: Row | None) -> tuple[str, Array | None]:
    """Return the camera that sees an object best, "" for none, and the box as it saw it."""
    if row is None:
        return "", None
    number = row["most_visible_camera_name"]
    values = _box_3d("camera_synced_box", row)
    absent = [value is None for value in values]
    if any(absent) and not all(absent):
        raise DataError(f"{path}: camera_synced_box: expected all seven numbers or none, got {values}")
    return CameraName(number).name if number else "", None if all(absent) else np.array(values, dtype=np.float64)


def _box_3d(prefix: str, row: Row) -> list[float]:
    return [row[f"{prefix}.{part}"] for part in BOX_PARTS]
