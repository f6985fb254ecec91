"""Score a run: teacher and student on the validation split, labels on both, one dictionary for ``metrics.json``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from fusion.segmentor import MultimodalSegmentor
from mwsis.evaluation.objects import ObjectQuality, WorstObject
from mwsis.evaluation.predictions import FramePrediction, SplitScores
from mwsis.evaluation.protocols import OURS, PROTOCOLS, Protocol
from mwsis.training import build
from mwsis.training.commands import restore_config
from mwsis.training.config import RunConfig, labels_used, typed
from mwsis.training.inference import predict
from mwsis.training.label_scores import label_quality
from mwsis.training.prepare import Prepared, images_in_words, labelled_images, ring_classes
from mwsis.training.run import load_run

__all__ = ["Evaluation", "evaluate_run", "for_protocol", "trained_from"]

OnProgress = Callable[[str, int, int], None]
OnFound = Callable[[FramePrediction], None]


class Evaluation(NamedTuple):
    """How well a run did.

    Attributes:
        metrics: the content of ``metrics.json`` without ``wall_s``.
        shown: the teacher's predictions to be drawn, in the order of the frames.
        worst: the true objects whose points the teacher found worst, the worst first; none without ground truth.
    """

    metrics: dict[str, Any]
    shown: list[FramePrediction]
    worst: list[WorstObject]


def evaluate_run(
    run: RunConfig,
    state: dict[str, Any],
    prepared: Prepared,
    what: str,
    on_progress: OnProgress,
    protocol: Protocol = OURS,
    on_found: OnFound = lambda prediction: None,
) -> Evaluation:
    """Return the scores of a run, and what of its predictions is worth a look.

    Args:
        run: configuration.
        state: a checkpoint of it.
        prepared: the data set to score on.
        what: names the checkpoint in errors.
        on_progress: called with (what, done, total).
        protocol: what counts as ground truth.
        on_found: called with the teacher's prediction of each frame, in order.
    """
    names = prepared.source.class_names
    teacher, student = load_run(state, run, len(names), what)
    shown: list[FramePrediction] = []
    objects = ObjectQuality(names)

    def keep(prediction: FramePrediction) -> None:
        on_found(prediction)
        objects.add(prediction)
        if len(shown) < run.trainer.report_frames:
            shown.append(prediction)

    scores = {"teacher": _scored(run, teacher, prepared, protocol, partial(on_progress, "evaluate teacher"), keep)}
    scores["student"] = scores["teacher"]
    if student is not teacher:
        scores["student"] = _scored(run, student, prepared, protocol, partial(on_progress, "evaluate student"))
    metrics: dict[str, Any] = {
        branch: {title: scores[title][branch] for title in scores} for branch in run.method.branches
    }
    metrics["lidar_rows"] = {title: scores[title]["lidar_rows"] for title in scores}
    metrics["objects"] = objects.rows()
    rows = label_quality(prepared.train.frames, names, run.data, run.data.quality_frames)
    metrics["labels"] = {"split": run.data.train_split, "rows": rows, "trained_on": trained_from(run, "lidar")}
    metrics["data"] = {
        "name": run.data.name,
        "fingerprint": prepared.source.fingerprint(),
        "train_frames": len(prepared.train.frames),
        "val_frames": len(prepared.val.frames),
    }
    metrics |= {"method": run.method.name, "seed": run.seed, "steps": state["global_step"]}
    metrics["protocol"] = {"used": protocol.name, "known": {name: one.meaning for name, one in PROTOCOLS.items()}}
    trained = typed(restore_config(state["config"]))  # not on the data it is scored on
    metrics["labels_used"] = labels_used(trained)
    counts = labelled_images(run, prepared.source)
    if counts and trained.data.supervision == "mixed" and metrics["data"]["fingerprint"] == state["data_fingerprint"]:
        metrics["labels_used"] += f": {images_in_words(counts)}"
    return Evaluation(metrics, shown, objects.worst())


def _scored(
    run: RunConfig,
    model: MultimodalSegmentor,
    prepared: Prepared,
    protocol: Protocol,
    on_progress: Callable[[int, int], None],
    on_found: OnFound | None = None,
) -> dict[str, Any]:
    """Return a model's scores on the validation split; ``on_found`` receives its predictions."""
    names, transform = prepared.source.class_names, build.build_transform(run, augment=False)
    rsc = ring_classes(run) if run.method.rsc else ()
    scores = SplitScores(names, protocol)
    for prediction in predict(model, prepared.val.frames, prepared.val.labels, transform, rsc, on_progress):
        scores.add(prediction)
        if on_found is not None:
            on_found(prediction)
    return scores.compute()


def for_protocol(run: RunConfig, protocol: Protocol) -> RunConfig:
    """Return the configuration under which a data set counts its classes as a protocol does.

    Only the validation split is then read, since the training frames were prepared for training.
    """
    if run.data.source.get("class_map", protocol.class_map) == protocol.class_map:
        return run
    source = {**run.data.source, "class_map": protocol.class_map}
    return replace(run, data=replace(run.data, source=source, train_split=run.data.val_split))


def trained_from(run: RunConfig, branch: str) -> str:
    """Say in words what the networks of a branch were trained from."""
    if run.finetune is not None:
        return labels_used(run)
    method = run.method
    if branch == "camera":
        said = [labels_used(run).removesuffix(" only")] + ["pseudo_ masks of its teacher (IPG)"] * method.ipg
        return ", ".join(said + ["the LiDAR teacher's points (CSCS)"] * method.cscs.lidar_to_camera)
    labels = f"spatial labels (SPG, {method.labels})" if method.spg_rings else "clusters"
    said = [f"pseudo_ {labels if method.spg else 'labels: every point inside a 2D box'} from 2D boxes"]
    said += ["its teacher's votes (PVC)"] * method.pvc
    said += ["ring segments (RSC)"] * method.rsc_labels
    return ", ".join(said + ["the camera teacher's masks (CSCS)"] * method.cscs.camera_to_lidar)
