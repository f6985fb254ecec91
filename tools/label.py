"""Label LiDAR points from 2D boxes, without any training.

    uv run tools/label.py data=kitti data.root=FOLDER out=DIR
    uv run tools/label.py data=street out=DIR method=spg
    uv run tools/label.py data=kitti data.root=FOLDER out=DIR boxes3d=true
    uv run tools/label.py data=kitti data.root=FOLDER out=DIR export=[kitti,nuscenes]

method= says how, by default as the configuration does (spg_default): frustum (every point in a box), clustering (the
largest cluster of each box), spg (MWSIS as published), spg_default (ours). It stands for settings of method.* and
cannot be given together with method.labels, method.spg or method.spg_rings.

Writes one DIR/labels/<frame>.label per frame, little-endian uint32 per point in the order of the sweep: class in the
low 16 bits (0 unlabelled, 1 other, 2 and on the classes), 1 + index of the 2D box in the high 16 bits (0 none). What
the codes mean, how the labels were made and from what is in DIR/labels/labels.json, which is written last.
mwsis.data.label_files.read_labels reads a file.

When the data set has ground truth, all four methods are scored: DIR/quality.json, per class and by range and size of
the objects, and DIR/quality.png, the worst objects of the method that was written. tolerant_iou leaves out points up to
.2 m outside an object's 3D box or in its lowest .1 m; semantic_iou is over all points of a class, in all frames.

boxes3d=true fits an amodal 3D box to each object's labelled points and writes DIR/boxes: KITTI labels with their
calibration, OpenPCDet infos (a pickle: load none from people you do not trust), a Waymo Objects file; what is in them
is in DIR/boxes/boxes.json. Headings are known up to half a turn. Their overlap with true boxes is in quality.json.

export= also writes the labels as other data sets have them, to DIR/export_<format>: kitti (SemanticKITTI .label with
its own class numbers), nuscenes (lidarseg .bin), waymo (SegmentationFrameList; frames that have range images).

Exit code: 0 done, 2 wrong input (one sentence says what), 130 interrupted; the same command starts again and finds what
was read and labelled before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwsis.core.errors import ConfigError, closest_name
from mwsis.training.commands import compose_run, progress_line, run_command, split_arguments
from tools.convert import LICENCE_NOTE

if TYPE_CHECKING:
    from torch import Tensor

    from mwsis.core.frame import Frame
    from mwsis.core.instances import PointLabels
    from mwsis.evaluation.label_quality import LabelQuality, ObjectScore
    from mwsis.training.config import RunConfig
    from mwsis.training.prepare import Split

OWN = {"out": "", "method": "null", "boxes3d": "false", "export": "null"}
SETTINGS: dict[str, dict[str, Any]] = {
    "frustum": {"spg": False},
    "clustering": {"spg": True, "spg_rings": False, "labels": "published"},
    "spg": {"spg": True, "spg_rings": True, "labels": "published"},
    "spg_default": {"spg": True, "spg_rings": True, "labels": "default"},
}
"""What each label method is in the run configuration, under ``method``."""
NUM_SHOWN = 12
SCORES = ("precision", "recall", "pooled_iou", "semantic_iou")


def main(arguments: list[str]) -> None:
    """Read, label, write, score."""
    own, overrides = split_arguments(arguments, OWN)
    config = compose_run([*overrides, *settings_of(own["method"], overrides)])
    if own["boxes3d"] not in ("true", "false"):
        raise ConfigError(f"boxes3d={own['boxes3d']}: expected true or false")
    out = Path(own["out"])
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={out}: expected a folder, got a file")

    from mwsis.data.label_files import LabelWriter
    from mwsis.evaluation.label_quality import LabelQuality
    from mwsis.export.labels.exporter import LabelledFrame
    from mwsis.export.labels.formats import ExportSet, format_names
    from mwsis.training.config import typed
    from mwsis.training.label_scores import score_labels
    from mwsis.training.prepare import build_source, label_method_of, prepare

    run = typed(config)
    source = build_source(run)
    exports = ExportSet(format_names(own["export"]), out, source, made=("points",))
    prepared = prepare(run, source, progress_line)
    method, splits = label_method_of(run.method), [prepared.train]
    if run.data.val_split != run.data.train_split:
        splits.append(prepared.val)
    for name in ("quality.json", "quality.png"):
        (out / name).unlink(missing_ok=True)
    writer, quality = LabelWriter(out / "labels", source.class_names), LabelQuality(source.class_names)
    boxes = BoxLabels(out / "boxes", source, run.data.kinds) if own["boxes3d"] == "true" else None
    exports.begin()
    total, done = sum(len(split.frames) for split in splits), 0
    for split in splits:
        for frame, made in zip(split.frames, split.labels, strict=True):
            writer.add(frame.frame_id, made.pseudo)
            exports.add(LabelledFrame(frame, made.pseudo, None))
            score_labels(quality, frame, run.data)
            if boxes is not None:
                boxes.add(frame, made.pseudo)
            done += 1
            progress_line("write labels", done, total)
    facts = facts_of(run, method, source)
    writer.finish(facts)
    print(f"labels: {out / 'labels'} ({total} frames, {method}, from 2D boxes only)")
    if boxes is not None:
        boxes.finish(facts)
        print(f"3D boxes: {out / 'boxes'} (fitted to these labels)")
    for sentence in exports.finish(facts):
        print(sentence)
    write_quality(quality, boxes, method, splits, run, out)
    if source.name.startswith("waymo"):
        print(LICENCE_NOTE)


class BoxLabels:
    """3D boxes of the labelled objects: fitted, written and, where there is ground truth, scored.

    Args:
        folder: where the files go; see `mwsis.data.box_files`.
        source: the data set; its usual sizes of objects are KITTI's or Waymo's.
        kinds: what each class is like; None: by its name.

    Raises:
        ConfigError: nothing is known of the size of a class.
    """

    def __init__(self, folder: Path, source: Any, kinds: Sequence[str] | None) -> None:
        from lidar.boxes_from_instances import USUAL_SIZES
        from mwsis.data.box_files import BoxWriter
        from mwsis.data.classes import KINDS, kinds_of
        from mwsis.evaluation.box_quality import BoxQuality

        self._sizes_of = "kitti" if source.name == "kitti" else "waymo"
        self._kinds, self._sizes = kinds_of(source.class_names, kinds), USUAL_SIZES[self._sizes_of]
        for name, kind in zip(source.class_names, self._kinds, strict=True):
            if kind == len(KINDS):
                raise ConfigError(f"boxes3d=true: no size is known of '{name}'; say what it is like: data.kinds=[...]")
        self._writer, self._quality = BoxWriter(folder, source.class_names), BoxQuality(source.class_names)

    def add(self, frame: Frame, pseudo: PointLabels) -> None:
        """Fit and write the boxes of a frame, and score them if it has ground truth."""
        from lidar.boxes_from_instances import fit_boxes3d
        from mwsis.data.box_files import FrameBoxes

        fitted = fit_boxes3d(frame.points.xyz, pseudo, self._sizes, kinds=self._kinds)
        self._writer.add(frame, FrameBoxes(fitted.boxes3d, fitted.labels, fitted.scores, fitted.num_points))
        if frame.truth is not None:
            self._quality.add(frame, fitted)

    def finish(self, facts: dict[str, Any]) -> None:
        """Write what is written once."""
        from lidar.boxes_from_instances import BOX_FIT

        fit = {**asdict(BOX_FIT), "usual_sizes": self._sizes, "sizes_of": self._sizes_of}
        self._writer.finish({**facts, "fit": fit, "headings": "up to half a turn: every object faces as the vehicle"})

    def rows(self) -> list[dict[str, Any]]:
        """Return the quality rows."""
        return self._quality.rows()


def settings_of(method: str, overrides: Sequence[str]) -> list[str]:
    """Return the overrides of the run configuration that a label method stands for; none for "null"."""
    if method == "null":
        return []
    if method not in SETTINGS:
        raise ConfigError(f"method={method}: no such way to label points{closest_name(method, SETTINGS)}")
    decided = {f"method.{key}" for settings in SETTINGS.values() for key in settings}
    for override in overrides:
        if override.lstrip("+").partition("=")[0] in decided:
            raise ConfigError(f"{override} and method={method} both say how to label points; give one of them")
    return [f"method.{key}={value}" for key, value in SETTINGS[method].items()]


def facts_of(run: RunConfig, method: str, source: Any) -> dict[str, Any]:
    """Return what ``labels.json`` says about the origin of the labels."""
    from fusion.default_labels import DEFAULT
    from fusion.spatial_labels import CLEAN_SHARE, LEAVING_SHARE
    from mwsis.data.classes import KINDS, kinds_of

    kinds = [[*KINDS, "unknown"][kind] for kind in kinds_of(source.class_names, run.data.kinds)]
    clusters = {"radii": run.data.radii}
    constants = {
        "frustum": {},
        "clustering": clusters,
        "spg": {**clusters, "clean_share": CLEAN_SHARE, "leaving_share": LEAVING_SHARE},
        "spg_default": {**asdict(DEFAULT), "kinds": kinds},
    }
    facts: dict[str, Any] = {
        "source": {"name": source.name, "fingerprint": source.fingerprint()},
        "method": {"name": method, "constants": constants[method]},
    }
    if source.name.startswith("waymo"):
        facts["licence"] = LICENCE_NOTE.removeprefix("note: ")
    return facts


def write_quality(
    quality: LabelQuality, boxes: BoxLabels | None, method: str, splits: Sequence[Split], run: RunConfig, out: Path
) -> None:
    """Write and print the scores, and draw the worst objects of a method; nothing without ground truth."""
    from fusion.label_methods import LABEL_METHODS
    from mwsis.core.files import write_json
    from mwsis.data.classes import kinds_of

    rows, scores = quality.rows(), quality.objects(method)
    if not rows:
        return
    kinds = kinds_of(quality.class_names, run.data.kinds)
    pairs_of = partial(LABEL_METHODS[method].pairs, radii=run.data.radii, kinds=kinds)
    draw_worst(scores, splits, pairs_of, f"{run.data.name}, labelled by {method}", out / "quality.png")
    content = {
        "rows": rows,
        "by_range": quality.rows("range"),
        "by_points": quality.rows("points"),
        "by_hidden": quality.rows("hidden"),
        "worst": {"method": method, "objects": [asdict(score) for score in scores[:NUM_SHOWN]]},
    }
    print(table(rows))
    if boxes is not None:
        content["boxes3d"] = boxes.rows()
        print(box_table(content["boxes3d"]))
    write_json(out / "quality.json", content)
    print(f"quality: {out / 'quality.json'}, worst objects: {out / 'quality.png'}")


def draw_worst(
    scores: Sequence[ObjectScore], splits: Sequence[Split], pairs_of: Callable[[Frame], Tensor], what: str, path: Path
) -> None:
    """Draw the first objects of a list on one sheet, with the pairs that were scored."""
    from mwsis.core.files import atomic_write
    from mwsis.report.label_pictures import draw_object, draw_sheet

    places = {name: (split, row) for split in splits for row, name in enumerate(split.frames.frame_ids)}
    pictures = []
    for score in scores[:NUM_SHOWN]:
        split, row = places[score.frame_id]
        pictures.append(draw_object(frame := split.frames[row], pairs_of(frame), score))
    title = f"{what}: the {len(pictures)} worst of {len(scores)} objects"
    with atomic_write(path) as unfinished:
        draw_sheet(title, pictures).save(unfinished)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the quality rows as aligned text, and below those of each method the mean of its classes."""
    head = f"{'method':<12}{'class':<12}{'objects':>8}{'point_iou':>11}{'95 % interval':>16}{'tolerant_iou':>14}"
    lines = [head + "".join(f"{name:>14}" for name in SCORES)]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        lines += [line(row) for row in [*of_method, mean_row(of_method)]]
    return "\n".join(lines)


def box_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the quality rows of the 3D boxes as aligned text; below each class its objects by overlap in tenths."""
    columns = ("bev_iou", "iou_3d", "ap_bev_50", "ap_bev_30")
    lines = [f"{'3D boxes':<12}{'objects':>8}{'boxes':>8}" + "".join(f"{name:>11}" for name in columns)]
    for row in rows:
        start = f"{row['class']:<12}{row['objects']:>8}{row['boxes']:>8}"
        lines.append(start + "".join(f"{row[name]:>11.3f}" for name in columns))
        for name in ("bev_iou", "iou_3d"):
            counts = "".join(f"{count:>6}" for count in row[f"{name}_counts"])
            lines.append(f"  {name + ' 0 .. 1':<18}{counts}")
    return "\n".join(lines)


def mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean over the classes of a method; a score that a class lacks has none."""
    mean = {"method": rows[0]["method"], "class": "mean", "objects": sum(row["objects"] for row in rows)}
    for name in ("point_iou", "tolerant_iou", *SCORES):
        values = [row[name] for row in rows]
        mean[name] = None if None in values else sum(values) / len(values)
    return mean


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    interval = " - ".join(f"{end:.3f}" for end in row.get("point_iou_95", ()))
    start = f"{row['method']:<12}{row['class']:<12}{row['objects']:>8}{row['point_iou']:>11.3f}{interval:>16}"
    return start + "".join(
        f"{'-' if row[name] is None else f'{row[name]:.3f}':>14}" for name in ("tolerant_iou", *SCORES)
    )


if __name__ == "__main__":
    run_command(main, __doc__ or "")
