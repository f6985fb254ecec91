"""A run's folder: where it keeps what, made new or reopened. Light, so that a wrong setting is refused at once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mwsis.core.errors import ConfigError
from mwsis.core.files import atomic_write
from mwsis.training import launch
from mwsis.training.commands import restore_config
from mwsis.training.config import RunConfig, typed

__all__ = ["RunFolder", "open_run"]


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
    def scores(self) -> Path:
        return self.root / "scores.csv"

    @property
    def votes(self) -> Path:
        return self.root / "vote_history.u16"

    def keep_config(self, run: RunConfig) -> None:
        """Write the configuration that the run is begun with, once; from then on it can be resumed."""
        if launch.is_first() and not self.config.exists():
            with atomic_write(self.config) as temporary:
                temporary.write_text(OmegaConf.to_yaml(OmegaConf.structured(run)), encoding="utf-8")


def open_run(config: DictConfig) -> tuple[RunConfig, RunFolder]:
    """Name the folder of a new run, or reopen the one named by ``resume``, or that of a requeued Slurm job.

    Raises:
        ConfigError: ``resume`` names no run, or ``out`` already holds one.
    """
    if config.resume is not None:
        folder = RunFolder(Path(config.resume))
        if not folder.config.is_file():
            raise ConfigError(f"resume={config.resume}: expected a run folder with config.yaml in it")
        return typed(restore_config(folder.config.read_text(encoding="utf-8"))), folder
    run = typed(config)
    began = launch.slurm_job() if run.trainer.slurm else None
    name = f"{run.method.name}-{run.data.name}-s{run.seed}-{began or time.strftime('%Y%m%d-%H%M%S')}"
    folder = RunFolder(Path(run.out) if run.out else Path("runs") / name)
    if folder.config.exists():
        if run.trainer.slurm and launch.was_requeued():
            return typed(restore_config(folder.config.read_text(encoding="utf-8"))), folder
        raise ConfigError(f"out={folder.root}: already holds a run; continue it with resume={folder.root}")
    return run, folder
