"""Waymo's own score of classes per LiDAR point: its 22 classes, its files, its arithmetic.

What its command-line tool prints for a file of predictions and one of ground truth, without the tool. The counting is
that of `point_semantics.py`, range images are decoded by `mwsis.data.waymo.wire`. Not here: the three classes that
`mwsis` trains (`mwsis.data.waymo.classes`) and how a submission is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from mwsis.core.errors import DataError
from mwsis.core.instances import IGNORE
from mwsis.data.waymo.classes import LIDAR_CLASSES
from mwsis.data.waymo.messages import segmentation_metrics_pb2
from mwsis.data.waymo.record import LidarName
from mwsis.data.waymo.wire import decode_matrix
from mwsis.evaluation.point_semantics import PointSemanticEvaluator

__all__ = ["SEGMENTATION_CLASSES", "SegmentedFrame", "read_segmentation_frames", "segmentation_scores"]

SEGMENTATION_CLASSES = tuple(name for name, *_ in LIDAR_CLASSES[1:])
"""The 22 scored classes; the number in the files is one more than the index here, 0 is undefined."""
CLASS_CHANNEL = 1
"""Of (instance id, class), the two channels of the labels in a recorded frame."""


@dataclass(frozen=True)
class SegmentedFrame:
    """The classes of one sweep of the TOP LiDAR, still compressed: a split would not fit into memory.

    Attributes:
        place: file, segment and time, for errors.
        returns: first and second return, zlib streams of ``MatrixInt32``; none where the frame has no labels.
    """

    place: str
    returns: tuple[bytes, ...]

    def labels(self) -> list[Tensor]:
        """Return (H, W) int64 per return: index into `SEGMENTATION_CLASSES`, or `IGNORE` for any other number.

        Raises:
            DataError: the labels cannot be decoded, or are neither (H, W) classes nor (H, W, 2) ids and classes.
        """
        return [self._decoded(number, compressed) for number, compressed in enumerate(self.returns, start=1)]

    def _decoded(self, number: int, compressed: bytes) -> Tensor:
        try:
            recorded = decode_matrix(compressed, np.int32)
        except ValueError as error:
            raise DataError(f"{self.place}: ri_return{number}: {error}; write the file again") from None
        if recorded.ndim == 3 and recorded.shape[2] == 2:
            recorded = recorded[..., CLASS_CHANNEL]
        if recorded.ndim != 2:
            expected = "expected (rows, columns) of classes or (rows, columns, 2) of ids and classes"
            raise DataError(f"{self.place}: ri_return{number}: {expected}, got {recorded.shape}; write classes only")
        labels = torch.from_numpy(recorded.astype(np.int64)) - 1
        return labels.where((labels >= 0) & (labels < len(SEGMENTATION_CLASSES)), IGNORE)


def read_segmentation_frames(path: Path) -> dict[tuple[str, int], SegmentedFrame]:
    """Return the frames of a ``SegmentationFrameList`` file by segment and time (microseconds).

    Of two frames of the same segment and time the last counts, as in Waymo's tool.

    Raises:
        DataError: there is no such file, it is of another kind, or a frame has labels of another LiDAR than TOP.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected a SegmentationFrameList file, got none; check the path")
    try:
        content = segmentation_metrics_pb2.SegmentationFrameList.FromString(path.read_bytes())
    except DecodeError:
        raise DataError(f"{path}: expected a SegmentationFrameList, got other bytes; check the path") from None
    return {
        (frame.context_name, frame.frame_timestamp_micros): _segmented(
            f"{path}: {frame.context_name} at {frame.frame_timestamp_micros}", frame.segmentation_labels
        )
        for frame in content.frames
    }


def segmentation_scores(predictions: Path, ground_truth: Path) -> dict[str, float]:
    """Return what Waymo's ``compute_segmentation_metrics_main`` prints for two files.

    Points without a true class are left out; points with one but no predicted class, also those of frames that are not
    among the predictions, are misses. Frames without ground truth are left out.

    Args:
        predictions: ``SegmentationFrameList`` file.
        ground_truth: likewise.

    Returns:
        ``iou/<class>`` of `SEGMENTATION_CLASSES`, 1 for a class that occurs in neither file; ``miou``, the mean of
        all 22.

    Raises:
        DataError: a file cannot be read, or a prediction and its ground truth differ in returns, rows or columns.

    Source: Waymo Open Dataset, ``metrics/segmentation_metrics.cc`` and ``compute_segmentation_metrics_main.cc``.
    *Corrected*: of labels with two channels the instance ids are not scored as classes. *Simplified*: a LiDAR other
    than TOP is refused in predictions too, where the tool counts all points of the frame as misses.
    """
    found, wanted = read_segmentation_frames(predictions), read_segmentation_frames(ground_truth)
    evaluator = PointSemanticEvaluator(SEGMENTATION_CLASSES, absent_is_right=True)
    for key, truth in wanted.items():
        gt = truth.labels()
        claimed = found.get(key)
        predicted = [torch.full_like(labels, IGNORE) for labels in gt]
        if gt and claimed is not None and claimed.returns:
            predicted = claimed.labels()
            _require_same_sizes(claimed.place, predicted, gt)
        for ours, theirs in zip(predicted, gt, strict=True):
            evaluator.add(ours.flatten(), theirs.flatten())
    return evaluator.compute()


def _segmented(place: str, lasers: Sequence[Any]) -> SegmentedFrame:
    if not lasers:
        return SegmentedFrame(place, ())
    if [laser.name for laser in lasers] != [LidarName.TOP]:
        names = ", ".join(str(laser.name) for laser in lasers)
        raise DataError(f"{place}: expected labels of LiDAR 1 (TOP) only, got {names}; leave the others out")
    compressed = (one.segmentation_label_compressed for one in (lasers[0].ri_return1, lasers[0].ri_return2))
    return SegmentedFrame(place, tuple(compressed))


def _require_same_sizes(place: str, predicted: Sequence[Tensor], gt: Sequence[Tensor]) -> None:
    sizes, wanted = ([tuple(labels.shape) for labels in one] for one in (predicted, gt))
    if sizes != wanted:
        raise DataError(f"{place}: expected rows and columns {wanted} as in the ground truth, got {sizes}")
