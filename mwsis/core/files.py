"""Writing files so that a reader sees the old file or the complete new one, never a part; and the room there is.

Used by the frame store, the label cache, the vote history, reports and exports. Not here: any file format but JSON.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

__all__ = ["atomic_write", "existing_folder", "free_bytes", "write_json"]


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success it becomes ``path``, on failure it is removed.

    The bytes are flushed to disk before the rename, and the rename before returning. The folder is made if needed.

    Args:
        path: the file to write or replace.

    Yields:
        A path that does not exist yet, hidden, with the suffix of ``path``; the block must create it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "labels.txt") as unfinished:
        ...         _ = unfinished.write_text("car")
        ...     print([entry.name for entry in Path(folder).iterdir()])
        ['labels.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield unfinished
        _flush(unfinished)
        os.replace(unfinished, path)
        _flush(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path | str, obj: Any) -> None:
    """Write an object as indented UTF-8 JSON, atomically.

    Args:
        path: the file to write or replace.
        obj: dictionaries, sequences, dataclasses, paths, numbers (also tensors and arrays of one element). NaN and
            infinities, which JSON cannot hold, become null.
    """
    text = json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def existing_folder(folder: Path | str) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def free_bytes(folder: Path | str) -> int:
    """Return the room on the disk a folder lies on, or will lie on."""
    return shutil.disk_usage(existing_folder(folder)).free


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
