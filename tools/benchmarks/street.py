"""The made-up sweep that several suites measure on."""

from __future__ import annotations

from mwsis.core.frame import Frame
from mwsis.data.street import StreetSource


def street_frame(rows: int, columns: int, image_width: int) -> Frame:
    """Return a frame of the street world."""
    sensors = {"lidar_rows": rows, "lidar_columns": columns, "image_width": image_width}
    source = StreetSource(train_segments=1, val_segments=0, **sensors)
    return source.read(source.frame_ids("train")[0])
