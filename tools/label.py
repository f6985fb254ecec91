"""Label LiDAR points from 2D boxes, without any training.

    uv run tools/label.py data=kitti data.root=FOLDER out=DIR
    uv run tools/label.py data=street out=DIR

Writes DIR/labels/<frame>.npz (semantic_labels: class, -2 background, -1 ignore; instance_ids: running box index or -1)
and, when the data set has ground truth, DIR/quality.json: the point IoU of three label-only methods per class.
Exit code: 0 done, 2 wrong input (one sentence says what).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwsis.training.commands import compose_run, progress_line, run_command, split_arguments

if TYPE_CHECKING:
    from mwsis.data.label_cache import FrameLabels


def main(arguments: list[str]) -> None:
    """Read, label, score, write."""
    own, overrides = split_arguments(arguments, {"out": ""})
    config = compose_run(overrides)

    from mwsis.core.files import write_json
    from mwsis.training.config import typed
    from mwsis.training.evaluate import label_quality
    from mwsis.training.prepare import build_source, prepare

    run = typed(config)
    out = Path(own["out"])
    prepared = prepare(run, build_source(run), progress_line)
    names, radii = prepared.source.class_names, tuple(run.data.radii)
    frames, labels = [], []
    for split in (prepared.train, prepared.val):
        frames += list(split.frames)
        labels += list(split.labels)
    for done, (frame, made) in enumerate(zip(frames, labels, strict=True), 1):
        write_labels(out / "labels" / f"{frame.frame_id}.npz", made)
        progress_line("write labels", done, len(frames))
    rows = label_quality(frames, labels, names, radii)
    print(f"labels: {out / 'labels'} ({len(frames)} frames, from 2D boxes only)")
    if rows:
        write_json(out / "quality.json", rows)
        print(table(rows))
        print(f"quality: {out / 'quality.json'}")


def write_labels(path: Path, made: FrameLabels) -> None:
    """Write one frame's pseudo labels: semantic_labels and instance_ids, int64, rows as in the sweep."""
    import numpy as np

    from mwsis.core.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    pseudo = made.pseudo
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file, semantic_labels=pseudo.semantic_labels.numpy(), instance_ids=pseudo.instance_ids.numpy()
        )


def table(rows: list[dict[str, Any]]) -> str:
    """Return the quality rows as aligned text."""
    names = ("precision", "recall", "pooled_iou")
    head = f"{'method':<12}{'class':<12}{'objects':>8}{'point_iou':>12}{'95 % interval':>16}"
    lines = [head + "".join(f"{name:>12}" for name in names)]
    for row in rows:
        low, high = row["point_iou_95"]
        interval = f"{low:.3f} - {high:.3f}"
        values = f"{row['objects']:>8}{row['point_iou']:>12.3f}{interval:>16}"
        lines.append(
            f"{row['method']:<12}{row['class']:<12}{values}" + "".join(f"{row[name]:>12.3f}" for name in names)
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, __doc__ or "")
