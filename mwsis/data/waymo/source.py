"""The Waymo Open Dataset as a data set: v1 (one TFRecord per segment) and v2 (one table per component and segment).

Both yield the same frames; they differ only in how a segment is listed and read (`v1.py`, `v2.py`). A folder per split,
as the data set is distributed. Next: `frame.py`, which turns what was read into a `Frame`.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.core.frame import Frame
from mwsis.data.waymo import v1, v2
from mwsis.data.waymo.classes import CLASS_NAMES
from mwsis.data.waymo.frame import FrameSettings, to_frame
from mwsis.data.waymo.record import IndexedFrame, WaymoRecord

__all__ = ["WaymoV1Source", "WaymoV2Source"]

READER_VERSION = 1
"""Part of the fingerprint: raise it when the frames read from unchanged files change."""
FOLDERS_OF_SPLIT = {"train": ("train", "training"), "val": ("val", "validation"), "test": ("test", "testing")}
"""Folder names by split; any other split is the folder of its own name."""
_Place = tuple[Path, str]
FRAME_CHOICES = ("lidar_segmentation", "panoptic", "both", "all")


class _WaymoSource:
    """What both versions share; a unit is what holds one segment: a file in v1, its name in v2."""

    name: str
    class_names = CLASS_NAMES
    expected: str
    """What a split's folder holds, for error sentences."""

    def __init__(
        self,
        root: str | Path,
        lidars: Sequence[str] = ("TOP",),
        returns: int = 2,
        frames: str = "lidar_segmentation",
        every: int = 1,
        class_map: str = "ours",
        min_mask_px: int = 200,
    ) -> None:
        self.root = Path(root)
        self.settings = FrameSettings(tuple(lidars), returns, class_map, min_mask_px)
        self.frames, self.every = frames, every
        if frames not in FRAME_CHOICES:
            raise ConfigError(f"frames: no '{frames}'{closest_name(frames, FRAME_CHOICES)}")
        if every < 1:
            raise ConfigError(f"every: expected 1 or more, got {every}")
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; expected the folder that holds 'training' and 'validation'")
        self._place: dict[str, _Place] = {}  # of each segment known so far: folder and unit
        self._entries: dict[_Place, list[IndexedFrame]] = {}
        self._found: dict[str, tuple[_Place, IndexedFrame]] = {}  # by frame id
        self._unreadable: dict[_Place, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_entries": {}, "_found": {}}

    def check(self) -> None:
        """Read the first chosen frame of each split that can be read.

        Raises:
            DataError: no folder holds segments, or none of a folder's segments can be read.
        """
        folders = self._folders()
        if not folders:
            wanted = f"'training' or 'validation' with {self.expected}"
            raise DataError(f"{self.root}: no segments in any of its folders; expected {wanted}")
        for folder in folders:
            errors: list[DataError] = []
            for unit in self._units(folder):
                try:
                    chosen = self._chosen(self._index_of(folder, unit))
                    if not chosen:
                        continue
                    self.read(frame_id_of(chosen[0]))
                except DataError as error:
                    errors.append(error)
                else:
                    break
            else:
                if errors:
                    raise errors[0]

    def identity(self) -> str:
        """Return a digest of the folder and the settings."""
        return self._digest(str(self.root.resolve()))

    def fingerprint(self) -> str:
        """Return a digest of the settings and of the names and sizes of all files."""
        return self._digest(*(self._sizes(folder, unit) for folder in self._folders() for unit in self._units(folder)))

    def segment_fingerprint(self, segment: str) -> str:
        """Return the same of one segment.

        Raises:
            DataError: there is no such segment.
        """
        place = self._place.get(segment) or self._search(segment)
        if place is None:
            raise DataError(f"{self.root}: no segment '{segment}'")
        return self._digest(self._sizes(*place))

    def _digest(self, *facts: object) -> str:
        settings = (self.name, READER_VERSION, self.settings, self.frames, self.every)
        return hashlib.sha256(repr((settings, facts)).encode()).hexdigest()

    def _sizes(self, folder: Path, unit: str) -> list[tuple[str, int]]:
        return [(str(path.relative_to(self.root)), path.stat().st_size) for path in self._files(folder, unit)]

    def frame_ids(self, split: str) -> list[str]:
        """Return the chosen frames of a split, segment by segment, in order of time.

        Raises:
            DataError: there is no such split, or it has no segments.
        """
        return [frame_id_of(entry) for entries in self._segments(split) for entry in self._chosen(entries)]

    def unreadable(self, split: str) -> dict[str, str]:
        """Return why, by name of file, segments of a split cannot be listed.

        Raises:
            DataError: as `frame_ids`.
        """
        for _ in self._segments(split):
            pass
        folder = self._folder(split)
        return {unit: sentence for (place, unit), sentence in self._unreadable.items() if place == folder}

    def segment_of(self, frame_id: str) -> str:
        """Return the segment a frame belongs to.

        Raises:
            DataError: there is no such frame.
        """
        return self._find(frame_id)[1].segment

    def read(self, frame_id: str) -> Frame:
        """Return one frame with its ground truth; every frame of the files can be read, chosen or not.

        Raises:
            DataError: there is no such frame, or it cannot be decoded.
        """
        (folder, unit), entry = self._find(frame_id)
        record = self._record(folder, unit, entry)
        try:
            return to_frame(record, frame_id, self.settings)
        except DataError as error:
            raise DataError(f"{folder / unit}: frame {frame_id}: {error}") from None

    def report(self, split: str) -> dict[str, int]:
        """Return how many segments and frames a split has, how many are labelled, and how many are chosen.

        Raises:
            DataError: as `frame_ids`.
        """
        segments = list(self._segments(split))
        entries = [entry for segment in segments for entry in segment]
        return {
            "segments": len(segments),
            "unreadable": len(self.unreadable(split)),
            "frames": len(entries),
            "without_lidar_segmentation": sum(not entry.has_lidar_segmentation for entry in entries),
            "without_panoptic": sum(not entry.has_panoptic for entry in entries),
            "chosen": sum(len(self._chosen(segment)) for segment in segments),
        }

    # What the versions differ in.

    def _units(self, folder: Path) -> list[str]:
        raise NotImplementedError

    def _files(self, folder: Path, unit: str) -> list[Path]:
        raise NotImplementedError

    def _index(self, folder: Path, unit: str) -> list[IndexedFrame]:
        raise NotImplementedError

    def _record(self, folder: Path, unit: str, entry: IndexedFrame) -> WaymoRecord:
        raise NotImplementedError

    # What they share.

    def _folders(self) -> list[Path]:
        """Return the folders of all splits there are."""
        return sorted(path for path in self.root.iterdir() if path.is_dir() and self._units(path))

    def _folder(self, split: str) -> Path:
        for name in FOLDERS_OF_SPLIT.get(split, (split,)):
            if (self.root / name).is_dir() and name not in ("", ".", ".."):
                return self.root / name
        known = [path.name for path in self._folders()]
        raise DataError(f"{self.root}: no split '{split}'{closest_name(split, known)}")

    def _units_of(self, folder: Path) -> list[str]:
        units = self._units(folder)
        if not units:
            raise DataError(f"{folder}: no segments; expected {self.expected}")
        return units

    def _segments(self, split: str) -> Iterator[list[IndexedFrame]]:
        """Yield the frames of each segment that can be listed, in order of time; note why others cannot."""
        folder = self._folder(split)
        for unit in self._units_of(folder):
            if (folder, unit) in self._unreadable:
                continue
            try:
                yield self._index_of(folder, unit)
            except DataError as error:
                self._unreadable[folder, unit] = str(error)

    def _index_of(self, folder: Path, unit: str) -> list[IndexedFrame]:
        """Return the frames of a segment in order of time."""
        if (folder, unit) not in self._entries:
            entries = sorted(self._index(folder, unit), key=lambda entry: entry.timestamp_micros)
            for segment in {entry.segment for entry in entries}:
                if self._place.setdefault(segment, (folder, unit)) != (folder, unit):
                    other = self._place[segment][0] / self._place[segment][1]
                    raise DataError(f"{folder / unit}: segment '{segment}' is also in {other}; keep one of them")
            self._entries[folder, unit] = entries
            self._found |= {frame_id_of(entry): ((folder, unit), entry) for entry in entries}
        return self._entries[folder, unit]

    def _chosen(self, entries: list[IndexedFrame]) -> list[IndexedFrame]:
        points, masks = self.frames in ("lidar_segmentation", "both"), self.frames in ("panoptic", "both")
        labelled = [
            entry
            for entry in entries
            if (entry.has_lidar_segmentation or not points) and (entry.has_panoptic or not masks)
        ]
        return labelled[:: self.every]

    def _find(self, frame_id: str) -> tuple[_Place, IndexedFrame]:
        if frame_id not in self._found:
            segment = frame_id.rpartition("/")[0]
            place = self._place.get(segment) or self._search(segment)
            if place is not None:
                self._index_of(*place)
        if frame_id in self._found:
            return self._found[frame_id]
        raise DataError(f"{self.root}: no frame '{frame_id}'; expected <segment>/<timestamp in microseconds>")

    def _search(self, segment: str) -> _Place | None:
        """Return where a segment is, trying first the files that are named after it."""
        units = [(folder, unit) for folder in self._folders() for unit in self._units(folder)]
        errors: list[DataError] = []
        for folder, unit in sorted(units, key=lambda place: segment not in place[1]):
            try:
                self._index_of(folder, unit)
            except DataError as error:
                errors.append(error)
            if segment in self._place:
                return self._place[segment]
        if errors:
            raise errors[0]
        return None


def frame_id_of(entry: IndexedFrame) -> str:
    """Return the name of a frame."""
    return f"{entry.segment}/{entry.timestamp_micros}"


class WaymoV1Source(_WaymoSource):
    """Waymo v1: a TFRecord file of frames per segment.

    Frame ids are ``<segment>/<timestamp in microseconds>``. Splits are folders of ``root``: ``train`` is ``train`` or
    ``training``, ``val`` is ``val`` or ``validation``, ``test`` likewise, any other split the folder of that name.
    Segments are listed when a split is first asked for and remembered; a copy sent to another process lists the
    segments it reads anew.

    Args:
        root: the folder that holds the folders of the splits.
        lidars: names of the LiDARs whose points are used; only TOP has rings, poses per pixel and point labels.
        returns: 1 = first returns only, 2 = both.
        frames: which frames: "lidar_segmentation" those whose points are labelled (about one in seven), "panoptic"
            those with mask labels, "both" those with both, "all".
        every: of those, every n-th of each segment.
        class_map: "ours" or "published", see `mwsis.data.waymo.classes`.
        min_mask_px: true masks of at most this many pixels are not scored.

    Raises:
        DataError: there is no such folder.
        ConfigError: a setting is unknown or out of range.
    """

    name = "waymo_v1"
    expected = "files such as segment-NAME_with_camera_labels.tfrecord"

    def _units(self, folder: Path) -> list[str]:
        return sorted(path.name for path in folder.glob("*.tfrecord") if not path.name.startswith("."))

    def _files(self, folder: Path, unit: str) -> list[Path]:
        return [folder / unit]

    def _index(self, folder: Path, unit: str) -> list[IndexedFrame]:
        return v1.index_segment(folder / unit)

    def _record(self, folder: Path, unit: str, entry: IndexedFrame) -> WaymoRecord:
        return v1.read_record(folder / unit, entry, self.settings.lidar_numbers)


class WaymoV2Source(_WaymoSource):
    """Waymo v2: a Parquet file per component and segment; settings, splits and ids are those of `WaymoV1Source`."""

    name = "waymo_v2"
    expected = "folders of components such as camera_image, each with a .parquet file per segment"

    def _units(self, folder: Path) -> list[str]:
        return v2.list_segments(folder) if any((folder / name).is_dir() for name in v2.INDEXING) else []

    def _files(self, folder: Path, unit: str) -> list[Path]:
        return sorted(folder.glob(f"*/{glob.escape(unit)}.parquet"))

    def _index(self, folder: Path, unit: str) -> list[IndexedFrame]:
        return v2.index_segment(folder, unit)

    def _record(self, folder: Path, unit: str, entry: IndexedFrame) -> WaymoRecord:
        return v2.read_record(folder, entry, self.settings.lidar_numbers)
