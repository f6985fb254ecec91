"""Frame stores and spatial labels of a run, made or reopened: all that needs no network.

Light on purpose: while its workers read the data set, the command imports the networks (`importing`). A data set
converted beforehand (`tools/convert.py`) is opened as it is.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from fusion.default_labels import DEFAULT, default_labels
from fusion.spatial_labels import spatial_labels
from lidar.rings import ring_segments
from mwsis.core.errors import ConfigError, closest_name
from mwsis.core.frame import Frame
from mwsis.core.instances import PointLabels
from mwsis.data.conversion import Labelling, SplitPlan, convert, jobs_of, plan_split
from mwsis.data.label_cache import FrameLabels, LabelCache
from mwsis.data.source import Source
from mwsis.data.store import FrameStore
from mwsis.data.workers import worker_pool
from mwsis.training.config import RunConfig, instantiated

__all__ = ["Prepared", "Split", "build_source", "importing", "labelling_of", "plan_run", "prepare"]

OnProgress = Callable[[str, int, int], None]
Recipe = Callable[[Frame, Tensor], PointLabels]
RECIPES = ("published", "default")
LABEL_VERSION = 3


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
    return source


def prepare(run: RunConfig, source: Source, on_progress: OnProgress) -> Prepared:
    """Build or reopen the frame stores and the spatial labels of both splits.

    Raises:
        DataError: a frame cannot be read.
    """
    plans = plan_run(run, source)
    if not all(plan.is_complete() for plan in plans):
        with worker_pool(run.data.cache_workers) as pool:
            jobs = jobs_of(source, plans, labelling_of(run).labeller, pool)
            convert(jobs, plans, pool, partial(on_progress, "frames"), strict=True)
    splits = [Split(FrameStore(plan.frames.root), LabelCache(plan.labels.root)) for plan in plans]
    return Prepared(source, *splits)


def plan_run(run: RunConfig, source: Source) -> list[SplitPlan]:
    """Return where the frames and labels of both splits are kept; another source or other settings, other folders."""
    home = Path(run.data.cache) / f"{run.data.name}-{source.identity()[:12]}"
    return [plan_split(source, split, home, labelling_of(run)) for split in (run.data.train_split, run.data.val_split)]


def labelling_of(run: RunConfig) -> Labelling:
    """Return how a run makes spatial labels, once per frame, from 2D boxes."""
    if run.method.labels not in RECIPES:
        raise ConfigError(f"method.labels: no '{run.method.labels}'{closest_name(run.method.labels, RECIPES)}")
    if run.method.labels == "default" and not run.method.spg_rings:
        raise ConfigError("method.spg_rings=false: only method.labels=published has that half; set both")
    rings, clustering = run.method.spg and run.method.spg_rings, run.method.spg
    recipe: Recipe = partial(spatial_labels, rings=rings, clustering=clustering, radii=tuple(run.data.radii))
    settings = f"{LABEL_VERSION} rings={rings} clustering={clustering} radii={run.data.radii}"
    if clustering and run.method.labels == "default":
        recipe, settings = partial(default_labels, recipe=DEFAULT), f"{LABEL_VERSION} {DEFAULT}"
    return Labelling(partial(_label, recipe=recipe), settings, hashlib.sha256(settings.encode()).hexdigest()[:12])


def _label(frame: Frame, recipe: Recipe) -> FrameLabels:
    segments = ring_segments(frame.points, frame.lidar, frame.pixels.in_any_image)
    return FrameLabels(recipe(frame, segments), segments)
