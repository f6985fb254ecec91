"""One's own recordings as a data set: a sweep, an image of each camera, 2D boxes, and truth where there is some.

The format is `docs/guides/own_data.md`. Where files are is `folder.py`; each kind of file has a module of its own; what
is wrong with a folder is said by `validation.py`. Next: `mwsis.data.store`, where frames go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from mwsis.core.errors import DataError, closest_name
from mwsis.core.frame import CameraView, Frame
from mwsis.core.geometry import CameraModel
from mwsis.data.classes import class_groups
from mwsis.data.coco import as_given
from mwsis.data.coco_json import BOXES, MASKS
from mwsis.data.custom.boxes import ImageBoxes, ListedBoxes
from mwsis.data.custom.calibration import Calibration, read_calibration
from mwsis.data.custom.folder import Folder
from mwsis.data.custom.sweep import read_points
from mwsis.data.custom.truth import TrueBox, frame_truth, read_boxes3d, read_point_truth
from mwsis.data.custom.validation import check_frame_files, find_problems
from mwsis.data.frame_parts import pixel_map
from mwsis.data.problems import Problems

__all__ = ["CustomSource"]

READER_VERSION = 1
"""Part of the fingerprint: raise it when the frames read from unchanged files change."""
FRAMES_PER_SEGMENT = 100
Found = TypeVar("Found")


class CustomSource:
    """The frames that ``train.txt``, ``val.txt`` and other lists of a folder name.

    A point is linked to the first two cameras, in the calibration's order, whose image it falls into. Boxes are COCO's
    x, y, width, height as half-open corners, clipped to the image; crowds are ignore regions, categories of no class
    are left out.

    Segments: a frame's folder within a split is its drive; frames without one are taken by hundreds.

    Args:
        root: the folder.
        classes: in the order of the labels, the name of a category, or of a class with the categories it is made of.

    Raises:
        DataError: there is no such folder.
        ConfigError: the classes are none.
    """

    name = "custom"
    class_names: tuple[str, ...] = ()

    def __init__(
        self,
        root: str | Path,
        classes: Sequence[str | Mapping[str, Sequence[str]]] = ("Vehicle", "Pedestrian", "Cyclist"),
    ) -> None:
        self.folder = Folder(Path(root))
        self._groups = class_groups(classes)
        self.class_names = tuple(self._groups)

    def __reduce__(self) -> tuple[type[CustomSource], tuple[object, ...]]:
        """Travel to workers without what was read, which each worker reads once."""
        return CustomSource, (self.folder.root, [{name: list(members)} for name, members in self._groups.items()])

    def frame_ids(self, split: str) -> list[str]:
        """Return the frames of a split in the order of its list, but each drive in one piece.

        Raises:
            DataError: there is no such split, or its list is wrong.
        """
        listed = _strictly(self.folder.frames, split)
        drives: dict[str, list[str]] = {}
        for frame_id in listed:
            drives.setdefault(_drive(frame_id), []).append(frame_id)
        return [frame_id for drive in drives.values() for frame_id in drive]

    def segment_of(self, frame_id: str) -> str:
        """Return split and drive of a frame, or split and number of its block.

        Raises:
            DataError: there is no such frame.
        """
        if frame_id not in self._segment:
            raise DataError(f"{self.folder.root}: no frame '{frame_id}'{closest_name(frame_id, self._segment)}")
        return self._segment[frame_id]

    def unreadable(self, split: str) -> dict[str, str]:
        """Return nothing: frames are listed by name, and `check` looks for all of their files."""
        self.frame_ids(split)
        return {}

    def identity(self) -> str:
        """Return a digest of the reader, the folder and the classes."""
        return _digest(str(self.folder.root.resolve()), self._groups).hexdigest()[:32]

    def fingerprint(self) -> str:
        """Return a digest of classes, boxes, calibrations, and the sizes and times of images, sweeps and truth."""
        return _digest(*map(self.segment_fingerprint, sorted(self._frames_of))).hexdigest()[:32]

    def segment_fingerprint(self, segment: str) -> str:
        """Return the same of the frames of one segment."""
        digest = _digest(segment, self._groups)
        for frame_id in self._frames_of.get(segment, ()):
            calibration = self._calibration(frame_id)
            digest.update(calibration.path.read_bytes())
            digest.update(repr(self._boxes3d.get(frame_id)).encode())
            images = [self.folder.image(name, frame_id) for name in calibration.cameras]
            truth = self.folder.point_truth(frame_id)
            for path in [self.folder.sweep(frame_id), *images, *([truth] if truth.is_file() else [])]:
                state = path.stat()
                digest.update(f"{path.relative_to(self.folder.root)} {state.st_size} {state.st_mtime_ns}".encode())
            for path in images:
                boxes = self._image_boxes(path)
                digest.update(f"{boxes.image}{boxes.image.supervision or ''}".encode())
                for annotation in boxes.annotations:
                    annotation.feed(digest)
        return digest.hexdigest()[:32]

    def check(self) -> None:
        """Verify everything but sweeps and pixels.

        Raises:
            DataError: the first thing that is wrong; `problems` finds all of them.
        """
        find_problems(self.folder, self._groups, thorough=False).raise_first()

    def problems(self, on_progress: Callable[[int, int], None] | None = None) -> Problems:
        """Return everything that is wrong, having read every file once.

        Args:
            on_progress: called with frames looked at and frames in all.
        """
        return find_problems(self.folder, self._groups, thorough=True, on_progress=on_progress)

    def report(self, split: str) -> dict[str, int]:
        """Return how many images and boxes a split has, and how many are left out because they have no class.

        Raises:
            DataError: there is no such split.
        """
        counts = dict.fromkeys(("images", "boxes", "crowds", "boxes_of_other_categories"), 0)
        for frame_id in self.frame_ids(split):
            for camera in self._calibration(frame_id).cameras:
                boxes = self._image_boxes(self.folder.image(camera, frame_id))
                counts["images"] += 1
                counts["boxes"] += len(boxes.annotations)
                counts["crowds"] += int(boxes.labelled.ignore.sum())
                every = self._listed.instances.annotations[boxes.image.id]
                counts["boxes_of_other_categories"] += len(every) - len(boxes.annotations)
        return counts

    @property
    def root(self) -> Path:
        """The folder."""
        return self.folder.root

    def read(self, frame_id: str) -> Frame:
        """Return one frame, with its truth where there is some.

        Raises:
            DataError: there is no such frame, or a file of it is missing or wrong.
        """
        segment, calibration = self.segment_of(frame_id), self._calibration(frame_id)
        points = read_points(self.folder.sweep(frame_id), calibration.lidar)
        views, boxes = [], []
        for name, camera in calibration.cameras.items():
            view, found = self._view(name, camera, frame_id, calibration)
            views.append(view)
            boxes.append(found)
        labels = read_point_truth(self.folder.point_truth(frame_id), len(points), len(self.class_names))
        return Frame(
            frame_id=frame_id,
            segment=segment,
            lidar=calibration.lidar.geometry,
            points=points,
            pixels=pixel_map(points.xyz, list(calibration.cameras.values())),
            cameras=tuple(views),
            truth=frame_truth(points.xyz, self._listed, boxes, self._boxes3d.get(frame_id, []), labels),
        )

    def _view(
        self, name: str, camera: CameraModel, frame_id: str, calibration: Calibration
    ) -> tuple[CameraView, ImageBoxes]:
        path = self.folder.image(name, frame_id)
        encoded, boxes = path.read_bytes(), self._image_boxes(path)
        _strictly(check_frame_files, path, encoded, boxes.image, name, calibration, self._listed.path)
        supervision = MASKS if boxes.image.supervision == MASKS else BOXES
        return CameraView(name, camera, encoded, as_given(boxes.labelled), supervision), boxes

    def _calibration(self, frame_id: str) -> Calibration:
        path = self.folder.calibration(frame_id)
        if path not in self._calibrations:
            read = _strictly(read_calibration, path)
            assert read is not None
            self._calibrations[path] = read
        return self._calibrations[path]

    def _image_boxes(self, image: Path) -> ImageBoxes:
        found = _strictly(self._listed.of, self.folder.listed_name(image))
        assert found is not None
        return found

    @cached_property
    def _calibrations(self) -> dict[Path, Calibration]:
        return {}

    @cached_property
    def _listed(self) -> ListedBoxes:
        return ListedBoxes(self.folder.boxes, self._groups)

    @cached_property
    def _boxes3d(self) -> dict[str, list[TrueBox]]:
        return _strictly(read_boxes3d, self.folder.boxes3d, self._listed.label_of_name)

    @cached_property
    def _segment(self) -> dict[str, str]:
        """The segment of each frame."""
        found: dict[str, str] = {}
        for split in self.folder.splits():
            loose = 0
            for frame_id in self.frame_ids(split):
                drive = _drive(frame_id)
                found[frame_id] = f"{split}/{drive or f'{loose // FRAMES_PER_SEGMENT:05d}'}"
                loose += not drive
        return found

    @cached_property
    def _frames_of(self) -> dict[str, list[str]]:
        """The frames of each segment."""
        found: dict[str, list[str]] = {}
        for frame_id, segment in self._segment.items():
            found.setdefault(segment, []).append(frame_id)
        return found


def _drive(frame_id: str) -> str:
    return frame_id.rpartition("/")[0]


def _digest(*facts: object) -> hashlib._Hash:
    return hashlib.sha256(repr((CustomSource.name, READER_VERSION, *facts)).encode())


def _strictly(check: Callable[..., Found], *arguments: object) -> Found:
    """Return what a check that collects problems returns, unless there are any.

    Raises:
        DataError: the first problem.
    """
    problems = Problems()
    found = check(*arguments, problems)
    problems.raise_first()
    return found
