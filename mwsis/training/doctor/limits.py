"""Cores and memory that this process may really use: those of the machine, or of its container or batch job.

Linux tells the second in the files of control groups, whose two versions have different names for the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_memory", "num_cores"]

GROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def num_cores(groups: Path = GROUPS, proc: Path = PROC) -> int:
    """Return the cores that this process may use, at least 1."""
    have = float(len(os.sched_getaffinity(0)))
    for folder in _folders("cpu", groups, proc):
        words = _text(folder / "cpu.max").split() or [
            _text(folder / "cpu.cfs_quota_us"),
            _text(folder / "cpu.cfs_period_us"),
        ]
        if all(word.isdigit() and int(word) > 0 for word in words):  # "max" and "-1" are no limit
            have = min(have, int(words[0]) / int(words[1]))
    return max(int(have), 1)


def free_memory(groups: Path = GROUPS, proc: Path = PROC) -> int:
    """Return the bytes that processes can still take."""
    free = _named(_text(proc / "meminfo"), "MemAvailable:") * 1024
    for folder in _folders("memory", groups, proc):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            numbers = [_text(folder / name) for name in (limit, used)]
            if all(number.isdigit() for number in numbers):
                taken = int(numbers[1]) - _named(_text(folder / "memory.stat"), cached)
                free = min(free, max(int(numbers[0]) - taken, 0))
    return free


def _folders(controller: str, groups: Path, proc: Path) -> Iterator[Path]:
    """Yield where the limits of this process may be written: of its group, and of the container as a whole."""
    yield from (groups, groups / controller)
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            yield (groups / controller if controllers else groups) / path.lstrip("/")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _named(text: str, name: str) -> int:
    """Return the number after a name at the beginning of a line, 0 where there is none."""
    return next((int(line.split()[1]) for line in text.splitlines() if line.split()[:1] == [name]), 0)
