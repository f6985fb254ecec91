"""Where the sensors sit: one spinning LiDAR on the roof and five cameras around it, laid out as on Waymo's cars.

Scan pattern and lenses only; what they record is `sweep.py` and `render.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mwsis.core.geometry import CameraModel
from mwsis.data.street.shapes import Array

__all__ = ["CAMERA_NAMES", "LidarRig", "camera_rig"]

CAMERA_NAMES = ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT")
_CAMERA_PLACES = (
    (1.50, 0.0, 2.02, 0.0), (1.45, 0.12, 2.02, 45.0), (1.45, -0.12, 2.02, -45.0), (1.38, 0.14, 2.02, 90.0),
    (1.38, -0.14, 2.02, -90.0),
)  # fmt: skip
"""x, y, z (m) and yaw (deg) of each camera in the vehicle frame."""
FOCAL_OVER_WIDTH = 1.07
"""50 degrees across; the five fields of view overlap by five degrees or more."""
DISTORTION = (0.04, -0.30, 0.0, 0.0, 0.0)
FRONT_ASPECT, SIDE_ASPECT = 1280 / 1920, 886 / 1920
SIDE_HORIZON = 0.30
"""The side images are cut from the top, so that the horizon lies at this fraction of their height."""

INCLINATION_TOP, INCLINATION_BOTTOM = 0.0437, -0.3062
"""Highest and lowest beam, rad (values of a recorded Waymo frame)."""
STEP_TOP, STEP_GROWTH = 0.0028, 0.0082
"""Gap between beams of 64 at the top, and how much it grows, quadratically, to the bottom, rad (same frame)."""


@dataclass(frozen=True, eq=False)
class LidarRig:
    """The scan pattern of the roof LiDAR.

    Attributes:
        origin: (3,) float64, sensor in the vehicle frame, metres.
        inclinations: (R,) float64, rad, row 0 the highest.
        azimuths: (A,) float64, rad about +z from +x, column 0 near +pi, clockwise.
    """

    origin: Array
    inclinations: Array
    azimuths: Array

    @classmethod
    def build(cls, rows: int, columns: int) -> LidarRig:
        """Return a rig with ``rows`` beams, dense near the horizon, and ``columns`` firings a turn."""
        t = np.linspace(0, 1, rows) if rows > 1 else np.array([0.5])
        fall = STEP_TOP * t + STEP_GROWTH * t**3 / 3
        fall /= STEP_TOP + STEP_GROWTH / 3
        inclinations = INCLINATION_TOP + (INCLINATION_BOTTOM - INCLINATION_TOP) * fall
        azimuths = np.pi - (np.arange(columns) + 0.5) * 2 * np.pi / columns
        return cls(np.array([1.20, 0.0, 2.10]), inclinations, azimuths)

    def directions(self, tilt: float = 0.0, turn: float = 0.0) -> Array:
        """Return unit directions of all pixels, row by row, (R * A, 3) float64, turned by small angles (rad)."""
        inclination, azimuth = np.meshgrid(self.inclinations + tilt, self.azimuths + turn, indexing="ij")
        flat = np.cos(inclination)
        rays = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(inclination)], -1)
        return np.asarray(rays.reshape(-1, 3))


def camera_rig(image_width: int) -> tuple[CameraModel, ...]:
    """Return the five cameras in the order of `CAMERA_NAMES`, images ``image_width`` pixels wide."""
    cameras = []
    for x, y, z, yaw_deg in _CAMERA_PLACES:
        is_side = abs(yaw_deg) == 90
        height = round(image_width * (SIDE_ASPECT if is_side else FRONT_ASPECT))
        focal = FOCAL_OVER_WIDTH * image_width
        horizon = height * (SIDE_HORIZON if is_side else 0.5)
        yaw = np.deg2rad(yaw_deg)
        right, down = [np.sin(yaw), -np.cos(yaw), 0.0], [0.0, 0.0, -1.0]
        rotation = np.array([right, down, [np.cos(yaw), np.sin(yaw), 0.0]])
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ np.array([x, y, z])
        intrinsics = torch.tensor([focal, focal, image_width / 2, horizon], dtype=torch.float64)
        distortion = torch.tensor(DISTORTION, dtype=torch.float64)
        cameras.append(CameraModel(image_width, height, intrinsics, distortion, torch.from_numpy(matrix)))
    return tuple(cameras)
