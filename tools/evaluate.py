"""Score a checkpoint on the validation split of a data set.

    uv run tools/evaluate.py ckpt=RUN/checkpoints/last.ckpt out=DIR
    uv run tools/evaluate.py ckpt=... out=DIR data=kitti data.root=FOLDER     another data set
    uv run tools/evaluate.py ckpt=... out=DIR camera.refinement=null          other settings of prediction
    uv run tools/evaluate.py ckpt=... out=DIR protocol=published              as MWSIS was scored

protocol=ours (default) ignores what nobody labelled; protocol=published counts it as background (and, where the data
set has a class_map, counts classes as published: the validation frames are then read once more).
Writes DIR/metrics.json with teacher and student; ground truth is used for scoring only.
Exit code: 0 done, 2 wrong input (one sentence says what).
"""

from __future__ import annotations

import time
from pathlib import Path

from mwsis.training.commands import (
    compose_run,
    print_scores,
    progress_line,
    restore_config,
    run_command,
    split_arguments,
)


def main(arguments: list[str]) -> None:
    """Load, score, write."""
    own, overrides = split_arguments(arguments, {"ckpt": "", "out": "", "protocol": "ours"})
    asked = compose_run(overrides) if overrides else None

    from mwsis.core.files import write_json
    from mwsis.evaluation.protocols import protocol_named
    from mwsis.training.checkpoint import read_run_checkpoint
    from mwsis.training.config import typed
    from mwsis.training.evaluate import evaluate_run, for_protocol
    from mwsis.training.prepare import build_source, prepare

    began = time.monotonic()
    protocol = protocol_named(own["protocol"])
    state = read_run_checkpoint(own["ckpt"])
    run = for_protocol(typed(restore_config(state["config"], asked, overrides)), protocol)
    prepared = prepare(run, build_source(run), progress_line)
    metrics, _ = evaluate_run(run, state, prepared, own["ckpt"], progress_line, protocol)
    metrics["wall_s"] = round(time.monotonic() - began, 1)
    path = Path(own["out"]) / "metrics.json"
    write_json(path, metrics)
    print_scores(metrics)
    print(f"metrics: {path}")


if __name__ == "__main__":
    run_command(main, __doc__ or "")
