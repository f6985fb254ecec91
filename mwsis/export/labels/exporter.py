"""A frame with the labels to be written, and what the writers of all formats share: a folder and its index.

``export.json`` says what the files are and how they came to be. It is written last, so where it is, every file that it
names is there and of the same making. Next: `formats.py`, which opens writers by name.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from mwsis.core.errors import DataError
from mwsis.core.files import write_json
from mwsis.core.frame import Frame
from mwsis.core.instances import Detections, PointLabels
from mwsis.data.source import Source
from mwsis.evaluation.predictions import FramePrediction

__all__ = ["EXPORT_INDEX", "Exporter", "LabelledFrame", "labelled_by"]

EXPORT_INDEX = "export.json"


@dataclass(frozen=True, eq=False)
class LabelledFrame:
    """The labels of one frame.

    Attributes:
        frame: the frame; its ground truth is not read.
        points: (N,) labels of all points of the sweep, `IGNORE` where nothing is known; None = no point labels.
        detections: per camera, masks on the recorded image; None = no masks.
    """

    frame: Frame
    points: PointLabels | None
    detections: Sequence[Detections] | None

    def __post_init__(self) -> None:
        if self.points is not None and len(self.points) != len(self.frame.points):
            raise DataError(
                f"{self.frame.frame_id}: expected labels of {len(self.frame.points)} points, got {len(self.points)}"
            )


def labelled_by(prediction: FramePrediction) -> LabelledFrame:
    """Return what a network found as labels of all points of the sweep.

    Points that it did not see are `IGNORE`. Points of an instance have the instance's class.
    """
    found = prediction.points
    if found is None:
        return LabelledFrame(prediction.frame, None, prediction.detections)
    ids, classes = found.instance_ids, found.semantic_labels
    if len(found.labels):
        classes = torch.where(ids >= 0, found.labels[ids.clamp(min=0)], classes)
    return LabelledFrame(prediction.frame, prediction.on_all_points(classes, ids), prediction.detections)


class Exporter(ABC):
    """Writes labelled frames in one format, each file whole or not at all.

    Args:
        folder: made if needed; the index and the files of an earlier export are removed.
        source: the data set that the frames are from.

    Raises:
        DataError: ``folder`` is a file.
        ConfigError: the format cannot hold the labels of this data set.
    """

    name: ClassVar[str]
    """In ``export=NAME`` and the folder's name."""
    needs: ClassVar[str]
    """``masks`` or ``points``."""
    about: ClassVar[str]
    """What the files are, for the index."""
    owned: ClassVar[tuple[str, ...]]
    """Files and folders that an export makes."""

    def __init__(self, folder: Path, source: Source) -> None:
        self.folder, self.source = folder, source
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder}: expected a folder for an export, got a file")
        self._frames: dict[str, Any] = {}
        self._left_out: list[str] = []

    def begin(self) -> None:
        """Remove what an earlier export of this format left in the folder."""
        (self.folder / EXPORT_INDEX).unlink(missing_ok=True)
        for name in self.owned:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def add(self, labelled: LabelledFrame) -> None:
        """Write the labels of one frame, or note that the format cannot hold it."""
        entry = self.write(labelled)
        if entry is None:
            self._left_out.append(labelled.frame.frame_id)
        else:
            self._frames[labelled.frame.frame_id] = entry

    def finish(self, facts: Mapping[str, Any]) -> str:
        """Write what is written once, and the index.

        Args:
            facts: how the labels were made and from what, e.g. ``source`` and ``method``.

        Returns:
            One sentence: where the files are, and what is missing.
        """
        self.close()
        index = {"format": f"mwsis export {self.name} 1", "about": self.about, **self.codes(), **facts}
        write_json(self.folder / EXPORT_INDEX, {**index, "frames": self._frames, "left_out": self._left_out})
        count = len(self._frames)
        sentence = f"export {self.name}: {self.folder} ({count} frame{'s' * (count != 1)})"
        return f"{sentence}; {self.why_left_out(len(self._left_out))}" if self._left_out else sentence

    @abstractmethod
    def write(self, labelled: LabelledFrame) -> Any:
        """Write a frame; return its entry of the index, or None where the format cannot hold this frame."""

    def close(self) -> None:
        """Write what is written once."""
        return

    def codes(self) -> dict[str, Any]:
        """Return what the index says about classes."""
        return {"class_names": self.source.class_names}

    def why_left_out(self, count: int) -> str:
        """Say in words why so many frames were left out."""
        return f"{count} frames are left out"
