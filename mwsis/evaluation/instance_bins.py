"""Which objects count in which row of the instance scores: by their number of points, by their distance.

A bin is an interval of one value that true objects and found instances both have. COCO's area ranges are bins of the
number of points. Next: `point_instances.py`, which leaves out what lies outside a bin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["ALL", "BINS", "COCO_SIZES", "ROWS", "Bin", "in_bins"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Bin:
    """An interval of one value of an object.

    Attributes:
        name: as written in tables.
        measure: ``points`` (number of points) or ``distance`` (metres, of the median point from the vertical axis of
            the vehicle frame).
        least: the value is at least this.
        below: and less than this.
    """

    name: str
    measure: str
    least: float
    below: float


ALL = Bin("all", "points", 1, math.inf)
COCO_SIZES = (
    Bin("small", "points", 0, 1025),
    Bin("medium", "points", 1024, 9217),
    Bin("large", "points", 9216, 1e10 + 1),
)
"""COCO's area ranges in points: both its limits belong to a range, so that 1024 points (32^2) are small and medium."""
ROWS = (
    Bin("0-15 m", "distance", 0, 15),
    Bin("15-30 m", "distance", 15, 30),
    Bin("30-50 m", "distance", 30, 50),
    Bin(">50 m", "distance", 50, math.inf),
    Bin("<20 points", "points", 1, 20),
    Bin("20-100 points", "points", 20, 100),
    Bin("100-500 points", "points", 100, 500),
    Bin(">500 points", "points", 500, math.inf),
)
"""Ours: an object of known distance is in one of the first four, and every object in one of the others."""
BINS = (ALL, *COCO_SIZES, *ROWS)


def in_bins(num_points: Array, distances: Array) -> Array:
    """Return which bins each object or instance is in.

    Args:
        num_points: (K,) number of points, at least 1.
        distances: (K,) metres; NaN unknown, then in no bin of distances.

    Returns:
        (number of `BINS`, K) bool.
    """
    values = {"points": num_points, "distance": distances}
    return np.stack([(values[one.measure] >= one.least) & (values[one.measure] < one.below) for one in BINS])
