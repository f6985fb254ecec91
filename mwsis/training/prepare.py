"""Frame stores and spatial labels of a run, made or reopened: all that needs no network.

Light on purpose: while its workers read the data set, the command imports the networks (`importing`). A data set
converted beforehand (`tools/convert.py`) is opened as it is.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import get_class

from fusion.default_labels import DEFAULT
from fusion.label_methods import LABEL_METHODS
from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.core.frame import Frame
from mwsis.data.classes import class_groups, kinds_of
from mwsis.data.content import content_digest
from mwsis.data.conversion import Labelling, SplitPlan, convert, jobs_of, plan_split
from mwsis.data.label_cache import FrameLabels, LabelCache
from mwsis.data.source import LabelledImages, Source
from mwsis.data.store import FrameStore
from mwsis.data.workers import worker_pool
from mwsis.training.config import DataConfig, MethodConfig, RunConfig, instantiated

__all__ = [
    "Prepared",
    "Split",
    "build_source",
    "images_in_words",
    "importing",
    "label_method_of",
    "labelled_images",
    "labelling_of",
    "plan_run",
    "prepare",
    "ring_classes",
]

OnProgress = Callable[[str, int, int], None]
RECIPES = ("published", "default")
LABEL_VERSION = 5


@contextmanager
def importing(module: str) -> Iterator[None]:
    """Import a module in the background: the networks take as long to import as the first frames to ray-cast."""
    thread = threading.Thread(target=importlib.import_module, args=[module], daemon=True)
    thread.start()
    yield
    thread.join()


@dataclass(frozen=True, eq=False)
class Split:
    """Frames of one split with the labels made from their 2D boxes."""

    frames: FrameStore
    labels: LabelCache


@dataclass(frozen=True, eq=False)
class Prepared:
    """A data set ready to train on."""

    source: Source
    train: Split
    val: Split

    @property
    def num_classes(self) -> int:
        return len(self.source.class_names)


def build_source(run: RunConfig) -> Source:
    """Return the data set, checked as far as can be without reading all of it."""
    source: Source = instantiated(run.data.source, "data.source")
    source.check()
    ring_classes(run)
    return source


def ring_classes(run: RunConfig) -> tuple[int, ...]:
    """Return the classes that ring segments correct, where the method asks for that; else none.

    Needs the data set's class only, none of its files: a checkpoint is loaded on machines that have no data.

    Raises:
        ConfigError: the data set has no class of a name in ``method.rsc_classes``.
    """
    if not (run.method.rsc or run.method.rsc_labels):
        return ()
    known = list(_class_names(run.data.source))
    for name in run.method.rsc_classes:
        if name not in known:
            raise ConfigError(f"method.rsc_classes: {run.data.name} has no class '{name}'{closest_name(name, known)}")
    return tuple(known.index(name) for name in run.method.rsc_classes)


def _class_names(source: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes of a data set: its own, or those that its settings name."""
    names: tuple[str, ...] = get_class(source["_target_"]).class_names  # type: ignore[attr-defined]
    return names or tuple(class_groups(source["classes"]) if source.get("classes") else ())


def labelled_images(run: RunConfig, source: Source) -> dict[str, int]:
    """Return how many training images have which labels (`LabelledImages`); nothing where no image says."""
    return source.labelled_images(run.data.train_split) if isinstance(source, LabelledImages) else {}


def images_in_words(counts: Mapping[str, int]) -> str:
    """Return what `labelled_images` counted in words."""
    num_masks = counts["masks"]
    return (
        f"masks of {num_masks} image{'s' * (num_masks != 1)}, boxes of {counts['boxes']}, points of {counts['points']}"
    )


def prepare(run: RunConfig, source: Source, on_progress: OnProgress) -> Prepared:
    """Build or reopen the frame stores and the spatial labels of both splits.

    Raises:
        DataError: a frame cannot be read, or the frames are not those that the configuration expects.
    """
    plans = plan_run(run, source)
    if not all(plan.is_complete() for plan in plans):
        with worker_pool(run.data.cache_workers) as pool:
            jobs = jobs_of(source, plans, labelling_of(run, source.class_names).labeller, pool)
            convert(jobs, plans, pool, partial(on_progress, "frames"), strict=True)
    splits = [Split(FrameStore(plan.frames.root), LabelCache(plan.labels.root)) for plan in plans]
    if run.data.expected_content is not None:
        _check_content(run.data, splits)
    return Prepared(source, *splits)


def _check_content(config: DataConfig, splits: list[Split]) -> None:
    found = content_digest(split.frames for split in splits)
    if found != config.expected_content:
        raise DataError(
            f"data.expected_content: expected frames with content {config.expected_content}, as made by "
            f"{config.expected_made_by}, got {found}; use that version with the unchanged data settings, or set "
            "data.expected_content=null and compare with no published score"
        )


def plan_run(run: RunConfig, source: Source) -> list[SplitPlan]:
    """Return where the frames and labels of both splits are kept; another source or other settings, other folders."""
    home = Path(run.data.cache) / f"{run.data.name}-{source.identity()[:12]}"
    labelling = labelling_of(run, source.class_names)
    return [plan_split(source, split, home, labelling) for split in (run.data.train_split, run.data.val_split)]


def labelling_of(run: RunConfig, class_names: Sequence[str]) -> Labelling:
    """Return how a run makes spatial labels, once per frame, from 2D boxes.

    Raises:
        ConfigError: there is no such way, or ``data.kinds`` does not fit the classes.
    """
    name, kinds = label_method_of(run.method), kinds_of(class_names, run.data.kinds)
    constants = DEFAULT if name == "spg_default" else f"radii={run.data.radii}"
    settings = f"{LABEL_VERSION} {name} {LABEL_METHODS[name].rule} {constants}"
    if LABEL_METHODS[name].by_kind and kinds != tuple(range(len(kinds))):
        settings += f" kinds={kinds}"
    labeller = partial(_label, name=name, radii=tuple(run.data.radii), kinds=kinds)
    return Labelling(labeller, settings, hashlib.sha256(settings.encode()).hexdigest()[:12])


def label_method_of(method: MethodConfig) -> str:
    """Return the name of the label method (`fusion.label_methods`) that a configuration asks for.

    Raises:
        ConfigError: there is none.
    """
    if method.labels not in RECIPES:
        raise ConfigError(f"method.labels: no '{method.labels}'{closest_name(method.labels, RECIPES)}")
    if method.labels == "default" and not method.spg_rings:
        raise ConfigError("method.spg_rings=false: only method.labels=published has that half; set both")
    if not method.spg:
        return "frustum"
    return "spg_default" if method.labels == "default" else "spg" if method.spg_rings else "clustering"


def _label(frame: Frame, name: str, radii: tuple[float, ...], kinds: tuple[int, ...]) -> FrameLabels:
    method = LABEL_METHODS[name]
    segments = method.segments(frame)
    return FrameLabels(method.labels(frame, segments, radii, kinds), segments)
