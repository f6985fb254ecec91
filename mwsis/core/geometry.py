"""Rigid transforms, the pinhole camera with distortion, points in oriented boxes.

Camera frames here are optical (x right, y down, z forward), as in OpenCV and KITTI; a data set that differs (Waymo)
converts when it is read. Double precision inside, because a drive may lie 25 km from its origin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CameraModel", "points_in_boxes3d", "se3_from_yaw", "transform_points"]

TRUSTED_RADIAL = (0.8, 1.2)
"""Radial distortion factors outside this band are extrapolation (Waymo's camera model uses the same band)."""
UNDISTORT_ITERATIONS = 12


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


@dataclass(frozen=True, eq=False)
class CameraModel:
    """A pinhole camera with radial and tangential distortion.

    Attributes:
        width, height: pixels.
        intrinsics: (4,) float64, focal lengths u, v and centre u, v, pixels.
        distortion: (5,) float64, k1 k2 p1 p2 k3.
        camera_SE3_vehicle: (4, 4) float64, vehicle frame to optical camera frame.
    """

    width: int
    height: int
    intrinsics: Tensor
    distortion: Tensor
    camera_SE3_vehicle: Tensor

    def project(self, xyz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project points of the vehicle frame.

        Args:
            xyz: (N, 3) float, metres, vehicle frame.

        Returns:
            pixel_uv: (N, 2) float32, pixels, centres at +0.5; meaningless where not visible.
            depth: (N,) float32, metres along the optical axis.
            visible: (N,) bool, in front of the camera, distortion trusted, inside the image.
        """
        point = transform_points(self.camera_SE3_vehicle, xyz.double())
        depth = point[:, 2]
        in_front = depth > 0.05
        normalised = point[:, :2] / torch.where(in_front, depth, torch.ones_like(depth))[:, None]
        distorted, radial = self._distort(normalised)
        pixel_uv = distorted * self.intrinsics[:2] + self.intrinsics[2:]
        trusted = (radial > TRUSTED_RADIAL[0]) & (radial < TRUSTED_RADIAL[1])
        size = torch.tensor([self.width, self.height], dtype=torch.float64)
        inside = ((pixel_uv >= 0) & (pixel_uv < size)).all(1)
        return pixel_uv.float(), depth.float(), in_front & trusted & inside

    def rays(self, pixel_uv: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rays through (M, 2) pixels: origin (3,), unit directions (M, 3), float64, vehicle frame."""
        target = (pixel_uv.double() - self.intrinsics[2:]) / self.intrinsics[:2]
        normalised = target.clone()
        for _ in range(UNDISTORT_ITERATIONS):  # fixed point of distort(x) = target
            distorted, _ = self._distort(normalised)
            normalised = normalised + (target - distorted)
        direction = torch.cat([normalised, torch.ones_like(normalised[:, :1])], 1)
        rotation = self.camera_SE3_vehicle[:3, :3]
        origin = -rotation.T @ self.camera_SE3_vehicle[:3, 3]
        direction = direction @ rotation
        return origin, direction / direction.norm(dim=1, keepdim=True)

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
