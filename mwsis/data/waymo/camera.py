"""Waymo's cameras as this project's camera model, 2D boxes as its labels, the outline of a 3D box in an image.

Waymo's camera frame (x forward, y left, z up) becomes the optical one here; pixel 0 is the left edge in both. Next:
`frame.py`, which puts views together.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mwsis.core.errors import DataError
from mwsis.core.geometry import MIN_DEPTH, CameraModel, RollingShutter, ShutterDirection, box_corners
from mwsis.core.instances import IGNORE, Boxes2D
from mwsis.data.waymo.classes import LABEL_OF_TYPE
from mwsis.data.waymo.record import Array, CameraBox, CameraName, CameraRecord

__all__ = ["camera_model", "camera_name", "drawn_boxes", "project_boxes3d"]

MAX_PIXELS = 1 << 26
"""An image larger than this is a broken file (recorded images have 2.5 million)."""
OPTICAL_R_CAMERA = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


def camera_name(name: int) -> str:
    """Return the data set's name of a camera, such as ``FRONT``."""
    return CameraName(name).name if name in CameraName._value2member_map_ else f"CAMERA_{name}"


def camera_model(camera: CameraRecord, world_SE3_vehicle: Array) -> CameraModel:
    """Return the model of a camera, with rolling shutter where its image says how the vehicle moved.

    Args:
        camera: calibration, and timing where there is an image.
        world_SE3_vehicle: (4, 4) float64, pose of the frame whose points will be projected.

    Returns:
        The model; without an image it has no shutter and stands in the frame's own pose.

    Raises:
        DataError: a field has the wrong size, or the timing cannot be.
    """
    _require_sizes(camera)
    vehicle_R_optical = camera.vehicle_SE3_camera[:3, :3] @ OPTICAL_R_CAMERA.T
    camera_SE3_vehicle = np.eye(4)
    camera_SE3_vehicle[:3, :3] = vehicle_R_optical.T
    camera_SE3_vehicle[:3, 3] = -vehicle_R_optical.T @ camera.vehicle_SE3_camera[:3, 3]
    return CameraModel(
        width=camera.width,
        height=camera.height,
        intrinsics=torch.tensor(camera.intrinsics[:4], dtype=torch.float64),
        distortion=torch.tensor(camera.intrinsics[4:], dtype=torch.float64),
        camera_SE3_vehicle=torch.from_numpy(camera_SE3_vehicle),
        shutter=None if camera.image is None else _shutter(camera, world_SE3_vehicle),
    )


def drawn_boxes(camera: CameraRecord) -> tuple[Boxes2D, tuple[str, ...]]:
    """Return the boxes that people drew in an image, without signs.

    Args:
        camera: a calibrated camera; without labels the whole image is one ignore region.

    Returns:
        labels: G boxes, clamped to the image; boxes of unknown type are ignore regions.
        laser_object_ids: (G,) the 3D box of the same object, "" where nobody said.

    Raises:
        DataError: a box is not finite.
    """
    if camera.boxes is None:
        whole = torch.tensor([[0.0, 0.0, camera.width, camera.height]])
        return Boxes2D(whole, torch.tensor([IGNORE]), torch.tensor([True])), ("",)
    used = [box for box in camera.boxes if box.type in LABEL_OF_TYPE]
    corners = torch.tensor([_corners(box) for box in used], dtype=torch.float64).reshape(-1, 4)
    if not bool(torch.isfinite(corners).all()):
        raise DataError(f"{camera_name(camera.name)}: camera labels: expected finite boxes, got NaN or infinity")
    size = torch.tensor([camera.width, camera.height] * 2, dtype=torch.float64)
    boxes = corners.clamp(min=0).minimum(size).float()
    labels = torch.tensor([LABEL_OF_TYPE[box.type] for box in used], dtype=torch.int64)
    shown = (boxes[:, 2:] > boxes[:, :2]).all(1)
    names = tuple(box.laser_object_id for box, keep in zip(used, shown.tolist(), strict=True) if keep)
    return Boxes2D(boxes[shown], labels[shown], labels[shown] == IGNORE), names


def project_boxes3d(camera: CameraModel, boxes3d: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outlines of 3D boxes in an image: the tight boxes of their projected corners.

    Args:
        camera: whose image.
        boxes3d: (M, 7) float, vehicle frame.

    Returns:
        boxes: (M, 4) float64, x1 y1 x2 y2 px, clamped to the image.
        shown: (M,) bool, every corner is in front of the camera and the outline covers some of the image.
    """
    pixel_uv, depth, _ = camera.project_unbounded(box_corners(boxes3d).reshape(-1, 3))
    corners = pixel_uv.reshape(-1, 8, 2)
    size = torch.tensor([camera.width, camera.height], dtype=torch.float64)
    low, high = corners.amin(1).clamp(min=0).minimum(size), corners.amax(1).clamp(min=0).minimum(size)
    shown = (depth.reshape(-1, 8) > MIN_DEPTH).all(1) & (high > low).all(1)
    return torch.cat([low, high], 1), shown


def _corners(box: CameraBox) -> tuple[float, float, float, float]:
    half_x, half_y = box.length / 2, box.width / 2
    return box.center_x - half_x, box.center_y - half_y, box.center_x + half_x, box.center_y + half_y


def _require_sizes(camera: CameraRecord) -> None:
    name = camera_name(camera.name)
    if camera.width <= 0 or camera.height <= 0 or camera.width * camera.height > MAX_PIXELS:
        got = f"{camera.width} and {camera.height}"
        raise DataError(f"{name}: width and height: expected pixels of an image, got {got}")
    wanted = {"intrinsics": (9,), "vehicle_SE3_camera": (4, 4)}
    if camera.image is not None:
        wanted |= {"world_SE3_vehicle": (4, 4), "velocity": (6,)}
    for field, shape in wanted.items():
        value = getattr(camera, field)
        if value is None or value.shape != shape or not np.isfinite(value).all():
            got = "nothing" if value is None else f"{value.shape} with {np.isfinite(value).sum()} finite"
            raise DataError(f"{name}: {field}: expected {shape} finite numbers, got {got}")


def _shutter(camera: CameraRecord, world_SE3_vehicle: Array) -> RollingShutter:
    name = camera_name(camera.name)
    if camera.shutter_direction not in set(ShutterDirection) - {ShutterDirection.UNKNOWN}:
        raise DataError(f"{name}: rolling_shutter_direction: expected 1 to 5, got {camera.shutter_direction}")
    duration = camera.readout_done_time - camera.trigger_time - camera.shutter
    if not 0 <= duration < 1:
        raise DataError(f"{name}: camera_readout_done_time: expected less than 1 s of readout, got {duration:.3f} s")
    return RollingShutter(
        direction=int(camera.shutter_direction),
        start=camera.trigger_time - camera.pose_timestamp + camera.shutter / 2,
        duration=duration,
        world_SE3_vehicle=torch.tensor(camera.world_SE3_vehicle, dtype=torch.float64),
        velocity=torch.tensor(camera.velocity, dtype=torch.float64),
        world_SE3_frame=torch.tensor(world_SE3_vehicle, dtype=torch.float64),
    )
