"""The street world as Waymo segments: genuine records of a drive, made from a seed, with everything known.

A segment is a drive of up to 20 s at 10 Hz. Its car moves while its sensors look: TOP has a pose per pixel, images a
rolling shutter, and everyone else moves, too. All numbers mean what they mean in recorded segments; what was really
hit and shown is kept beside (`StreetFrame`). Parts: `street_motion.py`, `street_lidar.py`, `street_camera.py`,
`street_labels.py`. Writers: `v1.py`, `v2.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.core.geometry import CameraModel
from mwsis.data.street.scene import FRAME_SECONDS, make_scene
from mwsis.data.street.shapes import Array
from mwsis.data.street.sweep import RANGE_NOISE
from mwsis.data.waymo.camera import camera_model
from mwsis.data.waymo.record import CameraName, CameraRecord, LaserLabel, LidarName, LidarRecord, WaymoRecord
from mwsis.data.waymo.street_camera import IMAGE_ORDER, Exposure, lenses, panoptic_label
from mwsis.data.waymo.street_classes import lidar_classes
from mwsis.data.waymo.street_labels import (
    Seen,
    camera_boxes,
    inside_zone,
    laser_labels,
    outlines,
    place_zone,
    to_world,
    visible_boxes,
)
from mwsis.data.waymo.street_lidar import Sweep, calibrations, pixel_pose, projections
from mwsis.data.waymo.street_motion import SPIN_SECONDS, column_times, inverse, make_motion
from mwsis.data.waymo.street_stage import Stage

__all__ = ["FAR_OFFSET", "MAX_FRAMES", "StreetFrame", "StreetSegment", "StreetSensors", "street_records"]

SPLITS = ("train", "val")
MAX_FRAMES = 200
"""A segment is 20 s long; recorded ones have 198 frames."""
FAR_OFFSET = (17_825.0, -17_530.0, 40.0)
"""Metres; 25 km from the origin of the world, as in a recorded frame."""
FIRST_MICROS, SEGMENT_MICROS = 1_550_000_000_000_000, 60_000_000
WORLD = 20
"""Keeps the streets apart from those of `StreetSource` with the same seed."""


@dataclass(frozen=True)
class StreetSensors:
    """What records a segment.

    Attributes:
        top: rows and columns of TOP's range image.
        side: of the four others.
        image_width: pixels.
        offset: where in the world the street starts, metres.
        range_noise: standard deviation, metres.
        label_every: frames from one with LiDAR segmentation and panoptic labels to the next (2 Hz are 5).
        num_slices: moments per 0.1 s at which the others in the street are placed; the recording car moves smoothly.

    Raises:
        ConfigError: a sensor would be too small to see anything.
    """

    top: tuple[int, int] = (64, 2650)
    side: tuple[int, int] = (200, 600)
    image_width: int = 1920
    offset: tuple[float, float, float] = FAR_OFFSET
    range_noise: float = RANGE_NOISE
    label_every: int = 5
    num_slices: int = 32

    def __post_init__(self) -> None:
        least = {
            "top rows": (self.top[0], 4),
            "top columns": (self.top[1], 16),
            "side rows": (self.side[0], 4),
            "side columns": (self.side[1], 16),
            "image_width": (self.image_width, 32),
            "label_every": (self.label_every, 1),
            "num_slices": (self.num_slices, 1),
            "range_noise": (self.range_noise, 0),
        }
        for field, (value, wanted) in least.items():
            if value < wanted:
                raise ConfigError(f"street segments: {field} is {value}, expected at least {wanted}")


@dataclass(frozen=True, eq=False)
class StreetFrame:
    """One frame and what is really there.

    Attributes:
        record: as recorded.
        stage: the things in sight.
        sweeps: what each pixel of the range images hit.
        exposures: what each pixel of the images shows.
    """

    record: WaymoRecord
    stage: Stage
    sweeps: dict[LidarName, Sweep]
    exposures: dict[CameraName, Exposure]


class StreetSegment:
    """One drive; its frames can be made in any order.

    Args:
        seed: another seed, another world.
        split: "train" or "val".
        segment: number within the split.
        sensors: what records it.

    Raises:
        DataError: there is no such split or segment.
    """

    def __init__(self, seed: int, split: str, segment: int, sensors: StreetSensors) -> None:
        if split not in SPLITS:
            raise DataError(f"street: there is no split '{split}'{closest_name(split, SPLITS)}")
        if not 0 <= segment < 10_000:
            raise DataError(f"street: there is no segment {segment}, expected 0 to 9999")
        self._key = (seed, SPLITS.index(split), segment, WORLD)
        self.sensors = sensors
        self.scene = make_scene(self._key, round(MAX_FRAMES * SPIN_SECONDS / FRAME_SECONDS) + 1)
        rng = np.random.default_rng((*self._key, 0))
        self.motion = make_motion(self.scene, sensors.offset, rng)
        self.zone = place_zone(self.scene, rng)
        begin = 20 * int(rng.integers(1, 400))
        number = 10_000 * SPLITS.index(split) + segment
        self.name = f"street-{seed}-{number:05d}_{begin}_000_{begin + 20}_000"
        self._first_micros = FIRST_MICROS + SEGMENT_MICROS * number
        self._lidars = calibrations(sensors.top[0])

    def frame(self, number: int) -> StreetFrame:
        """Return a frame.

        Raises:
            DataError: a segment has no such frame.

        Complexity:
            About a second on one core with small sensors, half a minute with Waymo's.
        """
        if not 0 <= number < MAX_FRAMES:
            raise DataError(f"street: there is no frame {number}, expected 0 to {MAX_FRAMES - 1}")
        stage = Stage(self.scene, number * SPIN_SECONDS, self.sensors.num_slices)
        rng = np.random.default_rng((*self._key, number + 1))
        sweeps, exposures = self._record_motion(stage, rng)
        self._record_at_once(stage, sweeps, rng)
        record = self._label(number, stage, sweeps, exposures)
        return StreetFrame(record, stage, sweeps, exposures)

    def _record_motion(
        self, stage: Stage, rng: np.random.Generator
    ) -> tuple[dict[LidarName, Sweep], dict[CameraName, Exposure]]:
        """Record TOP's sweep and the images, slice by slice."""
        sweeps = {name: Sweep.empty(lidar, self._size(name)) for name, lidar in self._lidars.items()}
        exposures = {lens.name: Exposure.empty(lens) for lens in lenses(self.sensors.image_width)}
        delays = {name: each.lens.clock.column_times(each.lens.model.width) for name, each in exposures.items()}
        delays_top = column_times(self.sensors.top[1])
        poses = {name: self.motion.street_SE3_vehicle(stage.start + delay) for name, delay in delays.items()}
        poses_top = self.motion.street_SE3_vehicle(stage.start + delays_top)
        for index in range(stage.num_slices):
            world = stage.world(stage.slice_time(index))
            columns = np.flatnonzero(stage.slice_of(delays_top) == index)
            if len(columns):
                sweeps[LidarName.TOP].measure(world, columns, poses_top[columns], rng, self.sensors.range_noise)
            for name, exposure in exposures.items():
                columns = np.flatnonzero(stage.slice_of(delays[name]) == index)
                if len(columns):
                    exposure.expose(world, columns, poses[name][columns], rng)
        return sweeps, exposures

    def _record_at_once(self, stage: Stage, sweeps: dict[LidarName, Sweep], rng: np.random.Generator) -> None:
        """Record the LiDARs that are given as if from the frame's pose."""
        world, pose = stage.world(stage.middle), self.motion.street_SE3_vehicle(np.array([stage.middle]))
        for name, sweep in sweeps.items():
            if name != LidarName.TOP:
                columns = sweep.seen_columns()
                poses = np.repeat(pose, len(columns), 0)
                sweep.measure(world, columns, poses, rng, self.sensors.range_noise)

    def _size(self, name: LidarName) -> tuple[int, int]:
        return self.sensors.top if name == LidarName.TOP else self.sensors.side

    def _label(
        self, number: int, stage: Stage, sweeps: dict[LidarName, Sweep], exposures: dict[CameraName, Exposure]
    ) -> WaymoRecord:
        micros = self._first_micros + number * round(SPIN_SECONDS * 1e6)
        world_SE3_vehicle = self.motion.world_SE3_vehicle(np.array([stage.middle]))[0]
        records = {
            name: exposure.lens.record(exposure.jpeg(), self.motion, stage.start, micros / 1e6)
            for name, exposure in exposures.items()
        }
        models = {name: camera_model(records[name], world_SE3_vehicle) for name in sorted(records)}
        seen = {name: visible_boxes(stage, exposure) for name, exposure in exposures.items()}
        labels = laser_labels(stage, self.motion, sweeps, seen, self.zone, self.name, exposures)
        is_labelled = number % self.sensors.label_every == 0
        evening = self.scene.weather.sun[2] < 0.45
        return WaymoRecord(
            segment=self.name,
            timestamp_micros=micros,
            world_SE3_vehicle=world_SE3_vehicle,
            lidars=tuple(self._lidar(stage, sweep, models, is_labelled) for sweep in sweeps.values()),
            cameras=tuple(
                self._camera(stage, records[name], models[name], exposures[name], seen[name], labels, is_labelled)
                for name in IMAGE_ORDER
            ),
            laser_labels=tuple(labels.values()),
            no_label_zones=(to_world(self.zone, self.motion),),
            time_of_day="Dawn/Dusk" if evening else "Day",
            location="location_other",
            weather="sunny",
        )

    def _lidar(
        self, stage: Stage, sweep: Sweep, models: dict[CameraName, CameraModel], is_labelled: bool
    ) -> LidarRecord:
        vehicle_SE3_street = inverse(self.motion.street_SE3_vehicle(np.array([stage.middle]))[0])
        by_number = {int(name): model for name, model in models.items()}
        projection = projections(sweep.points, vehicle_SE3_street, by_number)
        segmentation, pose = None, None
        if sweep.lidar.name == LidarName.TOP:
            times = stage.start + column_times(sweep.size[1])
            pose = pixel_pose(self.motion.world_SE3_vehicle(times), sweep.size[0])
            segmentation = self._segmentation(stage, sweep) if is_labelled else None
        return sweep.recorded(projection, inside_zone(sweep.points, self.zone), segmentation, pose)

    def _segmentation(self, stage: Stage, sweep: Sweep) -> Array:
        """Return instance and class of each pixel, (2, H, W, 2) int32; instances are not the ids of the boxes."""
        instance_of = np.array([0] * stage.num_props + [actor.instance_id for actor in stage.actors])
        instance = np.where(sweep.entity >= 0, instance_of[sweep.entity], 0)
        classes = lidar_classes(stage, sweep.entity, sweep.material)
        return np.stack([instance, classes], -1).astype(np.int32)

    def _camera(
        self,
        stage: Stage,
        record: CameraRecord,
        model: CameraModel,
        exposure: Exposure,
        seen: list[Seen],
        labels: dict[int, LaserLabel],
        is_labelled: bool,
    ) -> CameraRecord:
        return replace(
            record,
            boxes=camera_boxes(stage, exposure, seen, self.name, labels),
            projected=outlines(model, exposure.lens.name, tuple(labels.values())),
            panoptic=panoptic_label(stage, exposure, self.name) if is_labelled else None,
        )


def street_records(
    seed: int,
    split: str,
    segment: int,
    num_frames: int,
    *,
    top: tuple[int, int] = (64, 2650),
    side: tuple[int, int] = (200, 600),
    image_width: int = 1920,
    offset: tuple[float, float, float] = FAR_OFFSET,
    range_noise: float = RANGE_NOISE,
    label_every: int = 5,
    num_slices: int = 32,
) -> Iterator[WaymoRecord]:
    """Yield the frames of one street segment as Waymo would have recorded them.

    The same frames come out whatever the number of frames, and whatever other segments are made.

    Args:
        seed: another seed, another world.
        split: "train" or "val".
        segment: number within the split.
        num_frames: at 10 Hz, at most `MAX_FRAMES`.
        top, side, image_width, offset, range_noise, label_every, num_slices: see `StreetSensors`.

    Raises:
        ConfigError: a sensor is too small, or there are too many frames.
        DataError: there is no such split or segment.

    Example:
        >>> records = street_records(0, "train", 0, 1, top=(8, 32), side=(4, 16), image_width=48, num_slices=2)
        >>> record = next(records)
        >>> len(record.lidars), len(record.cameras), record.missing()
        (5, 5, ())
    """
    if not 0 <= num_frames <= MAX_FRAMES:
        raise ConfigError(f"street segments: num_frames is {num_frames}, expected 0 to {MAX_FRAMES}")
    sensors = StreetSensors(top, side, image_width, offset, range_noise, label_every, num_slices)
    drive = StreetSegment(seed, split, segment, sensors)
    return (drive.frame(number).record for number in range(num_frames))
