"""Run a trained segmentor over a split; what it finds is scored by `mwsis.evaluation.predictions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fusion.ring_correction import correct_by_ring_segment
from fusion.segmentor import MultimodalSegmentor
from fusion.transforms import PairedTransform
from mwsis.core.batch import Batch, move
from mwsis.core.frame import Frame
from mwsis.core.instances import PointInstances
from mwsis.data.dataset import FrameDataset, collate
from mwsis.data.label_cache import FrameLabels
from mwsis.evaluation.predictions import FramePrediction

__all__ = ["predict"]

Progress = Callable[[int, int], None]


@torch.no_grad()
def predict(
    segmentor: MultimodalSegmentor,
    frames: Sequence[Frame],
    labels: Sequence[FrameLabels],
    transform: PairedTransform,
    rsc_classes: tuple[int, ...] = (),
    on_progress: Progress | None = None,
) -> Iterator[FramePrediction]:
    """Yield a prediction per frame, all cameras, no augmentation.

    Args:
        segmentor: put into evaluation mode.
        frames, labels: of one split, same order.
        transform: a deterministic one.
        rsc_classes: classes whose predictions are made uniform within ring segments (RSC); () = off.
        on_progress: called with (done, total).
    """
    segmentor.eval()
    device = next(segmentor.parameters()).device
    samples = FrameDataset(frames, labels, transform, seed=0)
    for index in range(len(frames)):
        sample = samples[(index, 0)]
        batch: Batch = move(collate([sample]), device)
        detections = segmentor.camera.predict(batch.images) if segmentor.camera is not None else None
        points = segmentor.lidar.predict(batch.points)[0] if segmentor.lidar is not None else None
        if points is not None and rsc_classes:
            points = _corrected(points, batch.points.ring_segment_id, rsc_classes)
        yield FramePrediction(frames[index], sample.pseudo, sample.point_index, detections, move(points, "cpu"))
        if on_progress is not None:
            on_progress(index + 1, len(frames))


def _corrected(points: PointInstances, ring_segment_id: Tensor, classes: tuple[int, ...]) -> PointInstances:
    """Apply ring-segment correction; a point whose class changes leaves its instance."""
    corrected = correct_by_ring_segment(points.semantic_labels, ring_segment_id, classes)
    instance_ids = torch.where(corrected == points.semantic_labels, points.instance_ids, -1)
    return PointInstances(corrected, instance_ids, points.labels, points.scores)
