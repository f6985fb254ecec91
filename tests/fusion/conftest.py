"""What several tests of this folder look at."""

from __future__ import annotations

import pytest

from mwsis.data.street import StreetSource


@pytest.fixture(scope="module")
def street():
    """Return a frame of the street world."""
    source = StreetSource(
        seed=3,
        train_segments=1,
        train_frames_per_segment=1,
        val_segments=1,
        val_frames_per_segment=1,
        lidar_columns=512,
        image_width=384,
    )
    return source.read(source.frame_ids("train")[0])
