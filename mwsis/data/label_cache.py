"""Labels made from 2D boxes, computed once per frame and kept beside the frame store.

Ring segments and spatial labels depend on no augmentation, so training reads them from memory-mapped files (10 bytes a
point), one file per segment as the store. How labels are made is the caller's function (`fusion.spatial_labels`);
votes, which change during training, are in `fusion.vote_history`. Next: `dataset.py`, which joins frames and labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from mwsis.core.errors import DataError
from mwsis.core.files import write_json
from mwsis.core.frame import Frame
from mwsis.core.instances import IGNORE, PointLabels
from mwsis.data.store import FORMAT, INDEX, FilePlan, OpenFiles, Record, write_records

__all__ = [
    "FrameLabels",
    "LabelCache",
    "Labeller",
    "is_complete",
    "label_record",
    "plan_labels",
    "write_label_index",
    "write_labels",
]

PART = "labels"
MOST_FRAMES = 1_000_000
"""Of a segment; a larger number is damage."""
CERTAIN = 255
"""What confidence 1 is kept as."""

Labeller = Callable[[Frame], "FrameLabels"]


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
        path: the folder of a finished plan.

    Attributes:
        fingerprint: of frames, labeller and settings.

    Raises:
        DataError: the cache is missing, incomplete, truncated or foreign.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        index = _read_index(self.path)
        self.fingerprint: str = index["fingerprint"]
        self._rows: list[tuple[Path, int]] = []
        for segment in index["segments"]:
            if not (file := self.path / segment["file"]).is_file():
                raise DataError(f"{file}: no such file; delete {self.path} so that the labels are made again")
            self._rows += [(file, row) for row in range(segment["num_frames"])]
        self._files = OpenFiles(PART)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> FrameLabels: ...
    @overload
    def __getitem__(self, index: slice) -> list[FrameLabels]: ...
    def __getitem__(self, index: int | slice) -> FrameLabels | list[FrameLabels]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        path, row = self._rows[index]
        _, parts = self._files[path].read(row, (PART,))
        semantic_labels, instance_ids, ring_segment_id, confidence = parts[PART]
        pseudo = PointLabels(semantic_labels.long(), instance_ids.long(), confidence.float() / CERTAIN)
        return FrameLabels(pseudo, ring_segment_id.long())


def plan_labels(frames: FilePlan, root: Path | str, settings: str) -> FilePlan:
    """Return what the label cache of a frame store holds, labels in the order of its frames.

    Args:
        frames: the plan of the store.
        root: folder of the cache.
        settings: identifies the labeller and its settings.

    Raises:
        DataError: ``root`` is a file.
    """
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: expected a folder for the label cache, got a file")
    return FilePlan(root, PART, frames.segments, frames.split, settings)


def write_labels(path: Path, frames: Iterable[Frame], labeller: Labeller, fingerprint: str) -> None:
    """Write the labels of one segment's frames, atomically; the labeller sees no ground truth."""
    records = (label_record(frame, labeller) for frame in frames)
    write_records(path, records, PART, (PART,), {"fingerprint": fingerprint})


def label_record(frame: Frame, labeller: Labeller) -> Record:
    """Return the row of a frame's labels."""
    labels = labeller(frame.without_truth())
    num_points = len(frame.points)
    assert len(labels.pseudo) == len(labels.ring_segment_id) == num_points, "the labeller must label every point"
    parts = (
        _narrow(labels.pseudo.semantic_labels, torch.int8),
        _narrow(labels.pseudo.instance_ids, torch.int32),
        _narrow(labels.ring_segment_id, torch.int32),
        (labels.pseudo.weight * CERTAIN).round().to(torch.uint8),
    )
    return Record(frame.frame_id, num_points, {PART: parts})


def write_label_index(plan: FilePlan) -> None:
    """Make a folder whose files are all there a label cache."""
    segments = [{"file": segment.file, "num_frames": len(segment.frame_ids)} for segment in plan.segments]
    index = {"format": FORMAT, "kind": PART, "fingerprint": plan.fingerprint, "segments": segments}
    write_json(plan.root / INDEX, index)


def is_complete(plan: FilePlan) -> bool:
    """Return whether `LabelCache` can open the folder and would find this plan's labels in it."""
    try:
        return LabelCache(plan.root).fingerprint == plan.fingerprint
    except DataError:
        return False


def _narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = values.to(dtype)
    assert bool((narrow == values).all()), f"labels beyond {dtype}"
    return narrow


def _read_index(path: Path) -> dict[str, Any]:
    if not (path / INDEX).is_file():
        raise DataError(f"{path}: no {INDEX}; expected a complete label cache, so make it (again) from its frames")
    try:
        index: dict[str, Any] = json.loads((path / INDEX).read_text(encoding="utf-8"))
        fits = index["format"] == FORMAT and index["kind"] == PART
        fits = fits and isinstance(index["fingerprint"], str)
        fits = fits and all(type(segment["num_frames"]) is int for segment in index["segments"])
        fits = fits and all(0 <= segment["num_frames"] <= MOST_FRAMES for segment in index["segments"])
        fits = fits and all(isinstance(segment["file"], str) for segment in index["segments"])
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise DataError(f"{path / INDEX}: not the index of a label cache of format {FORMAT}; delete {path}")
    return index
