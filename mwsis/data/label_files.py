"""Point labels as files that other trainers read: one ``.label`` file per frame, as SemanticKITTI has them.

A file holds one little-endian uint32 per point, in the order of the sweep: class in the low 16 bits, instance in the
high 16 bits. ``labels.json`` beside the files says what the codes mean; it is written last, so where it is, every file
it names is there and of the same making. Not here: how labels are made (`fusion`), the cache that training reads
(`label_cache.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray

from mwsis.core.errors import DataError
from mwsis.core.files import atomic_write, write_json
from mwsis.core.instances import BACKGROUND, IGNORE, PointLabels

__all__ = ["INDEX", "LabelWriter", "file_stem", "label_file_name", "read_labels"]

INDEX = "labels.json"
FORMAT = "mwsis point labels 1"
LAYOUT = (
    "one little-endian uint32 per point, in the order of the sweep; low 16 bits: code of the class; high 16 bits: "
    "1 + index of the first 2D box that shows the object, counted on over the cameras of the frame, 0 for none"
)
UNLABELLED, OTHER, FIRST_CLASS = 0, 1, 2
"""Codes of `IGNORE`, of `BACKGROUND` and of class 0; the others follow in their order."""
LARGEST = 2**16 - 1


class LabelWriter:
    """Writes the labels of a data set, frame by frame, each file whole or not at all.

    Args:
        folder: made if needed; the ``labels.json`` of an earlier run is removed, since its files will be replaced.
        class_names: names by class index.

    Raises:
        DataError: ``folder`` is a file, or there are more classes than 16 bits hold.
    """

    def __init__(self, folder: Path | str, class_names: Sequence[str]) -> None:
        self.folder = Path(folder)
        self._class_names = tuple(class_names)
        if FIRST_CLASS + len(class_names) > LARGEST + 1:
            raise DataError(f"{len(class_names)} classes: a label file holds at most {LARGEST + 1 - FIRST_CLASS}")
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder}: expected a folder for label files, got a file")
        (self.folder / INDEX).unlink(missing_ok=True)
        self._frames: dict[str, dict[str, Any]] = {}

    def add(self, frame_id: str, labels: PointLabels) -> None:
        """Write the labels of one frame.

        Args:
            frame_id: unique in the data set; any text.
            labels: (N,) pseudo labels.

        Raises:
            DataError: an instance id is beyond what 16 bits hold.
        """
        largest = int(labels.instance_ids.max()) + 1 if len(labels) else 0
        if largest > LARGEST:
            raise DataError(f"{frame_id}: {largest} 2D boxes: a label file holds at most {LARGEST} in a frame")
        name = label_file_name(frame_id)
        with atomic_write(self.folder / name) as unfinished:
            _encoded(labels).tofile(unfinished)
        self._frames[frame_id] = {"file": name, "num_points": len(labels)}

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write ``labels.json``.

        Args:
            facts: how the labels were made and from what, e.g. ``source`` and ``method``.
        """
        codes = dict(enumerate(("unlabelled", "other", *self._class_names)))
        index = {"format": FORMAT, "layout": LAYOUT, "class_names": self._class_names, "codes": codes, **facts}
        write_json(self.folder / INDEX, {**index, "frames": self._frames})


def read_labels(path: Path | str) -> PointLabels:
    """Return the labels of a ``.label`` file.

    In numpy alone: ``codes = np.fromfile(path, "<u4"); classes, instances = codes & 0xFFFF, codes >> 16``.

    Args:
        path: a file of `LabelWriter`.

    Returns:
        N labels, int64: class from 0, `BACKGROUND` for other, `IGNORE` for unlabelled; an instance id is the index of
        the 2D box over all cameras of the frame, -1 none.

    Raises:
        DataError: there is no such file, or its size is no multiple of 4 bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a .label file")
    recorded = path.read_bytes()
    if len(recorded) % 4:
        raise DataError(f"{path}: expected a multiple of 4 bytes (uint32 per point), got {len(recorded)}")
    codes = torch.from_numpy(np.frombuffer(recorded, dtype="<u4").astype(np.int64))
    code, instance_ids = codes & LARGEST, (codes >> 16) - 1
    semantic_labels = code - FIRST_CLASS
    semantic_labels[code == UNLABELLED] = IGNORE
    semantic_labels[code == OTHER] = BACKGROUND
    return PointLabels(semantic_labels, instance_ids)


def label_file_name(frame_id: str) -> str:
    """Return the name of a frame's label file.

    Example:
        >>> label_file_name("000007"), label_file_name("drive/0 1")
        ('000007.label', 'drive%2F0%201.label')
    """
    return f"{file_stem(frame_id)}.label"


def file_stem(frame_id: str) -> str:
    """Return what a frame's files are called: its id percent-encoded, so that no two ids share one and none leaves a
    folder."""
    plain = quote(frame_id, safe="")
    return plain.replace(".", "%2E", 1) if plain.startswith(".") else plain


def _encoded(labels: PointLabels) -> NDArray[np.uint32]:
    """Return (N,) uint32, little-endian."""
    semantic_labels = labels.semantic_labels
    code = semantic_labels + FIRST_CLASS
    code[semantic_labels == IGNORE] = UNLABELLED
    code[semantic_labels == BACKGROUND] = OTHER
    return (code | (labels.instance_ids + 1) << 16).numpy().astype("<u4")
