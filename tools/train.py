"""Train both branches from 2D boxes, then evaluate, export the 3D backbone and write the report.

    uv run tools/train.py                                    the embedded street world, some five minutes on two cores
    uv run tools/train.py method=frustum seed=1              another method (configs/method), another seed
    uv run tools/train.py experiment=kitti_mini data.root=D  a KITTI folder
    uv run tools/train.py experiment=mwsis_waymo data.root=D  the paper's run; trainer=ddp for several GPUs, or slurm
    uv run tools/train.py resume=RUN                         continue a run that was interrupted (ctrl-C saves first);
                                                             trainer.devices, nodes, workers, accelerator may change

Settings are key=value; files in configs/ hold the defaults of each group:
    data=street|kitti|coco  method=mwsis|boxinst|boxteacher|frustum|...  camera=...  lidar=...
    trainer=cpu|gpu|ddp|slurm  experiment=...
    seed=0  out=DIR  trainer.max_steps=N  method.ipg=false  method.pvc=false  method.cscs.camera_to_lidar=false  ...

The run folder holds config.yaml, metrics.json, report.html, losses.csv, checkpoints/last.ckpt and export/; with
trainer.score_every=0.25 also scores.csv, teacher and student on a few validation frames at each quarter of the run.
Exit code: 0 done, 2 wrong input, 3 stopped by a full disk, a lost process or losses that are not finite (either way one
sentence says what), 130 interrupted (resume continues).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from mwsis.core.errors import ConfigError
from mwsis.training.commands import compose_run, print_scores, progress_line, run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mwsis.data.source import Source
    from mwsis.training.config import RunConfig
    from mwsis.training.folder import RunFolder
    from mwsis.training.prepare import Prepared

EXIT_STOPPED = 3
MAY_CHANGE = ("trainer.devices", "trainer.nodes", "trainer.workers", "trainer.accelerator")
"""Settings that may be given beside ``resume=``: on what it runs, not what comes out."""


def main(arguments: list[str]) -> None:
    """Compose, prepare, train, evaluate, export, report."""
    config = compose_run(arguments)

    from mwsis.training import launch
    from mwsis.training.folder import open_run

    began = time.monotonic()
    run, folder = open_run(config)
    if config.resume is not None:
        run = on_this_machine(run, config, arguments)
    if run.trainer.slurm:
        launch.adopt_slurm()
    if launch.starts_processes(run.trainer):
        place = [] if run.out or config.resume else [f"out={folder.root}"]
        command = [sys.executable, *sys.orig_argv[1:], *place]
        raise SystemExit(launch.run_processes(command, run.trainer.devices, str(folder.root)))
    launch.join(run.trainer)
    folder = launch.agreed(folder)
    prepared = prepare_run(run, folder)

    from mwsis.training.run import train

    complete = or_exit(lambda: train(run, folder, prepared))
    launch.leave()
    if not launch.is_first():
        return
    if not complete:
        interrupted("train", folder)
    finish(run, folder, prepared, began)
    print(f"run: {folder.root}")


def or_exit(train: Callable[[], bool], say: Callable[[str], str] = str) -> bool:
    """Return what a training returns; where it was stopped, print why, as ``say`` puts it, and exit."""
    from mwsis.training.launch import RunStopped

    try:
        return train()
    except RunStopped as stopped:
        if str(stopped):
            print(f"\nerror: {say(str(stopped))}", file=sys.stderr)
        raise SystemExit(EXIT_STOPPED) from None


def interrupted(tool: str, folder: RunFolder) -> NoReturn:
    """Say how to continue a run, and end as interrupted commands do."""
    print(f"\ninterrupted; continue with: uv run tools/{tool}.py resume={folder.root}")
    raise KeyboardInterrupt


def on_this_machine(run: RunConfig, asked: DictConfig, arguments: list[str]) -> RunConfig:
    """Return the configuration of a resumed run with what was asked for its processes; the result is to be the same.

    Raises:
        ConfigError: an argument is about something else.
    """
    from omegaconf import OmegaConf

    from mwsis.training.config import typed

    config = OmegaConf.structured(run)
    for key in {argument.partition("=")[0] for argument in arguments} - {"resume"}:
        if key not in MAY_CHANGE:
            raise ConfigError(
                f"resume=... takes every setting but {', '.join(MAY_CHANGE)} from the run's config.yaml; remove {key}"
            )
        OmegaConf.update(config, key, OmegaConf.select(asked, key))
    return typed(config)


def prepare_run(run: RunConfig, folder: RunFolder) -> Prepared:
    """Open the data set; the first of several processes reads it into the cache."""
    from mwsis.training import launch
    from mwsis.training.build import check_start, check_training
    from mwsis.training.mask_rcnn import unused_settings
    from mwsis.training.prepare import build_source, importing, prepare

    source = build_source(run)
    check_training(run)
    if launch.is_first():
        print_labels(run, source)
        if unused := unused_settings(run.camera):
            print(f"warning: {', '.join(unused)}: settings of CondInst, not used with camera.mask_rcnn")
    if not folder.checkpoint.exists():
        check_start(run, len(source.class_names))
    with importing("mwsis.training.run"), launch.in_turns():
        return prepare(run, source, progress_line)


def print_labels(run: RunConfig, source: Source) -> None:
    """Say what the training images are labelled with, where they say so, and which teach nothing where no box is."""
    from mwsis.training.prepare import images_in_words, labelled_images

    if counts := labelled_images(run, source):
        print(f"labels: {images_in_words(counts)}")
        if counts["unknown_extent"]:
            print(
                f"warning: in {counts['unknown_extent']} of the images with points an object has no mask in "
                f"data.masks={run.data.masks}: nothing there is taught as background; tools/points.py makes masks"
            )


def finish(run: RunConfig, folder: RunFolder, prepared: Prepared, began: float) -> None:
    """Evaluate teacher and student, export the teacher's 3D backbone, write metrics and report."""
    from mwsis.core.files import write_json
    from mwsis.report.content import Report
    from mwsis.report.gallery import draw_frame, draw_worst
    from mwsis.report.html import provenance, write_report
    from mwsis.training.callbacks import read_losses
    from mwsis.training.checkpoint import read_run_checkpoint
    from mwsis.training.evaluate import evaluate_run, trained_from
    from mwsis.training.score_log import read_scores
    from tools.export import export_run

    state = read_run_checkpoint(folder.checkpoint)
    metrics, shown, worst = evaluate_run(run, state, prepared, str(folder.checkpoint), progress_line)
    if "lidar" in run.method.branches:
        scores = (metrics["lidar"] or {}).get("teacher") or {}
        export_run(state, str(folder.checkpoint), folder.export, "teacher", scores)
    names, bounds = prepared.source.class_names, run.data.point_cloud_range
    network = "teacher" if run.method.ema else "student"
    galleries = [
        draw_frame(found, bounds, names, split=run.data.val_split, predicted_by=network)
        for found in shown[: run.trainer.report_frames]
    ]
    metrics["skipped_steps"] = state.get("skipped_steps", 0)  # none in checkpoints from before they were counted
    metrics["wall_s"] = round(time.monotonic() - began, 1)
    write_json(folder.metrics, metrics)
    report = Report(
        title=f"{run.method.name} on {run.data.name}",
        metrics=metrics,
        galleries=galleries,
        losses=[{"step": step, "name": name, "value": value} for step, name, value in read_losses(folder.losses)],
        scores_on_the_way=read_scores(folder.scores),
        worst=draw_worst(worst),
        facts=provenance(),
        config_yaml=state["config"],
        class_names=names,
        branches=tuple(run.method.branches),
        has_teacher=run.method.ema,
        trained_from={branch: trained_from(run, branch) for branch in run.method.branches},
    )
    write_report(report, folder.report)
    print_scores(metrics)


if __name__ == "__main__":
    run_command(main, __doc__ or "")
