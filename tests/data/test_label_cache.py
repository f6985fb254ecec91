from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from mwsis.core.errors import DataError
from mwsis.core.frame import Frame
from mwsis.core.instances import PointLabels
from mwsis.data.label_cache import FrameLabels, LabelCache, build_label_cache
from mwsis.data.store import FrameStore, build_store
from tests.data.frames_for_tests import RandomSource, assert_same


class Labeller:
    """Labels that depend on the frame; refuses to see truth; can be interrupted."""

    def __init__(self, fail_at: str | None = None) -> None:
        self.fail_at = fail_at
        self.calls: list[str] = []

    def __call__(self, frame: Frame) -> FrameLabels:
        assert frame.truth is None
        if frame.frame_id == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(frame.frame_id)
        return expected_labels(frame)


def expected_labels(frame: Frame) -> FrameLabels:
    ring = frame.points.ring.long()
    return FrameLabels(PointLabels(ring % 5 - 2, ring * 1000 - 1), frame.points.azimuth_column.long() * 700_000)


@pytest.fixture
def store(tmp_path: Path) -> FrameStore:
    return build_store(RandomSource(), "train", tmp_path / "store")


def test_labels_come_back(tmp_path: Path, store: FrameStore) -> None:
    cache = build_label_cache(store, Labeller(), tmp_path / "labels", "v1")
    assert len(cache) == 5
    for index in range(5):
        expected = expected_labels(store[index])
        small = FrameLabels(expected.pseudo, expected.ring_segment_id)
        assert_same(cache[index], small)
    assert_same(pickle.loads(pickle.dumps(cache))[-1], cache[4])
    with pytest.raises(IndexError):
        cache[5]


def test_interrupted_labelling_continues(tmp_path: Path, store: FrameStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_label_cache(store, Labeller(fail_at="b-4"), tmp_path / "labels", "v1")
    with pytest.raises(DataError, match="no index"):
        LabelCache(tmp_path / "labels")
    labeller, seen = Labeller(), []
    build_label_cache(store, labeller, tmp_path / "labels", "v1", lambda done, total: seen.append(done))
    assert labeller.calls == ["b-3", "b-4"]
    assert seen[-1] == 5
    assert seen == sorted(seen)


def test_only_a_changed_fingerprint_labels_again(tmp_path: Path, store: FrameStore) -> None:
    build_label_cache(store, Labeller(), tmp_path / "labels", "v1")
    same, changed, other_frames = Labeller(), Labeller(), Labeller()
    build_label_cache(store, same, tmp_path / "labels", "v1")
    build_label_cache(store, changed, tmp_path / "labels", "v2")
    rebuilt = build_store(RandomSource(version=2), "train", tmp_path / "store2")
    build_label_cache(rebuilt, other_frames, tmp_path / "labels", "v2")
    assert [len(labeller.calls) for labeller in (same, changed, other_frames)] == [0, 5, 5]


def test_truncated_cache_is_named(tmp_path: Path, store: FrameStore) -> None:
    build_label_cache(store, Labeller(), tmp_path / "labels", "v1")
    file = tmp_path / "labels" / "b.arrow"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"b\.arrow: expected labels of this project, got a truncated"):
        LabelCache(tmp_path / "labels")[4]


def test_unlabelled_frame() -> None:
    labels = FrameLabels.unlabelled(3)
    assert labels.pseudo.semantic_labels.tolist() == labels.ring_segment_id.tolist() == [-1, -1, -1]
    assert labels.pseudo.instance_ids.dtype == torch.int64
