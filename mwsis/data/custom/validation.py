"""Everything that is wrong with a folder of one's own recordings, from what others depend on to single points.

The order is that of mending: calibration and boxes first, then lists, then the files of each frame. What reads a file
for training is what checks it here, so what passes can be trained on.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mwsis.core.errors import DataError
from mwsis.data.coco import masks_of
from mwsis.data.coco_json import ListedImage, explain_instances
from mwsis.data.custom.boxes import ListedBoxes
from mwsis.data.custom.calibration import Calibration, read_calibration
from mwsis.data.custom.folder import Folder
from mwsis.data.custom.sweep import read_points
from mwsis.data.custom.truth import read_boxes3d, read_point_truth
from mwsis.data.image_files import size_of_image_file
from mwsis.data.problems import Problems

__all__ = ["check_frame_files", "find_problems"]

SPLITS = ("train", "val")
"""Lists that training needs."""


def find_problems(
    folder: Folder,
    groups: Mapping[str, Sequence[str]],
    *,
    thorough: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> Problems:
    """Return what is wrong with a folder.

    Args:
        folder: where the files are.
        groups: the categories of each class.
        thorough: whether sweeps and pixels are read, too; otherwise files, headers and texts.
        on_progress: called with frames looked at and frames in all.
    """
    return _Search(folder, groups, thorough).run(on_progress or (lambda done, total: None))


def check_frame_files(
    path: Path,
    encoded: bytes | None,
    listed: ListedImage,
    camera: str,
    calibration: Calibration,
    boxes: Path,
    problems: Problems,
    decode: bool = False,
) -> None:
    """Compare the size of an image with what calibration and boxes say of it.

    Args:
        path: of the image.
        encoded: its bytes, where they have been read already.
        listed: its entry in the annotation file ``boxes``.
        camera: its name in the calibration.
        calibration: of the frame.
        boxes: path of the annotation file.
        problems: takes what differs.
        decode: whether the pixels are decoded, too.
    """
    try:
        size = size_of_image_file(path, encoded, decode=decode)
    except DataError as error:
        problems.add(str(error), "images that cannot be read")
        return
    model = calibration.cameras[camera]
    for where, said in (
        (f"{calibration.path}: cameras: {camera}: width, height", (model.width, model.height)),
        (f"{boxes}: image {listed.id}: width, height", (listed.width, listed.height)),
    ):
        if said != size:
            got = "{} x {}".format(*said)
            problems.add(f"{where}: expected {size[0]} x {size[1]}, as {path} is, got {got}", "sizes of images")


class _Search:
    """One look at a folder."""

    def __init__(self, folder: Folder, groups: Mapping[str, Sequence[str]], thorough: bool) -> None:
        self._folder, self._groups, self._thorough = folder, groups, thorough
        self._problems = Problems()
        self._calibrations: dict[Path, Calibration | None] = {}
        self._boxes: ListedBoxes | None = None
        self._points_seen: Counter[tuple[Path, str]] = Counter()
        self._points_read: Counter[Path] = Counter()

    def run(self, on_progress: Callable[[int, int], None]) -> Problems:
        """Return what was found."""
        self._read_boxes()
        frames = self._listed_frames()
        self._check_truth(frames)
        for number, frame_id in enumerate(frames, 1):
            self._check_frame(frame_id)
            on_progress(number, len(frames))
        self._check_cameras()
        return self._problems

    def _read_boxes(self) -> None:
        path, before = self._folder.boxes, len(self._problems)
        if path.is_file():
            explain_instances(path, self._problems)
        if len(self._problems) == before:
            self._boxes = self._problems.collect(ListedBoxes, path, self._groups)

    def _listed_frames(self) -> list[str]:
        split_of: dict[str, str] = {}
        for split in sorted({*SPLITS, *self._folder.splits()}):
            for frame_id in self._problems.collect(self._folder.frames, split, self._problems) or ():
                if frame_id in split_of:
                    first = f"{self._folder.root / split_of[frame_id]}.txt"
                    where = f"{self._folder.root / split}.txt"
                    self._problems.add(f"{where}: frame '{frame_id}' is in {first}, too", "lines of splits")
                split_of.setdefault(frame_id, split)
        return list(split_of)

    def _check_truth(self, frames: Sequence[str]) -> None:
        if self._boxes is None:
            return
        found, known = read_boxes3d(self._folder.boxes3d, self._boxes.label_of_name, self._problems), set(frames)
        for frame_id in (name for name in found if not self._is_there(name) and name not in known):
            self._problems.add(f"{self._folder.boxes3d}: frame: no sweep of frame '{frame_id}'", "3D boxes")

    def _is_there(self, frame_id: str) -> bool:
        return Problems().collect(self._folder.sweep, frame_id) is not None

    def _calibration(self, frame_id: str) -> Calibration | None:
        path = self._folder.calibration(frame_id)
        if path not in self._calibrations:
            self._calibrations[path] = read_calibration(path, self._problems)
        return self._calibrations[path]

    def _check_frame(self, frame_id: str) -> None:
        calibration = self._calibration(frame_id)
        sweep = self._problems.collect(self._folder.sweep, frame_id, kind="missing sweeps")
        if calibration is None:
            return
        for name in calibration.cameras:
            image = self._problems.collect(self._folder.image, name, frame_id, kind="missing images")
            if image is not None and self._boxes is not None:
                self._check_image(image, name, calibration, self._boxes)
        if self._thorough and sweep is not None:
            self._problems.collect(self._check_sweep, sweep, frame_id, calibration, kind="sweeps that cannot be read")

    def _check_image(self, image: Path, camera: str, calibration: Calibration, boxes: ListedBoxes) -> None:
        found = boxes.of(self._folder.listed_name(image), self._problems)
        if found is None:
            return
        check_frame_files(
            image, None, found.image, camera, calibration, boxes.path, self._problems, decode=self._thorough
        )
        if self._thorough and boxes.instances.has_truth(found.image):
            self._problems.collect(masks_of, boxes.instances, found.image, found.annotations, kind="masks")

    def _check_sweep(self, path: Path, frame_id: str, calibration: Calibration) -> None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            points = read_points(path, calibration.lidar)
        for one in said:
            self._problems.add(str(one.message), "sweeps without beams")
        self._points_read[calibration.path] += len(points)
        for name, camera in calibration.cameras.items():
            self._points_seen[calibration.path, name] += int(camera.project(points.xyz)[2].sum())
        read_point_truth(self._folder.point_truth(frame_id), len(points), len(self._groups))

    def _check_cameras(self) -> None:
        """Say which cameras see not one point of any sweep: mostly the inverse of the pose that was asked for."""
        for path, number in self._points_read.items():
            calibration = self._calibrations[path]
            for name in calibration.cameras if calibration else ():
                if not self._points_seen[path, name]:
                    self._problems.add(
                        f"{path}: cameras: {name}: camera_SE3_vehicle: none of {number:,} points falls into its images;"
                        " it must take points of the vehicle frame (x forward, y left, z up) to the camera's (x right, "
                        "y down, z forward); is it the inverse of that, or is vehicle_SE3_lidar wrong?"
                    )
