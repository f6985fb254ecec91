"""Is everything installed, in versions that go together, and ours? Python, torch, requirements, packages, extras.

What is needed, and in which versions, is read from the metadata of the installed project. Whether it computes what it
should is `computing.py`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mwsis.training.doctor.checks import Answer, advise, broken, ok

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = [
    "AGAIN",
    "EXTRAS",
    "extra_works",
    "packages_are_ours",
    "python_fits",
    "requirement",
    "requirements_are_met",
    "torch_works",
]

PROJECT = "mwsis"
AGAIN = "install the project again: uv sync, or pip install -e . in its folder"
LOOKED_AT_ALONE = ("torch", "spconv")
"""Requirements (their names begin so) with a check of their own."""
EXTRAS = {
    "mmdet": ("mmdet", "mmdet", "mmdet's own networks (camera.mmdet)"),
    "torch-scatter": ("torch_scatter", "scatter", "trainer.segment_ops=scatter"),
    "open3d": ("open3d", "viz", "a window with point clouds"),
    "rerun": ("rerun", "viz", "recordings for rerun's viewer"),
    "transformers": ("transformers", "depth", "tools/depth.py and tools/masks.py"),
}
"""By name: module, extra, what it is for."""


def python_fits() -> Answer:
    """Answer whether this is a version of Python that the project's packages exist for."""
    version = platform.python_version()
    try:
        wanted = metadata.metadata(PROJECT)["Requires-Python"]
    except metadata.PackageNotFoundError:
        return advise(f"Python {version}; {PROJECT} itself is not installed, only found as a folder", AGAIN)
    from packaging.specifiers import SpecifierSet

    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return broken(
            f"Python {version}, and {PROJECT} needs {wanted}", "make an environment with such a Python: uv sync"
        )
    return ok(f"Python {version}")


def packages_are_ours(found: Mapping[str, Path | None], home: Path) -> Answer:
    """Answer whether an import of our packages would find ours.

    Args:
        found: file that each name resolves to, None where to none.
        home: folder of the command that asks.
    """
    homes = {path.parent.parent for path in found.values() if path is not None}
    for name, path in found.items():
        if path is None:
            return broken(f"package '{name}' is found nowhere, and belongs at {home / name}", AGAIN)
        if PROJECT not in path.read_text(encoding="utf-8", errors="replace"):
            return broken(
                f"package '{name}' resolves to {path}, which is not ours and would be imported instead of "
                f"{home / name}",
                f"uninstall the foreign '{name}', or take its folder off PYTHONPATH",
            )
    if len(homes) > 1:
        return broken(
            f"our packages resolve to different copies: {', '.join(map(str, sorted(homes)))}",
            "keep one: uninstall the others, or take them off PYTHONPATH",
        )
    if homes != {home}:
        return advise(
            f"our packages resolve to the copy in {homes.pop()}, not to that of this command in {home}",
            "use the commands of that copy, or install this one: uv sync",
        )
    return ok(f"{', '.join(found)} resolve to {home}")


def requirement(name: str) -> Requirement | None:
    """Return what the project requires of the first package whose name begins so; None where it is not installed."""
    return next((one for one in _requirements() if one.name.startswith(name)), None)


def _requirements() -> list[Requirement]:
    """Return the requirements without extras that hold for this Python."""
    from packaging.requirements import Requirement

    try:
        every = [Requirement(text) for text in metadata.requires(PROJECT) or []]
    except metadata.PackageNotFoundError:
        return []
    return [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]


def requirements_are_met() -> Answer:
    """Answer whether every required package is installed in a version that is allowed."""
    wrong, count = [], 0
    for one in _requirements():
        if one.name.startswith(LOOKED_AT_ALONE) and one.name != "torchvision":
            continue
        count += 1
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} is {version} and must be {one.specifier}")
    if not count:
        return advise(f"{PROJECT} is not installed here, so nobody says which packages it requires", AGAIN)
    if wrong:
        return broken("; ".join(wrong), AGAIN)
    return ok(f"{count} required packages are there in allowed versions")


def torch_works() -> Answer:
    """Answer whether torch is of an allowed version and torchvision, which is compiled against it, belongs to it."""
    spec = find_spec("torch")
    try:
        import torch
    except (ImportError, OSError, ValueError):  # what a torch says whose CUDA libraries are another's
        if spec is None or (wrong := _wrong_torch(metadata.version("torch"), spec.origin)) is None:
            raise
        return wrong
    if (wrong := _wrong_torch(torch.__version__, torch.__file__)) is not None:
        return wrong
    import torchvision

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist()
    versions = f"torch {torch.__version__} and torchvision {torchvision.__version__}"
    if kept != [1, 2]:
        return broken(f"{versions}: of three boxes NMS keeps {kept} instead of [1, 2]", AGAIN)
    return ok(f"{versions} work together")


def _wrong_torch(version: str, origin: str | None) -> Answer | None:
    """Return what is to be said of a version of torch that is not allowed; None of one that is."""
    wanted = requirement("torch")
    if wanted is None or wanted.specifier.contains(version, prereleases=True):
        return None
    return broken(
        f"torch {version} ({origin}), and mwsis needs {wanted.specifier}",
        f"uv sync, or pip install 'torch{wanted.specifier}' torchvision; remove another torch from PYTHONPATH",
    )


def extra_works(name: str, asked_by: str = "") -> Answer:
    """Answer whether an optional package can be imported, if it is there.

    Args:
        name: one of `EXTRAS`.
        asked_by: the setting that needs it; "" = none does.
    """
    module, extra, purpose = EXTRAS[name]
    install = f"uv sync --extra {extra}, or pip install -e '.[{extra}]'"
    if find_spec(module) is None:
        if asked_by:
            return broken(f"not installed, and {asked_by} needs it", f"install the extra '{extra}': {install}")
        return ok(f"not installed; the extra '{extra}' is for {purpose}")
    try:
        imported = import_module(module)
    except Exception as error:
        said = f"installed, but its import fails ({' '.join(str(error).split())[:200]})"
        repair = f"install it again, it is for {purpose}: {install}"
        return broken(said, repair) if asked_by else advise(said, repair)
    return ok(f"{getattr(imported, '__version__', 'of unknown version')}, for {purpose}")
