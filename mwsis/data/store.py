"""Frames on disk as memory-mapped Arrow files: written once from any source, read back without copying.

One file per segment, one row per frame; a row holds each array as bytes (its dtype and shape beside it), the encoded
images untouched, and the ground truth in columns of its own. `RecordFile`, `write_records` and `FilePlan` are the file
format alone, also used by `label_cache.py`. Not here: where frames come from (`source.py`), samples (`dataset.py`), how
a data set is written by many processes (`conversion.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import torch
from torch import Tensor

from mwsis.core.errors import DataError
from mwsis.core.files import atomic_write, write_json
from mwsis.core.frame import CameraView, Frame, FrameTruth, ImageTruth, LidarGeometry, PixelMap, PointCloud
from mwsis.core.geometry import CameraModel, RollingShutter
from mwsis.core.instances import Boxes2D, MaskSet, PointLabels
from mwsis.data.source import Source

__all__ = [
    "FilePlan",
    "FrameStore",
    "OpenFiles",
    "Record",
    "RecordFile",
    "Segment",
    "frame_record",
    "is_complete",
    "num_bytes",
    "plan_store",
    "write_frames",
    "write_index",
    "write_records",
]

FORMAT = 2
"""Raise it when files of an older version can no longer be read; part of every fingerprint."""
INDEX = "index.json"
ALIGNMENT = 8
"""Bytes; the widest dtype stored, and what Arrow itself aligns buffers to."""
OPEN_FILES = 64
"""Memory-mapped files kept open by one store; the oldest is closed first."""
STORED_CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Boxes2D, CameraModel, CameraView, FrameTruth, ImageTruth, LidarGeometry, MaskSet, PixelMap, PointCloud,
        PointLabels, RollingShutter,
    )
}  # fmt: skip
INPUTS, TRUTH = "inputs", "truth"
FRAMES = "frames"


@dataclass(frozen=True)
class Record:
    """One row: a key, a size for planning, and named parts.

    Attributes:
        key: unique in the file.
        num_points: rows of the sweep.
        parts: tensors, bytes, numbers, text, ``None``, and tuples and stored dataclasses of those.
    """

    key: str
    num_points: int
    parts: Mapping[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# One file
# ---------------------------------------------------------------------------------------------------------------------


def write_records(
    path: Path, records: Iterable[Record], kind: str, parts: Sequence[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file of records, atomically: a reader sees the old file or the complete new one.

    Args:
        path: file to write or replace.
        records: each holds exactly ``parts``; consumed one at a time.
        kind: what the file holds; a reader that expects another kind refuses it.
        parts: names of the parts; each gets columns of its own.
        metadata: more text to keep in the file's header.
    """
    columns = [pa.field("key", pa.utf8()), pa.field("num_points", pa.int64())]
    for part in parts:
        columns += [pa.field(f"{part}_layout", pa.utf8()), pa.field(f"{part}_arrays", pa.list_(pa.large_binary()))]
    header = {"mwsis": json.dumps({"format": FORMAT, "kind": kind, **(metadata or {})})}
    schema = pa.schema(columns, metadata=header)
    with (
        atomic_write(path) as unfinished,
        pa.OSFile(str(unfinished), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for record in records:
            row: list[Any] = [record.key, record.num_points]
            for part in parts:
                blobs: list[bytes] = []
                row += [json.dumps(_pack(record.parts[part], blobs)), blobs]
            arrays = [pa.array([value], column.type) for value, column in zip(row, columns, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


class RecordFile:
    """A memory-mapped file of records; tensors that come out alias the file and must never be written to.

    Args:
        path: a file of `write_records`.
        kind: what it must hold.

    Raises:
        DataError: the file is missing, truncated, or was not written by `write_records` with this kind.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            header = json.loads((self._reader.schema.metadata or {})[b"mwsis"])
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; delete {path.parent} so that it is built again") from None
        except (pa.ArrowException, OSError, KeyError, ValueError, RecursionError):
            raise self._refusal(f"expected {kind} of this project, got a truncated or foreign file") from None
        if header.get("kind") != kind or header.get("format") != FORMAT:
            got = f"{header.get('kind')} of format {header.get('format')}"
            raise self._refusal(f"expected {kind} of format {FORMAT}, got {got}")
        self.metadata: dict[str, str] = header

    def __len__(self) -> int:
        return int(self._reader.num_record_batches)

    def entries(self) -> list[tuple[str, int]]:
        """Return key and number of points of every row."""
        batches = [self._batch(row) for row in range(len(self))]
        return [(batch.column("key")[0].as_py(), batch.column("num_points")[0].as_py()) for batch in batches]

    def read(self, row: int, parts: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """Return the key and the named parts of one row; tensors are views of the file.

        Raises:
            DataError: the row cannot be decoded.
        """
        batch = self._batch(row)
        try:
            return batch.column("key")[0].as_py(), {part: self._part(batch, part) for part in parts}
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise self._refusal(f"row {row} cannot be decoded") from error

    def _batch(self, row: int) -> Any:
        try:
            return self._reader.get_batch(row)
        except (pa.ArrowException, OSError):
            raise self._refusal(f"row {row} cannot be read") from None

    def _part(self, batch: Any, part: str) -> Any:
        arrays = batch.column(f"{part}_arrays").values
        _, offsets, content = arrays.buffers()
        starts = _view(offsets, "int64", 0, len(arrays) + 1).tolist() if len(arrays) else []
        return _unpack(json.loads(batch.column(f"{part}_layout")[0].as_py()), content, starts)

    def _refusal(self, what: str) -> DataError:
        return DataError(f"{self.path}: {what}; delete {self.path.parent} so that it is built again")


class OpenFiles:
    """Files of one kind by path, the last few kept open; sent to another process, it starts with none.

    Args:
        kind: what they hold.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._open: OrderedDict[Path, RecordFile] = OrderedDict()

    def __getitem__(self, path: Path) -> RecordFile:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            self._open[path] = RecordFile(path, self._kind)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return self._open[path]

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[str]]:
        return OpenFiles, (self._kind,)


@dataclass(frozen=True)
class Segment:
    """Frames that share a file.

    Attributes:
        name: as the source calls it.
        file: name of the file in its folder.
        frame_ids: in order of its rows.
        fingerprint: of what the source makes the frames from.
    """

    name: str
    file: str
    frame_ids: tuple[str, ...]
    fingerprint: str = ""


@dataclass(frozen=True)
class FilePlan:
    """What a complete folder of record files holds.

    Attributes:
        root: the folder.
        kind: of its files.
        segments: one per file, in order.
        split: of the source.
        settings: what decides the files besides their segments.
    """

    root: Path
    kind: str
    segments: tuple[Segment, ...]
    split: str = ""
    settings: str = ""

    @property
    def num_frames(self) -> int:
        return sum(len(segment.frame_ids) for segment in self.segments)

    @property
    def fingerprint(self) -> str:
        """What identifies the complete folder."""
        return _digest(
            self.kind, self.split, [(segment.name, self.file_fingerprint(segment)) for segment in self.segments]
        )

    def file_fingerprint(self, segment: Segment) -> str:
        """Return what identifies the file of one segment, whatever other segments there are."""
        return _digest(self.kind, self.settings, segment.fingerprint, segment.frame_ids)

    def path(self, segment: Segment) -> Path:
        return self.root / segment.file

    def holds(self, segment: Segment) -> bool:
        """Return whether a segment's file is there, complete and of this plan."""
        try:
            file = RecordFile(self.path(segment), self.kind)
            fits = file.metadata.get("fingerprint") == self.file_fingerprint(segment)
            return fits and tuple(key for key, _ in file.entries()) == segment.frame_ids
        except DataError:
            return False

    def only(self, segment: Segment) -> FilePlan:
        """Return the plan of one segment, cheap to send to another process."""
        return replace(self, segments=(segment,))


def _digest(*facts: object) -> str:
    return hashlib.sha256(repr((FORMAT, *facts)).encode()).hexdigest()[:32]


def num_bytes(record: Record) -> int:
    """Return about how much a row takes in its file."""
    blobs: list[bytes] = []
    layouts = [json.dumps(_pack(part, blobs)) for part in record.parts.values()]
    return sum(map(len, layouts)) + sum(map(len, blobs))


def _pack(value: Any, blobs: list[bytes]) -> Any:
    """Append the arrays of a nested value to ``blobs`` and return the rest as plain JSON."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().numpy().tobytes()
        blobs.append(content + bytes(-len(content) % ALIGNMENT))
        return ["tensor", str(value.dtype).removeprefix("torch."), list(value.shape), len(blobs) - 1]
    if isinstance(value, bytes):
        blobs.append(value + bytes(-len(value) % ALIGNMENT))
        return ["bytes", len(value), len(blobs) - 1]
    if isinstance(value, tuple):
        return ["tuple", [_pack(item, blobs) for item in value]]
    if is_dataclass(value) and not isinstance(value, type):
        assert type(value).__name__ in STORED_CLASSES, type(value)
        named = {field.name: _pack(getattr(value, field.name), blobs) for field in fields(value)}
        return [type(value).__name__, named]
    assert value is None or isinstance(value, str | int | float), type(value)
    return ["value", value]


def _unpack(layout: Any, content: Any, starts: list[int]) -> Any:
    """Invert `_pack`; ``content`` is the buffer all arrays lie in, array i from byte ``starts[i]``."""
    kind = layout[0]
    if kind == "tensor":
        _, dtype, shape, index = layout
        return _view(content, dtype, starts[index], math.prod(shape)).reshape(shape)
    if kind == "bytes":
        _, length, index = layout
        return content.slice(starts[index], length).to_pybytes() if length else b""
    if kind == "tuple":
        return tuple(_unpack(item, content, starts) for item in layout[1])
    if kind == "value":
        return layout[1]
    return STORED_CLASSES[kind](**{name: _unpack(item, content, starts) for name, item in layout[1].items()})


def _view(content: Any, dtype: str, start: int, count: int) -> Tensor:
    """Return ``count`` numbers of a read-only buffer as a tensor that aliases it."""
    if not count:
        return torch.empty(0, dtype=getattr(torch, dtype))
    _expect_read_only_views()
    return torch.frombuffer(memoryview(content), dtype=getattr(torch, dtype), count=count, offset=start)


@cache
def _expect_read_only_views() -> None:
    """Use up torch's once-per-process warning that a view of read-only memory must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        torch.frombuffer(b"\0", dtype=torch.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Frames
# ---------------------------------------------------------------------------------------------------------------------


def write_frames(path: Path, frames: Iterable[Frame], fingerprint: str = "") -> None:
    """Write frames to one file, atomically.

    Args:
        path: the ``.arrow`` file to write or replace; `FrameStore` opens it by itself, too.
        frames: at most one is held in memory at a time.
        fingerprint: identifies what the frames were made from.
    """
    write_records(path, map(frame_record, frames), FRAMES, (INPUTS, TRUTH), {"fingerprint": fingerprint})


def frame_record(frame: Frame) -> Record:
    """Return the row of a frame."""
    inputs = (frame.segment, frame.lidar, frame.points, frame.pixels, frame.cameras)
    return Record(frame.frame_id, len(frame.points), {INPUTS: inputs, TRUTH: frame.truth})


class FrameStore(Sequence[Frame]):
    """The frames of one split, read from memory-mapped files; cheap to send to worker processes, which reopen them.

    The tensors of a frame alias the files: never write into them. An access costs no copy but that of the encoded
    images.

    Attributes:
        root: the folder of a finished plan, or one file of `write_frames`.
        fingerprint: changes with the frames, the split and the format.
        frame_ids: (F,) in the order of the index.
        num_points: (F,) points of each frame.

    Raises:
        DataError: there is no store, it is incomplete, or a file was truncated or is not of this project.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        index = _file_index(self.root) if self.root.is_file() else _read_index(self.root)
        self.fingerprint: str = index["fingerprint"]
        self.frame_ids: list[str] = []
        self.num_points: list[int] = []
        self._rows: list[tuple[Path, int]] = []
        for segment in index["segments"]:
            path = self.root if self.root.is_file() else self.root / segment["file"]
            _check_size(path, segment["num_bytes"])
            self.frame_ids += segment["frame_ids"]
            self.num_points += segment["num_points"]
            self._rows += [(path, row) for row in range(len(segment["frame_ids"]))]
        self._files = OpenFiles(FRAMES)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> list[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | list[Frame]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        path, row = self._rows[index]
        frame_id, parts = self._files[path].read(row, (INPUTS, TRUTH))
        segment, lidar, points, pixels, cameras = parts[INPUTS]
        return Frame(frame_id, segment, lidar, points, pixels, cameras, parts[TRUTH])


def plan_store(source: Source, split: str, root: Path | str) -> FilePlan:
    """Return what the store of a split holds, segments in the order in which the split first names them.

    Raises:
        DataError: the split has no frames, or ``root`` is a file.
    """
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: expected a folder for the frame store, got a file")
    frame_ids = source.frame_ids(split)
    if not frame_ids:
        raise DataError(f"{source.name}: split '{split}' has no frames")
    names: dict[str, list[str]] = {}
    for frame_id in frame_ids:
        names.setdefault(source.segment_of(frame_id), []).append(frame_id)
    segments = tuple(
        Segment(name, f"{_file_name(name)}.arrow", tuple(ids), source.segment_fingerprint(name))
        for name, ids in names.items()
    )
    assert len({segment.file for segment in segments}) == len(segments), "segment names must differ as file names"
    return FilePlan(root, FRAMES, segments, split)


def write_index(plan: FilePlan) -> None:
    """Make a folder whose files are all there a store."""
    entries = [_segment_entry(plan.path(segment), segment.name) for segment in plan.segments]
    index = {"format": FORMAT, "fingerprint": plan.fingerprint, "split": plan.split, "segments": entries}
    write_json(plan.root / INDEX, index)


def is_complete(plan: FilePlan) -> bool:
    """Return whether `FrameStore` can open the folder and would find this plan's frames in it."""
    try:
        return FrameStore(plan.root).fingerprint == plan.fingerprint
    except DataError:
        return False


def _file_name(segment: str) -> str:
    """Return a segment's name with everything a file system may object to replaced, and kept distinct."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", segment).lstrip(".")
    return plain if plain == segment else f"{plain}-{hashlib.sha256(segment.encode()).hexdigest()[:8]}"


def _segment_entry(path: Path, segment: str) -> dict[str, Any]:
    keys = RecordFile(path, FRAMES).entries()
    return {
        "name": segment,
        "file": path.name,
        "num_bytes": path.stat().st_size,
        "frame_ids": [key for key, _ in keys],
        "num_points": [count for _, count in keys],
    }


def _file_index(path: Path) -> dict[str, Any]:
    fingerprint = RecordFile(path, FRAMES).metadata.get("fingerprint", "")
    return {"fingerprint": fingerprint, "segments": [_segment_entry(path, path.stem)]}


def _read_index(root: Path) -> dict[str, Any]:
    path = root / INDEX
    if not path.is_file():
        raise DataError(f"{root}: no {INDEX}; expected a complete frame store, so build it (again) from its data set")
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wanted = {"name", "file", "num_bytes", "frame_ids", "num_points"}
        complete = index["format"] == FORMAT and all(wanted <= set(entry) for entry in index["segments"])
        complete = complete and isinstance(index["fingerprint"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        complete = False
    if not complete:
        raise DataError(f"{path}: not the index of a frame store of format {FORMAT}; delete {root} to build it again")
    return index


def _check_size(path: Path, num_bytes: int) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size != num_bytes:
        got = "no such file" if size is None else f"{size} bytes"
        raise DataError(f"{path}: expected {num_bytes} bytes, got {got}; delete it so that it is built again")
