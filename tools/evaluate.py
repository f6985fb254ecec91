"""Score a checkpoint on the validation split of a data set.

    uv run tools/evaluate.py ckpt=RUN/checkpoints/last.ckpt out=DIR
    uv run tools/evaluate.py ckpt=... out=DIR data=kitti data.root=FOLDER     another data set

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
    own, overrides = split_arguments(arguments, {"ckpt": "", "out": ""})
    asked = compose_run(overrides) if overrides else None

    from mwsis.core.files import write_json
    from mwsis.training.checkpoint import read_run_checkpoint
    from mwsis.training.config import typed
    from mwsis.training.evaluate import evaluate_run
    from mwsis.training.prepare import build_source, prepare

    began = time.monotonic()
    state = read_run_checkpoint(own["ckpt"])
    run = typed(restore_config(state["config"], asked, overrides))
    prepared = prepare(run, build_source(run), progress_line)
    metrics, _ = evaluate_run(run, state, prepared, own["ckpt"], progress_line)
    metrics["wall_s"] = round(time.monotonic() - began, 1)
    path = Path(own["out"]) / "metrics.json"
    write_json(path, metrics)
    print_scores(metrics)
    print(f"metrics: {path}")


if __name__ == "__main__":
    run_command(main, __doc__ or "")
