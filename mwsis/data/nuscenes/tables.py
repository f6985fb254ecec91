"""The JSON tables of nuScenes, joined: scenes, their key frames, and what each sensor and annotator left there.

Only key frames and what they refer to are kept, and rows are thinned out while they are read: the tables of the whole
data set hold 2.6 million poses. Every reference is followed here, so `source.py` meets no dangling token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mwsis.core.errors import DataError
from mwsis.data.problems import finite

__all__ = ["Annotation", "Recording", "Sample", "Tables", "read_tables"]

LIDAR = "LIDAR_TOP"
UNIT_TOLERANCE = 1e-3
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Recording:
    """What one sensor recorded in a key frame.

    Attributes:
        channel: name of the sensor.
        file: relative to the data set.
        width, height: pixels; 0 for the LiDAR.
        global_SE3_ego: (4, 4) float64, the vehicle's pose at the time of this recording.
        ego_SE3_sensor: (4, 4) float64.
        intrinsics: (3, 3) float64, pixel centres at whole numbers; None for the LiDAR.
    """

    channel: str
    file: str
    width: int
    height: int
    global_SE3_ego: Tensor
    ego_SE3_sensor: Tensor
    intrinsics: Tensor | None


@dataclass(frozen=True, eq=False)
class Annotation:
    """A 3D box.

    Attributes:
        category: such as ``vehicle.car``.
        attributes: such as ``cycle.with_rider``.
        visibility: 1 to 4: up to 40, 60, 80, 100 % of it are visible in all images together.
        num_points: LiDAR and radar points in it.
        global_SE3_box: (4, 4) float64, x forward, y left, z up, at its centre.
        size: length, width, height, metres.
    """

    category: str
    attributes: tuple[str, ...]
    visibility: int
    num_points: int
    global_SE3_box: Tensor
    size: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Sample:
    """A key frame.

    Attributes:
        token: its name.
        scene: name of its scene.
        timestamp: microseconds.
        lidar: the sweep.
        cameras: in the order of their names.
        annotations: in the table's order.
    """

    token: str
    scene: str
    timestamp: int
    lidar: Recording
    cameras: tuple[Recording, ...]
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True, eq=False)
class Tables:
    """All key frames.

    Attributes:
        folder: of the tables.
        scenes: names in the table's order.
        samples: by token, scene by scene in order of time.
    """

    folder: Path
    scenes: tuple[str, ...]
    samples: dict[str, Sample]


def read_tables(folder: Path) -> Tables:
    """Return the key frames of a version of nuScenes.

    Args:
        folder: such as ``FOLDER/v1.0-mini``.

    Raises:
        DataError: a table or a row is missing or malformed, naming file, token and field.

    Complexity: O(rows); the whole data set takes a minute and some GB of memory.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected nuScenes' tables, such as {folder}/sample.json")
    reader = _Reader(folder)
    recordings, annotations = reader.recordings(), reader.annotations()
    scenes = reader.table("scene")
    samples = []
    for token, row in reader.table("sample").items():
        where = f"{reader.path('sample')}: {token}"
        seen = recordings.get(token, {})
        if LIDAR not in seen:
            raise DataError(f"{where}: no key frame of {LIDAR} in {reader.path('sample_data')}")
        scene = reader.joined(scenes, row, "scene_token", where, "scene")
        cameras = tuple(seen[name] for name in sorted(seen) if name != LIDAR)
        if not cameras:
            raise DataError(f"{where}: no key frame of a camera in {reader.path('sample_data')}")
        name, time = _text(scene, "name", where), _field(row, "timestamp", int, where)
        samples.append(Sample(token, name, time, seen[LIDAR], cameras, tuple(annotations.get(token, ()))))
    names = tuple(_text(scene, "name", f"{reader.path('scene')}: {token}") for token, scene in scenes.items())
    place = {name: number for number, name in enumerate(names)}
    samples.sort(key=lambda sample: (place[sample.scene], sample.timestamp))
    return Tables(folder, names, {sample.token: sample for sample in samples})


class _Reader:
    """Tables of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def table(self, name: str, keep: Callable[[Row], bool] = lambda row: True) -> dict[str, Row]:
        """Return the rows of a table that are to be kept, by token."""
        path = self.path(name)
        if not path.is_file():
            raise DataError(f"{path}: no such file; every table of nuScenes is needed")
        try:
            rows = json.loads(path.read_bytes(), object_hook=lambda row: row if keep(row) else None)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: no JSON ({error}); unpack the tables again") from None
        if not isinstance(rows, list):
            raise DataError(f"{path}: expected a list of rows")
        kept = [row for row in rows if row is not None]
        return {_text(row, "token", f"{path}: row {number}"): row for number, row in enumerate(kept)}

    def joined(self, table: Mapping[str, Row], row: Row, key: str, where: str, name: str) -> Row:
        """Return the row that a token of another one names."""
        token = _text(row, key, where)
        if token not in table:
            raise DataError(f"{where}: {key}: no '{token}' in {self.path(name)}")
        return table[token]

    def recordings(self) -> dict[str, dict[str, Recording]]:
        """Return what was recorded by LiDAR and cameras, by sample and channel."""
        sensors, calibrations = self.table("sensor"), self.table("calibrated_sensor")
        frames = self.table("sample_data", lambda row: row.get("is_key_frame") is not False)
        wanted = {row.get("ego_pose_token") for row in frames.values()}
        poses = self.table("ego_pose", lambda row: row.get("token") in wanted)
        found: dict[str, dict[str, Recording]] = {}
        for token, row in frames.items():
            where = f"{self.path('sample_data')}: {token}"
            calibration = self.joined(calibrations, row, "calibrated_sensor_token", where, "calibrated_sensor")
            mount = f"{self.path('calibrated_sensor')}: {calibration['token']}"
            sensor = self.joined(sensors, calibration, "sensor_token", mount, "sensor")
            channel = _text(sensor, "channel", f"{self.path('sensor')}: {sensor['token']}")
            if channel != LIDAR and sensor.get("modality") != "camera":
                continue
            pose = self.joined(poses, row, "ego_pose_token", where, "ego_pose")
            found.setdefault(_text(row, "sample_token", where), {})[channel] = Recording(
                channel=channel,
                file=_file(row, where),
                width=0 if channel == LIDAR else _field(row, "width", int, where),
                height=0 if channel == LIDAR else _field(row, "height", int, where),
                global_SE3_ego=_pose(pose, f"{self.path('ego_pose')}: {pose['token']}"),
                ego_SE3_sensor=_pose(calibration, mount),
                intrinsics=None if channel == LIDAR else _intrinsics(calibration, mount),
            )
        return found

    def annotations(self) -> dict[str, list[Annotation]]:
        """Return the 3D boxes of each sample."""
        instances, categories, attributes = self.table("instance"), self.table("category"), self.table("attribute")
        found: dict[str, list[Annotation]] = {}
        for token, row in self.table("sample_annotation").items():
            where = f"{self.path('sample_annotation')}: {token}"
            instance = self.joined(instances, row, "instance_token", where, "instance")
            at = f"{self.path('instance')}: {instance['token']}"
            category = self.joined(categories, instance, "category_token", at, "category")
            names = [
                self.joined(attributes, {"attribute_tokens": one}, "attribute_tokens", where, "attribute")
                for one in _field(row, "attribute_tokens", list, where)
            ]
            width, length, height = _numbers(row, "size", 3, where)
            if min(width, length, height) <= 0:
                raise DataError(f"{where}: size: expected width, length, height above 0, got {row['size']}")
            found.setdefault(_text(row, "sample_token", where), []).append(
                Annotation(
                    category=_text(category, "name", f"{self.path('category')}: {category['token']}"),
                    attributes=tuple(str(one.get("name")) for one in names),
                    visibility=_visibility(row, where),
                    num_points=_field(row, "num_lidar_pts", int, where) + _field(row, "num_radar_pts", int, where),
                    global_SE3_box=_pose(row, where),
                    size=(length, width, height),
                )
            )
        return found


def _field(row: Row, name: str, kind: type, where: str) -> Any:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: {name}: expected {kind.__name__}, got {json.dumps(value, default=str)[:80]}")
    return value


def _text(row: Row, name: str, where: str) -> str:
    value: str = _field(row, name, str, where)
    return value


def _numbers(row: Row, name: str, count: int, where: str) -> list[float]:
    values: list[float] = _field(row, name, list, where)
    if len(values) != count or not all(map(finite, values)):
        raise DataError(f"{where}: {name}: expected {count} numbers, got {json.dumps(values)[:80]}")
    return values


def _visibility(row: Row, where: str) -> int:
    token = _text(row, "visibility_token", where)
    if token not in ("", "1", "2", "3", "4"):
        raise DataError(f"{where}: visibility_token: expected 1 to 4, got '{token}'")
    return int(token or 4)  # test annotations have none


def _file(row: Row, where: str) -> str:
    name = _text(row, "filename", where)
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{where}: filename: expected a path within the data set, got '{name[:80]}'")
    return name


def _intrinsics(row: Row, where: str) -> Tensor:
    rows = _field(row, "camera_intrinsic", list, where)
    full = len(rows) == 3 and all(isinstance(one, list) and len(one) == 3 and all(map(finite, one)) for one in rows)
    if not full or min(rows[0][0], rows[1][1]) <= 0:
        raise DataError(f"{where}: camera_intrinsic: expected 3 rows of 3 numbers, got {json.dumps(rows)[:80]}")
    return torch.tensor(rows, dtype=torch.float64)


def _pose(row: Row, where: str) -> Tensor:
    """Return translation and rotation (a quaternion w, x, y, z) as a (4, 4) float64 transform."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor(_numbers(row, "translation", 3, where), dtype=torch.float64)
    quaternion = torch.tensor(_numbers(row, "rotation", 4, where), dtype=torch.float64)
    length = float(quaternion.norm())
    if abs(length - 1) > UNIT_TOLERANCE:
        raise DataError(f"{where}: rotation: expected a quaternion of length 1, got one of length {length:.4g}")
    w, x, y, z = (quaternion / length).tolist()
    matrix[:3, :3] = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )
    return matrix
