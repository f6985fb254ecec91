"""Collecting what is wrong with a data set, so that all of it can be said at once.

Readers raise `DataError` for the first mistake they meet; `Problems.collect` turns that into a sentence and lets the
next check begin. Reading for training asks for the first problem alone, validation prints them all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from mwsis.core.errors import DataError, closest_name

__all__ = ["Problems", "entry", "finite", "read_json", "require_known"]

Found = TypeVar("Found")


class Problems:
    """Sentences in the order in which they were found, of each kind up to a limit.

    Args:
        limit: sentences kept of one kind; the others are counted.
    """

    def __init__(self, limit: int = 20) -> None:
        self._limit = limit
        self._kept: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, sentence: str, kind: str = "") -> None:
        """Keep a sentence, or count it where enough of its kind are kept."""
        self._counts[kind] += 1
        kept = self._kept.setdefault(kind, [])
        if len(kept) < self._limit:
            kept.append(sentence)

    def collect(self, check: Callable[..., Found], *arguments: Any, kind: str = "") -> Found | None:
        """Return what a check returns; where it raises `DataError`, keep the sentence and return None."""
        try:
            return check(*arguments)
        except DataError as error:
            self.add(str(error), kind)
            return None

    def sentences(self) -> list[str]:
        """Return what was kept, kind by kind, and of each kind how many more there are."""
        said = []
        for kind, kept in self._kept.items():
            said += kept
            if more := self._counts[kind] - len(kept):
                said.append(f"... and {more:,} more {kind or 'problems'}")
        return said

    def raise_first(self) -> None:
        """Raise the first problem, if there is any.

        Raises:
            DataError: the first sentence.
        """
        for sentence in self.sentences()[:1]:
            raise DataError(sentence)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DataError: there is no such file, or it is no JSON; line and column are named.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno}, column {error.colno}: no JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error})") from None


def entry(content: Any, name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """Return a value of a JSON object.

    Raises:
        DataError: there is none, or of another type; ``where`` names the object.
    """
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        words = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number"}
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        expected = "a number" if float in allowed else " or ".join(words[kind] for kind in allowed)
        got = json.dumps(value, default=str)[:80] if isinstance(content, dict) and name in content else "nothing"
        raise DataError(f"{where}: {name}: expected {expected}, got {got}")
    return value


def finite(value: Any) -> bool:
    """Return whether a JSON value is a number that is neither NaN nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def require_known(content: Any, known: Iterable[str], where: str) -> None:
    """Refuse keys nobody reads: a mistyped one would be ignored.

    Raises:
        DataError: the first such key.
    """
    names = tuple(known)
    for key in content if isinstance(content, dict) else ():
        if key not in names:
            raise DataError(f"{where}: '{key}' is no key{closest_name(key, names)}")
