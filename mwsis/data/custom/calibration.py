"""The calibration of a folder of one's own recordings: one JSON file for the rig, or one per drive or frame.

Every key is read by a small function that raises at the first mistake; `read_calibration` collects what they say.
The keys are explained in `docs/guides/own_data.md`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mwsis.core.errors import DataError
from mwsis.core.frame import LidarGeometry
from mwsis.core.geometry import CameraModel
from mwsis.data.problems import Problems, entry, finite, read_json, require_known

__all__ = ["FIELDS", "Calibration", "LidarCalibration", "read_calibration"]

FIELDS = ("x", "y", "z", "intensity", "elongation", "ring", "return")
"""Columns of a sweep that have a meaning; others are named to be skipped."""
REQUIRED_FIELDS = FIELDS[:4]
LIDAR_KEYS = ("rings", "columns", "fields", "intensity_scale", "vehicle_SE3_lidar")
CAMERA_KEYS = ("width", "height", "K", "distortion", "pixel_centre", "camera_SE3_vehicle")
LARGEST = {"rings": 1024, "columns": 65536, "width": 65536, "height": 65536}
PIXEL_CENTRE = 0.5
"""Of the first pixel, here; in OpenCV's numbers it is 0."""
ROTATION_TOLERANCE = 1e-3
"""How far R R^T may be from the identity: calibrations are written with few digits."""


@dataclass(frozen=True, eq=False)
class LidarCalibration:
    """The LiDAR of a rig.

    Attributes:
        geometry: beams and firings per turn.
        fields: columns of .bin and plain .npy sweeps.
        intensity_scale: the recorded intensity is divided by it.
        vehicle_SE3_lidar: (4, 4) float64.
    """

    geometry: LidarGeometry
    fields: tuple[str, ...]
    intensity_scale: float
    vehicle_SE3_lidar: Tensor


@dataclass(frozen=True, eq=False)
class Calibration:
    """A rig.

    Attributes:
        path: of the file.
        lidar: the LiDAR.
        cameras: by name, in the file's order.
    """

    path: Path
    lidar: LidarCalibration
    cameras: dict[str, CameraModel]


def read_calibration(path: Path, problems: Problems) -> Calibration | None:
    """Return what a calibration file says; None where something is wrong with it.

    Args:
        path: the file.
        problems: takes a sentence for every mistake.
    """
    before = len(problems)
    content = problems.collect(read_json, path)
    if len(problems) > before:
        return None
    problems.collect(require_known, content, ("lidar", "cameras"), str(path))
    lidar = problems.collect(entry, content, "lidar", dict, str(path))
    cameras = problems.collect(entry, content, "cameras", dict, str(path))
    if cameras == {}:
        problems.add(f"{path}: cameras: expected at least one, got none")
    read_lidar = None if lidar is None else _lidar(lidar, f"{path}: lidar", problems)
    models = {name: _camera(name, one, f"{path}: cameras: {name}", problems) for name, one in (cameras or {}).items()}
    if len(problems) > before or read_lidar is None:
        return None
    return Calibration(path, read_lidar, {name: model for name, model in models.items() if model is not None})


def _lidar(content: Any, where: str, problems: Problems) -> LidarCalibration | None:
    before = len(problems)
    problems.collect(require_known, content, LIDAR_KEYS, where)
    for name in ("rings", "columns"):
        problems.collect(_count, content, name, where)
    for check in (_fields, _intensity_scale, _lidar_pose):
        problems.collect(check, content, where)
    if len(problems) > before:
        return None
    geometry = LidarGeometry(_count(content, "rings", where), _count(content, "columns", where))
    return LidarCalibration(
        geometry, _fields(content, where), _intensity_scale(content, where), _lidar_pose(content, where)
    )


def _camera(name: str, content: Any, where: str, problems: Problems) -> CameraModel | None:
    before = len(problems)
    if not isinstance(content, dict) or not name or Path(name).name != name or name.startswith("."):
        problems.add(f"{where}: expected the name of a folder under 'images' with an object of keys")
        return None
    problems.collect(require_known, content, CAMERA_KEYS, where)
    for side in ("width", "height"):
        problems.collect(_count, content, side, where)
    for check in (_intrinsics, _distortion, _camera_pose):
        problems.collect(check, content, where)
    if len(problems) > before:
        return None
    return CameraModel(
        width=_count(content, "width", where),
        height=_count(content, "height", where),
        intrinsics=_intrinsics(content, where),
        distortion=_distortion(content, where),
        camera_SE3_vehicle=_camera_pose(content, where),
    )


def _count(content: Any, name: str, where: str) -> int:
    value: int = entry(content, name, int, where)
    if not 1 <= value <= LARGEST[name]:
        raise DataError(f"{where}: {name}: expected 1 to {LARGEST[name]}, got {value}")
    return value


def _intensity_scale(content: Any, where: str) -> float:
    value = content.get("intensity_scale", 1.0)
    if not finite(value) or value <= 0:
        raise DataError(f"{where}: intensity_scale: expected a number above 0, got {json.dumps(value)[:80]}")
    return float(value)


def _lidar_pose(content: Any, where: str) -> Tensor:
    given = content if "vehicle_SE3_lidar" in content else {"vehicle_SE3_lidar": torch.eye(4).tolist()}
    return _transform(given, "vehicle_SE3_lidar", where)


def _camera_pose(content: Any, where: str) -> Tensor:
    return _transform(content, "camera_SE3_vehicle", where)


def _fields(content: Any, where: str) -> tuple[str, ...]:
    names = content.get("fields", list(REQUIRED_FIELDS))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise DataError(f"{where}: fields: expected different names of columns, got {json.dumps(names)[:80]}")
    for name in REQUIRED_FIELDS:
        if name not in names:
            raise DataError(f"{where}: fields: no '{name}' among {' '.join(names)}")
    return tuple(names)


def _intrinsics(content: Any, where: str) -> Tensor:
    """Return focal lengths and principal point, pixels, counted from the corner of the first pixel."""
    matrix = _matrix(content, "K", 3, where)
    if matrix[0, 1] or matrix[1, 0] or matrix[2].tolist() != [0.0, 0.0, 1.0] or not float(matrix.diag().min()) > 0:
        expected = "[[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with positive fx and fy"
        raise DataError(f"{where}: K: expected {expected}, got {json.dumps(content['K'])[:120]}")
    centre = content.get("pixel_centre", 0)
    if centre not in (0, PIXEL_CENTRE):
        got = json.dumps(centre)[:40]
        raise DataError(f"{where}: pixel_centre: expected 0 (as OpenCV counts) or 0.5 for the first pixel, got {got}")
    return torch.cat([matrix.diag()[:2], matrix[:2, 2] + (PIXEL_CENTRE - centre)])


def _distortion(content: Any, where: str) -> Tensor:
    values = content.get("distortion", [0.0] * 5)
    if not isinstance(values, list) or len(values) not in (4, 5) or not all(map(finite, values)):
        got = json.dumps(values)[:120]
        raise DataError(f"{where}: distortion: expected k1, k2, p1, p2 and maybe k3, as OpenCV orders them, got {got}")
    return torch.tensor([*values, 0.0][:5], dtype=torch.float64)


def _transform(content: Any, name: str, where: str) -> Tensor:
    matrix = _matrix(content, name, 4, where)
    rotation = matrix[:3, :3]
    error = float((rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max())
    if matrix[3].tolist() != [0.0, 0.0, 0.0, 1.0]:
        raise DataError(f"{where}: {name}: expected 0, 0, 0, 1 as the last row, got {matrix[3].tolist()}")
    if error > ROTATION_TOLERANCE or float(torch.linalg.det(rotation)) < 0:
        raise DataError(
            f"{where}: {name}: expected a rotation in its upper left 3 x 3, got a matrix whose rows are not "
            f"perpendicular, of length 1 and right-handed (off by {error:.2g})"
        )
    return matrix


def _matrix(content: Any, name: str, size: int, where: str) -> Tensor:
    rows = entry(content, name, list, where)
    full = all(isinstance(row, list) and len(row) == size and all(map(finite, row)) for row in rows)
    if len(rows) != size or not full:
        got = json.dumps(rows)[:120]
        raise DataError(f"{where}: {name}: expected {size} rows of {size} numbers, got {got}")
    return torch.tensor(rows, dtype=torch.float64)
