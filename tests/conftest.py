"""Tests run in several processes (`addopts`): each computes on one thread, and the long ones begin first."""

from __future__ import annotations

import os

# Before torch is imported; commands that tests start inherit both.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # where a test asks for two threads, they sleep while they wait


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
