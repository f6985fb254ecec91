"""Waymo's class IoU: the values its tool prints for its own files, and its rules on random files."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from waymo_open_dataset import dataset_pb2
from waymo_open_dataset.protos import segmentation_metrics_pb2, segmentation_pb2

from mwsis.core.errors import DataError
from mwsis.evaluation.waymo_segmentation import SEGMENTATION_CLASSES, segmentation_scores

SHARED = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[3] / "shared"))
OFFICIAL = SHARED / "data" / "waymo_metrics"
TOP, FRONT = dataset_pb2.LaserName.TOP, dataset_pb2.LaserName.FRONT


def compressed(classes: np.ndarray) -> bytes:
    message = dataset_pb2.MatrixInt32(data=classes.reshape(-1).tolist())
    message.shape.dims.extend(classes.shape)
    return zlib.compress(message.SerializeToString())


def write(path: Path, frames: dict[tuple[str, int], list[np.ndarray]], lidars: tuple[int, ...] = (TOP,)) -> Path:
    """Write a list of frames, each with its returns; no returns = no labels."""
    content = segmentation_metrics_pb2.SegmentationFrameList()
    for (segment, time), returns in frames.items():
        frame = content.frames.add(context_name=segment, frame_timestamp_micros=time)
        for name in lidars if returns else ():
            laser = frame.segmentation_labels.add(name=name)
            laser.ri_return1.segmentation_label_compressed = compressed(returns[0])
            laser.ri_return2.segmentation_label_compressed = compressed(returns[1])
    path.write_bytes(content.SerializeToString())
    return path


def point_by_point(frames: list[tuple[np.ndarray, np.ndarray]]) -> tuple[list[float], float]:
    """Slow, obvious: count hits and unions of the 22 classes over (predicted, true) numbers."""
    hits, unions = [0] * 23, [0] * 23
    for predicted, true in frames:
        for p, t in zip(predicted.reshape(-1).tolist(), true.reshape(-1).tolist(), strict=True):
            if not 1 <= t <= 22:
                continue
            unions[t] += 1
            if p == t:
                hits[t] += 1
            elif 1 <= p <= 22:
                unions[p] += 1
    ious = [hits[k] / unions[k] if unions[k] else 1.0 for k in range(1, 23)]
    return ious, sum(ious) / 22


@pytest.mark.real_data
def test_the_official_files_score_what_the_official_tool_prints():
    if not OFFICIAL.is_dir():
        pytest.skip(f"no files of the official tool at {OFFICIAL}; set MWSIS_SHARED")
    scores = segmentation_scores(
        OFFICIAL / "fake_segmentation_predictions.bin", OFFICIAL / "fake_segmentation_groundtruths.bin"
    )
    printed = dict.fromkeys(SEGMENTATION_CLASSES, 0.0) | {"CAR": 0.0434832, "PEDESTRIAN": 0.0434832}
    assert {name: scores[f"iou/{name}"] for name in SEGMENTATION_CLASSES} == pytest.approx(printed, abs=1e-7)
    assert scores["miou"] == pytest.approx(0.00395302, abs=1e-8)


def test_classes_are_those_of_the_format():
    numbers = segmentation_pb2.Segmentation.Type.items()
    assert [f"TYPE_{name}" for name in SEGMENTATION_CLASSES] == [name for name, number in sorted(numbers, key=second)][
        1:
    ]


def second(pair: tuple[str, int]) -> int:
    return pair[1]


@pytest.mark.parametrize("seed", range(8))
def test_equals_counting_point_by_point(tmp_path: Path, seed: int):
    rng = np.random.default_rng(seed)
    keys = [(f"segment-{seed}", time) for time in range(4)]
    highest = int(rng.integers(3, 26))  # classes that never occur, and numbers that are no class
    draw = {key: [rng.integers(-1, highest, (3, 7)) for _ in range(2)] for key in keys}
    gt = {
        key: [np.where(rng.random((3, 7)) < 0.5, one, rng.integers(0, highest, (3, 7))) for one in draw[key]]
        for key in keys
    }
    scores = segmentation_scores(write(tmp_path / "found", draw), write(tmp_path / "gt", gt))
    ious, mean = point_by_point([(ours, theirs) for key in keys for ours, theirs in zip(draw[key], gt[key])])
    assert [scores[f"iou/{name}"] for name in SEGMENTATION_CLASSES] == pytest.approx(ious, abs=1e-12)
    assert scores["miou"] == pytest.approx(mean, abs=1e-12)


def test_missing_predictions_are_misses_and_frames_without_ground_truth_do_not_count(tmp_path: Path):
    cars = [np.full((2, 3), 1), np.full((2, 3), 1)]
    gt = write(tmp_path / "gt", {("a", 0): cars, ("a", 1): cars, ("a", 2): cars, ("a", 3): []})
    found = write(tmp_path / "found", {("a", 0): cars, ("a", 2): [], ("a", 3): cars, ("b", 0): cars})
    scores = segmentation_scores(found, gt)
    assert scores["iou/CAR"] == pytest.approx(1 / 3)
    assert scores["iou/TRUCK"] == 1
    assert scores["miou"] == pytest.approx((21 + 1 / 3) / 22)


def test_instance_ids_are_no_classes(tmp_path: Path):
    """The official tool would score the ids: they are the first of two channels in a recorded frame."""
    classes = np.array([[1, 2], [7, 0]])
    recorded = np.stack([np.array([[2, 2], [2, 2]]), classes], 2)
    scores = segmentation_scores(
        write(tmp_path / "found", {("a", 0): [classes, classes]}), write(tmp_path / "gt", {("a", 0): [recorded] * 2})
    )
    assert set(scores.values()) == {1.0}


@pytest.mark.parametrize(
    ("found", "gt", "lidars", "words"),
    [
        ((2, 3), (2, 4), (TOP,), "expected rows and columns"),
        ((2, 3, 3), (2, 3), (TOP,), "got \\(2, 3, 3\\)"),
        ((2, 3), (2, 3), (TOP, FRONT), "expected labels of LiDAR 1 \\(TOP\\) only, got 1, 2"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, found, gt, lidars, words: str):
    first, second = (np.ones(size, dtype=int) for size in (found, gt))
    paths = write(tmp_path / "found", {("a", 5): [first] * 2}, lidars), write(tmp_path / "gt", {("a", 5): [second] * 2})
    with pytest.raises(DataError, match=words):
        segmentation_scores(*paths)


def test_files_of_another_kind_are_refused(tmp_path: Path):
    gt = write(tmp_path / "gt", {("a", 5): [np.ones((2, 3), dtype=int)] * 2})
    with pytest.raises(DataError, match="got none"):
        segmentation_scores(tmp_path / "nowhere", gt)
    (tmp_path / "other").write_bytes(b"\xff" * 40)
    with pytest.raises(DataError, match="got other bytes"):
        segmentation_scores(tmp_path / "other", gt)
    content = segmentation_metrics_pb2.SegmentationFrameList.FromString(gt.read_bytes())
    content.frames[0].segmentation_labels[0].ri_return2.segmentation_label_compressed = b""
    (tmp_path / "cut").write_bytes(content.SerializeToString())
    with pytest.raises(DataError, match="at 5: ri_return2"):
        segmentation_scores(tmp_path / "cut", gt)
