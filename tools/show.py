"""Look at frames: all cameras with 2D boxes and masks, the sweep in every colouring, 3D boxes.

    uv run tools/show.py data=kitti data.root=FOLDER frame=000003 backend=png out=DIR    data and labels from its boxes
    uv run tools/show.py run=RUN segment=NAME out=DIR            what a run's teacher finds, a time line over a segment
    uv run tools/show.py run=RUN                                 the same of the first frame, in a live viewer

frame= is one frame, segment= all frames of one in order; with neither, the first frame of the validation split is
shown. run= is the folder of a run: its data set (or another, data=...), its settings, its teacher. Without run=,
data=... and method=... say what is read and how it is labelled; nothing is trained or converted.

backend=rerun (default)   a recording, DIR/show.rrd, that `rerun DIR/show.rrd` opens on any machine; without out= a live
                          viewer. A tab for each colouring of the sweep: class, instance and error of gt_, pseudo_ and
                          predicted_ labels. Extra `viz`.
backend=open3d            point clouds DIR/<frame>/<colouring>.ply (clouds=pcd: .pcd); without out= a window. Extra
                          `viz`.
backend=png               the pictures of the report, DIR/<frame>/*.png; nothing extra to install.

Exit code: 0 done, 2 wrong input (one sentence says what).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwsis.core.errors import ConfigError, closest_name
from mwsis.training.commands import compose_run, progress_line, restore_config, run_command, split_arguments
from tools.convert import LICENCE_NOTE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mwsis.data.source import Source
    from mwsis.evaluation.predictions import FramePrediction
    from mwsis.training.config import RunConfig

NOT_GIVEN = "null"
OWN = {
    **dict.fromkeys(("run", "frame", "segment", "out"), NOT_GIVEN),
    "backend": "rerun",
    "clouds": "ply",
}
BACKENDS = ("rerun", "open3d", "png")


def main(arguments: list[str]) -> None:
    """Read, label, predict, show."""
    own, overrides = split_arguments(arguments, OWN)
    frame_id, segment, out = (None if own[key] == NOT_GIVEN else own[key] for key in ("frame", "segment", "out"))
    check_backend(own["backend"], own["clouds"], out)
    asked = compose_run(overrides) if overrides or own["run"] == NOT_GIVEN else None

    from mwsis.training.config import typed
    from mwsis.training.prepare import build_source
    from mwsis.training.shown import chosen_frames, shown_frames

    state, what = None, own["run"]
    if own["run"] == NOT_GIVEN:
        assert asked is not None, "without a run the configuration is composed"
        run = typed(asked)
    else:
        state = checkpoint_of(Path(own["run"]))
        run = typed(restore_config(state["config"], asked, overrides))
    source = build_source(run)
    frame_ids = chosen_frames(run, source, frame_id, segment)
    frames = with_progress(shown_frames(run, source, frame_ids, state, what), len(frame_ids))
    if out is None:
        show_live(own["backend"], frames, source)
        return
    for sentence in write(own["backend"], own["clouds"], frames, source, run, Path(out)):
        print(sentence)
    if source.name.startswith("waymo"):
        print(LICENCE_NOTE)


def check_backend(backend: str, clouds: str, out: str | None) -> None:
    """Refuse what cannot be shown before anything is read.

    Raises:
        ConfigError: no such backend or cloud format, a package is missing, or ``out`` is missing or a file.
    """
    from mwsis.report.open3d_sink import CLOUD_FORMATS, open3d_module
    from mwsis.report.rerun_sink import rerun_module

    if backend not in BACKENDS:
        raise ConfigError(f"backend={backend}: no such backend{closest_name(backend, BACKENDS)}")
    if clouds not in CLOUD_FORMATS:
        raise ConfigError(f"clouds={clouds}: expected {' or '.join(CLOUD_FORMATS)}")
    if backend == "png" and out is None:
        raise ConfigError("backend=png writes files: give out=DIR")
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise ConfigError(f"out={out}: expected a folder, got a file")
    {"rerun": rerun_module, "open3d": open3d_module, "png": lambda: None}[backend]()


def checkpoint_of(folder: Path) -> dict[str, Any]:
    """Return the last checkpoint of a run.

    Raises:
        ConfigError: there is no such folder.
        WeightMismatchError: it has no checkpoint of a run.
    """
    from mwsis.training.checkpoint import read_run_checkpoint
    from mwsis.training.folder import RunFolder

    if not folder.is_dir():
        raise ConfigError(f"run={folder}: no such folder; give the folder that tools/train.py printed")
    return read_run_checkpoint(RunFolder(folder).checkpoint)


def with_progress(frames: Iterable[FramePrediction], total: int) -> Iterator[FramePrediction]:
    """Yield frames and show how far it is."""
    for done, frame in enumerate(frames):
        progress_line("frames", done, total)
        yield frame
    progress_line("frames", total, total)


def show_live(backend: str, frames: Iterable[FramePrediction], source: Source) -> None:
    """Open a viewer or a window."""
    if backend == "open3d":
        from mwsis.report.open3d_sink import show_window

        show_window(list(frames), source.class_names, print)
        return
    from mwsis.report.rerun_sink import RerunSink

    sink = RerunSink(source.class_names, source.name)
    sink.recording.spawn()
    log_all(sink, frames)
    sink.finish()


def write(
    backend: str, clouds: str, frames: Iterable[FramePrediction], source: Source, run: RunConfig, out: Path
) -> Sequence[str]:
    """Write what is shown; return sentences that say where it is."""
    if backend == "rerun":
        from mwsis.report.rerun_sink import RerunSink, recording_file

        sink, path = RerunSink(source.class_names, source.name), out / "show.rrd"
        with recording_file(sink, path):
            log_all(sink, frames)
        return [f"recording: {path}"]
    paths = []
    for frame in frames:
        if backend == "png":
            from mwsis.report.gallery import draw_frame
            from mwsis.report.picture_files import write_pictures

            reach = run.data.point_cloud_range
            gallery = draw_frame(frame, reach, source.class_names, split="", predicted_by="teacher")
            paths += write_pictures(gallery, out)
        else:
            from mwsis.report.open3d_sink import write_clouds

            paths += write_clouds(frame, source.class_names, out, clouds)
    return [f"{'pictures' if backend == 'png' else 'point clouds'}: {out} ({len(paths)} files)"]


def log_all(sink: Any, frames: Iterable[FramePrediction]) -> None:
    """Log frames to a recording."""
    sink.begin()
    for frame in frames:
        sink.add(frame)


if __name__ == "__main__":
    run_command(main, __doc__ or "")
