"""Score a run: teacher and student on the validation split, labels on both, one dictionary for ``metrics.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fusion.spatial_labels import box_point_pairs
from mwsis.core.frame import Frame
from mwsis.data.label_cache import FrameLabels
from mwsis.evaluation.label_quality import LabelQuality
from mwsis.evaluation.predictions import FramePrediction, score
from mwsis.training import build
from mwsis.training.config import RunConfig
from mwsis.training.inference import predict
from mwsis.training.prepare import Prepared
from mwsis.training.run import load_run

__all__ = ["LABEL_METHODS", "evaluate_run", "label_quality", "trained_from"]

OnProgress = Callable[[str, int, int], None]
LABEL_METHODS = {
    "frustum": {"rings": False, "clustering": False},
    "clustering": {"rings": False, "clustering": True},
    "spg": {"rings": True, "clustering": True},
}
RSC_CLASSES = ("Vehicle", "Cyclist")
"""MWSIS section 3.3: pedestrians are left out, correcting them lowers the score."""


def evaluate_run(
    run: RunConfig, state: dict[str, Any], prepared: Prepared, what: str, on_progress: OnProgress
) -> tuple[dict[str, Any], list[FramePrediction]]:
    """Return the content of ``metrics.json`` (without ``wall_s``) and the teacher's predictions on validation frames.

    Args:
        run: configuration.
        state: a checkpoint of it.
        prepared: the data set to score on.
        what: names the checkpoint in errors.
        on_progress: called with (what, done, total).
    """
    names = prepared.source.class_names
    teacher, student = load_run(state, run, len(names), what)
    transform = build.build_transform(run, augment=False)
    rsc = tuple(index for index, name in enumerate(names) if run.method.rsc and name in RSC_CLASSES)
    predictions: dict[str, list[FramePrediction]] = {}
    for title, model in (("teacher", teacher), ("student", student)):
        report = partial(on_progress, f"evaluate {title}")
        predictions[title] = list(predict(model, prepared.val.frames, prepared.val.labels, transform, rsc, report))
    scores = {title: score(found, names) for title, found in predictions.items()}
    metrics: dict[str, Any] = {
        branch: {title: scores[title][branch] for title in scores} for branch in run.method.branches
    }
    rows = label_quality(prepared.train.frames, prepared.train.labels, names, tuple(run.data.radii))
    metrics["labels"] = {"split": run.data.train_split, "rows": rows, "trained_on": trained_from(run, "lidar")}
    metrics["data"] = {
        "name": run.data.name,
        "fingerprint": prepared.source.fingerprint(),
        "train_frames": len(prepared.train.frames),
        "val_frames": len(prepared.val.frames),
    }
    metrics |= {"method": run.method.name, "seed": run.seed, "steps": state["global_step"]}
    metrics["labels_used"] = "2D boxes only"
    return metrics, predictions["teacher"]


def trained_from(run: RunConfig, branch: str) -> str:
    """Say in words what the networks of a branch were trained from."""
    method = run.method
    if branch == "camera":
        said = ["2D boxes"] + ["pseudo_ masks of its teacher (IPG)"] * method.ipg
        return ", ".join(said + ["the LiDAR teacher's points (CSCS)"] * method.cscs.lidar_to_camera)
    labels = "spatial labels (SPG)" if method.spg_rings else "clusters"
    said = [f"pseudo_ {labels if method.spg else 'labels: every point inside a 2D box'} from 2D boxes"]
    said += ["its teacher's votes (PVC)"] * method.pvc
    return ", ".join(said + ["the camera teacher's masks (CSCS)"] * method.cscs.camera_to_lidar)


def label_quality(
    frames: Sequence[Frame], labels: Sequence[FrameLabels], names: tuple[str, ...], radii: tuple[float, ...]
) -> list[dict[str, Any]]:
    """Return the quality rows of the label-only methods; empty when the frames have no ground truth."""
    quality = LabelQuality(names)
    for method, switches in LABEL_METHODS.items():
        for frame, made in zip(frames, labels, strict=True):
            if frame.truth is not None:
                pairs = box_point_pairs(frame, made.ring_segment_id, radii=radii, **switches)
                quality.add(method, frame.truth, frame.pixels, frame.cameras, pairs)
    return quality.rows()
