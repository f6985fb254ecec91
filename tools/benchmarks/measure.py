"""What all suites share: a row of the table, timing side by side, and the comparison of results that comes first."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

EXIT_DIFFERENT = 1
Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Row:
    """One comparison; ``ours`` and ``reference`` in ``unit``."""

    name: str
    unit: str
    ours: float
    reference: float
    ratio: float


def best_times(calls: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Return the least time of each call in milliseconds; they take turns, so that all meet the same machine."""
    best = [float("inf")] * len(calls)
    for _ in range(repeats):
        for number, call in enumerate(calls):
            began = time.perf_counter()
            outcome = call()
            best[number] = min(best[number], time.perf_counter() - began)
            del outcome
    return [seconds * 1000 for seconds in best]


def comparison(name: str, ours: float, reference: float, unit: str = "ms") -> Row:
    """Return a row of two measurements."""
    return Row(name, unit, ours, reference, ours / reference)


def require_same(ours: Arrays, reference: Arrays) -> None:
    """Stop unless both sides hold the same arrays, bit for bit."""
    differing = ours.keys() ^ reference.keys()
    for name in ours.keys() & reference.keys():
        mine, other = ours[name], reference[name]
        if (mine.dtype, mine.shape, mine.tobytes()) != (other.dtype, other.shape, other.tobytes()):
            differing.add(name)
    stop_if_different(differing)


def stop_if_different(names: set[str]) -> None:
    """Stop and name the results that differ, if any do."""
    if names:
        print(f"different results: {', '.join(sorted(names))}", file=sys.stderr)
        raise SystemExit(EXIT_DIFFERENT)
