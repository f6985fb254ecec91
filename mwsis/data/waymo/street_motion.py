"""How the recording car of a street segment moves, and when its sensors look: the clock of `street.py`.

The street's own path is smooth and level; here the car also rolls, pitches and weaves, and the street lies anywhere
in the world. Times are seconds from the segment's first frame. Next: `street_stage.py`, what is there to be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mwsis.data.street.scene import FRAME_SECONDS, Scene
from mwsis.data.street.shapes import Array
from mwsis.data.waymo.record import CameraName

__all__ = [
    "POSE_DELAY",
    "SHUTTER_SECONDS",
    "SPIN_SECONDS",
    "TRIGGER_DELAY",
    "CameraClock",
    "Motion",
    "column_times",
    "inverse",
    "make_motion",
    "roll_pitch_yaw",
]

SPIN_SECONDS = 0.1
"""One turn of the TOP LiDAR, and the time from frame to frame."""
POSE_DELAY = 0.05
"""``Frame.pose`` and the labels belong to the middle of the turn; the frame's timestamp is its start."""
TRIGGER_DELAY = {
    CameraName.SIDE_LEFT: 0.0015,
    CameraName.FRONT_LEFT: 0.0147,
    CameraName.FRONT: 0.0270,
    CameraName.FRONT_RIGHT: 0.0393,
    CameraName.SIDE_RIGHT: 0.0518,
}
"""From the frame's timestamp to a camera's trigger, seconds (values of a recorded Waymo frame, as the two below)."""
READOUT_SECONDS, SHUTTER_SECONDS = 0.0441, 0.0030
VELOCITY_STEP = 1e-3
WOBBLE_SIZE, WOBBLE_RATE = (0.012, 0.008, 0.010), (3.0, 7.0)
"""Largest roll, pitch and weave, rad; slowest and fastest swing, rad/s. Chosen by eye."""


def column_times(columns: int) -> Array:
    """Return when each column of the TOP range image is measured, (W,) float64, seconds after the frame's start."""
    return (np.arange(columns) + 0.5) / columns * SPIN_SECONDS


def inverse(dst_SE3_src: Array) -> Array:
    """Return (..., 4, 4) ``src_SE3_dst``."""
    rotation = np.swapaxes(dst_SE3_src[..., :3, :3], -1, -2)
    matrix = np.zeros_like(dst_SE3_src)
    matrix[..., :3, :3], matrix[..., 3, 3] = rotation, 1
    matrix[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, dst_SE3_src[..., :3, 3])
    return matrix


def _rotations(roll: Array, pitch: Array, yaw: Array) -> Array:
    """Return (N, 3, 3) rotations: about x by ``roll``, then about y by ``pitch``, then about z by ``yaw`` (rad)."""
    cr, cp, cy = np.cos(roll), np.cos(pitch), np.cos(yaw)
    sr, sp, sy = np.sin(roll), np.sin(pitch), np.sin(yaw)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def roll_pitch_yaw(rotations: Array) -> Array:
    """Return the angles of (N, 3, 3) rotations, (N, 3) float64, rad, as the TOP pixel pose stores them."""
    roll = np.arctan2(rotations[:, 2, 1], rotations[:, 2, 2])
    pitch = -np.arcsin(np.clip(rotations[:, 2, 0], -1, 1))
    return np.stack([roll, pitch, np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0])], 1)


@dataclass(frozen=True)
class CameraClock:
    """When one camera records the image of a frame.

    Attributes:
        trigger, readout_done: seconds after the frame's timestamp; the image is read out from left to right.
    """

    trigger: float
    readout_done: float

    @classmethod
    def of(cls, name: CameraName) -> CameraClock:
        """Return the clock of a camera."""
        return cls(TRIGGER_DELAY[name], TRIGGER_DELAY[name] + READOUT_SECONDS)

    @property
    def pose(self) -> float:
        """The moment whose vehicle pose is stored with the image."""
        return (self.trigger + self.readout_done) / 2

    def column_times(self, width: int) -> Array:
        """Return when the middle of each column is exposed, (W,) float64, seconds after the frame's timestamp."""
        reading = self.readout_done - self.trigger - SHUTTER_SECONDS
        return self.trigger + SHUTTER_SECONDS / 2 + reading * (np.arange(width) + 0.5) / width


@dataclass(frozen=True, eq=False)
class Motion:
    """Where the recording car is at any time.

    Attributes:
        scene: whose path it follows.
        swing: (3, 3) float64: size (rad), rate (rad/s) and phase (rad) of roll, pitch and weave.
        world_SE3_street: (4, 4) float64.
    """

    scene: Scene
    swing: Array
    world_SE3_street: Array

    def street_SE3_vehicle(self, times: Array) -> Array:
        """Return the vehicle's poses in the street at (N,) times, (N, 4, 4) float64."""
        ways = [self.scene.ego(float(time) / FRAME_SECONDS) for time in times]
        size, rate, phase = self.swing.T[:, :, None]
        roll, pitch, weave = size * np.sin(rate * np.asarray(times) + phase)
        pose = np.tile(np.eye(4), (len(ways), 1, 1))
        pose[:, :3, :3] = _rotations(roll, pitch, np.array([yaw for yaw, _ in ways]) + weave)
        pose[:, :3, 3] = [position for _, position in ways]
        return pose

    def world_SE3_vehicle(self, times: Array) -> Array:
        """Return the vehicle's poses in the world at (N,) times, (N, 4, 4) float64."""
        return np.asarray(self.world_SE3_street @ self.street_SE3_vehicle(times))

    def velocity(self, time: float) -> Array:
        """Return (6,) float64: velocity in the world (m/s), turn rate in the vehicle frame (rad/s)."""
        before, now, after = self.world_SE3_vehicle(np.array([time - VELOCITY_STEP, time, time + VELOCITY_STEP]))
        change = (after - before) / (2 * VELOCITY_STEP)
        turn = now[:3, :3].T @ change[:3, :3]
        return np.concatenate([change[:3, 3], [turn[2, 1], turn[0, 2], turn[1, 0]]])


def make_motion(scene: Scene, offset: tuple[float, float, float], rng: np.random.Generator) -> Motion:
    """Return a motion along the scene's path; the street starts at ``offset`` (m) and turns to a random direction."""
    size = np.array(WOBBLE_SIZE) * rng.uniform(0.6, 1.0, 3)
    swing = np.stack([size, rng.uniform(*WOBBLE_RATE, 3), rng.uniform(0, 2 * np.pi, 3)], 1)
    zero = np.zeros(1)
    world_SE3_street = np.eye(4)
    world_SE3_street[:3, :3] = _rotations(zero, zero, rng.uniform(-np.pi, np.pi, 1))[0]
    world_SE3_street[:3, 3] = offset
    return Motion(scene, swing, world_SE3_street)
