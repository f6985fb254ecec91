"""Labels made from 2D boxes, computed once per frame and kept beside the frame store.

Ring segments and spatial labels depend on no augmentation, so training reads them from memory-mapped files (9 bytes a
point). How labels are made is the caller's function (`fusion.spatial_labels`); votes, which change during training, are
in `fusion.vote_history`. Next: `dataset.py`, which joins frames and labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from mwsis.core.errors import DataError
from mwsis.core.files import write_json
from mwsis.core.frame import Frame
from mwsis.core.instances import IGNORE, PointLabels
from mwsis.data.store import FORMAT, INDEX, FrameStore, Record, RecordFile, write_records

__all__ = ["FrameLabels", "LabelCache", "build_label_cache"]

FRAMES_PER_FILE = 64
"""An interrupted build loses at most this many frames."""
PART = "labels"

Labeller = Callable[[Frame], "FrameLabels"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class FrameLabels:
    """What is known about a frame's points from its 2D boxes and its scan pattern.

    Attributes:
        pseudo: (N,) labels made from the 2D boxes.
        ring_segment_id: (N,) int64, -1 none.
    """

    pseudo: PointLabels
    ring_segment_id: Tensor

    @classmethod
    def unlabelled(cls, num_points: int) -> FrameLabels:
        """Return the labels of a frame nothing is known about: all `IGNORE`, no instance, no segment."""
        nothing = torch.full((num_points,), -1)
        return cls(PointLabels(torch.full((num_points,), IGNORE), nothing), nothing)


class LabelCache(Sequence[FrameLabels]):
    """The labels of a frame store, in its order; cheap to send to worker processes.

    Args:
        path: the folder of `build_label_cache`.

    Attributes:
        fingerprint: of frames, labeller and settings.

    Raises:
        DataError: the cache is missing, incomplete, truncated or foreign.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        index = _read_index(self.path)
        self.fingerprint: str = index["fingerprint"]
        self._num_frames: int = index["num_frames"]
        self._files: dict[int, RecordFile] = {}
        for number in range(_num_files(self._num_frames)):
            if not (file := _file_path(self.path, number)).is_file():
                raise DataError(f"{file}: no such file; delete {self.path} so that the labels are made again")

    def __len__(self) -> int:
        return self._num_frames

    @overload
    def __getitem__(self, index: int) -> FrameLabels: ...
    @overload
    def __getitem__(self, index: slice) -> list[FrameLabels]: ...
    def __getitem__(self, index: int | slice) -> FrameLabels | list[FrameLabels]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        number, row = divmod(range(len(self))[index], FRAMES_PER_FILE)
        if number not in self._files:
            self._files[number] = RecordFile(_file_path(self.path, number), PART)
        _, parts = self._files[number].read(row, (PART,))
        semantic_labels, instance_ids, ring_segment_id = (values.long() for values in parts[PART])
        return FrameLabels(PointLabels(semantic_labels, instance_ids), ring_segment_id)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


def build_label_cache(
    frames: FrameStore,
    labeller: Labeller,
    path: Path | str,
    fingerprint: str,
    on_progress: Progress | None = None,
) -> LabelCache:
    """Label every frame of a store, or open the cache when it is there and complete.

    The labeller is given frames without ground truth. Files already written with the same fingerprints are kept, so an
    interrupted call continues.

    Args:
        frames: the frames; their own fingerprint counts, too.
        labeller: makes the labels of one frame; its ids must fit int32, its classes int8.
        path: folder of the cache.
        fingerprint: identifies the labeller and its settings.
        on_progress: called with frames done and frames in all.

    Returns:
        The complete cache, in the order of ``frames``.

    Raises:
        DataError: ``path`` is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise DataError(f"{path}: expected a folder for the label cache, got a file")
    key = hashlib.sha256(repr((FORMAT, frames.fingerprint, frames.frame_ids, fingerprint)).encode()).hexdigest()[:32]
    if _is_complete(path, key):
        return LabelCache(path)
    report = on_progress or (lambda done, total: None)
    for number in range(_num_files(len(frames))):
        rows = range(number * FRAMES_PER_FILE, min((number + 1) * FRAMES_PER_FILE, len(frames)))
        if not _holds(_file_path(path, number), [frames.frame_ids[row] for row in rows], key):
            records = _records(frames, labeller, rows, report)
            write_records(_file_path(path, number), records, PART, (PART,), {"fingerprint": key})
        report(rows.stop, len(frames))
    write_json(path / INDEX, {"format": FORMAT, "kind": PART, "fingerprint": key, "num_frames": len(frames)})
    return LabelCache(path)


def _records(frames: FrameStore, labeller: Labeller, rows: range, report: Progress) -> Iterator[Record]:
    for row in rows:
        report(row, len(frames))
        frame = frames[row].without_truth()
        labels = labeller(frame)
        num_points = len(frame.points)
        assert len(labels.pseudo) == len(labels.ring_segment_id) == num_points, "the labeller must label every point"
        parts = (
            _narrow(labels.pseudo.semantic_labels, torch.int8),
            _narrow(labels.pseudo.instance_ids, torch.int32),
            _narrow(labels.ring_segment_id, torch.int32),
        )
        yield Record(frame.frame_id, num_points, {PART: parts})


def _narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = values.to(dtype)
    assert bool((narrow == values).all()), f"labels beyond {dtype}"
    return narrow


def _num_files(num_frames: int) -> int:
    return -(-num_frames // FRAMES_PER_FILE)


def _file_path(path: Path, number: int) -> Path:
    return path / f"labels_{number:05d}.arrow"


def _holds(path: Path, frame_ids: list[str], fingerprint: str) -> bool:
    try:
        file = RecordFile(path, PART)
        return file.metadata.get("fingerprint") == fingerprint and [key for key, _ in file.entries()] == frame_ids
    except DataError:
        return False


def _is_complete(path: Path, fingerprint: str) -> bool:
    try:
        return LabelCache(path).fingerprint == fingerprint
    except DataError:
        return False


def _read_index(path: Path) -> dict[str, Any]:
    if not (path / INDEX).is_file():
        raise DataError(f"{path}: no {INDEX}; expected a complete label cache, so make it (again) from its frames")
    try:
        index: dict[str, Any] = json.loads((path / INDEX).read_text(encoding="utf-8"))
        fits = index["format"] == FORMAT and index["kind"] == PART
        fits = fits and isinstance(index["num_frames"], int) and isinstance(index["fingerprint"], str)
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise DataError(f"{path / INDEX}: not the index of a label cache of format {FORMAT}; delete {path}")
    return index
