"""Labels per point as SemanticKITTI and nuScenes-lidarseg have them: one file per sweep, one number per point.

The codes are the formats' own (`class_codes.py`), unlike those of `mwsis.data.label_files`, which hold every class of
ours and are read back here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mwsis.core.errors import DataError
from mwsis.core.files import atomic_write
from mwsis.data.label_files import file_stem
from mwsis.data.source import Source
from mwsis.export.labels.class_codes import NUSCENES_LIDARSEG, SEMANTIC_KITTI, ClassCodes
from mwsis.export.labels.exporter import Exporter, LabelledFrame

__all__ = ["NuScenesLidarseg", "SemanticKitti"]

LARGEST_INSTANCE = 2**16 - 1


class _PointFiles(Exporter):
    """What both share."""

    needs = "points"
    class_codes: ClassCodes

    def __init__(self, folder: Path, source: Source) -> None:
        super().__init__(folder, source)
        self.class_codes.of(source.class_names)

    def codes(self) -> dict[str, Any]:
        """Return the format's number of each class."""
        return {**super().codes(), "codes": self.class_codes.legend(self.source.class_names)}

    def _write(self, labelled: LabelledFrame, place: str, codes: np.ndarray[Any, Any]) -> dict[str, Any]:
        with atomic_write(self.folder / place) as unfinished:
            codes.tofile(unfinished)
        return {"file": place, "num_points": len(labelled.frame.points)}


class SemanticKitti(_PointFiles):
    """``sequences/<segment>/predictions/<frame>.label``.

    Source: SemanticKITTI, "Data format": little-endian uint32 per point, label in the lower 16 bits, instance id in the
    upper 16.
    """

    name = "kitti"
    owned = ("sequences",)
    class_codes = SEMANTIC_KITTI
    about = (
        "SemanticKITTI .label files: one little-endian uint32 per point, in the order of the sweep; low 16 bits: class "
        "as in semantic-kitti.yaml; high 16 bits: 1 + index of the instance, 0 none; an instance keeps its number "
        "within a frame only"
    )

    def write(self, labelled: LabelledFrame) -> dict[str, Any]:
        """Write the file of a frame.

        Raises:
            DataError: there are more instances than 16 bits hold.
        """
        frame, points = labelled.frame, labelled.points
        assert points is not None, "an exporter of points needs labels of points"
        number = (points.instance_ids + 1).numpy()
        if number.size and number.max() > LARGEST_INSTANCE:
            raise DataError(f"{frame.frame_id}: {number.max()} instances; a .label file holds {LARGEST_INSTANCE}")
        code = self.class_codes.encode(points.semantic_labels, self.source.class_names).numpy()
        place = f"sequences/{file_stem(frame.segment)}/predictions/{file_stem(frame.frame_id)}.label"
        return self._write(labelled, place, (code | number << 16).astype("<u4"))


class NuScenesLidarseg(_PointFiles):
    """``lidarseg/<frame>_lidarseg.bin``.

    Source: nuScenes-lidarseg, "Data format": uint8 per point, the index of its category.
    """

    name = "nuscenes"
    owned = ("lidarseg",)
    class_codes = NUSCENES_LIDARSEG
    about = (
        "nuScenes-lidarseg .bin files: one uint8 per point, in the order of the sweep: index of the category as in "
        "category.json; the format has no instances"
    )

    def write(self, labelled: LabelledFrame) -> dict[str, Any]:
        """Write the file of a frame."""
        assert labelled.points is not None, "an exporter of points needs labels of points"
        code = self.class_codes.encode(labelled.points.semantic_labels, self.source.class_names)
        place = f"lidarseg/{file_stem(labelled.frame.frame_id)}_lidarseg.bin"
        return self._write(labelled, place, code.numpy().astype(np.uint8))
