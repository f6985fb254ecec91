"""What the five LiDARs of a street segment record: range images with two returns, poses of TOP's pixels, labels.

TOP measures column by column while the vehicle moves; each column's beams start where the vehicle is at that very
time. The others are taken at once, from the frame's pose. Which beam hits what and how often it comes back is
`mwsis.data.street.sweep`. Next: `street_camera.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from mwsis.core.geometry import CameraModel
from mwsis.data.frame_parts import pixel_map
from mwsis.data.street.rig import LidarRig
from mwsis.data.street.scene import World
from mwsis.data.street.shapes import Array
from mwsis.data.street.sweep import BEAM_EDGE, MAX_RANGE, elongations, sift, trace_beams, two_returns
from mwsis.data.waymo.record import LidarName, LidarRecord, LidarReturn
from mwsis.data.waymo.street_motion import roll_pitch_yaw

__all__ = ["Sweep", "calibrations", "pixel_pose", "projections"]

TOP_YAW_DEG, TOP_TILT_DEG = 148.0, (0.35, -0.25)
"""How TOP is mounted: about z, and about x and y."""
SIDE_INCLINATIONS = (-np.pi / 2, np.pi / 6)
SIDE_PLACES = {
    LidarName.FRONT: (4.07, 0.0, 0.69, 0.0),
    LidarName.SIDE_LEFT: (3.24, 1.02, 0.98, 90.0),
    LidarName.SIDE_RIGHT: (3.24, -1.02, 0.98, -90.0),
    LidarName.REAR: (-1.15, 0.0, 0.46, 180.0),
}
"""x, y, z (m) and yaw (deg) of the others, about as on Waymo's car."""
SIDE_VIEW, SIDE_REACH = np.deg2rad(95.0), 20.0
"""To either side of where they look, rad; and how far, m. Chosen like the real ones: wide and short."""


def _turn(axis: int, degrees: float) -> Array:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    one, other = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[one, one] = matrix[other, other] = cos
    matrix[other, one], matrix[one, other] = sin, -sin
    return matrix


def _mounted(rotation: Array, place: tuple[float, ...]) -> Array:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, place
    return matrix


def calibrations(top_rows: int) -> dict[LidarName, LidarRecord]:
    """Return the five LiDARs without what they record, in the order of recorded frames (alphabetical)."""
    rig = LidarRig.build(top_rows, 1)
    ascending = rig.inclinations[::-1].copy()
    rotation = _turn(2, TOP_YAW_DEG) @ _turn(1, TOP_TILT_DEG[1]) @ _turn(0, TOP_TILT_DEG[0])
    top = LidarRecord(
        LidarName.TOP,
        _mounted(rotation, tuple(rig.origin)),
        ascending,
        float(ascending[0]),
        float(ascending[-1]),
        (None, None),
        None,
    )
    found = {LidarName.TOP: top}
    for name, (x, y, z, yaw) in SIDE_PLACES.items():
        found[name] = LidarRecord(
            name, _mounted(_turn(2, yaw), (x, y, z)), None, *SIDE_INCLINATIONS, (None, None), None
        )
    return {name: found[name] for name in sorted(found, key=lambda name: name.name)}


def _beams(lidar: LidarRecord, size: tuple[int, int], tilt: float, turn: float) -> tuple[Array, Array]:
    """Return inclinations (H,) and azimuths (W,) in the sensor, rad, all turned by small angles."""
    rows, columns = size
    if lidar.inclinations is None:
        step = (lidar.inclination_max - lidar.inclination_min) / rows
        ascending = lidar.inclination_min + (np.arange(rows) + 0.5) * step
    else:
        ascending = lidar.inclinations
    mounted = np.arctan2(lidar.vehicle_SE3_lidar[1, 0], lidar.vehicle_SE3_lidar[0, 0])
    azimuth = np.pi - (np.arange(columns) + 0.5) * 2 * np.pi / columns - mounted
    return ascending[::-1] + tilt, azimuth + turn


@dataclass(frozen=True, eq=False)
class Sweep:
    """The range images of one LiDAR while they fill, and what each pixel hit.

    Attributes:
        lidar: calibration.
        values: (2, H, W, 4) float32 per return; -1 where nothing came back; no-label zones not yet marked.
        entity: (2, H, W) int32, row of `World.entities`, -1 where nothing came back.
        material: (2, H, W) uint8, `Material` of the surface.
        points: (2, H, W, 3) float64, metres, street: along the beam as far as was measured, NaN elsewhere.
    """

    lidar: LidarRecord
    values: Array
    entity: Array
    material: Array
    points: Array

    @classmethod
    def empty(cls, lidar: LidarRecord, size: tuple[int, int]) -> Sweep:
        """Return range images of (H, W) in which nothing came back yet."""
        shape = (2, *size)
        values, points = np.full((*shape, 4), -1, np.float32), np.full((*shape, 3), np.nan)
        return cls(lidar, values, np.full(shape, -1, np.int32), np.zeros(shape, np.uint8), points)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.entity.shape[1], self.entity.shape[2]

    def seen_columns(self) -> Array:
        """Return the columns within the field of view: of TOP all, of the others those ahead of them."""
        columns = np.arange(self.size[1])
        if self.lidar.name == LidarName.TOP:
            return columns
        _, azimuth = _beams(self.lidar, self.size, 0.0, 0.0)
        return columns[np.cos(azimuth) >= np.cos(SIDE_VIEW)]

    def measure(
        self, world: World, columns: Array, street_SE3_vehicle: Array, rng: np.random.Generator, noise: float
    ) -> None:
        """Fill some columns.

        Args:
            world: what is there at that time.
            columns: (C,) int64.
            street_SE3_vehicle: (C, 4, 4) float64, the vehicle's pose at each column.
            rng: draws noise and dropout.
            noise: of the range, metres.
        """
        sign = rng.choice(np.array([-1.0, 1.0]), 2)
        origin, ahead = self._rays(columns, street_SE3_vehicle, 0.0, 0.0)
        _, beside = self._rays(columns, street_SE3_vehicle, sign[0] * BEAM_EDGE, sign[1] * BEAM_EDGE)
        reach = MAX_RANGE if self.lidar.name == LidarName.TOP else SIDE_REACH
        middle = trace_beams(world, origin, ahead, rng, keep_panes=True, reach=reach)
        edge = trace_beams(world, origin, beside, rng, keep_panes=False, reach=reach)
        cells = np.arange(len(ahead))
        for index, echo in enumerate(two_returns(middle, edge)):
            cell, face, distance, strength, _ = sift(echo, cells, index, rng, noise)
            row, column = cell // len(columns), columns[cell % len(columns)]
            self.material[index, row, column] = world.mesh.materials[face]
            self.entity[index, row, column] = world.entity[face]
            drawn_out = elongations(world.mesh.materials[face], rng)
            measured = np.stack([distance, strength, drawn_out], 1)
            self.values[index, row, column, :3] = measured
            self.points[index, row, column] = origin[cell] + ahead[cell] * measured[:, :1].astype(np.float32)
        self._move_lone_returns(columns)

    def _rays(self, columns: Array, street_SE3_vehicle: Array, tilt: float, turn: float) -> tuple[Array, Array]:
        """Return origins and unit directions in the street, (H * C, 3) float64 each, row by row."""
        inclination, azimuth = _beams(self.lidar, self.size, tilt, turn)
        azimuth, level = azimuth[columns], np.cos(inclination)[:, None]
        rising = np.broadcast_to(np.sin(inclination)[:, None], (len(inclination), len(columns)))
        rays = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), rising], -1)
        street_SE3_lidar = street_SE3_vehicle @ self.lidar.vehicle_SE3_lidar
        directions = np.einsum("cij,rcj->rci", street_SE3_lidar[:, :3, :3], rays)
        origins = np.broadcast_to(street_SE3_lidar[None, :, :3, 3], directions.shape)
        return origins.reshape(-1, 3), directions.reshape(-1, 3)

    def _move_lone_returns(self, columns: Array) -> None:
        """Make second returns whose first was too weak the first."""
        lone = np.zeros(self.size, bool)
        lone[:, columns] = (self.entity[0][:, columns] < 0) & (self.entity[1][:, columns] >= 0)
        for images, missing in ((self.values, -1), (self.entity, -1), (self.material, 0), (self.points, np.nan)):
            images[0][lone], images[1][lone] = images[1][lone], missing

    def recorded(
        self, projection: Array, inside_zone: Array, segmentation: Array | None, pose: Array | None
    ) -> LidarRecord:
        """Return the LiDAR with what it recorded.

        Args:
            projection: (2, H, W, 6) int32.
            inside_zone: (2, H, W) bool, points in a no-label zone.
            segmentation: (2, H, W, 2) int32, or None in frames without.
            pose: (H, W, 6) float32, or None for LiDARs without.
        """
        values = self.values.copy()
        values[..., 3] = np.where(inside_zone, 1.0, -1.0)
        first, second = (
            LidarReturn(values[index], projection[index], None if segmentation is None else segmentation[index])
            for index in range(2)
        )
        return replace(self.lidar, returns=(first, second), pixel_pose=pose)


def pixel_pose(world_SE3_vehicle: Array, rows: int) -> Array:
    """Return TOP's pixel poses, (rows, W, 6) float32, of the vehicle's poses at its columns, (W, 4, 4)."""
    pose = np.concatenate([roll_pitch_yaw(world_SE3_vehicle[:, :3, :3]), world_SE3_vehicle[:, :3, 3]], 1)
    return np.tile(pose.astype(np.float32), (rows, 1, 1))


def projections(points: Array, vehicle_SE3_street: Array, cameras: dict[int, CameraModel]) -> Array:
    """Return the camera projections of points, (..., 6) int32, hidden points included.

    Args:
        points: (..., 3) float64, street, NaN where there is none.
        vehicle_SE3_street: (4, 4) float64, of the frame's pose.
        cameras: by number, in the order in which they are recorded; with rolling shutters.
    """
    there = ~np.isnan(points[..., 0])
    xyz = points[there] @ vehicle_SE3_street[:3, :3].T + vehicle_SE3_street[:3, 3]
    pixels = pixel_map(torch.from_numpy(xyz), tuple(cameras.values()))
    slot = pixels.camera_index.numpy() + 1
    name = np.array([0, *cameras])[slot]
    last = np.array([(0, 0), *((camera.width - 1, camera.height - 1) for camera in cameras.values())])[slot]
    cells = np.minimum(np.floor(pixels.pixel_uv.numpy()), last)
    found = np.zeros((*points.shape[:-1], 6), np.int32)
    found[there] = np.concatenate([name[..., None], cells], 2).reshape(len(xyz), 6)
    return found
