"""Classes made of a data set's categories, as a configuration names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mwsis.core.errors import ConfigError, DataError, closest_name

__all__ = ["KINDS", "class_groups", "kinds_of", "labels_by_category"]

KINDS = ("vehicle", "pedestrian", "cyclist")
"""What a class can be like; what is known of sizes goes by these (`fusion.default_labels.LabelRecipe`)."""
WORDS = {
    "cyclist": ("cycl", "bike", "rider", "scooter"),
    "pedestrian": ("pedestrian", "person", "people", "human", "walker"),
    "vehicle": ("vehicle", "car", "truck", "bus", "van", "lorry", "train", "tram", "trailer"),
}
"""Parts of names, looked for in this order."""


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


def kinds_of(class_names: Sequence[str], given: Sequence[str] | None = None) -> tuple[int, ...]:
    """Return what each class is like, as index into `KINDS`; ``len(KINDS)`` where nothing is known of it.

    Args:
        class_names: C names.
        given: C kinds; None: by words in the names (car, person, bicycle, ...), and where none of up to three names
            has any, in the order of `KINDS`.

    Raises:
        ConfigError: another number of kinds, or no such kind.
    """
    if given is not None:
        if len(given) != len(class_names):
            raise ConfigError(
                f"data.kinds: expected one of {', '.join(KINDS)} for each of the {len(class_names)} classes "
                f"{', '.join(class_names)}, got {list(given)}"
            )
        for kind in given:
            if kind not in KINDS:
                raise ConfigError(f"data.kinds: no kind '{kind}'{closest_name(kind, KINDS)}")
        return tuple(KINDS.index(kind) for kind in given)
    spoken = [name.lower() for name in class_names]
    found = [next((kind for kind in WORDS if any(word in name for word in WORDS[kind])), None) for name in spoken]
    if not any(found) and len(found) <= len(KINDS):
        return tuple(range(len(found)))
    return tuple(len(KINDS) if kind is None else KINDS.index(kind) for kind in found)
