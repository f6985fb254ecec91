"""The embedded street world as a data set: frames made on demand from a seed, nothing to download.

A frame depends on its settings and its name alone, so any frame may be read first. What a street holds is `layout.py`,
how it is seen `render.py` and `sweep.py`, what is known about it `truth.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.core.frame import CameraView, Frame, LidarGeometry
from mwsis.core.geometry import CameraModel
from mwsis.data.frame_parts import pixel_map
from mwsis.data.street.render import CameraRays, encode_jpeg, render
from mwsis.data.street.rig import CAMERA_NAMES, LidarRig, camera_rig
from mwsis.data.street.scene import Scene, make_scene
from mwsis.data.street.sweep import scan
from mwsis.data.street.truth import frame_truth, image_truth

__all__ = ["GENERATOR_VERSION", "StreetSource"]

GENERATOR_VERSION = 3
"""Raised whenever the same settings would give other frames."""
SPLITS = ("train", "val")
KEPT_SCENES = 3


@dataclass(frozen=True)
class _Settings:
    seed: int
    train_segments: int
    train_frames_per_segment: int
    val_segments: int
    val_frames_per_segment: int
    lidar_rows: int
    lidar_columns: int
    image_width: int


class StreetSource:
    """Frames of a made-up street with cars, people and cyclists, with complete ground truth.

    Args:
        seed: another seed, another world.
        train_segments, train_frames_per_segment: size of split "train".
        val_segments, val_frames_per_segment: size of split "val"; its segments are other streets.
        lidar_rows, lidar_columns: beams and firings a turn; up to two points each, up to 75 m away.
        image_width: pixels; images are 3:2 to the front and about 2.2:1 to the sides.

    Raises:
        ConfigError: a count is negative, or the sensors would be too small to see anything.

    Example:
        >>> source = StreetSource(train_segments=1, val_segments=0, lidar_columns=64, image_width=64)
        >>> source.frame_ids("train")[0]
        'train_000_00'
        >>> frame = source.read("train_000_00")
        >>> len(frame.cameras), len(frame.points) > 1000
        (5, True)
    """

    name = "street"
    class_names = ("Vehicle", "Pedestrian", "Cyclist")

    def __init__(
        self,
        seed: int = 0,
        train_segments: int = 40,
        train_frames_per_segment: int = 5,
        val_segments: int = 10,
        val_frames_per_segment: int = 5,
        lidar_rows: int = 64,
        lidar_columns: int = 512,
        image_width: int = 384,
    ) -> None:
        self._settings = _Settings(
            seed,
            train_segments,
            train_frames_per_segment,
            val_segments,
            val_frames_per_segment,
            lidar_rows,
            lidar_columns,
            image_width,
        )
        _check(self._settings)
        self._scenes: OrderedDict[tuple[str, int], Scene] = OrderedDict()

    def check(self) -> None:
        """Nothing can be missing: the settings were checked when the source was made."""

    def identity(self) -> str:
        """Return a short text that changes with the settings and with the generator, as does everything."""
        text = json.dumps([GENERATOR_VERSION, asdict(self._settings)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def fingerprint(self) -> str:
        """Return the same."""
        return self.identity()

    def segment_fingerprint(self, segment: str) -> str:
        """Return the same: a segment has no files of its own."""
        return self.identity()

    def unreadable(self, split: str) -> dict[str, str]:
        """Return nothing: what is made can be read."""
        return {}

    def frame_ids(self, split: str) -> list[str]:
        """Return the names of a split's frames, such as "train_003_01": split, segment, frame.

        Raises:
            DataError: ``split`` is neither "train" nor "val".
        """
        segments, frames = self._size(split)
        return [f"{split}_{segment:03d}_{frame:02d}" for segment in range(segments) for frame in range(frames)]

    def segment_of(self, frame_id: str) -> str:
        """Return a frame's segment, such as "train_003".

        Raises:
            DataError: there is no such frame.
        """
        split, segment, _ = self._parse(frame_id)
        return f"{split}_{segment:03d}"

    def read(self, frame_id: str) -> Frame:
        """Return one frame with its ground truth.

        Raises:
            DataError: there is no such frame.

        Complexity:
            About half a second on one core with the standard sensors.
        """
        split, segment, number = self._parse(frame_id)
        world = self._scene(split, segment).world(number)
        rng = np.random.default_rng((*self._seed_of(split, segment), number + 1))
        rows, columns = len(self._lidar.inclinations), len(self._lidar.azimuths)
        sweep = scan(world, self._lidar, rng)
        pictures = [render(world, rays, rng) for rays in self._rays]
        images = tuple(image_truth(world, picture.entity) for picture in pictures)
        views = tuple(
            CameraView(name, camera, encode_jpeg(picture.rgb), image.labels)
            for name, camera, picture, image in zip(CAMERA_NAMES, self._cameras, pictures, images, strict=True)
        )
        return Frame(
            frame_id=frame_id,
            segment=self.segment_of(frame_id),
            lidar=LidarGeometry(rows, columns),
            points=sweep.points,
            pixels=pixel_map(sweep.points.xyz, self._cameras),
            cameras=views,
            truth=frame_truth(world, sweep.entity, images),
        )

    @cached_property
    def _cameras(self) -> tuple[CameraModel, ...]:
        return camera_rig(self._settings.image_width)

    @cached_property
    def _rays(self) -> list[CameraRays]:
        return [CameraRays.build(camera) for camera in self._cameras]

    @cached_property
    def _lidar(self) -> LidarRig:
        return LidarRig.build(self._settings.lidar_rows, self._settings.lidar_columns)

    def _size(self, split: str) -> tuple[int, int]:
        settings = self._settings
        if split == "train":
            return settings.train_segments, settings.train_frames_per_segment
        if split == "val":
            return settings.val_segments, settings.val_frames_per_segment
        raise DataError(f"street: there is no split '{split}'{closest_name(split, SPLITS)}")

    def _parse(self, frame_id: str) -> tuple[str, int, int]:
        split, _, place = frame_id.partition("_")
        segment, _, frame = place.partition("_")
        if split in SPLITS and segment.isdecimal() and frame.isdecimal():
            segments, frames = self._size(split)
            known = int(segment) < segments and int(frame) < frames
            if known and frame_id == f"{split}_{int(segment):03d}_{int(frame):02d}":
                return split, int(segment), int(frame)
        raise DataError(
            f"street: there is no frame '{frame_id}'; frames are named like 'train_003_01', see frame_ids()"
        )

    def _seed_of(self, split: str, segment: int) -> tuple[int, int, int]:
        return self._settings.seed, SPLITS.index(split), segment

    def _scene(self, split: str, segment: int) -> Scene:
        """Return a segment; the last few are kept, since frames are mostly read in order."""
        key = (split, segment)
        if key not in self._scenes:
            self._scenes[key] = make_scene(self._seed_of(split, segment), self._size(split)[1])
            while len(self._scenes) > KEPT_SCENES:
                self._scenes.popitem(last=False)
        return self._scenes[key]


def _check(settings: _Settings) -> None:
    least = {"lidar_rows": 4, "lidar_columns": 16, "image_width": 32}
    for field, value in asdict(settings).items():
        if value < least.get(field, 0):
            raise ConfigError(f"street: {field} is {value}, expected at least {least.get(field, 0)}")
