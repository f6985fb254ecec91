"""What a data set's frames hold, as one short text: equal where frames are the same, whoever made them and where.

Made from what survives another machine's last bit: names, boxes, classes, counts of points and mask pixels, and means
that are rounded once (a frame's points to 1 cm, a split's colours to two grey levels). Single coordinates are left out
on purpose: of a million, however coarsely rounded, some lie on the edge between two values. Who asks: `prepare.py` of
`mwsis.training`, for benchmarks whose frames are generated and must not change unnoticed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mwsis.core.frame import CameraView, Frame, FrameTruth

__all__ = ["content_digest"]


def content_digest(splits: Iterable[Iterable[Frame]]) -> str:
    """Return 16 hexadecimal digits that change with the frames of some splits, their order and their labels.

    A change that keeps every count, every box and the mean point of each frame, such as a little more noise, is not
    seen.

    Args:
        splits: the frames of each, in order; each frame is read once.

    Complexity:
        Reads and decodes everything: about a second for 40 frames of the street world.
    """
    digest = hashlib.sha256()
    for frames in splits:
        colours = []
        for frame in frames:
            digest.update(repr(_frame_facts(frame)).encode())
            colours += [_mean_colour(view.image) for view in frame.cameras]
        digest.update(repr(_halves(colours)).encode())
    return digest.hexdigest()[:16]


def _frame_facts(frame: Frame) -> tuple[Any, ...]:
    points = frame.points
    mean = points.xyz.double().mean(0).tolist() if len(points) else []
    return (
        frame.frame_id,
        torch.bincount(points.ring.long() + 1).tolist(),
        [round(100 * metres) for metres in mean],
        [_view_facts(view) for view in frame.cameras],
        None if frame.truth is None else _truth_facts(frame.truth),
    )


def _view_facts(view: CameraView) -> tuple[Any, ...]:
    labels = view.labels
    hundredths = (100 * labels.boxes.double()).round().long()
    return view.name, hundredths.tolist(), labels.labels.tolist(), labels.ignore.tolist()


def _truth_facts(truth: FrameTruth) -> tuple[Any, ...]:
    areas = [None if image is None else image.masks.areas().tolist() for image in truth.images]
    return _counts(truth.semantic_labels), _counts(truth.instance_ids), truth.box3d_labels.tolist(), areas


def _counts(values: Tensor) -> list[tuple[int, int]]:
    found, counts = np.unique(values.numpy(), return_counts=True)
    return list(zip(found.tolist(), counts.tolist(), strict=True))


def _halves(colours: list[list[float]]) -> list[int]:
    return [round(level / 2) for level in np.mean(colours, 0).tolist()] if colours else []


def _mean_colour(image: bytes) -> list[float]:
    """Return the mean of red, green and blue, 0 to 255."""
    mean: list[float] = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).mean((0, 1)).tolist()
    return mean
