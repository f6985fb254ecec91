"""Sweeps as files: columns of .bin, .npy, .pcd and .ply, each read strictly and without a library of its own.

`read_columns` returns the columns by name; what they mean for a frame is the source's task (`custom/sweep.py`). Not
read: compressed PCD, big-endian PLY, anything pickled. PCD's VIEWPOINT is not applied, as PCL does not either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mwsis.core.errors import DataError

__all__ = ["SUFFIXES", "read_columns"]

Array: TypeAlias = "np.ndarray[Any, Any]"
PCD_KEYS = ("FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "POINTS", "DATA")
PCD_KINDS = {"F": "f", "I": "i", "U": "u"}
PCD_TYPES = ("<f4", "<f8", "<i1", "<i2", "<i4", "<i8", "<u1", "<u2", "<u4", "<u8")
MOST_REPEATS = 999
"""COUNT of a field."""
PLY_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"), **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "<i2"), **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("int", "int32"), "<i4"), **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("float", "float32"), "<f4"), **dict.fromkeys(("double", "float64"), "<f8"),
}  # fmt: skip
HEADER_LINES = 200
"""A longer header belongs to no sweep."""


class _Body(NamedTuple):
    """What a header announces."""

    layout: np.dtype[Any]
    num_points: int
    ascii: bool
    start: int  # byte
    line: int  # number of the header's last line


def read_columns(path: Path, fields: Sequence[str]) -> dict[str, Array]:
    """Return the columns of a sweep.

    Args:
        path: a file with one of `SUFFIXES`.
        fields: names of the columns of .bin files, float32 little-endian point by point, and of .npy files that hold
            a plain array; .pcd, .ply and structured .npy files name their own.

    Returns:
        By name (N,) arrays of the file's own types.

    Raises:
        DataError: the file is missing, truncated, or no such file; line or field is named.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        reader = READERS[path.suffix.lower()]
    except KeyError:
        raise DataError(f"{path}: expected one of {', '.join(SUFFIXES)}") from None
    columns = reader(path, tuple(fields))
    if not all(len(column) for column in columns.values()):
        raise DataError(f"{path}: expected at least one point, got none")
    return columns


def _read_bin(path: Path, fields: tuple[str, ...]) -> dict[str, Array]:
    size, width = path.stat().st_size, 4 * len(fields)
    if size % width:
        raise DataError(
            f"{path}: expected a multiple of {width} bytes (float32 {' '.join(fields)}), got {size}; is the file "
            "truncated, or has it other columns ('fields' of the calibration)?"
        )
    return _by_name(np.fromfile(path, dtype="<f4").reshape(-1, len(fields)), fields)


def _read_npy(path: Path, fields: tuple[str, ...]) -> dict[str, Array]:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header cannot promise more than is there
    except (ValueError, OSError, EOFError, SyntaxError, TokenError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: expected an array of numbers as numpy saves it ({reason})") from None
    if rows.dtype.names and rows.ndim == 1:
        return {name: _plain(np.array(rows[name]), f"{path}: {name}") for name in rows.dtype.names}
    if rows.ndim != 2 or rows.shape[1] != len(fields):
        raise DataError(
            f"{path}: expected (points, {len(fields)}) numbers ({' '.join(fields)}), got an array of shape {rows.shape}"
        )
    return _by_name(_plain(np.array(rows), str(path)), fields)


def _plain(values: Array, where: str) -> Array:
    if values.dtype.kind not in "fiu":
        raise DataError(f"{where}: expected numbers, got {values.dtype}")
    return values


def _by_name(rows: Array, fields: Sequence[str]) -> dict[str, Array]:
    return {name: rows[:, column] for column, name in enumerate(fields)}


# ---------------------------------------------------------------------------------------------------------------------
# PCD
# ---------------------------------------------------------------------------------------------------------------------


def _read_pcd(path: Path, fields: tuple[str, ...]) -> dict[str, Array]:
    content = path.read_bytes()
    said: dict[str, tuple[int, list[str]]] = {}
    line = start = 0
    while "DATA" not in said:
        line, start, words = _header_line(path, content, line, start)
        if words and not words[0].startswith("#"):
            said[words[0]] = line, words[1:]
    for key in PCD_KEYS:
        if key not in said and key != "COUNT":
            raise DataError(f"{path}: line {line}: header ends without {key}; expected a PCD file of version .7")
    encoding = " ".join(said["DATA"][1])
    if encoding not in ("ascii", "binary"):
        raise DataError(f"{path}: line {line}: DATA: expected ascii or binary, got {encoding}; write it uncompressed")
    count = _whole(said["POINTS"], f"{path}: line {said['POINTS'][0]}: POINTS")
    size = [_whole(said[key], f"{path}: line {said[key][0]}: {key}") for key in ("WIDTH", "HEIGHT")]
    if size[0] * size[1] != count:
        where = f"{path}: line {said['POINTS'][0]}"
        raise DataError(f"{where}: POINTS: expected WIDTH times HEIGHT = {size[0] * size[1]}, got {count}")
    return _body_columns(path, content, _Body(_pcd_layout(path, said), count, encoding == "ascii", start, line))


def _pcd_layout(path: Path, said: dict[str, tuple[int, list[str]]]) -> np.dtype[Any]:
    line, names = said["FIELDS"]
    counts = said.get("COUNT", (line, ["1"] * len(names)))
    for key, (number, words) in {"SIZE": said["SIZE"], "TYPE": said["TYPE"], "COUNT": counts}.items():
        if len(words) != len(names):
            raise DataError(f"{path}: line {number}: {key}: expected {len(names)}, one per field, got {len(words)}")
    parts: list[Any] = []
    for place, (name, size, kind, repeat) in enumerate(
        zip(names, said["SIZE"][1], said["TYPE"][1], counts[1], strict=True)
    ):
        code = f"<{PCD_KINDS.get(kind, '?')}{size}"
        if code not in PCD_TYPES or not repeat.isdecimal() or not 1 <= int(repeat[:4]) <= MOST_REPEATS:
            raise DataError(f"{path}: line {line}: {name}: no such type: TYPE {kind} SIZE {size} COUNT {repeat}")
        unique = f"{name}#{place}" if name == "_" else name  # padding may be there several times
        parts.append((unique, code, (int(repeat),)) if repeat != "1" else (unique, code))
    return _layout(parts, f"{path}: line {line}: FIELDS")


# ---------------------------------------------------------------------------------------------------------------------
# PLY
# ---------------------------------------------------------------------------------------------------------------------


def _read_ply(path: Path, fields: tuple[str, ...]) -> dict[str, Array]:
    content = path.read_bytes()
    line, start, words = _header_line(path, content, 0, 0)
    if words != ["ply"]:
        raise DataError(f"{path}: line 1: expected 'ply', got '{' '.join(words)[:40]}'")
    encoding, elements, count, parts = "", 0, -1, []
    while words != ["end_header"]:
        line, start, words = _header_line(path, content, line, start)
        where = f"{path}: line {line}"
        if words[:1] == ["format"]:
            encoding = " ".join(words[1:])
        elif words[:1] == ["element"]:
            elements += 1
            if elements == 1 and words[1:2] != ["vertex"]:
                raise DataError(f"{where}: element: expected vertex first, got '{' '.join(words[1:2])}'")
            count = _whole((line, words[2:]), f"{where}: element vertex") if elements == 1 else count
        elif words[:1] == ["property"] and elements == 1:
            if len(words) != 3 or words[1] not in PLY_TYPES:
                raise DataError(f"{where}: property: expected a type and a name, got '{' '.join(words[1:])}'")
            parts.append((words[2], PLY_TYPES[words[1]]))
    if encoding not in ("ascii 1.0", "binary_little_endian 1.0"):
        raise DataError(f"{path}: format: expected ascii 1.0 or binary_little_endian 1.0, got '{encoding}'")
    if count < 0:
        raise DataError(f"{path}: line {line}: header ends without element vertex")
    layout = _layout(parts, f"{path}: element vertex")
    return _body_columns(path, content, _Body(layout, count, encoding[0] == "a", start, line), more=elements > 1)


# ---------------------------------------------------------------------------------------------------------------------
# Both
# ---------------------------------------------------------------------------------------------------------------------


def _header_line(path: Path, content: bytes, line: int, start: int) -> tuple[int, int, list[str]]:
    """Return number, end and words of the next line of a header."""
    end = content.find(b"\n", start)
    if end < 0 or line >= HEADER_LINES:
        raise DataError(f"{path}: line {line + 1}: the header does not end; expected a {path.suffix[1:].upper()} file")
    try:
        return line + 1, end + 1, content[start:end].decode("ascii").split()
    except UnicodeDecodeError:
        raise DataError(f"{path}: line {line + 1}: expected text, got other bytes") from None


def _whole(said: tuple[int, list[str]], what: str) -> int:
    words = said[1]
    if len(words) != 1 or not words[0].isdecimal() or len(words[0]) > 12:
        raise DataError(f"{what}: expected a whole number, got '{' '.join(words)[:40]}'")
    return int(words[0])


def _layout(parts: list[Any], where: str) -> np.dtype[Any]:
    names = [part[0] for part in parts]
    if not names or len(set(names)) != len(names):
        raise DataError(f"{where}: expected different names, got {' '.join(names) or 'none'}")
    return np.dtype(parts)


def _body_columns(path: Path, content: bytes, body: _Body, more: bool = False) -> dict[str, Array]:
    """Return the columns of points; ``more`` says that something else may follow them."""
    names = [name for name in body.layout.names or () if not body.layout[name].shape]
    if body.ascii:
        rows = _ascii_rows(path, content, body, more)
        places = np.cumsum([0, *(int(np.prod(body.layout[name].shape)) for name in body.layout.names or ())])
        columns = dict(zip(body.layout.names or (), places, strict=False))
        return {name: rows[:, columns[name]] for name in names}
    needed, there = body.num_points * body.layout.itemsize, len(content) - body.start
    if there < needed or (there > needed and not more):
        raise DataError(
            f"{path}: after line {body.line}: expected {needed} bytes for {body.num_points} points, got {there}; "
            "copy the file again"
        )
    rows = np.frombuffer(content, body.layout, body.num_points, body.start)
    return {name: rows[name] for name in names}


def _ascii_rows(path: Path, content: bytes, body: _Body, more: bool) -> Array:
    lines = content[body.start :].split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) < body.num_points or (len(lines) > body.num_points and not more):
        raise DataError(
            f"{path}: after line {body.line}: expected {body.num_points} lines, one per point, got {len(lines)}"
        )
    width = sum(int(np.prod(body.layout[name].shape)) for name in body.layout.names or ())
    rows = np.empty((body.num_points, width))
    for number, line in enumerate(lines[: body.num_points]):
        try:
            rows[number] = np.array([float(word) for word in line.split()]).reshape(width)
        except ValueError:
            where, got = f"{path}: line {body.line + 1 + number}", ascii(line[:60].decode("latin-1"))
            raise DataError(f"{where}: expected {width} numbers, got {got}") from None
    return rows


READERS: dict[str, Callable[[Path, tuple[str, ...]], dict[str, Array]]] = {
    ".bin": _read_bin,
    ".npy": _read_npy,
    ".pcd": _read_pcd,
    ".ply": _read_ply,
}
SUFFIXES = tuple(READERS)
"""What a sweep may be called."""
