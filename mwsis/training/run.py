"""A run from configuration to trained weights: check, prepare frames and labels, train, resume.

check_run     everything that can be wrong is found before any work starts
prepare       frame stores and spatial labels, cached
train         Lightning around `fusion.step`
load_run      a finished run for evaluation, export and report
"""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from fusion.segmentor import MultimodalSegmentor
from fusion.spatial_labels import spatial_labels
from fusion.step import PretrainingStep
from fusion.vote_history import VoteHistory
from lidar.rings import ring_segments
from mwsis.core.errors import ConfigError
from mwsis.core.files import atomic_write
from mwsis.core.frame import Frame
from mwsis.data.dataset import FrameDataset, collate
from mwsis.data.label_cache import FrameLabels, LabelCache, build_label_cache
from mwsis.data.sampler import ResumableSampler
from mwsis.data.source import Source
from mwsis.data.store import FrameStore, build_store
from mwsis.training import build, checkpoint
from mwsis.training.callbacks import LossLog, SaveAndStop
from mwsis.training.commands import restore_config
from mwsis.training.config import RunConfig
from mwsis.training.module import PretrainingModule

__all__ = ["Prepared", "RunFolder", "Split", "load_run", "open_run", "prepare", "train"]

OnProgress = Callable[[str, int, int], None]
LABEL_VERSION = 2


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def export(self) -> Path:
        return self.root / "export"

    @property
    def losses(self) -> Path:
        return self.root / "losses.csv"

    @property
    def votes(self) -> Path:
        return self.root / "vote_history.u16"


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


def open_run(config: DictConfig) -> tuple[RunConfig, RunFolder]:
    """Create the folder of a new run, or reopen the one named by ``resume``.

    Raises:
        ConfigError: ``resume`` names no run, or ``out`` already holds one.
    """
    if config.resume is not None:
        folder = RunFolder(Path(config.resume))
        if not folder.config.is_file():
            raise ConfigError(f"resume={config.resume}: expected a run folder with config.yaml in it")
        return build.typed(restore_config(folder.config.read_text(encoding="utf-8"))), folder
    run = build.typed(config)
    name = f"{run.method.name}-{run.data.name}-s{run.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = RunFolder(Path(run.out) if run.out else Path("runs") / name)
    if folder.config.exists():
        raise ConfigError(f"out={folder.root}: already holds a run; continue it with resume={folder.root}")
    return run, folder


def prepare(run: RunConfig, source: Source, on_progress: OnProgress) -> Prepared:
    """Build or reopen the frame stores and the spatial labels of both splits."""
    home = Path(run.data.cache) / f"{run.data.name}-{source.fingerprint()[:12]}"
    splits = []
    for split in (run.data.train_split, run.data.val_split):
        frames = build_store(
            source, split, home / split, partial(on_progress, f"{split} frames"), workers=run.data.cache_workers
        )
        splits.append(
            Split(frames, label_split(run, frames, home / f"{split}-labels", partial(on_progress, f"{split} labels")))
        )
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


def train(run: RunConfig, folder: RunFolder, prepared: Prepared) -> bool:
    """Train, or continue, until ``trainer.max_steps``.

    Returns:
        True when the run is complete, False when it was interrupted and can be resumed.
    """
    torch.manual_seed(run.seed)
    # Makes CPU threads add in one order; without it a resumed run could differ in the last bit.
    torch.use_deterministic_algorithms(run.trainer.accelerator == "cpu")
    config_yaml = OmegaConf.to_yaml(OmegaConf.structured(run))
    folder.root.mkdir(parents=True, exist_ok=True)
    if not folder.config.exists():
        with atomic_write(folder.config) as temporary:
            temporary.write_text(config_yaml, encoding="utf-8")

    state = checkpoint.read_run_checkpoint(folder.checkpoint) if folder.checkpoint.exists() else None
    start_step = state["global_step"] if state else 0
    step = build_step(run, prepared, folder)
    if state:
        checkpoint.restore(state, step, str(folder.checkpoint))
    elif step.vote_history is not None:
        step.vote_history.reset()
    if start_step >= run.trainer.max_steps:
        return True
    module = PretrainingModule(
        step,
        build.optim_settings(run),
        run.trainer.max_steps,
        run.trainer.lidar_every,
        start_step,
        state["optimisers"] if state else None,
    )
    facts = {
        "config": config_yaml,
        "class_names": list(prepared.source.class_names),
        "data_fingerprint": prepared.source.fingerprint(),
    }
    save_and_stop = SaveAndStop(folder.checkpoint, run.trainer.checkpoint_every, facts)
    _trainer(run, folder, start_step, save_and_stop).fit(module, _loader(run, prepared.train, start_step))
    return not save_and_stop.interrupted


def build_step(run: RunConfig, prepared: Prepared, folder: RunFolder) -> PretrainingStep:
    """Return student, teacher and losses of a run, untrained."""
    student = build.build_segmentor(run, prepared.num_classes)
    method = build.build_method(run)
    votes = None
    if method.record_votes_from is not None:
        votes = VoteHistory(folder.votes, prepared.train.frames.num_points, prepared.num_classes)
    return PretrainingStep(student, method, prepared.num_classes, votes)


def load_run(
    state: dict[str, Any], run: RunConfig, num_classes: int, what: str
) -> tuple[MultimodalSegmentor, MultimodalSegmentor]:
    """Return (teacher, student) of a checkpoint; the same object twice when the run had no teacher.

    Raises:
        WeightMismatchError: the checkpoint's weights do not fit its configuration.
    """
    step = PretrainingStep(build.build_segmentor(run, num_classes), build.build_method(run), num_classes)
    checkpoint.restore(state, step, what)
    return step.teaching_model, step.student


def _loader(run: RunConfig, split: Split, start_step: int) -> DataLoader[Any]:
    frames_per_step = run.trainer.frames_per_step
    samples = FrameDataset(split.frames, split.labels, build.build_transform(run, augment=True), run.seed)
    sampler = ResumableSampler(
        len(samples), run.trainer.max_steps * frames_per_step, run.seed, start_step * frames_per_step
    )
    return DataLoader(
        samples,
        batch_size=frames_per_step,
        sampler=sampler,
        num_workers=run.trainer.workers,
        collate_fn=collate,
    )


def _trainer(run: RunConfig, folder: RunFolder, start_step: int, save_and_stop: SaveAndStop) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    return lightning.Trainer(
        accelerator=run.trainer.accelerator,
        devices=run.trainer.devices,
        max_steps=run.trainer.max_steps - start_step,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[
            TQDMProgressBar(refresh_rate=5),
            LossLog(folder.root, start_step, run.trainer.log_every),
            save_and_stop,
        ],
        default_root_dir=folder.root,
    )
