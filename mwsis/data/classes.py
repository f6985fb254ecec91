"""Classes made of a data set's categories, as a configuration names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mwsis.core.errors import ConfigError, DataError, closest_name

__all__ = ["class_groups", "labels_by_category"]


def class_groups(classes: Sequence[str | Mapping[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    """Return the categories of each class, by its name.

    Args:
        classes: in the order of the labels, the name of a category, or of a class with the categories it is made of:
            ``["person", {"vehicle": ["car", "bus"]}]``.

    Raises:
        ConfigError: there is none, or a class or a category is named twice.
    """
    pairs = [
        (name, members)
        for entry in classes
        for name, members in ([(entry, [entry])] if isinstance(entry, str) else entry.items())
    ]
    groups = {name: tuple(members) for name, members in pairs}
    categories = [member for members in groups.values() for member in members]
    if not categories or len(groups) != len(pairs) or len(set(categories)) != len(categories):
        raise ConfigError(f"classes: expected each class and each category once, got {[name for name, _ in pairs]}")
    return groups


def labels_by_category(known: Mapping[str, int], groups: Mapping[str, Sequence[str]], path: Path) -> dict[int, int]:
    """Return the label of each category id that has one.

    Args:
        known: id of each category of a file, by name.
        groups: categories of each class (`class_groups`).
        path: of the file, for the error.

    Raises:
        DataError: the file has no such category.
    """
    for name in (member for members in groups.values() for member in members):
        if name not in known:
            raise DataError(f"{path}: categories: no '{name}'{closest_name(name, known)} (classes=...)")
    return {known[member]: label for label, members in enumerate(groups.values()) for member in members}
