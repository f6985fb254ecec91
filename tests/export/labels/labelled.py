"""Labelled frames for tests: random masks with holes, labels of every kind."""

from __future__ import annotations

import torch

from mwsis.core.frame import Frame
from mwsis.core.instances import Detections, MaskSet, PointLabels
from mwsis.export.labels.exporter import LabelledFrame

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")


class Drive:
    """A data set as far as exports ask."""

    name = "street"
    class_names = CLASSES


def labelled(frame: Frame, seed: int = 0, num_masks: int = 4) -> LabelledFrame:
    """Return a frame with random labels and masks."""
    draw = torch.Generator().manual_seed(seed)
    num_points = len(frame.points)
    points = PointLabels(
        torch.randint(-2, len(CLASSES), (num_points,), generator=draw),
        torch.randint(-1, 70, (num_points,), generator=draw),
    )
    detections = []
    for view in frame.cameras:
        size = (view.camera.height, view.camera.width)
        masks = [MaskSet.tight_crop(torch.rand(size, generator=draw) < 0.6) for _ in range(num_masks)]
        corners = torch.tensor([box for box, _ in masks]).reshape(-1, 4)
        scores = torch.rand(num_masks, generator=draw).sort(descending=True).values
        labels = torch.randint(0, len(CLASSES), (num_masks,), generator=draw)
        found = MaskSet.from_crops(*size, corners, [bits for _, bits in masks])
        detections.append(Detections(corners.float() + 0.25, labels, scores, found))
    return LabelledFrame(frame, points, detections)
