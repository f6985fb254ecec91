"""nuScenes' key frames as a data set: stored beams, each camera at its own pose of the vehicle, 3D boxes as truth.

The vehicle frame is the vehicle's at the time of the sweep. Cameras are triggered up to 50 ms before or after, while
the vehicle drives on; that motion is part of `CameraModel.camera_SE3_vehicle`. nuScenes has no 2D boxes: those that
training gets are projected 3D boxes (`boxes2d.py`), which a person would have drawn tighter. Not read: sweeps between
key frames, radar, maps, lidarseg, nuImages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.core.frame import CameraView, Frame, FrameTruth, LidarGeometry, PointCloud
from mwsis.core.geometry import CameraModel, box_corners, transform_points
from mwsis.core.instances import BACKGROUND, IGNORE, Boxes2D
from mwsis.data.frame_parts import labels_in_boxes, pixel_map
from mwsis.data.image_files import size_of_image_file
from mwsis.data.nuscenes.boxes2d import projected_box
from mwsis.data.nuscenes.tables import Annotation, Recording, Sample, Tables, read_tables
from mwsis.data.range_image import azimuth_columns

__all__ = ["NuscenesSource"]

READER_VERSION = 1
"""Part of the fingerprint: raise it when the frames read from unchanged files change."""
CLASS_OF_CATEGORY = {
    **dict.fromkeys(
        (
            "vehicle.car", "vehicle.truck", "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.construction",
            "vehicle.trailer", "vehicle.motorcycle", "vehicle.emergency.ambulance", "vehicle.emergency.police",
        ),
        0,
    ),
    **dict.fromkeys(
        (
            "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker",
            "human.pedestrian.police_officer",
        ),
        1,
    ),
    "vehicle.bicycle": 2,
}  # fmt: skip
"""As Waymo counts: motorcycles are vehicles."""
IGNORED_CATEGORIES = (
    "human.pedestrian.personal_mobility", "human.pedestrian.stroller", "human.pedestrian.wheelchair",
    "static_object.bicycle_rack", "animal",
)  # fmt: skip
"""Neither an object of a class nor background: ignore regions."""
UNUSED_CATEGORIES = (
    "movable_object.barrier", "movable_object.debris", "movable_object.pushable_pullable",
    "movable_object.trafficcone", "vehicle.ego",
)  # fmt: skip
"""Background."""
RIDERLESS = "cycle.without_rider"
"""A bicycle so is no cyclist, and to be ignored."""
VAL_SCENES_OF_MINI = ("scene-0103", "scene-0916")
POINT_BYTES = 20
MAX_INTENSITY = 255.0
HDL32 = LidarGeometry(num_rings=32, num_columns=1084)
"""Velodyne HDL-32E at 20 Hz."""
PIXEL_CENTRE = 0.5
"""nuScenes' intrinsics count pixels from the centre of the first one, we from its corner."""


class NuscenesSource:
    """The key frames of a version of nuScenes.

    2D boxes: extents of projected 3D boxes. Objects of which less is visible than ``min_visibility`` says, without a
    LiDAR or radar point, or of an ignored category are ignore regions.

    Truth: a point belongs to the 3D box that it lies in, of several to the nearest centre; points in boxes of ignored
    categories are `IGNORE`. The id of an object is the index of its annotation in the sample.

    Args:
        root: the folder that holds ``samples`` and the folder of the tables.
        version: name of the latter.
        val_scenes: names of the validation scenes, or a text file with one a line, relative to ``root``; None: those of
            v1.0-mini. The official lists are in the development kit (nuscenes.utils.splits).
        min_visibility: 1 to 4, nuScenes' levels of visibility: up to 40, 60, 80, 100 %.

    Raises:
        DataError: there is no such folder.
        ConfigError: ``min_visibility`` is no level.

    Source: Caesar et al., "nuScenes: a multimodal dataset for autonomous driving", CVPR 2020; its schema page.
    """

    name = "nuscenes"
    class_names = ("Vehicle", "Pedestrian", "Cyclist")

    def __init__(
        self,
        root: str | Path,
        version: str = "v1.0-trainval",
        val_scenes: str | Sequence[str] | None = None,
        min_visibility: int = 2,
    ) -> None:
        self.root = Path(root)
        self._version, self._min_visibility = version, min_visibility
        self._val_scenes = val_scenes if isinstance(val_scenes, str | None) else list(val_scenes)
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder; expected the one that holds nuScenes' 'samples'")
        if min_visibility not in (1, 2, 3, 4):
            raise ConfigError(f"min_visibility: expected 1, 2, 3 or 4, got {min_visibility}")

    def __reduce__(self) -> tuple[type[NuscenesSource], tuple[object, ...]]:
        """Travel to workers without the tables, which each worker reads once."""
        return NuscenesSource, (self.root, self._version, self._val_scenes, self._min_visibility)

    def frame_ids(self, split: str) -> list[str]:
        """Return the tokens of the key frames of ``train`` or ``val``, scene by scene in order of time.

        Raises:
            DataError: there is no such split.
        """
        if split not in ("train", "val"):
            raise DataError(f"{self.root}: no split '{split}'{closest_name(split, ('train', 'val'))}")
        samples = self._tables.samples.values()
        return [one.token for one in samples if (one.scene in self._validation) == (split == "val")]

    def segment_of(self, frame_id: str) -> str:
        """Return the scene of a frame.

        Raises:
            DataError: there is no such frame.
        """
        return self._sample(frame_id).scene

    def unreadable(self, split: str) -> dict[str, str]:
        """Return nothing: the tables are read as a whole."""
        self.frame_ids(split)
        return {}

    def identity(self) -> str:
        """Return a digest of the reader, the folder and the settings."""
        facts = (self._version, self._val_scenes, self._min_visibility)
        return _digest(str(self.root.resolve()), *facts).hexdigest()[:32]

    def fingerprint(self) -> str:
        """Return a digest of the tables, the settings, and the sizes and times of images and sweeps."""
        return _digest(*map(self.segment_fingerprint, self._tables.scenes)).hexdigest()[:32]

    def segment_fingerprint(self, segment: str) -> str:
        """Return the same of one scene."""
        digest = _digest(segment, segment in self._validation, self._min_visibility)
        for sample in self._samples_of.get(segment, ()):
            for one in (sample.lidar, *sample.cameras):
                state = self._path(one).stat()
                poses = (one.global_SE3_ego, one.ego_SE3_sensor, one.intrinsics)
                facts = (one.file, state.st_size, state.st_mtime_ns, [p.tolist() for p in poses if p is not None])
                digest.update(repr(facts).encode())
            for box in sample.annotations:
                facts_of_box = (box.category, box.attributes, box.visibility, box.num_points, box.size)
                digest.update(repr((facts_of_box, box.global_SE3_box.tolist())).encode())
        return digest.hexdigest()[:32]

    def check(self) -> None:
        """Verify the tables and that every image and sweep of a key frame is there.

        Raises:
            DataError: the first thing that is wrong.
            ConfigError: the validation scenes are not given, or not there.
        """
        known = (*CLASS_OF_CATEGORY, *IGNORED_CATEGORIES, *UNUSED_CATEGORIES)
        for scene in self._validation:
            if scene not in self._tables.scenes:
                where = f"val_scenes: {self._tables.folder} has no scene '{scene}'"
                raise ConfigError(where + closest_name(scene, self._tables.scenes, self._tables.scenes[:5]))
        for sample in self._tables.samples.values():
            for one in (sample.lidar, *sample.cameras):
                self._path(one)
            for box in sample.annotations:
                if box.category not in known:
                    raise DataError(
                        f"{self._tables.folder / 'category.json'}: name: '{box.category}' is no category of nuScenes"
                        f"{closest_name(box.category, known)}"
                    )

    def read(self, frame_id: str) -> Frame:
        """Return one key frame with its truth.

        Raises:
            DataError: there is no such frame, or a file of it is missing or malformed.
        """
        sample = self._sample(frame_id)
        vehicle_SE3_global = torch.linalg.inv(sample.lidar.global_SE3_ego)
        points = _read_sweep(self._path(sample.lidar), sample.lidar.ego_SE3_sensor)
        objects = _Objects(sample.annotations, vehicle_SE3_global, self._min_visibility)
        views, numbers = [], []
        for recording in sample.cameras:
            camera = _camera_model(recording, vehicle_SE3_global)
            labels, number = objects.in_image(camera)
            path = self._path(recording)
            encoded = path.read_bytes()
            if (size := size_of_image_file(path, encoded)) != (camera.width, camera.height):
                raise DataError(
                    f"{path}: expected {camera.width} x {camera.height} pixels, as sample_data.json says, got "
                    f"{size[0]} x {size[1]}"
                )
            views.append(CameraView(recording.channel, camera, encoded, labels))
            numbers.append(number)
        return Frame(
            frame_id=frame_id,
            segment=sample.scene,
            lidar=HDL32,
            points=points,
            pixels=pixel_map(points.xyz, [view.camera for view in views]),
            cameras=tuple(views),
            truth=objects.truth(points.xyz, tuple(numbers)),
        )

    def _path(self, recording: Recording) -> Path:
        path = self.root / recording.file
        if not path.is_file():
            raise DataError(f"{path}: no such file, but {self._tables.folder / 'sample_data.json'} names it")
        return path

    def _sample(self, frame_id: str) -> Sample:
        sample = self._tables.samples.get(frame_id)
        if sample is None:
            raise DataError(f"{self._tables.folder / 'sample.json'}: token: no '{frame_id}'")
        return sample

    @cached_property
    def _tables(self) -> Tables:
        return read_tables(self.root / self._version)

    @cached_property
    def _samples_of(self) -> dict[str, list[Sample]]:
        """The key frames of each scene."""
        found: dict[str, list[Sample]] = {}
        for sample in self._tables.samples.values():
            found.setdefault(sample.scene, []).append(sample)
        return found

    @cached_property
    def _validation(self) -> frozenset[str]:
        if self._val_scenes is None:
            if self._version != "v1.0-mini":
                raise ConfigError(
                    "val_scenes: expected names of scenes or a file of them, got none; the official list: "
                    "python -c \"from nuscenes.utils.splits import val; print(*val, sep='\\n')\" > val.txt"
                )
            return frozenset(VAL_SCENES_OF_MINI)
        if not isinstance(self._val_scenes, str):
            return frozenset(self._val_scenes)
        path = self.root / self._val_scenes
        if not path.is_file():
            raise ConfigError(f"val_scenes: no such file: {path}")
        return frozenset(path.read_text().split())


class _Objects:
    """The annotations of a sample that are no background, in the vehicle frame at the time of the sweep."""

    def __init__(self, annotations: Sequence[Annotation], vehicle_SE3_global: Tensor, min_visibility: int) -> None:
        known = (*CLASS_OF_CATEGORY, *IGNORED_CATEGORIES)
        chosen = [(number, one) for number, one in enumerate(annotations) if one.category in known]
        self._ids = torch.tensor([number for number, _ in chosen], dtype=torch.int64)
        self._labels = torch.tensor([_label(one) for _, one in chosen], dtype=torch.int64)
        self._ignore = torch.tensor(
            [_label(one) < 0 or one.visibility < min_visibility or not one.num_points for _, one in chosen],
            dtype=torch.bool,
        )
        self._poses = [vehicle_SE3_global @ one.global_SE3_box for _, one in chosen]
        self._sizes = [one.size for _, one in chosen]

    def in_image(self, camera: CameraModel) -> tuple[Boxes2D, Tensor]:
        """Return the 2D boxes that an image shows, and the id of each one's object."""
        found, rows = [], []
        for row, (pose, size) in enumerate(zip(self._poses, self._sizes, strict=True)):
            corners = box_corners(torch.tensor([[0.0, 0.0, 0.0, *size, 0.0]], dtype=torch.float64))[0]
            box = projected_box(transform_points(pose, corners), camera)
            if box is not None:
                found.append(box)
                rows.append(row)
        index = torch.tensor(rows, dtype=torch.int64)
        ignore = self._ignore[index]
        boxes = torch.tensor(found, dtype=torch.float32).reshape(-1, 4)
        shown = (boxes[:, 2:] > boxes[:, :2]).all(1)
        labels = torch.where(ignore, IGNORE, self._labels[index])
        return Boxes2D(boxes[shown], labels[shown], ignore[shown]), self._ids[index][shown]

    def truth(self, xyz: Tensor, box_instance_ids: tuple[Tensor, ...]) -> FrameTruth:
        """Return the truth of (N, 3) points, metres, vehicle frame."""
        boxes3d = torch.tensor(
            [
                [*pose[:3, 3], *size, torch.atan2(pose[1, 0], pose[0, 0])]
                for pose, size in zip(self._poses, self._sizes, strict=True)
            ],
            dtype=torch.float32,
        ).reshape(-1, 7)
        kept = self._labels >= 0
        points = labels_in_boxes(xyz, boxes3d, self._labels, self._ids, BACKGROUND)
        return FrameTruth(
            semantic_labels=points.semantic_labels,
            instance_ids=points.instance_ids,
            boxes3d=boxes3d[kept],
            box3d_labels=self._labels[kept],
            box3d_ids=self._ids[kept],
            box_instance_ids=box_instance_ids,
            images=(None,) * len(box_instance_ids),
        )


def _label(annotation: Annotation) -> int:
    if RIDERLESS in annotation.attributes:
        return IGNORE
    return CLASS_OF_CATEGORY.get(annotation.category, IGNORE)


def _digest(*facts: object) -> hashlib._Hash:
    return hashlib.sha256(repr((NuscenesSource.name, READER_VERSION, *facts)).encode())


def _camera_model(recording: Recording, vehicle_SE3_global: Tensor) -> CameraModel:
    """Return a camera with the vehicle's motion between sweep and image in its pose."""
    assert recording.intrinsics is not None
    vehicle_SE3_camera = vehicle_SE3_global @ recording.global_SE3_ego @ recording.ego_SE3_sensor
    matrix = recording.intrinsics
    return CameraModel(
        width=recording.width,
        height=recording.height,
        intrinsics=torch.cat([matrix.diag()[:2], matrix[:2, 2] + PIXEL_CENTRE]),
        distortion=torch.zeros(5, dtype=torch.float64),
        camera_SE3_vehicle=torch.linalg.inv(vehicle_SE3_camera),
    )


def _read_sweep(path: Path, ego_SE3_lidar: Tensor) -> PointCloud:
    size = path.stat().st_size
    if size == 0 or size % POINT_BYTES:
        raise DataError(
            f"{path}: expected a positive multiple of {POINT_BYTES} bytes (float32 x, y, z, intensity, ring), got "
            f"{size}; the file is truncated, so copy it again"
        )
    rows = torch.from_numpy(np.fromfile(path, dtype="<f4").reshape(-1, 5))
    wrong = ~torch.isfinite(rows).all(1) | (rows[:, 4] != rows[:, 4].round())
    wrong |= (rows[:, 4] < 0) | (rows[:, 4] >= HDL32.num_rings)
    if bool(wrong.any()):
        point = int(wrong.nonzero()[0])
        raise DataError(
            f"{path}: point {point}: expected finite numbers and a ring 0 to 31, got {rows[point].tolist()}"
        )
    sensor = rows[:, :3].contiguous()
    return PointCloud(
        xyz=transform_points(ego_SE3_lidar, sensor),
        point_feats=torch.stack([(rows[:, 3] / MAX_INTENSITY).tanh(), torch.zeros(len(rows))], 1),
        ranges=sensor.norm(dim=1),
        ring=(HDL32.num_rings - 1 - rows[:, 4]).to(torch.int16),
        azimuth_column=azimuth_columns(sensor, HDL32.num_columns),
        return_index=torch.zeros(len(rows), dtype=torch.int8),
    )
