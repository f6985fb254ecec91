"""Fine-tune on given labels: the model, the labelled subset, the run of one learning rate, its scores.

The training itself is `run.fit`, as for pretraining. Data are `finetune_data.py`, losses `finetune_step.py`, weights to
start from `finetune_init.py`. The command is `tools/finetune.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from hydra.utils import get_method

from fusion.segmentor import MultimodalSegmentor
from lidar.detection.detector import CenterPoint, build_center_point
from lidar.detection.object_bank import ObjectBank
from lidar.detection.sweep import LabelledSweep
from lidar.segmentor import LidarSegmentor
from lidar.transforms import RotateScaleFlip
from mwsis.core.boxes3d import bev_iou
from mwsis.core.errors import ConfigError
from mwsis.core.files import write_json
from mwsis.core.geometry import points_in_boxes3d
from mwsis.data.sampler import seeded_generator
from mwsis.data.source import Source
from mwsis.evaluation.detection3d import DetectionEvaluator3D, Detections3D, Objects3D, point_levels
from mwsis.evaluation.predictions import SplitScores
from mwsis.training import build, checkpoint
from mwsis.training.config import NETWORKS, RunConfig
from mwsis.training.finetune_data import (
    LabelledFrames,
    SweepTransform,
    SweptFrames,
    collate_sweeps,
    labelled_segments,
)
from mwsis.training.finetune_init import start_from
from mwsis.training.finetune_step import FineTuningStep, task_losses
from mwsis.training.folder import RunFolder
from mwsis.training.inference import predict
from mwsis.training.lidar_branch import LIDAR_SEED, build_lidar, set_bn_momentum
from mwsis.training.prepare import Prepared
from mwsis.training.run import fit

__all__ = ["LabelledSubset", "build_model", "fine_tune", "labelled_subset", "score", "with_lr_scale"]

OnProgress = Callable[[int, int], None]
LOOSE_BEV_IOU = {"Vehicle": 0.5, "Pedestrian": 0.3, "Cyclist": 0.3}
"""Overlaps from above that count as found in the ``bev_`` scores, beside Waymo's (.7, .5, .5 in space): a training of
minutes seldom reaches those."""


@dataclass(frozen=True)
class LabelledSubset:
    """What of a split may be learned from.

    Attributes:
        segments: names, in the seeded order.
        num_segments: of the whole split.
        indices: their frames, in the order of the store.
    """

    segments: tuple[str, ...]
    num_segments: int
    indices: tuple[int, ...]


def labelled_subset(run: RunConfig, source: Source, frame_ids: list[str]) -> LabelledSubset:
    """Return the segments that ``finetune.label_fraction`` leaves, and their frames.

    Args:
        run: configuration; its seed decides the order.
        source: knows the segment of a frame.
        frame_ids: of the training split.
    """
    assert run.finetune is not None
    segment_of = [source.segment_of(frame_id) for frame_id in frame_ids]
    every = list(dict.fromkeys(segment_of))
    segments = labelled_segments(every, run.finetune.label_fraction, run.seed)
    indices = tuple(index for index, segment in enumerate(segment_of) if segment in set(segments))
    return LabelledSubset(tuple(segments), len(every), indices)


def with_lr_scale(run: RunConfig, scale: float) -> RunConfig:
    """Return the configuration of one run of the learning-rate sweep."""
    assert run.finetune is not None
    optim = replace(run.lidar.optim, lr=run.lidar.optim.lr * scale)
    return replace(run, lidar=replace(run.lidar, optim=optim), finetune=replace(run.finetune, lr_scale=[scale]))


def build_model(run: RunConfig, num_classes: int) -> LidarSegmentor | CenterPoint:
    """Return the untrained model of a task, its weights a function of the seed alone.

    Raises:
        ConfigError: a setting does not fit the network.
    """
    assert run.finetune is not None
    if run.finetune.task != "detection":
        return build_lidar(run, num_classes)
    sizes = run.finetune.detector
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed * 10 + LIDAR_SEED)
        detector = build_center_point(
            get_method(NETWORKS[run.lidar.network]),
            num_classes,
            tuple(run.lidar.voxel_size),
            tuple(run.data.point_cloud_range),
            neck_layers=sizes.neck_layers,
            neck_channels=sizes.neck_channels,
            neck_up_channels=sizes.neck_up_channels,
            upsample=sizes.upsample,
            head_channels=sizes.head_channels,
            decoder=sizes.decoder,
            score_threshold=sizes.score_threshold,
            nms_iou=sizes.nms_iou,
        )
    set_bn_momentum(detector, run.lidar.bn_momentum)
    return detector


def fine_tune(run: RunConfig, folder: RunFolder, prepared: Prepared) -> bool:
    """Train, or continue, one run on the labelled subset.

    Args:
        run: with one learning rate (`with_lr_scale`).
        folder: where the run is kept; ``labelled_segments.json`` says which labels it saw.
        prepared: the data set.

    Returns:
        True when the run is complete, False when it was interrupted and can be resumed.
    """
    assert run.finetune is not None
    subset = labelled_subset(run, prepared.source, prepared.train.frames.frame_ids)
    frames = LabelledFrames(prepared.train.frames, subset.indices)
    facts = {"label_fraction": run.finetune.label_fraction, "num_segments": subset.num_segments}
    write_json(folder.root / "labelled_segments.json", {**facts, "segments": subset.segments, "frames": len(frames)})
    samples = SweptFrames(frames, _transform(run, frames, prepared.num_classes), run.seed, run.data.only_in_image)
    step = partial(_new_step, run, prepared.num_classes, not folder.checkpoint.exists())
    return fit(run, folder, prepared.source, step, samples, collate_sweeps)


def _transform(run: RunConfig, frames: LabelledFrames, num_classes: int) -> SweepTransform:
    assert run.finetune is not None
    bounds, wanted = tuple(run.data.point_cloud_range), tuple(run.finetune.paste)
    if wanted and len(wanted) != num_classes:
        raise ConfigError(f"finetune.paste: expected {num_classes} numbers, one for each class, got {list(wanted)}")
    bank = None
    if wanted:
        sweeps = (LabelledSweep.of(frame, run.data.only_in_image).cropped(bounds) for frame in frames)
        bank = ObjectBank(sweeps, num_classes, run.finetune.paste_min_points)
    augment = RotateScaleFlip(rotation_deg=run.data.rotation_deg, scale=run.data.scale_jitter)
    return SweepTransform(bounds, augment, bank, wanted)


def _new_step(run: RunConfig, num_classes: int, start: bool) -> FineTuningStep:
    model = build_model(run, num_classes)
    if start:
        start_from(run, model)
    return FineTuningStep(model, task_losses(run, model))


def score(run: RunConfig, folder: RunFolder, prepared: Prepared, on_progress: OnProgress) -> dict[str, Any]:
    """Return the scores of a finished run on the validation split, against ``gt_`` labels.

    Args:
        run: configuration.
        folder: of the run.
        prepared: the data set.
        on_progress: called with (done, total).

    Returns:
        ``steps``, ``skipped_steps``, ``scores`` by name, and ``rows``: by range, size and class. Boxes have Waymo's
        scores (`DetectionEvaluator3D`), and ``bev_`` ones by `LOOSE_BEV_IOU`.
    """
    assert run.finetune is not None
    state = checkpoint.read_run_checkpoint(folder.checkpoint)
    step = _new_step(run, prepared.num_classes, start=False)
    checkpoint.restore(state, step, str(folder.checkpoint))
    model = step.student["lidar"]
    assert isinstance(model, LidarSegmentor | CenterPoint)
    judge = _score_boxes if isinstance(model, CenterPoint) else _score_points
    scores, rows = judge(run, model, prepared, on_progress)  # type: ignore[arg-type]
    return {
        "steps": state["global_step"],
        "skipped_steps": state["skipped_steps"],
        "scores": scores,
        "rows": rows,
    }


@torch.no_grad()
def _score_boxes(
    run: RunConfig, model: CenterPoint, prepared: Prepared, on_progress: OnProgress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score 3D boxes, over the objects whose centre lies in the range: as Waymo does, and loosely from above."""
    model.eval()
    names = prepared.source.class_names
    strict = DetectionEvaluator3D(names)
    loose = DetectionEvaluator3D(names, [LOOSE_BEV_IOU[name] for name in names], bev_iou)
    frames, transform = prepared.val.frames, SweepTransform(tuple(run.data.point_cloud_range))
    for index in range(len(frames)):
        sweep = transform(LabelledSweep.of(frames[index], run.data.only_in_image), seeded_generator())
        found = model.predict(collate_sweeps([sweep]).points)[0]
        assert found.scores is not None
        gt = sweep.gt_boxes
        levels = point_levels(points_in_boxes3d(sweep.xyz, gt.boxes3d).sum(0))
        detections = Detections3D(sweep.frame_id, found.boxes3d, found.labels, found.scores)
        objects = Objects3D(sweep.frame_id, gt.boxes3d, gt.labels, levels)
        for evaluator in (strict, loose):
            evaluator.add(detections, objects)
        on_progress(index + 1, len(frames))
    seen = {f"bev_{name}": value for name, value in loose.compute().items() if name != "num_objects"}
    return strict.compute() | seen, strict.rows()


def _score_points(
    run: RunConfig, model: LidarSegmentor, prepared: Prepared, on_progress: OnProgress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score points as the LiDAR branch of a pretraining run is scored."""
    scores = SplitScores(prepared.source.class_names)
    transform = replace(build.build_transform(run, augment=False), load_images=False)
    segmentor = MultimodalSegmentor(None, model)
    for found in predict(segmentor, prepared.val.frames, prepared.val.labels, transform, (), on_progress):
        scores.add(found)
    computed = scores.compute()
    return computed["lidar"] or {}, computed["lidar_rows"] or []
