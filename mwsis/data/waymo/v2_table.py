"""One Parquet table of a Waymo v2 segment, opened once and read a frame at a time.

An index of the key columns says where a frame's rows lie, so only their row groups are decoded; numbers come back as
numpy views of what Arrow decoded. Files are kept open, a few segments' worth. Not here: what columns mean
(`v2_schema.py`) and how rows of several tables become a record (`v2.py`). Not safe for several threads at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mwsis.core.errors import DataError
from mwsis.data.waymo.v2_schema import (
    ENUMS,
    FRAME,
    ROW_NAME,
    SCHEMAS,
    SEGMENT,
    fits,
    is_nullable,
    needed_columns,
    short_name,
)

__all__ = ["ComponentTable", "Row", "open_table", "table_path"]

OPEN_FILES = 64
"""Memory-mapped files kept open, four segments of fifteen tables; the least recently used is closed first."""
NEAR_ROWS = 8
"""Rows of a frame that are no further apart lie together: five sensors, with room for the rear cameras."""
SHARED = -1
"""Key of the cursor that reads all sensors."""
BATCH_ROWS = 65536
"""Rows of a table of small rows decoded, and kept, at once."""

Row = dict[str, Any]


class _Place(NamedTuple):
    group: int
    row: int  # in its row group
    name: int  # of the sensor, 0 in tables that are not one row per sensor


def table_path(root: Path, component: str, segment: str) -> Path:
    """Return where a table of a segment lies."""
    return Path(root) / component / f"{segment}.parquet"


def open_table(root: Path, component: str, segment: str) -> ComponentTable | None:
    """Return a table of a segment, None where there is no such file.

    A file that was replaced since is opened again.

    Raises:
        DataError: the file is no Parquet, or a needed column is missing or of a wrong type.
    """
    path = table_path(root, component, segment)
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _opened(path, component, (state.st_ino, state.st_mtime_ns, state.st_size))


@lru_cache(OPEN_FILES)
def _opened(path: Path, component: str, state: tuple[int, int, int]) -> ComponentTable:
    return ComponentTable(path, component)


class ComponentTable:
    """A table whose rows come out as dictionaries from short column names to values.

    Lists of numbers are numpy arrays, read-only; enum values are numbers, whatever the file holds; null is None.

    Args:
        path: the Parquet file.
        component: a key of `SCHEMAS`.

    Attributes:
        path: as given.

    Raises:
        DataError: the file is no Parquet, or a needed column is missing or of a wrong type.
    """

    def __init__(self, path: Path, component: str) -> None:
        self.path = path
        self._component = component
        self._columns = needed_columns(component)
        try:
            self._file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
        except (pa.ArrowException, OSError):
            raise DataError(f"{path}: expected a Parquet file, got a truncated or foreign one") from None
        self._check_columns()
        self._places = self._index()
        self._large = component in ROW_NAME
        self._cursors: dict[int, _Cursor] = {}

    def timestamps(self, name: int | None = None) -> list[int]:
        """Return the frames that have rows, ascending.

        Args:
            name: count rows of this sensor only.
        """
        wanted = (time for time, places in self._places.items() if name is None or any(p.name == name for p in places))
        return sorted(time for time in wanted if time is not None)

    def check_segment(self, segment: str) -> None:
        """Verify that every row is of one segment.

        Raises:
            DataError: one is not, or the table does not say.
        """
        if SEGMENT not in self._file.schema_arrow.names:
            raise DataError(f"{self.path}: no column '{SEGMENT}'")
        others = set(self._read_keys([SEGMENT])[0]) - {segment}
        if others:
            raise DataError(f"{self.path}: {SEGMENT}: expected '{segment}', the name of the file, got {others.pop()!r}")

    def rows(self, timestamp: int | None = None, names: Collection[int] | None = None) -> list[Row]:
        """Return the rows of a frame in the order of the file.

        Args:
            timestamp: the frame; None for a table that holds for the whole segment.
            names: return rows of these sensors only; None for all.

        Raises:
            DataError: a value is null, unknown or cannot be decoded.
        """
        places = self._places.get(timestamp, [])
        wanted = [place for place in places if names is None or place.name in names]
        rows: list[Row] = []
        for batch, indices in self._batches(wanted):
            columns = {short_name(name): self._values(name, batch, indices) for name in self._columns}
            rows += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return rows

    def rows_by_name(self, key: str, timestamp: int | None, names: Collection[int] | None = None) -> dict[int, Row]:
        """Return the rows of a frame by sensor.

        Args:
            key: column that names the sensor.
            timestamp, names: see `rows`.

        Raises:
            DataError: as `rows`, or a sensor has two rows.
        """
        by_name: dict[int, Row] = {}
        for row in self.rows(timestamp, names):
            if by_name.setdefault(row[key], row) is not row:
                raise DataError(f"{self.path}: {key}: expected one row per frame and sensor, got two of {row[key]}")
        return by_name

    def _check_columns(self) -> None:
        schema = self._file.schema_arrow
        for column in self._columns:
            if schema.names.count(column) != 1:
                raise DataError(
                    f"{self.path}: no column '{column}'; expected the table '{self._component}' of Waymo v2"
                )
            expected, actual = SCHEMAS[self._component].field(column).type, schema.field(column).type
            if not fits(short_name(column), expected, actual):
                raise DataError(f"{self.path}: {column}: expected {expected}, got {actual}")

    def _index(self) -> dict[int | None, list[_Place]]:
        """Return where the rows of each frame are, from the key columns alone."""
        keys = [key for key in (FRAME, ROW_NAME.get(self._component)) if key in self._columns]
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        spots = ((group, row) for group, size in enumerate(sizes) for row in range(size))
        values = dict(zip(keys, self._read_keys(keys), strict=True)) if keys else {}
        count = sum(sizes)
        times = values.get(FRAME) or [None] * count
        names = values.get(ROW_NAME.get(self._component, "")) or [0] * count
        places: dict[int | None, list[_Place]] = {}
        for (group, row), time, name in zip(spots, times, names, strict=True):
            places.setdefault(time, []).append(_Place(group, row, name))
        return places

    def _read_keys(self, keys: list[str]) -> list[list[Any]]:
        try:
            table = self._file.read(columns=keys, use_threads=False).combine_chunks()
        except (pa.ArrowException, OSError):
            raise self._undecodable() from None
        return [self._plain(key, table.column(key)) for key in keys]

    def _batches(self, places: list[_Place]) -> Iterator[tuple[pa.RecordBatch, list[int]]]:
        """Yield decoded batches and the wanted rows in them, in the order of the file."""
        indices: list[int] = []
        last: pa.RecordBatch | None = None
        for group, members in groupby(places, key=lambda place: place.group):
            found = list(members)
            scattered = self._large and found[-1].row - found[0].row > NEAR_ROWS
            for place in found:
                batch, index = self._seek(group, place.row, place.name if scattered else SHARED)
                if last is not None and batch is not last:
                    yield last, indices
                    indices = []
                last = batch
                indices.append(index)
        if last is not None:
            yield last, indices

    def _seek(self, group: int, row: int, key: int) -> tuple[pa.RecordBatch, int]:
        """Return a batch that holds a row, and which of its rows that is.

        Large rows are decoded one by one, and those passed over are lost: a frame whose rows lie together goes on where
        the frame before it ended. Where they are scattered, as in a table sorted by sensor, each sensor goes on by
        itself, so that reading all frames in order decodes a row group a few times at most.
        """
        cursor = self._cursors.pop(key, None)
        if cursor is None or not cursor.can_reach(group, row):
            cursor = _Cursor(self._file, group, self._columns, 1 if self._large else BATCH_ROWS)
        try:
            found = cursor.seek(row)
        except (pa.ArrowException, OSError, StopIteration):
            raise self._undecodable() from None
        self._cursors[key] = cursor
        return found

    def _values(self, column: str, batch: pa.RecordBatch, indices: list[int]) -> list[Any]:
        contiguous = indices[-1] - indices[0] + 1 == len(indices)
        values = batch.column(column)
        values = values.slice(indices[0], len(indices)) if contiguous else values.take(pa.array(indices))
        return self._plain(column, values)

    def _plain(self, column: str, values: Any) -> list[Any]:
        """Return a column's values; lists as numpy arrays that alias it where they can."""
        short = short_name(column)
        if values.null_count and not is_nullable(short):
            raise DataError(f"{self.path}: {column}: expected a value in every row, got null")
        if pa.types.is_nested(values.type):
            return [self._list(column, scalar) for scalar in values]
        plain = values.to_pylist()
        return [self._number(column, name) for name in plain] if short in ENUMS else plain

    def _list(self, column: str, scalar: Any) -> Any:
        if not scalar.is_valid:
            return None
        if scalar.values.null_count:
            raise DataError(f"{self.path}: {column}: expected numbers, got a list with null in it")
        return scalar.values.to_numpy(zero_copy_only=False)

    def _number(self, column: str, value: Any) -> int | None:
        names = ENUMS[short_name(column)]
        if value is None or value in names.values():
            return value
        if value not in names:
            known = ", ".join(f"{number} {name}" for name, number in names.items())
            raise DataError(f"{self.path}: {column}: expected one of {known}, got {value!r}")
        return names[value]

    def _undecodable(self) -> DataError:
        return DataError(f"{self.path}: a row group cannot be decoded; the file is damaged, so copy it again")


class _Cursor:
    """A place in one row group, which moves forward batch by batch."""

    def __init__(self, file: pq.ParquetFile, group: int, columns: list[str], batch_rows: int) -> None:
        self._group = group
        self._batches: Iterator[pa.RecordBatch] = file.iter_batches(
            batch_rows, row_groups=[group], columns=columns, use_threads=False
        )
        self._batch: pa.RecordBatch | None = None
        self._start = 0

    def can_reach(self, group: int, row: int) -> bool:
        return group == self._group and row >= self._start

    def seek(self, row: int) -> tuple[pa.RecordBatch, int]:
        while self._batch is None or row >= self._start + len(self._batch):
            self._start += len(self._batch) if self._batch is not None else 0
            self._batch = next(self._batches)
        return self._batch, row - self._start
