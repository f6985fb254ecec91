"""The formats by name: ``export=[coco,kitti,nuscenes,waymo,labelme]`` of `tools/evaluate.py` and `tools/label.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mwsis.core.errors import ConfigError, closest_name
from mwsis.data.source import Source
from mwsis.export.labels.coco import CocoResults
from mwsis.export.labels.exporter import Exporter, LabelledFrame
from mwsis.export.labels.labelme import Labelme
from mwsis.export.labels.point_files import NuScenesLidarseg, SemanticKitti
from mwsis.export.labels.waymo import WaymoSegmentation

__all__ = ["FORMATS", "ExportSet", "format_names"]

FORMATS: dict[str, type[Exporter]] = {
    kind.name: kind for kind in (CocoResults, SemanticKitti, NuScenesLidarseg, WaymoSegmentation, Labelme)
}


def format_names(given: str) -> list[str]:
    """Return the formats that ``export=`` names: one, or several as ``[a,b]``; none for ``null``.

    Raises:
        ConfigError: there is no such format.

    Example:
        >>> format_names("[coco,kitti]"), format_names("waymo"), format_names("null")
        (['coco', 'kitti'], ['waymo'], [])
    """
    names = [] if given == "null" else [name.strip() for name in given.removeprefix("[").removesuffix("]").split(",")]
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"export={given}: no format '{name}'{closest_name(name, FORMATS)}")
    return list(dict.fromkeys(names))


class ExportSet:
    """Writes labelled frames in several formats, each into ``out/export_<name>``.

    Args:
        names: formats, may be none.
        out: folder.
        source: the data set that the frames are from.
        made: what there will be, of ``masks`` and ``points``.

    Raises:
        ConfigError: a format needs what is not made, or cannot hold the labels of this data set.
        DataError: an export folder is a file.
    """

    def __init__(self, names: Sequence[str], out: Path, source: Source, made: Sequence[str]) -> None:
        for name in names:
            needed = FORMATS[name].needs
            if needed not in made:
                raise ConfigError(f"export={name}: this format holds {needed}, but only {' and '.join(made)} are made")
        self._exporters = [FORMATS[name](out / f"export_{name}", source) for name in names]

    def begin(self) -> None:
        """Remove what earlier exports of these formats left."""
        for exporter in self._exporters:
            exporter.begin()

    def add(self, labelled: LabelledFrame) -> None:
        """Write a frame in every format."""
        for exporter in self._exporters:
            exporter.add(labelled)

    def finish(self, facts: Mapping[str, Any]) -> list[str]:
        """Write what is written once.

        Args:
            facts: how the labels were made and from what, e.g. ``source`` and ``method``.

        Returns:
            A sentence per format: where its files are, and what is missing.
        """
        return [exporter.finish(facts) for exporter in self._exporters]
