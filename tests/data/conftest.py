"""Street segments as Waymo records, made once: near the origin and 25 km away from it."""

from __future__ import annotations

import pytest

from tests.data.waymo_street_frames import far_frame, far_segment, near_frame, near_segment


@pytest.fixture(scope="session")
def near():
    return near_segment()


@pytest.fixture(scope="session")
def frame():
    return near_frame()


@pytest.fixture(scope="session")
def far():
    return far_segment(), far_frame()
