"""Train a detector, or the point heads, on given labels, from a pretrained backbone or from scratch.

    uv run tools/finetune.py task=detection init=RUN/export label_fraction=0.05 experiment=finetune_street
    uv run tools/finetune.py task=instance init=scratch label_fraction=0.05 lr_scale=[1,2] experiment=finetune_street
    uv run tools/finetune.py resume=DIR                      continue what was interrupted (ctrl-C saves first)

task=detection   3D boxes, CenterPoint on the encoder: Waymo's AP and APH
task=instance    class and centre vote of every point: instance AP
task=semantic    class of every point: mean IoU
init             an export folder (tools/export.py; RUN/export): its backbone; RUN/checkpoints/last.ckpt: for points the
                 heads, too; or scratch: everything else is then the same
label_fraction   share of the training segments whose labels are used, whole segments, nested for one seed; objects are
                 pasted from these alone
lr_scale         factors of the learning rate, each a run of its own; all are reported, none is chosen

Other settings are key=value as in tools/train.py: experiment=... data=... seed=0 out=DIR trainer.max_steps=N
finetune.paste=[] (no pasting) finetune.detector.upsample=1 lidar.optim.lr=0.003 ...

DIR holds metrics.json and table.md, and in lr_x1/, lr_x2/ the runs: config.yaml, losses.csv, checkpoints/last.ckpt and
labelled_segments.json. Exit code: 0 done, 2 wrong input, 3 stopped by a full disk or losses that are not finite, 130
interrupted (resume continues).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwsis.core.errors import ConfigError
from mwsis.training.commands import compose_run, progress_line, run_command
from mwsis.training.config import SCRATCH, TASKS
from tools.train import interrupted, or_exit

if TYPE_CHECKING:
    from mwsis.training.config import RunConfig
    from mwsis.training.folder import RunFolder
    from mwsis.training.prepare import Prepared

SUBSET = "labelled_segments.json"
SHORT = ("init", "label_fraction", "lr_scale")
"""Settings of `finetune` that may be given without its name."""
HEADLINES = {
    "detection": ("ap_l2", "aph_l2", "bev_ap_l2", "bev_aph_l2"),
    "instance": ("instance_ap", "instance_ap50", "miou"),
    "semantic": ("miou",),
}
"""Columns of the table, by task; the first stands for each class, too. `metrics.json` has all."""
CLASS_COLUMN = {"semantic": "iou"}


def main(arguments: list[str]) -> None:
    """Compose, prepare, train once per learning rate, score, write the table."""
    config = compose_run([as_override(argument) for argument in arguments])

    from mwsis.training.folder import open_run

    if config.resume is not None and len(arguments) > 1:
        raise ConfigError("resume=... takes every setting from the run's config.yaml; remove the others")
    if config.resume is not None and (Path(config.resume) / SUBSET).exists():
        raise ConfigError(f"resume={config.resume}: this is one run of a sweep; resume={Path(config.resume).parent}")
    if config.resume is None and config.finetune is None:
        raise ConfigError(f"'task=...' is required, one of {', '.join(TASKS)}; see --help")
    began = time.monotonic()
    run, folder = open_run(config)
    prepared, origin = prepare_run(run, folder)
    found = {scale: one_rate(run, folder, prepared, scale) for scale in run.finetune.lr_scale}  # type: ignore[union-attr]
    write_scores(run, folder, prepared, found, origin, began)
    print(f"run: {folder.root}")


def as_override(argument: str) -> str:
    """Return an argument of this command as a setting of the run."""
    key, equals, value = argument.partition("=")
    if key == "task":
        return f"finetune={value}"
    return f"finetune.{key}{equals}{value}" if key in SHORT else argument


def prepare_run(run: RunConfig, folder: RunFolder) -> tuple[Prepared, dict[str, Any]]:
    """Check all that can be checked before work starts, open the data set; return it and what is known of the init."""
    from mwsis.training.prepare import build_source, importing, prepare

    assert run.finetune is not None
    if run.trainer.devices * run.trainer.nodes > 1:
        raise ConfigError("trainer.devices: fine-tuning runs in one process; set trainer.devices=1")
    source = build_source(run)
    origin: dict[str, Any] = {"init": SCRATCH}
    if run.finetune.init != SCRATCH:
        from mwsis.training.finetune import build_model
        from mwsis.training.finetune_init import provenance, start_from

        origin = provenance(run)
        start_from(run, build_model(run, len(source.class_names)))
    with importing("mwsis.training.finetune"):
        prepared = prepare(run, source, progress_line)
    folder.keep_config(run)
    return prepared, origin


def one_rate(run: RunConfig, folder: RunFolder, prepared: Prepared, scale: float) -> dict[str, Any]:
    """Train, or continue, one run of the sweep, and return its scores.

    Raises:
        KeyboardInterrupt: it was interrupted and can be continued.
    """
    from mwsis.training.finetune import fine_tune, score, with_lr_scale
    from mwsis.training.folder import RunFolder

    one, place = with_lr_scale(run, scale), RunFolder(folder.root / f"lr_x{scale:g}")
    began = time.monotonic()

    def whole(said: str) -> str:
        return said.replace(f"resume={place.root}", f"resume={folder.root}")

    if not or_exit(lambda: fine_tune(one, place, prepared), whole):
        interrupted("finetune", folder)
    found = score(one, place, prepared, lambda done, total: progress_line("evaluate", done, total))
    return {"lr": one.lidar.optim.lr, **found, "wall_s": round(time.monotonic() - began, 1)}


def write_scores(
    run: RunConfig,
    folder: RunFolder,
    prepared: Prepared,
    found: dict[float, dict[str, Any]],
    origin: dict[str, Any],
    began: float,
) -> None:
    """Write metrics.json and table.md, and print the table."""
    import json

    from mwsis.core.files import atomic_write, write_json
    from mwsis.training.config import labels_used

    assert run.finetune is not None
    subset = json.loads((folder.root / f"lr_x{run.finetune.lr_scale[0]:g}" / SUBSET).read_text(encoding="utf-8"))
    metrics = {
        "task": run.finetune.task,
        "labels_used": labels_used(run),
        "labelled": subset,
        **origin,
        "data": {
            "name": run.data.name,
            "fingerprint": prepared.source.fingerprint(),
            "train_frames": len(prepared.train.frames),
            "val_frames": len(prepared.val.frames),
        },
        "seed": run.seed,
        "paste": run.finetune.paste,
        "lr_scales": {f"{scale:g}": scores for scale, scores in found.items()},
        "wall_s": round(time.monotonic() - began, 1),
    }
    write_json(folder.metrics, metrics)
    table = score_table(run, found, f"{len(subset['segments'])} of {subset['num_segments']}")
    with atomic_write(folder.root / "table.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    print(table)


def score_table(run: RunConfig, found: dict[float, dict[str, Any]], segments: str) -> str:
    """Return a Markdown table, a row per learning rate; means over the classes, then each class."""
    assert run.finetune is not None
    names = HEADLINES[run.finetune.task]
    of_class = CLASS_COLUMN.get(run.finetune.task, names[0]) + "/"
    scores = [*names, *(name for name in next(iter(found.values()))["scores"] if name.startswith(of_class))]
    head = ["init", "labels", "segments", "seed", "lr", "steps", *scores]
    init = SCRATCH if run.finetune.init == SCRATCH else "pretrained"
    rows = [
        [init, f"{run.finetune.label_fraction:.0%}", segments, str(run.seed), f"{one['lr']:g}", str(one["steps"])]
        + [_number(one["scores"][name]) for name in scores]
        for one in found.values()
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


if __name__ == "__main__":
    run_command(main, __doc__ or "")
