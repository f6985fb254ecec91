"""What a report holds, and where in it each number and word is found.

The dataclasses a run fills in, and the questions the page asks of them. What is deliberately not here: HTML. Next:
`tables.py` and `html.py`, which write it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mwsis.evaluation.label_quality import ObjectScore
from mwsis.report.curves import Row, number

__all__ = [
    "CameraRow",
    "FrameGallery",
    "Metrics",
    "ObjectPicture",
    "Report",
    "data_name",
    "frame_counts",
    "grouped_digits",
    "headline_network",
    "labels_used",
    "network_scores",
    "networks",
    "trained_from",
    "validation_words",
]

Metrics = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class CameraRow:
    """The pictures of one camera, each (3, H, W) uint8, or None where there is nothing to show.

    Attributes:
        camera: the data set's name of the camera.
        boxes: image with its 2D boxes, the kind of label training uses.
        prediction: predicted masks.
        truth: ground-truth masks; None where the data set has none.
        points: projected LiDAR points in the colours of their pseudo labels.
    """

    camera: str
    boxes: Tensor | None
    prediction: Tensor | None
    truth: Tensor | None
    points: Tensor | None


@dataclass(frozen=True, eq=False)
class FrameGallery:
    """The pictures of one frame.

    Attributes:
        frame_id: the data set's name of the frame.
        cameras: one row of pictures per camera.
        gt_birds_eye: (3, H, W) uint8, ground-truth instances from above; None where the data set has none.
        pseudo_birds_eye: the labels made from the 2D boxes.
        predicted_birds_eye: predicted instances.
        split: part of the data set the frame is from.
        predicted_by: the network whose predictions are shown.
        min_score: predictions below this score are not drawn, in [0, 1].
    """

    frame_id: str
    cameras: tuple[CameraRow, ...]
    gt_birds_eye: Tensor | None = None
    pseudo_birds_eye: Tensor | None = None
    predicted_birds_eye: Tensor | None = None
    split: str = "val"
    predicted_by: str = "teacher"
    min_score: float = 0.3


@dataclass(frozen=True, eq=False)
class ObjectPicture:
    """The picture of one object as a network found it.

    Attributes:
        score: of the object.
        picture: (3, H, W) uint8, see `mwsis.report.label_pictures.draw_object`.
    """

    score: ObjectScore
    picture: Tensor


@dataclass(frozen=True, eq=False)
class Report:
    """Everything on the page.

    Attributes:
        title: of the page.
        metrics: the content of ``metrics.json``; a branch is None or missing when it was not trained or not scored.
        galleries: the frames to show.
        losses: rows of the loss log, see `mwsis.report.curves.loss_series`.
        scores_on_the_way: rows with step, network, branch, name and value, as `mwsis.training.score_log` writes them;
            without any the page says nothing about them.
        worst: the objects that the leading network found worst, the worst first.
        label_rows: rows with method, class, objects, point_iou, precision, recall, pooled_iou; None takes those of
            ``metrics["labels"]``.
        facts: provenance by name (see `provenance`); ``licence`` becomes a note of its own.
        config_yaml: the run's configuration.
        class_names: names by class index, for the legend.
        branches: what was trained; decides between "not trained" and "not scored" where metrics are missing.
        has_teacher: False for a method without one; only the student is then shown.
        trained_from: per branch, what its networks were trained from, in words; by default as ``metrics`` says.
    """

    title: str
    metrics: Metrics
    galleries: Sequence[FrameGallery] = ()
    losses: Sequence[Row] = ()
    scores_on_the_way: Sequence[Row] = ()
    worst: Sequence[ObjectPicture] = ()
    label_rows: Sequence[Row] | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    config_yaml: str = ""
    class_names: tuple[str, ...] = ("Vehicle", "Pedestrian", "Cyclist")
    branches: tuple[str, ...] = ("camera", "lidar")
    has_teacher: bool = True
    trained_from: Mapping[str, str] = field(default_factory=dict)


def networks(report: Report) -> tuple[str, ...]:
    """Return the networks of the run, the one whose numbers lead first: the teacher, because it gets exported."""
    return ("teacher", "student") if report.has_teacher else ("student",)


def network_scores(report: Report, branch: str, network: str) -> Metrics:
    """Return the scores of teacher or student of a branch; empty when it was not trained or not scored."""
    return (report.metrics.get(branch) or {}).get(network) or {}


def headline_network(report: Report) -> str | None:
    """Return the network whose numbers lead the page: the first with any score, or None."""
    for network in networks(report):
        for branch in report.branches:
            if any(number(value) is not None for value in network_scores(report, branch, network).values()):
                return network
    return None


def labels_used(report: Report) -> str:
    """Return what the run was given as labels, in words."""
    return str(report.metrics.get("labels_used") or "2D boxes only")


def trained_from(report: Report, branch: str) -> str:
    """Return what the networks of a branch were trained from, in words."""
    if branch in report.trained_from:
        return report.trained_from[branch]
    made = (report.metrics.get("labels") or {}).get("trained_on")
    return str(made) if branch == "lidar" and made else labels_used(report)


def data_name(report: Report) -> str:
    """Return the name of the data set."""
    return str((report.metrics.get("data") or {}).get("name") or "the data set")


def validation_words(report: Report) -> str:
    """Return what the scores were measured on, in words."""
    frames = number((report.metrics.get("data") or {}).get("val_frames"))
    counted = f"{grouped_digits(frames)} frames of " if frames is not None else ""
    return f"{counted}the validation split of {data_name(report)}"


def frame_counts(found: Metrics) -> str:
    """Return "train 24 · val 8" from ``train_frames`` and ``val_frames``, ``splits`` or plain counts by split."""
    splits = found.get("splits")
    counts = dict(splits) if isinstance(splits, Mapping) else {}
    counts |= {name.removesuffix("_frames"): value for name, value in found.items()}
    known = {name: grouped_digits(value) for name, value in counts.items() if isinstance(value, int)}
    return " · ".join(f"{name} {value}" for name, value in known.items())


def grouped_digits(value: object) -> str | None:
    """Return a count with thin spaces between thousands, or None for nothing."""
    found = number(value)
    return None if found is None else f"{round(found):,}".replace(",", "\u202f")
