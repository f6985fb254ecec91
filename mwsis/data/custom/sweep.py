"""A sweep file and a rig as the points of a frame: beams, columns and features, in the vehicle frame.

What a file holds is read by `mwsis.data.sweep_files`; recovering beams that were not stored is `range_image.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mwsis.core.errors import DataError
from mwsis.core.frame import LidarGeometry, PointCloud
from mwsis.core.geometry import transform_points
from mwsis.core.segment_ops import segment_median
from mwsis.data.custom.calibration import FIELDS, REQUIRED_FIELDS, LidarCalibration
from mwsis.data.range_image import azimuth_columns, ring_problem, rings_from_file_order
from mwsis.data.sweep_files import Array, read_columns

__all__ = ["read_points"]

ALSO_CALLED = {
    "intensity": ("reflectance", "reflectivity", "i"),
    "ring": ("channel", "beam", "line", "laser_id"),
    "return": ("return_index", "return_number"),
}
FEWEST_RINGS = 0.9
"""Share of the sensor's beams that a sweep must show for its file order to be believed (58 of 64 on KITTI)."""
MOST_RETURNS = 127


def read_points(path: Path, lidar: LidarCalibration) -> PointCloud:
    """Return the points of a sweep, in the file's order.

    Where the file has no beams, they are recovered from the order of its points; where that order cannot be right,
    there is a warning, points have no beam, and labels are made without ring segments.

    Args:
        path: of the sweep.
        lidar: its sensor.

    Raises:
        DataError: the file cannot be read, lacks a field, or holds what its field cannot.
    """
    columns = _named(read_columns(path, lidar.fields))
    for name in REQUIRED_FIELDS:
        if name not in columns:
            raise DataError(f"{path}: no field '{name}'; the file has {', '.join(columns)}")
    values = {name: _finite(columns[name], f"{path}: {name}") for name in FIELDS if name in columns}
    sensor = torch.stack([values[name] for name in ("x", "y", "z")], 1).contiguous()
    intensity = (values["intensity"] / lidar.intensity_scale).tanh()
    elongation = values.get("elongation", torch.zeros(len(sensor)))
    returned = values.get("return", torch.zeros(len(sensor)))
    return PointCloud(
        xyz=transform_points(lidar.vehicle_SE3_lidar, sensor),
        point_feats=torch.stack([intensity, elongation], 1),
        ranges=sensor.norm(dim=1),
        ring=_rings(path, values.get("ring"), sensor, lidar.geometry).to(torch.int16),
        azimuth_column=azimuth_columns(sensor, lidar.geometry.num_columns),
        return_index=_whole(returned, MOST_RETURNS, f"{path}: return").to(torch.int8),
    )


def _named(columns: Mapping[str, Array]) -> dict[str, Array]:
    """Return the columns with ours among the names that others use for them."""
    found = dict(columns)
    for name, others in ALSO_CALLED.items():
        for other in others:
            if name not in found and other in found:
                found[name] = found[other]
    return found


def _finite(column: Array, what: str) -> Tensor:
    values = torch.from_numpy(np.ascontiguousarray(column, dtype=np.float32))
    wrong = (~torch.isfinite(values)).nonzero()
    if len(wrong):
        raise DataError(
            f"{what}: point {int(wrong[0])}: expected a finite number, got {float(values[wrong[0]])} "
            f"({len(wrong)} such points); leave points that are no returns out of the file"
        )
    return values


def _whole(values: Tensor, largest: int, what: str) -> Tensor:
    wrong = ((values != values.round()) | (values < 0) | (values > largest)).nonzero()
    if len(wrong):
        raise DataError(
            f"{what}: point {int(wrong[0])}: expected a whole number from 0 to {largest}, "
            f"got {float(values[wrong[0]]):g} ({len(wrong)} such points)"
        )
    return values.long()


def _rings(path: Path, stored: Tensor | None, sensor: Tensor, geometry: LidarGeometry) -> Tensor:
    if stored is not None:
        ring = _whole(stored, geometry.num_rings - 1, f"{path}: ring")
        return geometry.num_rings - 1 - ring if _counts_from_below(ring, sensor) else ring
    ring = rings_from_file_order(sensor)
    fewest = math.ceil(FEWEST_RINGS * geometry.num_rings)
    problem = ring_problem(ring, sensor, num_rings=(fewest, geometry.num_rings), num_columns=geometry.num_columns)
    if problem is None:
        return ring
    warnings.warn(
        f"{path}: no field 'ring', and the order of the points gives {problem}; labels are made without ring segments, "
        "which is worse, so store the beam of each point",
        stacklevel=2,
    )
    return torch.full_like(ring, -1)


def _counts_from_below(ring: Tensor, sensor: Tensor) -> bool:
    """Return whether the beam with the lowest number that was seen looks lower than the one with the highest."""
    elevation = torch.atan2(sensor[:, 2].double(), sensor[:, :2].double().norm(dim=1))
    seen, index = torch.unique(ring, return_inverse=True)
    median = segment_median(elevation, index, len(seen))
    return bool(median[0] < median[-1])
