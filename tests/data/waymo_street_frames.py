"""Frames of a small street drive that several tests look at, and the documented decoding of range images.

Made once per process; the formulas are written down independently of what writes and of what reads the records.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np

from mwsis.data.waymo.street import FAR_OFFSET, StreetSegment, StreetSensors
from mwsis.data.waymo.street_motion import inverse

SIZES = {"top": (16, 256), "side": (16, 48), "image_width": 96, "num_slices": 8}
HOME = (0.0, 0.0, 0.0)


@cache
def near_segment():
    """A drive near the origin, ranges without noise."""
    return StreetSegment(0, "train", 0, StreetSensors(**SIZES, offset=HOME, range_noise=0.0))


@cache
def near_frame():
    """A frame with all labels."""
    return near_segment().frame(5)


@cache
def far_segment():
    """The same drive 25 km away, with noise."""
    return StreetSegment(0, "train", 0, StreetSensors(**SIZES, offset=FAR_OFFSET))


@cache
def far_frame():
    """The same frame there."""
    return far_segment().frame(5)


def lidar_of(record, name):
    return next(lidar for lidar in record.lidars if lidar.name == name)


def decode(lidar, image, world_SE3_vehicle, use_pose=True):
    """The documented formula, in float64: (H, W, 3) in the vehicle frame of the frame's pose."""
    rows, columns = image.shape[:2]
    mounted = lidar.vehicle_SE3_lidar
    if lidar.inclinations is None:
        low, high = lidar.inclination_min, lidar.inclination_max
        inclination = [(i + 0.5) / rows * (high - low) + low for i in reversed(range(rows))]
    else:
        inclination = lidar.inclinations[::-1]
    turned = np.arctan2(mounted[1, 0], mounted[0, 0])
    xyz = np.zeros((rows, columns, 3))
    for (r, tilt), c in product(enumerate(inclination), range(columns)):
        azimuth = ((columns - c - 0.5) / columns * 2 - 1) * np.pi - turned
        ray = np.array([np.cos(azimuth) * np.cos(tilt), np.sin(azimuth) * np.cos(tilt), np.sin(tilt)])
        xyz[r, c] = mounted[:3, :3] @ (ray * float(image[r, c, 0])) + mounted[:3, 3]
    if lidar.pixel_pose is None or not use_pose:
        return xyz
    pose = lidar.pixel_pose.astype(np.float64)
    cos, sin = np.cos(pose), np.sin(pose)
    one, zero = np.ones((rows, columns)), np.zeros((rows, columns))

    def matrix(*entries):
        return np.stack(entries, -1).reshape(rows, columns, 3, 3)

    about_x = matrix(one, zero, zero, zero, cos[..., 0], -sin[..., 0], zero, sin[..., 0], cos[..., 0])
    about_y = matrix(cos[..., 1], zero, sin[..., 1], zero, one, zero, -sin[..., 1], zero, cos[..., 1])
    about_z = matrix(cos[..., 2], -sin[..., 2], zero, sin[..., 2], cos[..., 2], zero, zero, zero, one)
    world = (about_z @ about_y @ about_x @ xyz[..., None])[..., 0] + pose[..., 3:]
    return (world - world_SE3_vehicle[:3, 3]) @ world_SE3_vehicle[:3, :3]


def decoded(segment, frame, name, index, use_pose=True):
    """Points, and what was hit, of the pixels with a return: (N, 3) both in the vehicle frame; rows and columns."""
    lidar = lidar_of(frame.record, name)
    image = lidar.returns[index].values
    there = image[..., 0] > 0
    pose = inverse(segment.motion.street_SE3_vehicle(np.array([frame.stage.middle]))[0])
    hits = frame.sweeps[name].points[index][there] @ pose[:3, :3].T + pose[:3, 3]
    return decode(lidar, image, frame.record.world_SE3_vehicle, use_pose)[there], hits, *there.nonzero()
