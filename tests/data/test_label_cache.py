from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from mwsis.core.errors import DataError
from mwsis.core.frame import Frame
from mwsis.core.instances import PointLabels
from mwsis.data.label_cache import FrameLabels, LabelCache
from mwsis.data.store import FrameStore
from tests.data.frames_for_tests import RandomSource, assert_same, converted


def expected_labels(frame: Frame) -> FrameLabels:
    assert frame.truth is None
    ring = frame.points.ring.long()
    pseudo = PointLabels(ring % 5 - 2, ring * 1000 - 1, (ring * 37 % 256).float() / 255)
    return FrameLabels(pseudo, frame.points.azimuth_column.long() * 700_000)


def test_labels_come_back(tmp_path: Path) -> None:
    plan = converted(RandomSource(), tmp_path, expected_labels)
    cache = LabelCache(plan.labels.root)
    assert len(cache) == 5
    for index, frame in enumerate(FrameStore(plan.frames.root)):
        assert_same(cache[index], expected_labels(frame.without_truth()))
    assert_same(pickle.loads(pickle.dumps(cache))[-1], cache[4])
    with pytest.raises(IndexError):
        cache[5]


def test_labels_without_a_confidence_are_certain(tmp_path: Path) -> None:
    def certain(frame: Frame) -> FrameLabels:
        labels = expected_labels(frame)
        return FrameLabels(
            PointLabels(labels.pseudo.semantic_labels, labels.pseudo.instance_ids), labels.ring_segment_id
        )

    cache = LabelCache(converted(RandomSource(), tmp_path, certain).labels.root)
    assert {float(value) for labels in cache for value in labels.pseudo.confidence} == {1.0}


def test_only_other_settings_or_frames_label_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def counting(frame: Frame) -> FrameLabels:
        calls.append(frame.frame_id)
        return expected_labels(frame)

    for source, settings, expected in (
        (RandomSource(), "v1", 5), (RandomSource(), "v1", 0), (RandomSource(), "v2", 5), (RandomSource(2), "v2", 5),
    ):  # fmt: skip
        calls.clear()
        converted(source, tmp_path, counting, settings)
        assert len(calls) == expected


def test_truncated_cache_is_named(tmp_path: Path) -> None:
    root = converted(RandomSource(), tmp_path, expected_labels).labels.root
    file = root / "b.arrow"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"b\.arrow: expected labels of this project, got a truncated"):
        LabelCache(root)[4]
    (root / "index.json").unlink()
    with pytest.raises(DataError, match="no index"):
        LabelCache(root)


def test_unlabelled_frame() -> None:
    labels = FrameLabels.unlabelled(3)
    assert labels.pseudo.semantic_labels.tolist() == labels.ring_segment_id.tolist() == [-1, -1, -1]
    assert labels.pseudo.instance_ids.dtype == torch.int64
