"""Frame stores and spatial labels of a run, made or reopened: all that needs no network.

Light on purpose: while its workers read the data set, the command imports the networks (`importing`).
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

from fusion.spatial_labels import spatial_labels
from lidar.rings import ring_segments
from mwsis.core.frame import Frame
from mwsis.data.label_cache import FrameLabels, LabelCache, build_label_cache
from mwsis.data.source import Source
from mwsis.data.store import FrameStore, build_store, worker_pool
from mwsis.training.config import RunConfig, instantiated

__all__ = ["Prepared", "Split", "build_source", "importing", "prepare"]

OnProgress = Callable[[str, int, int], None]
LABEL_VERSION = 2


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
    """Build or reopen the frame stores and the spatial labels of both splits."""
    home = Path(run.data.cache) / f"{run.data.name}-{source.fingerprint()[:12]}"
    splits = []
    with worker_pool(run.data.cache_workers) as pool:
        for split in (run.data.train_split, run.data.val_split):
            frames = build_store(source, split, home / split, partial(on_progress, f"{split} frames"), pool)
            on_label = partial(on_progress, f"{split} labels")
            splits.append(Split(frames, label_split(run, frames, home / f"{split}-labels", on_label)))
    return Prepared(source, *splits)


def label_split(
    run: RunConfig, frames: FrameStore, folder: Path, on_progress: Callable[[int, int], None]
) -> LabelCache:
    """Return the spatial labels of a split, made from 2D boxes once per frame."""
    rings, clustering = run.method.spg and run.method.spg_rings, run.method.spg
    settings = f"{LABEL_VERSION} rings={rings} clustering={clustering} radii={run.data.radii}"
    key = hashlib.sha256(settings.encode()).hexdigest()[:12]
    labeller = partial(_label, rings=rings, clustering=clustering, radii=tuple(run.data.radii))
    return build_label_cache(frames, labeller, folder / key, f"{frames.fingerprint} {settings}", on_progress)


def _label(frame: Frame, rings: bool, clustering: bool, radii: tuple[float, ...]) -> FrameLabels:
    segments = ring_segments(frame.points, frame.lidar, frame.pixels.in_any_image)
    return FrameLabels(spatial_labels(frame, segments, rings=rings, clustering=clustering, radii=radii), segments)
