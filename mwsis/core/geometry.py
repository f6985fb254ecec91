"""Rigid transforms, the pinhole camera with distortion and rolling shutter, points in oriented boxes.

Camera frames here are optical (x right, y down, z forward), as in OpenCV and KITTI; a data set that differs (Waymo)
converts when it is read. Double precision inside, because a drive may lie 25 km from its origin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

__all__ = [
    "BOX_EDGES",
    "CameraModel",
    "RollingShutter",
    "ShutterDirection",
    "box_corners",
    "points_in_boxes3d",
    "se3_from_yaw",
    "transform_points",
]

TRUSTED_RADIAL = (0.8, 1.2)
"""Radial distortion factors outside this band are extrapolation (Waymo's camera model uses the same band)."""
UNDISTORT_ITERATIONS = 12
SHUTTER_ITERATIONS = 20
SHUTTER_TOLERANCE = 1e-7
"""Of a readout: the fixed point is found when no point's exposure moves by more (2e-4 px in 1,920 columns)."""
SHUTTER_REACH = 1.0
"""Image sizes beyond the image up to which lines are still told apart; further out all share the outermost time."""
MIN_DEPTH = 0.05
"""metres; what is nearer, or behind the camera, is not seen."""


def transform_points(dst_SE3_src: Tensor, xyz: Tensor) -> Tensor:
    """Return (N, 3) points of frame ``src`` in frame ``dst``, in the dtype of ``xyz``, computed in float64."""
    matrix = dst_SE3_src.double()
    return (xyz.double() @ matrix[:3, :3].T + matrix[:3, 3]).to(xyz.dtype)


def se3_from_yaw(yaw: float, translation: tuple[float, float, float]) -> Tensor:
    """Return a (4, 4) float64 rotation by ``yaw`` (rad, about +z) followed by a translation (metres)."""
    angle = torch.tensor(yaw, dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 0] = matrix[1, 1] = angle.cos()
    matrix[1, 0], matrix[0, 1] = angle.sin(), -angle.sin()
    matrix[:3, 3] = torch.tensor(translation, dtype=torch.float64)
    return matrix


class ShutterDirection(IntEnum):
    """The order in which the lines of an image are exposed."""

    UNKNOWN = 0
    TOP_TO_BOTTOM = 1
    LEFT_TO_RIGHT = 2
    BOTTOM_TO_TOP = 3
    RIGHT_TO_LEFT = 4
    GLOBAL = 5  # all at once


AT_ONCE = (ShutterDirection.UNKNOWN, ShutterDirection.GLOBAL)
ALONG_COLUMNS = (ShutterDirection.LEFT_TO_RIGHT, ShutterDirection.RIGHT_TO_LEFT)
BACKWARD = (ShutterDirection.BOTTOM_TO_TOP, ShutterDirection.RIGHT_TO_LEFT)


@dataclass(frozen=True, eq=False)
class RollingShutter:
    """When each line of an image was exposed, and where the vehicle was then.

    The vehicle moves with constant velocity and constant turn rate during the readout. Times are seconds after the
    moment of ``world_SE3_vehicle``: seconds since 1970 would cost .01 px in float64.

    Attributes:
        direction: `ShutterDirection`; UNKNOWN and GLOBAL expose every line at ``start``.
        start: seconds, middle of the exposure of the first line (its outer edge, not its centre).
        duration: seconds from there to the far edge of the last line.
        world_SE3_vehicle: (4, 4) float64, at time 0.
        velocity: (6,) float64: v in the world (m/s), w in the vehicle frame (rad/s).
        world_SE3_frame: (4, 4) float64, the vehicle pose that the frame's points are given in.
    """

    direction: int
    start: float
    duration: float
    world_SE3_vehicle: Tensor
    velocity: Tensor
    world_SE3_frame: Tensor

    @property
    def along_columns(self) -> bool:
        """Whether the lines are columns; else they are rows."""
        return self.direction in ALONG_COLUMNS

    def time_at(self, fraction: Tensor) -> Tensor:
        """Return the time (s, float64) at which a place in the image is exposed.

        Args:
            fraction: column over width, or row over height if the lines are rows; 0 = left or upper edge.
        """
        if self.direction in AT_ONCE:
            return torch.full_like(fraction, self.start, dtype=torch.float64)
        reached = fraction.double().clamp(-SHUTTER_REACH, 1 + SHUTTER_REACH)
        return self.start + self.duration * (1 - reached if self.direction in BACKWARD else reached)

    def pose_at(self, time: Tensor) -> Tensor:
        """Return the vehicle's pose ``world_SE3_vehicle`` at (...) times (s, float64), (..., 4, 4) float64."""
        axes = torch.eye(3, dtype=torch.float64).expand(*time.shape, 3, 3)
        turned = _rotate(axes, self.velocity[3:], time[..., None])  # rows: where the axes turn to
        pose = self.world_SE3_vehicle.expand(*time.shape, 4, 4).clone()
        pose[..., :3, :3] = self.world_SE3_vehicle[:3, :3] @ turned.transpose(-1, -2)
        pose[..., :3, 3] += time[..., None] * self.velocity[:3]
        return pose

    def to_vehicle(self, xyz: Tensor, time: Tensor) -> Tensor:
        """Return points that stand still in the vehicle frame at other times.

        Args:
            xyz: (N, 3) float, metres, the frame's vehicle frame.
            time: (N,) float64, seconds.

        Returns:
            (N, 3) float64, each in the vehicle frame of its own time.
        """
        rotation = self.world_SE3_vehicle[:3, :3]
        offset = self.world_SE3_frame[:3, 3] - self.world_SE3_vehicle[:3, 3]  # small: both lie far from the origin
        world = xyz.double() @ self.world_SE3_frame[:3, :3].T + offset - time[:, None] * self.velocity[:3]
        return _rotate(world @ rotation, self.velocity[3:], -time)

    def from_vehicle(self, xyz: Tensor, time: Tensor) -> Tensor:
        """Return the inverse of `to_vehicle`: (N, 3) float64 in the frame's vehicle frame."""
        turned = _rotate(xyz.double(), self.velocity[3:], time)
        offset = self.world_SE3_vehicle[:3, 3] - self.world_SE3_frame[:3, 3]
        world = turned @ self.world_SE3_vehicle[:3, :3].T + offset + time[:, None] * self.velocity[:3]
        return world @ self.world_SE3_frame[:3, :3]


def _rotate(xyz: Tensor, angular: Tensor, elapsed: Tensor) -> Tensor:
    """Return (..., 3) points turned by the rotation vectors ``angular * elapsed``, ``elapsed`` (...) (Rodrigues)."""
    speed = angular.norm()
    axis = (angular / speed.clamp(min=1e-12)).expand(xyz.shape)
    angle = (elapsed * speed)[..., None]
    along = axis * (xyz * axis).sum(-1, keepdim=True)
    return along + (xyz - along) * angle.cos() + torch.linalg.cross(axis, xyz) * angle.sin()


@dataclass(frozen=True, eq=False)
class CameraModel:
    """A pinhole camera with radial and tangential distortion, and a rolling shutter where the vehicle moves meanwhile.

    Attributes:
        width, height: pixels.
        intrinsics: (4,) float64, focal lengths u, v and centre u, v, pixels.
        distortion: (5,) float64, k1 k2 p1 p2 k3.
        camera_SE3_vehicle: (4, 4) float64, vehicle frame to optical camera frame.
        shutter: None where the whole image is taken from the vehicle frame that points are given in.
    """

    width: int
    height: int
    intrinsics: Tensor
    distortion: Tensor
    camera_SE3_vehicle: Tensor
    shutter: RollingShutter | None = None

    def project(self, xyz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project points of the vehicle frame.

        Args:
            xyz: (N, 3) float, metres, vehicle frame.

        Returns:
            pixel_uv: (N, 2) float32, pixels, centres at +0.5; meaningless where not visible.
            depth: (N,) float32, metres along the optical axis.
            visible: (N,) bool, in front of the camera, distortion trusted, inside the image.
        """
        pixel_uv, depth, trusted = self.project_unbounded(xyz)
        size = torch.tensor([self.width, self.height], dtype=torch.float64)
        inside = ((pixel_uv >= 0) & (pixel_uv < size)).all(1)
        return pixel_uv.float(), depth.float(), trusted & inside

    def project_unbounded(self, xyz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project points of the vehicle frame onto the image plane, which goes on beyond the image.

        With a rolling shutter the line that shows a point decides where the vehicle was, and so which line shows it:
        solved as a fixed point. Points that no line or several would show end where the iterations do. What is in front
        but not trusted is put in its direction, one image diagonal from the principal point, so outside the image; what
        is not in front has no pixel.

        Args:
            xyz: (N, 3) float, metres, vehicle frame.

        Returns:
            pixel_uv: (N, 2) float64, pixels, centres at +0.5.
            depth: (N,) float64, metres along the optical axis.
            trusted: (N,) bool, in front of the camera and where the distortion was measured.

        Source: the Waymo Open Dataset's description of its cameras; *corrected*: the vehicle's turn is a rotation
        instead of its first-order expansion, and lines far outside the image share the outermost time.
        """
        if self.shutter is None:
            return self._project_still(xyz)
        axis, size = self._lines
        time = self.shutter.time_at(torch.full((len(xyz),), 0.5, dtype=torch.float64))
        pixel_uv, depth, trusted = self._project_still(self.shutter.to_vehicle(xyz, time))
        for _ in range(SHUTTER_ITERATIONS):
            exposed = self.shutter.time_at(pixel_uv[:, axis] / size)
            moved = (exposed - time).abs() > SHUTTER_TOLERANCE * self.shutter.duration
            rows = (moved & (depth > MIN_DEPTH)).nonzero()[:, 0]
            if not len(rows):
                break
            time[rows] = exposed[rows]
            seen = self._project_still(self.shutter.to_vehicle(xyz[rows], time[rows]))
            pixel_uv[rows], depth[rows], trusted[rows] = seen
        return pixel_uv, depth, trusted

    def line_times(self) -> Tensor:
        """Return when the centre of each line is exposed, for `RollingShutter.pose_at`.

        Returns:
            (width,) or, if lines are rows, (height,) float64, seconds.

        Raises:
            ValueError: the camera has no shutter.
        """
        if self.shutter is None:
            raise ValueError("line_times: expected a camera with a rolling shutter, got one without")
        _, size = self._lines
        return self.shutter.time_at((torch.arange(size, dtype=torch.float64) + 0.5) / size)

    def rays(self, pixel_uv: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rays through (M, 2) pixels, float64, vehicle frame.

        Returns:
            origin: (3,) metres; (M, 3) with a rolling shutter, because the camera moves from line to line.
            direction: (M, 3), unit length.
        """
        direction = self._undistort((pixel_uv.double() - self.intrinsics[2:]) / self.intrinsics[:2])
        rotation = self.camera_SE3_vehicle[:3, :3]
        origin = -rotation.T @ self.camera_SE3_vehicle[:3, 3]
        direction = direction @ rotation
        direction = direction / direction.norm(dim=1, keepdim=True)
        if self.shutter is None:
            return origin, direction
        axis, size = self._lines
        time = self.shutter.time_at(pixel_uv[:, axis].double() / size)
        origins = self.shutter.from_vehicle(origin.expand(len(time), 3), time)
        return origins, self.shutter.from_vehicle(origin + direction, time) - origins

    @property
    def _lines(self) -> tuple[int, int]:
        """The coordinate (0 = u, 1 = v) that tells lines apart, and how many lines there are."""
        along_columns = self.shutter is not None and self.shutter.along_columns
        return (0, self.width) if along_columns else (1, self.height)

    def _project_still(self, xyz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        point = transform_points(self.camera_SE3_vehicle, xyz.double())
        depth = point[:, 2]
        in_front = depth > MIN_DEPTH
        normalised = point[:, :2] / torch.where(in_front, depth, torch.ones_like(depth))[:, None]
        distorted, radial = self._distort(normalised)
        trusted = (radial > TRUSTED_RADIAL[0]) & (radial < TRUSTED_RADIAL[1])
        outward = normalised / normalised.norm(dim=1, keepdim=True).clamp(min=1e-12)
        offset = torch.where(
            trusted[:, None], distorted * self.intrinsics[:2], outward * math.hypot(self.width, self.height)
        )
        return offset + self.intrinsics[2:], depth, in_front & trusted

    def _undistort(self, target: Tensor) -> Tensor:
        """Return (M, 3) points at depth 1 that are distorted to (M, 2) normalised coordinates, by fixed point."""
        normalised = target.clone()
        for _ in range(UNDISTORT_ITERATIONS):
            distorted, _ = self._distort(normalised)
            normalised = normalised + (target - distorted)
        return torch.cat([normalised, torch.ones_like(normalised[:, :1])], 1)

    def _distort(self, normalised: Tensor) -> tuple[Tensor, Tensor]:
        k1, k2, p1, p2, k3 = self.distortion
        u, v = normalised[:, 0], normalised[:, 1]
        r2 = u * u + v * v
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        shifted_u = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
        shifted_v = v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v
        return torch.stack([shifted_u, shifted_v], 1), radial


def points_in_boxes3d(xyz: Tensor, boxes3d: Tensor) -> Tensor:
    """Return which points lie in which oriented boxes.

    Args:
        xyz: (N, 3) float, metres.
        boxes3d: (M, 7) float, centre xyz, length, width, height, yaw (rad, about +z), same frame.

    Returns:
        (N, M) bool, faces included.
    """
    offset = xyz[:, None, :3] - boxes3d[None, :, :3]
    cos, sin = boxes3d[:, 6].cos(), boxes3d[:, 6].sin()
    along = offset[..., 0] * cos + offset[..., 1] * sin
    across = -offset[..., 0] * sin + offset[..., 1] * cos
    local = torch.stack([along, across, offset[..., 2]], -1)
    return (local.abs() <= boxes3d[None, :, 3:6] / 2).all(-1)


BOX_EDGES = tuple((corner, corner | axis) for axis in (1, 2, 4) for corner in range(8) if not corner & axis)
"""Pairs of the corners of a box (`box_corners`, numbered in binary along its axes) that an edge joins."""


def box_corners(boxes3d: Tensor) -> Tensor:
    """Return the corners of oriented boxes.

    Args:
        boxes3d: (M, 7) float, centre xyz, length, width, height, yaw (rad, about +z).

    Returns:
        (M, 8, 3) float64, same frame.
    """
    boxes = boxes3d.double()
    signs = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * 3)
    local = signs * boxes[:, None, 3:6]
    cos, sin = boxes[:, 6].cos()[:, None], boxes[:, 6].sin()[:, None]
    along, across, up = local.unbind(-1)
    return torch.stack([along * cos - across * sin, along * sin + across * cos, up], -1) + boxes[:, None, :3]
