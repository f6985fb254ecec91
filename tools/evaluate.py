"""Score a checkpoint on the validation split of a data set.

    uv run tools/evaluate.py ckpt=RUN/checkpoints/last.ckpt out=DIR
    uv run tools/evaluate.py ckpt=... out=DIR data=kitti data.root=FOLDER     another data set
    uv run tools/evaluate.py ckpt=... out=DIR camera.refinement=null          other settings of prediction
    uv run tools/evaluate.py ckpt=... out=DIR protocol=published              as MWSIS was scored
    uv run tools/evaluate.py ckpt=... out=DIR export=[coco,kitti]             what the teacher found, as files

protocol=ours (default) ignores what nobody labelled; protocol=published counts it as background (and, where the data
set has a class_map, counts classes as published: the validation frames are then read once more).
Writes DIR/metrics.json with teacher and student; ground truth is used for scoring only.

export= also writes what the teacher found in the validation frames to DIR/export_<format>: coco (results with run
lengths and scores), labelme (polygons, an image each), kitti (SemanticKITTI .label), nuscenes (lidarseg .bin), waymo
(SegmentationFrameList; frames that have range images). DIR/export_<format>/export.json says what is in them.

Exit code: 0 done, 2 wrong input (one sentence says what).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwsis.training.commands import (
    compose_run,
    print_scores,
    progress_line,
    restore_config,
    run_command,
    split_arguments,
)
from tools.convert import LICENCE_NOTE

if TYPE_CHECKING:
    from mwsis.data.source import Source
    from mwsis.evaluation.predictions import FramePrediction
    from mwsis.training.config import RunConfig

MADE = {"camera": "masks", "lidar": "points"}
"""What a branch finds."""


def main(arguments: list[str]) -> None:
    """Load, score, write."""
    own, overrides = split_arguments(arguments, {"ckpt": "", "out": "", "protocol": "ours", "export": "null"})
    asked = compose_run(overrides) if overrides else None

    from mwsis.core.files import write_json
    from mwsis.evaluation.protocols import protocol_named
    from mwsis.export.labels.exporter import labelled_by
    from mwsis.export.labels.formats import ExportSet, format_names
    from mwsis.training.checkpoint import read_run_checkpoint
    from mwsis.training.config import typed
    from mwsis.training.evaluate import evaluate_run, for_protocol
    from mwsis.training.prepare import build_source, prepare

    began = time.monotonic()
    protocol, formats = protocol_named(own["protocol"]), format_names(own["export"])
    state = read_run_checkpoint(own["ckpt"])
    run = for_protocol(typed(restore_config(state["config"], asked, overrides)), protocol)
    source = build_source(run)
    exports = ExportSet(formats, Path(own["out"]), source, [MADE[branch] for branch in run.method.branches])
    prepared = prepare(run, source, progress_line)
    exports.begin()

    def export(prediction: FramePrediction) -> None:
        if formats:
            exports.add(labelled_by(prediction))

    metrics = evaluate_run(run, state, prepared, own["ckpt"], progress_line, protocol, export).metrics
    metrics["wall_s"] = round(time.monotonic() - began, 1)
    path = Path(own["out"]) / "metrics.json"
    write_json(path, metrics)
    print_scores(metrics)
    print(f"metrics: {path}")
    for sentence in exports.finish(facts_of(run, state, source)):
        print(sentence)
    if formats and source.name.startswith("waymo"):
        print(LICENCE_NOTE)


def facts_of(run: RunConfig, state: dict[str, Any], source: Source) -> dict[str, Any]:
    """Return what ``export.json`` says about the origin of what was found."""
    facts: dict[str, Any] = {
        "source": {"name": source.name, "fingerprint": source.fingerprint()},
        "split": run.data.val_split,
        "method": {"name": run.method.name, "network": "teacher", "steps": state["global_step"]},
    }
    if source.name.startswith("waymo"):
        facts["licence"] = LICENCE_NOTE.removeprefix("note: ")
    return facts


if __name__ == "__main__":
    run_command(main, __doc__ or "")
