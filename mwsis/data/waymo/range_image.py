"""Waymo's range images as points of the vehicle frame.

Row 0 is the highest beam, column 0 the azimuth +pi of the vehicle, running clockwise. TOP turns while the vehicle
drives: each of its pixels has a vehicle pose of its own; the other LiDARs are given as if from one pose. Float64
until the last step, because world coordinates are tens of kilometres. Next: `frame.py`, which joins the LiDARs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mwsis.core.errors import DataError
from mwsis.data.waymo.record import Array, LidarName, LidarRecord

__all__ = ["LidarPoints", "beam_inclinations", "lidar_name", "lidar_points"]

RANGE, INTENSITY, ELONGATION, NO_LABEL_ZONE = range(4)
"""Channels of a range image."""
INSIDE_ZONE = 1.0


@dataclass(frozen=True, eq=False)
class LidarPoints:
    """The points of one return of one LiDAR, row by row.

    Attributes:
        xyz: (N, 3) float32, metres, vehicle frame of the frame's pose.
        ranges: (N,) float32, metres from the sensor.
        intensity, elongation: (N,) float32, as recorded.
        row, column: (N,) int64, pixel of the range image.
        projection: (N, 6) int32, twice camera, column, row; None where the file has none.
        segmentation: (N, 2) int32, instance, class; None likewise.
    """

    xyz: Array
    ranges: Array
    intensity: Array
    elongation: Array
    row: Array
    column: Array
    projection: Array | None
    segmentation: Array | None

    def __len__(self) -> int:
        return len(self.xyz)


def lidar_name(name: int) -> str:
    """Return the data set's name of a LiDAR, such as ``TOP``."""
    return LidarName(name).name if name in LidarName._value2member_map_ else f"LIDAR_{name}"


def beam_inclinations(lidar: LidarRecord, num_rows: int) -> Array:
    """Return the inclination of each row of a LiDAR's range image.

    Args:
        lidar: its calibration; without a table, beams are the middles of ``num_rows`` equal steps.
        num_rows: of the range image.

    Returns:
        (num_rows,) float64, rad, row 0 = highest beam.

    Raises:
        DataError: the table has another number of beams.
    """
    if lidar.inclinations is None:
        steps = (np.arange(num_rows, dtype=np.float64) + 0.5) / num_rows
        ascending = steps * (lidar.inclination_max - lidar.inclination_min) + lidar.inclination_min
        return ascending[::-1]
    if lidar.inclinations.shape != (num_rows,):
        got = f"{len(lidar.inclinations)}"
        raise DataError(f"{lidar_name(lidar.name)}: beam_inclinations: expected {num_rows}, one per row, got {got}")
    return lidar.inclinations.astype(np.float64)[::-1]


def lidar_points(lidar: LidarRecord, world_SE3_vehicle: Array, return_index: int) -> LidarPoints | None:
    """Return the points of one return, those in no-label zones left out.

    Args:
        lidar: calibration and range images.
        world_SE3_vehicle: (4, 4) float64, the pose whose vehicle frame the points come in.
        return_index: 0 first, 1 second.

    Returns:
        Points with range > 0 outside no-label zones; None where the file has no such range image.

    Raises:
        DataError: an array has the wrong shape, or TOP lacks the poses of its pixels.

    Source: range image format of the Waymo Open Dataset; *corrected*: float64 instead of float32.
    """
    image = lidar.returns[return_index]
    if image is None:
        return None
    name = f"{lidar_name(lidar.name)}: return {return_index + 1}"
    if image.values.ndim != 3 or image.values.shape[2] != 4:
        raise DataError(f"{name}: range image: expected (H, W, 4), got {image.values.shape}")
    size = image.values.shape[:2]
    for what, array, channels in (
        ("camera projection", image.projection, 6),
        ("segmentation", image.segmentation, 2),
        ("range image pose", lidar.pixel_pose, 6),
    ):
        if array is not None and array.shape != (*size, channels):
            raise DataError(f"{name}: {what}: expected {(*size, channels)}, got {array.shape}")
    valid = (image.values[..., RANGE] > 0) & (image.values[..., NO_LABEL_ZONE] != INSIDE_ZONE)
    row, column = valid.nonzero()
    values = image.values[row, column]
    xyz = _in_vehicle(lidar, values[:, RANGE].astype(np.float64), row, column, size)
    if lidar.name == LidarName.TOP:
        if lidar.pixel_pose is None:
            raise DataError(f"{name}: no range image pose; its points cannot be placed without one")
        xyz = _to_frame(xyz, lidar.pixel_pose[row, column].astype(np.float64), world_SE3_vehicle)
    return LidarPoints(
        xyz=xyz.astype(np.float32),
        ranges=values[:, RANGE],
        intensity=values[:, INTENSITY],
        elongation=values[:, ELONGATION],
        row=row,
        column=column,
        projection=None if image.projection is None else image.projection[row, column],
        segmentation=None if image.segmentation is None else image.segmentation[row, column],
    )


def _in_vehicle(lidar: LidarRecord, ranges: Array, row: Array, column: Array, size: tuple[int, int]) -> Array:
    """Return (N, 3) float64 points in the vehicle frame of the time each pixel was measured."""
    num_rows, num_columns = size
    inclination = beam_inclinations(lidar, num_rows)[row]
    yaw = np.arctan2(lidar.vehicle_SE3_lidar[1, 0], lidar.vehicle_SE3_lidar[0, 0])
    azimuth = ((num_columns - np.arange(num_columns) - 0.5) / num_columns * 2 - 1) * np.pi - yaw
    azimuth = azimuth[column]
    level = ranges * np.cos(inclination)
    sensor = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), ranges * np.sin(inclination)], 1)
    moved: Array = sensor @ lidar.vehicle_SE3_lidar[:3, :3].T + lidar.vehicle_SE3_lidar[:3, 3]
    return moved


def _to_frame(xyz: Array, pose: Array, world_SE3_vehicle: Array) -> Array:
    """Return points of vehicle frames with (N, 6) poses (roll pitch yaw x y z) in the vehicle frame of one pose."""
    (sin_r, sin_p, sin_y), (cos_r, cos_p, cos_y) = np.sin(pose[:, :3]).T, np.cos(pose[:, :3]).T
    x, y, z = xyz.T
    y, z = cos_r * y - sin_r * z, sin_r * y + cos_r * z
    x, z = cos_p * x + sin_p * z, -sin_p * x + cos_p * z
    x, y = cos_y * x - sin_y * y, sin_y * x + cos_y * y
    offset = pose[:, 3:] - world_SE3_vehicle[:3, 3]  # small: both lie far from the origin
    turned: Array = (np.stack([x, y, z], 1) + offset) @ world_SE3_vehicle[:3, :3]
    return turned
