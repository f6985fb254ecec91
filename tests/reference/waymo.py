"""Waymo geometry one point at a time: matrices of a pixel's own pose, and every line of the image tried in turn."""

import math

import numpy as np

from mwsis.core.geometry import CameraModel, RollingShutter, ShutterDirection
from mwsis.data.waymo.record import LidarName, LidarRecord


def range_image_point(
    lidar: LidarRecord, world_SE3_vehicle: np.ndarray, return_index: int, row: int, column: int
) -> np.ndarray:
    """Return one pixel's point in the vehicle frame, (3,) float64."""
    image = lidar.returns[return_index].values
    num_rows, num_columns = image.shape[:2]
    if lidar.inclinations is None:
        step = (lidar.inclination_max - lidar.inclination_min) / num_rows
        inclination = lidar.inclination_max - (row + 0.5) * step
    else:
        inclination = sorted(lidar.inclinations, reverse=True)[row]
    heading = math.pi - (column + 0.5) * 2 * math.pi / num_columns  # as seen from the vehicle
    azimuth = heading - math.atan2(lidar.vehicle_SE3_lidar[1, 0], lidar.vehicle_SE3_lidar[0, 0])
    distance = float(image[row, column, 0])
    level = distance * math.cos(inclination)
    ray = [level * math.cos(azimuth), level * math.sin(azimuth), distance * math.sin(inclination), 1.0]
    point = lidar.vehicle_SE3_lidar @ np.array(ray)
    if lidar.name != LidarName.TOP:
        return point[:3]
    roll, pitch, yaw, *position = (float(value) for value in lidar.pixel_pose[row, column])
    turned = point[:3]
    for axis, angle in ((0, roll), (1, pitch), (2, yaw)):
        turned = rotation_about(np.eye(3)[axis], angle) @ turned
    offset = np.array(position) - world_SE3_vehicle[:3, 3]
    return np.linalg.solve(world_SE3_vehicle[:3, :3], turned + offset)


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation matrix by the exponential series."""
    x, y, z = axis
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) * angle
    total, power = np.eye(3), np.eye(3)
    for order in range(1, 20):
        power = power @ skew / order
        total = total + power
    return total


def vehicle_pose(shutter: RollingShutter, time: float) -> np.ndarray:
    """The vehicle in the world, (4, 4)."""
    pose = shutter.world_SE3_vehicle.numpy().copy()
    linear, angular = shutter.velocity[:3].numpy(), shutter.velocity[3:].numpy()
    pose[:3, 3] += linear * time
    speed = float(np.linalg.norm(angular))
    if speed:
        pose[:3, :3] = pose[:3, :3] @ rotation_about(angular / speed, speed * time)
    return pose


def seen_at(camera: CameraModel, xyz: np.ndarray, time: float) -> np.ndarray:
    """Pixel of a point if the whole image were taken at one time, (2,); plain formulas, for small offsets."""
    shutter = camera.shutter
    world = shutter.world_SE3_frame.numpy() @ np.append(xyz, 1.0)
    x, y, z, _ = camera.camera_SE3_vehicle.numpy() @ np.linalg.inv(vehicle_pose(shutter, time)) @ world
    k1, k2, p1, p2, k3 = camera.distortion.tolist()
    u, v = x / z, y / z
    r2 = u * u + v * v
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    distorted = np.array(
        [u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u), v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v]
    )
    return distorted * camera.intrinsics[:2].numpy() + camera.intrinsics[2:].numpy()


def project(camera: CameraModel, xyz: np.ndarray) -> np.ndarray:
    """Pixel of a point, (2,): the place in the image whose line is exposed when the point is seen there.

    Tries 41 lines over the image and its surroundings and bisects between the two that enclose the point.
    """
    shutter = camera.shutter
    columns = shutter.direction in (ShutterDirection.LEFT_TO_RIGHT, ShutterDirection.RIGHT_TO_LEFT)
    backward = shutter.direction in (ShutterDirection.RIGHT_TO_LEFT, ShutterDirection.BOTTOM_TO_TOP)
    size = camera.width if columns else camera.height
    if shutter.direction == ShutterDirection.GLOBAL:
        return seen_at(camera, xyz, shutter.start)

    def time(fraction: float) -> float:
        return shutter.start + shutter.duration * (1 - fraction if backward else fraction)

    def excess(fraction: float) -> float:
        return seen_at(camera, xyz, time(fraction))[0 if columns else 1] / size - fraction

    tried = np.linspace(-0.5, 1.5, 41)
    values = [excess(float(fraction)) for fraction in tried]
    crossing = next(i for i in range(40) if values[i] >= 0 > values[i + 1])
    low, high = float(tried[crossing]), float(tried[crossing + 1])
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) >= 0 else (low, middle)
    return seen_at(camera, xyz, time((low + high) / 2))
