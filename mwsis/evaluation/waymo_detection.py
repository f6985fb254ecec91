"""Waymo's own score of 3D boxes for two ``Objects`` files, without its tool.

The arithmetic is that of `detection3d.py`; here are the file format, the four types and the tool's names. Not here: how
boxes of ours are written (`mwsis.data.box_files`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from mwsis.core.errors import DataError
from mwsis.data.waymo.messages import metrics_pb2
from mwsis.evaluation.detection3d import DetectionEvaluator3D, Detections3D, Objects3D, point_levels

__all__ = ["DETECTION_CLASSES", "detection_rows", "read_objects"]

DETECTION_CLASSES = ("VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST")
"""The number in the files is one more than the index here, 0 is unknown."""
MIN_IOUS = (0.7, 0.5, 0.5, 0.5)


def read_objects(path: Path) -> dict[str, list[Any]]:
    """Return the objects of an ``Objects`` file by frame, named ``<segment>/<microseconds>/<camera number>``.

    Raises:
        DataError: there is no such file, or it is of another kind.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected an Objects file, got none; check the path")
    try:
        content = metrics_pb2.Objects.FromString(path.read_bytes())
    except DecodeError:
        raise DataError(f"{path}: expected an Objects file, got other bytes; check the path") from None
    frames: dict[str, list[Any]] = {}
    for item in content.objects:
        name = f"{item.context_name}/{item.frame_timestamp_micros}/{item.camera_name}"
        frames.setdefault(name, []).append(item)
    return frames


def detection_rows(predictions: Path, ground_truth: Path) -> list[dict[str, Any]]:
    """Return what Waymo's ``compute_detection_metrics_main`` prints for two files.

    Args:
        predictions: ``Objects`` file.
        ground_truth: likewise; objects without LiDAR points are left out.

    Returns:
        See `DetectionEvaluator3D.rows`; classes are `DETECTION_CLASSES`. The tool prints 0 where here is no row.

    Raises:
        DataError: a file cannot be read.
    """
    found, wanted = read_objects(predictions), read_objects(ground_truth)
    evaluator = DetectionEvaluator3D(DETECTION_CLASSES, MIN_IOUS)
    for frame in sorted({*found, *wanted}):
        claims, objects = found.get(frame, []), wanted.get(frame, [])
        scores = torch.tensor([item.score for item in claims], dtype=torch.float32)
        unlabelled = torch.tensor([item.overlap_with_nlz for item in claims], dtype=torch.bool)
        num_points = _integers(item.object.num_lidar_points_in_box for item in objects)
        marked = _integers(item.object.detection_difficulty_level for item in objects)
        evaluator.add(
            Detections3D(frame, _boxes(claims), _labels(claims), scores, unlabelled),
            Objects3D(frame, _boxes(objects), _labels(objects), point_levels(num_points, marked)),
        )
    return evaluator.rows()


def _boxes(items: list[Any]) -> Tensor:
    boxes = (item.object.box for item in items)
    rows = [(box.center_x, box.center_y, box.center_z, box.length, box.width, box.height, box.heading) for box in boxes]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 7).float()


def _labels(items: list[Any]) -> Tensor:
    return _integers(item.object.type - 1 for item in items)


def _integers(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)
