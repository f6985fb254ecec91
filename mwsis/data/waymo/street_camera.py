"""What the five cameras of a street segment record: rolling-shutter images, and which thing each pixel shows.

A column is exposed from where the vehicle is at that column's time; images are drawn in groups of columns for which
nobody else moves. The picture itself is `mwsis.data.street.render`. Next: `street_labels.py`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from mwsis.core.geometry import CameraModel, ShutterDirection
from mwsis.data.street.render import Aim, CameraRays, encode_jpeg, render_aimed
from mwsis.data.street.rig import CAMERA_NAMES, camera_rig
from mwsis.data.street.scene import World
from mwsis.data.street.shapes import Array
from mwsis.data.waymo.record import CameraName, CameraRecord, PanopticLabel
from mwsis.data.waymo.street_classes import camera_classes
from mwsis.data.waymo.street_motion import SHUTTER_SECONDS, CameraClock, Motion
from mwsis.data.waymo.street_stage import Stage

__all__ = ["IMAGE_ORDER", "Exposure", "Lens", "lenses", "panoptic_label"]

IMAGE_ORDER = (
    CameraName.FRONT,
    CameraName.FRONT_LEFT,
    CameraName.SIDE_LEFT,
    CameraName.FRONT_RIGHT,
    CameraName.SIDE_RIGHT,
)
"""Order of images in recorded frames."""
CAMERA_R_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Optical axes (x right, y down, z forward) in Waymo's camera frame (x forward, y left, z up)."""
DIVISOR = 1000


@dataclass(frozen=True, eq=False)
class Lens:
    """One camera on the car.

    Attributes:
        name: which.
        model: without a shutter.
        rays: through its pixels.
        clock: when it looks.
    """

    name: CameraName
    model: CameraModel
    rays: CameraRays
    clock: CameraClock

    def record(self, image: bytes, motion: Motion, start: float, timestamp: float) -> CameraRecord:
        """Return calibration, image and timing, without labels.

        Args:
            image: JPEG.
            motion: of the vehicle.
            start: of the frame, seconds from the segment's.
            timestamp: of the frame, seconds since 1970.
        """
        camera_SE3_vehicle = self.model.camera_SE3_vehicle.numpy()
        vehicle_SE3_camera = np.eye(4)
        vehicle_SE3_camera[:3, :3] = camera_SE3_vehicle[:3, :3].T @ CAMERA_R_OPTICAL.T
        vehicle_SE3_camera[:3, 3] = -camera_SE3_vehicle[:3, :3].T @ camera_SE3_vehicle[:3, 3]
        velocity = motion.velocity(start + self.clock.pose)
        velocity[:3] = velocity[:3].astype(np.float32)  # as stored
        return CameraRecord(
            name=self.name,
            width=self.model.width,
            height=self.model.height,
            intrinsics=np.concatenate([self.model.intrinsics.numpy(), self.model.distortion.numpy()]),
            vehicle_SE3_camera=vehicle_SE3_camera,
            shutter_direction=ShutterDirection.LEFT_TO_RIGHT,
            image=image,
            world_SE3_vehicle=motion.world_SE3_vehicle(np.array([start + self.clock.pose]))[0],
            velocity=velocity,
            pose_timestamp=timestamp + self.clock.pose,
            shutter=SHUTTER_SECONDS,
            trigger_time=timestamp + self.clock.trigger,
            readout_done_time=timestamp + self.clock.readout_done,
        )


@lru_cache(maxsize=1)
def lenses(image_width: int) -> tuple[Lens, ...]:
    """Return the five cameras in `IMAGE_ORDER`; kept, because undistorting all pixels takes a while."""
    models = dict(zip(CAMERA_NAMES, camera_rig(image_width), strict=True))
    return tuple(
        Lens(name, models[name.name], CameraRays.build(models[name.name]), CameraClock.of(name)) for name in IMAGE_ORDER
    )


@dataclass(frozen=True, eq=False)
class Exposure:
    """The image of one camera while it fills.

    Attributes:
        lens: which camera.
        rgb: (H, W, 3) uint8.
        entity: (H, W) int32, row of `World.entities` each pixel shows, -1 sky.
        material: (H, W) uint8, `Material` of that.
    """

    lens: Lens
    rgb: Array
    entity: Array
    material: Array

    @classmethod
    def empty(cls, lens: Lens) -> Exposure:
        """Return an image that is still dark."""
        shape = (lens.model.height, lens.model.width)
        return cls(lens, np.zeros((*shape, 3), np.uint8), np.full(shape, -1, np.int32), np.zeros(shape, np.uint8))

    def expose(self, world: World, columns: Array, street_SE3_vehicle: Array, rng: np.random.Generator) -> None:
        """Fill some neighbouring columns.

        Args:
            world: what is there at that time.
            columns: (C,) int64, without gaps.
            street_SE3_vehicle: (C, 4, 4) float64, the vehicle's pose at each column.
            rng: draws the sensor's noise.
        """
        start, stop = int(columns[0]), int(columns[-1]) + 1
        rays = self.lens.rays.columns(start, stop)
        turn = street_SE3_vehicle[:, :3, :3]
        origin = turn @ rays.origin + street_SE3_vehicle[:, :3, 3]
        rows = self.lens.model.height
        aim = Aim(np.tile(origin.astype(np.float32), (rows, 1)), np.tile(turn.astype(np.float32), (rows, 1, 1)))
        picture = render_aimed(world, rays, aim, rng)
        self.rgb[:, start:stop], self.entity[:, start:stop] = picture.rgb, picture.entity
        self.material[:, start:stop] = picture.material

    def jpeg(self) -> bytes:
        """Return the encoded image."""
        return encode_jpeg(self.rgb)


def panoptic_label(stage: Stage, exposure: Exposure, segment: str) -> PanopticLabel:
    """Return the label of every pixel of an image; its instances are numbered from 1 in this image alone."""
    classes = camera_classes(stage, exposure.entity, exposure.material)
    seen = np.unique(exposure.entity[exposure.entity >= stage.num_props])
    local = np.zeros(stage.num_props + len(stage.actors) + 1, np.int64)  # the last row is that of the sky, -1
    local[seen] = np.arange(1, len(seen) + 1)
    stream = io.BytesIO()
    Image.fromarray((classes * DIVISOR + local[exposure.entity]).astype(np.uint16)).save(stream, "PNG")
    return PanopticLabel(
        png=stream.getvalue(),
        divisor=DIVISOR,
        local_ids=tuple(range(1, len(seen) + 1)),
        global_ids=tuple(stage.actors[row - stage.num_props].instance_id for row in seen),
        is_tracked=(True,) * len(seen),
        sequence_id=segment,
    )
