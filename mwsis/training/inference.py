"""Run a trained segmentor over a split; what it finds is scored by `mwsis.evaluation.predictions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from fusion.ring_correction import correct_by_ring_segment
from fusion.segmentor import MultimodalSegmentor
from fusion.transforms import PairedTransform
from mwsis.core.batch import Batch, move
from mwsis.core.frame import Frame
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
        rsc_classes: classes that are made uniform within ring segments before points are grouped (RSC); () = off.
        on_progress: called with (done, total).
    """
    segmentor.eval()
    device = next(segmentor.parameters()).device
    samples = FrameDataset(frames, labels, transform, seed=0)
    for index in range(len(frames)):
        sample = samples[(index, 0)]
        batch: Batch = move(collate([sample]), device)
        detections = segmentor.camera.predict(batch.images) if segmentor.camera is not None else None
        segments = batch.points.ring_segment_id
        relabel = None
        if rsc_classes:
            relabel = partial(correct_by_ring_segment, ring_segment_id=segments, classes=rsc_classes)
        points = segmentor.lidar.predict(batch.points, relabel)[0] if segmentor.lidar is not None else None
        yield FramePrediction(frames[index], sample.pseudo, sample.point_index, detections, move(points, "cpu"))
        if on_progress is not None:
            on_progress(index + 1, len(frames))
