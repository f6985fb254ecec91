"""Records written as the Parquet tables of Waymo v2, readable by anything that reads the data set itself.

Frames stream through: tables of large rows get a row group per frame, TOP first, so that a reader decodes what it asks
for; the others a row group of some thousand rows. What the records leave out everywhere gets no table. Lost, because
the format has no place for it: no-label zones, the difference between None and no boxes in single frames, sums of
objects. Next: `v2.py`, the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mwsis.core.errors import DataError, closest_name
from mwsis.core.files import atomic_write
from mwsis.data.waymo.record import CameraBox, CameraName, CameraRecord, LaserLabel, LidarRecord, WaymoRecord
from mwsis.data.waymo.v2_schema import (
    BOX_PARTS,
    FRAME,
    INTRINSICS,
    MAPPING,
    ROW_NAME,
    SCHEMAS,
    SEGMENT,
    VELOCITY,
    short_name,
)
from mwsis.data.waymo.v2_table import Row, table_path

__all__ = ["write_segment"]

LIGHT_ROWS = 2048
"""Small rows kept in memory before they are written as a row group."""
COMPRESSION_LEVEL = 1
"""Of zstd: range images shrink to a quarter (snappy: a third), and decoding takes about as long as without."""
ENCODED = ("camera_image", "camera_segmentation")
"""Tables of JPEG and PNG, which do not shrink."""
KEYS = tuple(name for schema in SCHEMAS.values() for name in schema.names if name.startswith("key."))


def write_segment(root: Path, records: Iterable[WaymoRecord]) -> None:
    """Write one segment, each table atomically, and remove tables of an earlier version that it no longer has.

    The table that lists the frames appears last, so a reader never finds a segment that is still being written.

    Args:
        root: the folder that holds the component folders; made if needed.
        records: the frames of one segment in order of time; one is held in memory at a time. Velocities and what lies
            in range images are stored as float32, everything else as float64.

    Raises:
        DataError: there are no records, or two disagree about segment or calibration or are of the same time.
    """
    with ExitStack() as files:
        tables: dict[str, _Table] = {}
        checks: _Checks | None = None
        for record in records:
            if checks is None:
                checks = _Checks(record)
                tables = {component: _Table(root, component, record.segment, files) for component in SCHEMAS}
            checks.add(record)
            for component, rows_of in _ROWS.items():
                tables[component].add(rows_of(record))
        if checks is None:
            raise DataError(f"{root}: expected the frames of a segment to write, got none")
        tables["camera_calibration"].add(checks.cameras or None)
        tables["lidar_calibration"].add(checks.lidars or None)
        for table in tables.values():
            table.finish()


class _Checks:
    """What the frames of a segment have in common."""

    def __init__(self, record: WaymoRecord) -> None:
        self._segment = record.segment
        self.cameras = _camera_calibrations(record)
        self.lidars = _lidar_calibrations(record)
        self._times: set[int] = set()
        if not self._segment or self._segment.startswith(".") or Path(self._segment).name != self._segment:
            raise DataError(f"segment: expected a name that can be a file's, got '{self._segment}'")

    def add(self, record: WaymoRecord) -> None:
        """Verify one more frame."""
        where = f"{self._segment}: frame {record.timestamp_micros}"
        if record.segment != self._segment:
            raise DataError(f"{where}: expected a frame of this segment, got one of '{record.segment}'")
        if record.timestamp_micros in self._times:
            raise DataError(f"{where}: expected a time of its own, got one already written")
        for old, new in ((self.cameras, _camera_calibrations(record)), (self.lidars, _lidar_calibrations(record))):
            if sorted(map(repr, old)) != sorted(map(repr, new)):
                raise DataError(f"{where}: expected the calibrations of the segment's first frame, got others")
        self._times.add(record.timestamp_micros)


class _Table:
    """A table that is being written; its file is made when a record first says something about it."""

    def __init__(self, root: Path, component: str, segment: str, files: ExitStack) -> None:
        self._path = table_path(root, component, segment)
        self._component, self._segment, self._files = component, segment, files
        self._schema = SCHEMAS[component]
        self._pending: list[Row] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: list[Row] | None) -> None:
        """Append rows; None where a record says nothing, which is not the same as no rows."""
        if rows is None or (not rows and self._component in ROW_NAME):
            return
        if self._writer is None:
            unfinished = self._files.enter_context(atomic_write(self._path))
            self._writer = self._files.enter_context(_parquet_writer(unfinished, self._component))
        self._pending += rows
        if self._component in ROW_NAME or len(self._pending) >= LIGHT_ROWS:
            self._flush(self._writer)

    def finish(self) -> None:
        """Write what is pending, or remove the table of an earlier version of the segment."""
        if self._writer is None:
            self._path.unlink(missing_ok=True)
        elif self._pending:
            self._flush(self._writer)

    def _flush(self, writer: pq.ParquetWriter) -> None:
        rows, self._pending = self._pending, []
        columns = {field.name: [self._value(row, field.name) for row in rows] for field in self._schema}
        arrays = [pa.array(columns[field.name], field.type) for field in self._schema]
        writer.write_batch(pa.record_batch(arrays, schema=self._schema), row_group_size=len(rows))

    def _value(self, row: Row, column: str) -> Any:
        return self._segment if column == SEGMENT else row.get(short_name(column))


def _parquet_writer(path: Path, component: str) -> pq.ParquetWriter:
    encoded = component in ENCODED
    return pq.ParquetWriter(
        path,
        SCHEMAS[component],
        compression="none" if encoded else "zstd",
        compression_level=None if encoded else COMPRESSION_LEVEL,
        use_dictionary=component not in ROW_NAME,
        use_compliant_nested_type=False,  # lists hold an "item", as in the data set's own files
        write_statistics=[name for name in SCHEMAS[component].names if name in KEYS],
    )


# ---------------------------------------------------------------------------------------------------------------------
# Rows of one frame; columns by their short names, absent ones are null
# ---------------------------------------------------------------------------------------------------------------------


def _vehicle_pose(record: WaymoRecord) -> list[Row]:
    return [
        {FRAME: record.timestamp_micros, "world_from_vehicle.transform": _flat(record.world_SE3_vehicle, np.float64)}
    ]


def _stats(record: WaymoRecord) -> list[Row] | None:
    facts: Row = {"time_of_day": record.time_of_day, "location": record.location, "weather": record.weather}
    for sensor, counts in zip(("lidar", "camera"), record.object_counts(), strict=True):
        facts[f"{sensor}_object_counts.types"] = list(counts) or None
        facts[f"{sensor}_object_counts.counts"] = list(counts.values()) or None
    return [{FRAME: record.timestamp_micros, **facts}] if any(facts.values()) else None


def _camera_calibrations(record: WaymoRecord) -> list[Row]:
    return [
        {
            "key.camera_name": int(camera.name),
            **dict(zip(INTRINSICS, camera.intrinsics.tolist(), strict=True)),
            "extrinsic.transform": _flat(camera.vehicle_SE3_camera, np.float64).tolist(),
            "width": camera.width,
            "height": camera.height,
            "rolling_shutter_direction": int(camera.shutter_direction),
        }
        for camera in record.cameras
    ]


def _lidar_calibrations(record: WaymoRecord) -> list[Row]:
    return [
        {
            "key.laser_name": int(lidar.name),
            "extrinsic.transform": _flat(lidar.vehicle_SE3_lidar, np.float64).tolist(),
            "beam_inclination.min": float(lidar.inclination_min),
            "beam_inclination.max": float(lidar.inclination_max),
            "beam_inclination.values": None if lidar.inclinations is None else lidar.inclinations.tolist(),
        }
        for lidar in record.lidars
    ]


def _of_lidars(field: str, dtype: npt.DTypeLike = np.float32) -> Callable[[WaymoRecord], list[Row]]:
    """Return what makes the rows of one table from an attribute of the returns of each LiDAR that has it."""

    def rows(record: WaymoRecord) -> list[Row]:
        made = []
        for lidar in sorted(record.lidars, key=lambda lidar: lidar.name):
            images = [None if part is None else getattr(part, field) for part in lidar.returns]
            made += _range_images(record, lidar, images, dtype)
        return made

    return rows


def _lidar_pose(record: WaymoRecord) -> list[Row]:
    lidars = sorted(record.lidars, key=lambda lidar: lidar.name)
    return [row for lidar in lidars for row in _range_images(record, lidar, [lidar.pixel_pose])]


def _range_images(
    record: WaymoRecord, lidar: LidarRecord, images: list[Any], dtype: npt.DTypeLike = np.float32
) -> list[Row]:
    row: Row = {FRAME: record.timestamp_micros, "key.laser_name": int(lidar.name)}
    for number, image in enumerate(images, 1):
        if image is not None:
            row[f"range_image_return{number}.values"] = _flat(image, dtype)
            row[f"range_image_return{number}.shape"] = list(image.shape)
    return [row] if any(image is not None for image in images) else []


def _camera_image(record: WaymoRecord) -> list[Row]:
    return [_exposure(record, camera) for camera in record.cameras if camera.image is not None]


def _exposure(record: WaymoRecord, camera: CameraRecord) -> Row:
    assert camera.world_SE3_vehicle is not None, "an image has a pose"
    assert camera.velocity is not None, "an image has a velocity"
    shutter = "rolling_shutter_params"
    return {
        **_of_camera(record, camera),
        "image": camera.image,
        "pose.transform": _flat(camera.world_SE3_vehicle, np.float64),
        **dict(zip(VELOCITY, camera.velocity.tolist(), strict=True)),
        "pose_timestamp": camera.pose_timestamp,
        f"{shutter}.shutter": camera.shutter,
        f"{shutter}.camera_trigger_time": camera.trigger_time,
        f"{shutter}.camera_readout_done_time": camera.readout_done_time,
    }


def _camera_segmentation(record: WaymoRecord) -> list[Row]:
    return [
        {
            **_of_camera(record, camera),
            "panoptic_label_divisor": label.divisor,
            "panoptic_label": label.png,
            f"{MAPPING}.local_instance_ids": list(label.local_ids),
            f"{MAPPING}.global_instance_ids": list(label.global_ids),
            f"{MAPPING}.is_tracked": list(label.is_tracked),
            "sequence_id": label.sequence_id,
            "num_cameras_covered": label.num_cameras_covered,
        }
        for camera in record.cameras
        if (label := camera.panoptic) is not None
    ]


def _camera_box(record: WaymoRecord) -> list[Row] | None:
    if all(camera.boxes is None for camera in record.cameras):
        return None
    return [
        {
            **_of_camera(record, camera),
            "key.camera_object_id": box.id,
            **_outline(box),
            **_difficulty(box),
        }
        for camera in record.cameras
        for box in camera.boxes or ()
    ]


def _difficulty(label: CameraBox | LaserLabel) -> Row:
    """Return both levels where one was said, else neither."""
    levels = (label.detection_difficulty, label.tracking_difficulty)
    said = levels if any(levels) else (None, None)
    return dict(zip(("difficulty_level.detection", "difficulty_level.tracking"), said, strict=True))


def _association(record: WaymoRecord) -> list[Row] | None:
    rows = [
        {
            **_of_camera(record, camera),
            "key.camera_object_id": box.id,
            "key.laser_object_id": box.laser_object_id,
        }
        for camera in record.cameras
        for box in camera.boxes or ()
        if box.laser_object_id
    ]
    return rows or None


def _projected_lidar_box(record: WaymoRecord) -> list[Row] | None:
    if all(camera.projected is None for camera in record.cameras):
        return None
    return [
        {**_of_camera(record, camera), "key.laser_object_id": _object_of(box, camera), **_outline(box)}
        for camera in record.cameras
        for box in camera.projected or ()
    ]


def _object_of(box: CameraBox, camera: CameraRecord) -> str:
    """Return the 3D box of an outline, which v1 names in the outline's own id only."""
    return box.laser_object_id or box.id.removesuffix(f"_{CameraName(camera.name).name}")


def _lidar_box(record: WaymoRecord) -> list[Row] | None:
    if record.laser_labels is None:
        return None
    return [
        {
            **_of_object(record, label),
            **_box_3d("box", label.box),
            "type": int(label.type),
            "num_lidar_points_in_box": label.num_points,
            "num_top_lidar_points_in_box": label.num_top_points,
            **{f"speed.{axis}": value for axis, value in zip("xyz", label.speed.tolist(), strict=True)},
            **{f"acceleration.{axis}": value for axis, value in zip("xyz", label.acceleration.tolist(), strict=True)},
            **_difficulty(label),
        }
        for label in record.laser_labels
    ]


def _synced_box(record: WaymoRecord) -> list[Row] | None:
    rows = []
    for label in record.laser_labels or ():
        camera, box = label.most_visible_camera, label.camera_synced_box
        if camera or box is not None:
            number = _camera_number(record, camera) if camera else 0
            seen = {} if box is None else _box_3d("camera_synced_box", box)
            rows.append({**_of_object(record, label), "most_visible_camera_name": number, **seen})
    return rows or None


def _camera_number(record: WaymoRecord, name: str) -> int:
    if name not in CameraName.__members__:
        where = f"{record.segment}: frame {record.timestamp_micros}: most_visible_camera"
        raise DataError(f"{where}: '{name}' is no camera{closest_name(name, CameraName.__members__)}")
    return int(CameraName[name])


def _of_camera(record: WaymoRecord, camera: CameraRecord) -> Row:
    return {FRAME: record.timestamp_micros, "key.camera_name": int(camera.name)}


def _of_object(record: WaymoRecord, label: LaserLabel) -> Row:
    return {FRAME: record.timestamp_micros, "key.laser_object_id": label.id}


def _outline(box: CameraBox) -> Row:
    centre = {"box.center.x": box.center_x, "box.center.y": box.center_y}
    return {**centre, "box.size.x": box.length, "box.size.y": box.width, "type": int(box.type)}


def _box_3d(prefix: str, box: Any) -> Row:
    return {f"{prefix}.{part}": value for part, value in zip(BOX_PARTS, box.tolist(), strict=True)}


def _flat(values: Any, dtype: npt.DTypeLike) -> Any:
    return np.ascontiguousarray(values, dtype=dtype).reshape(-1)


_ROWS: dict[str, Callable[[WaymoRecord], list[Row] | None]] = {
    "vehicle_pose": _vehicle_pose,
    "stats": _stats,
    "lidar": _of_lidars("values"),
    "lidar_camera_projection": _of_lidars("projection"),
    "lidar_segmentation": _of_lidars("segmentation", np.int32),
    "lidar_pose": _lidar_pose,
    "camera_image": _camera_image,
    "camera_segmentation": _camera_segmentation,
    "camera_box": _camera_box,
    "camera_to_lidar_box_association": _association,
    "projected_lidar_box": _projected_lidar_box,
    "lidar_box": _lidar_box,
    "lidar_camera_synced_box": _synced_box,
}
