"""The errors a user can cause: one sentence each, turned into exit code 2 by the commands in `tools/`.

A broken invariant of our own is an `assert`, not one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["ConfigError", "DataError", "MwsisError", "WeightMismatchError", "closest_name", "first_line"]


class MwsisError(ValueError):
    """Base of everything a user can put right; ``str(error)`` is one sentence that says how."""


class DataError(MwsisError):
    """A file or folder does not hold what its format promises."""


class ConfigError(MwsisError):
    """A setting is unknown, out of range, or asks for what the rest of the configuration cannot give."""


class WeightMismatchError(MwsisError):
    """A checkpoint belongs to another architecture or is no checkpoint at all."""


def first_line(error: BaseException) -> str:
    """Return the beginning of what another library's error says, for a clause in a sentence of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]


def closest_name(wrong: str, known: Iterable[str], shown: Iterable[str] | None = None) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or a list of names when none is near.

    Args:
        wrong: the name the user gave.
        known: the names that exist.
        shown: the names listed when none is near; all of ``known`` by default.

    Returns:
        A clause to append to an error sentence.
    """
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(shown or names))}"
