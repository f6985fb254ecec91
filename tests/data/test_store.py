from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch

from mwsis.core.errors import DataError
from mwsis.data.store import FrameStore, RecordFile, plan_store, write_frames
from tests.data.frames_for_tests import RandomSource, assert_same, converted, random_frame


def test_frames_come_back_bit_for_bit(tmp_path: Path) -> None:
    frames = [random_frame(seed, num_points) for seed, num_points in ((0, 51), (1, 7), (2, 1), (4, 0))]
    write_frames(tmp_path / "drive.arrow", frames)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = FrameStore(tmp_path / "drive.arrow")
        for index, frame in enumerate(frames):
            assert_same(store[index], frame)
    assert store.frame_ids == [frame.frame_id for frame in frames]
    assert store.num_points == [51, 7, 1, 0]
    assert_same(store[-1], frames[-1])
    assert [frame.frame_id for frame in store[1:3]] == store.frame_ids[1:3]
    with pytest.raises(IndexError):
        store[4]


def test_tensors_alias_the_file(tmp_path: Path) -> None:
    write_frames(tmp_path / "drive.arrow", [random_frame(0)])
    store = FrameStore(tmp_path / "drive.arrow")
    assert store[0].points.xyz.data_ptr() == store[0].points.xyz.data_ptr()
    assert store[0].points.xyz.data_ptr() % 8 == 0
    xyz = store[0].points.xyz
    expected = random_frame(0).points.xyz
    del store  # the mapping lives as long as a tensor does
    assert torch.equal(xyz, expected)


def test_truth_has_columns_of_its_own(tmp_path: Path) -> None:
    write_frames(tmp_path / "drive.arrow", [random_frame(0)])
    _, parts = RecordFile(tmp_path / "drive.arrow", "frames").read(0, ("inputs",))
    assert set(parts) == {"inputs"}


def test_store_reopens_after_pickling(tmp_path: Path) -> None:
    store = FrameStore(converted(RandomSource(), tmp_path).frames.root)
    _ = store[0]
    again = pickle.loads(pickle.dumps(store))
    assert_same(again[3], store[3])


def test_frames_of_several_files_come_in_order(tmp_path: Path) -> None:
    source = RandomSource()
    store = FrameStore(converted(source, tmp_path).frames.root)
    assert store.frame_ids == source.frame_ids("train")
    assert_same(store[4], source.read("b-4"))


def test_truncated_file_is_named(tmp_path: Path) -> None:
    root = converted(RandomSource(), tmp_path).frames.root
    file = root / "b.arrow"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"b\.arrow: expected \d+ bytes, got"):
        FrameStore(root)
    converted(RandomSource(), tmp_path)
    assert_same(FrameStore(root)[4], RandomSource().read("b-4"))


@pytest.mark.parametrize("content", [b"", b"hello, I am no Arrow file" * 10, b"ARROW1\0\0" + b"\0" * 100])
def test_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.arrow").write_bytes(content)
    with pytest.raises(DataError, match="truncated or foreign"):
        FrameStore(tmp_path / "x.arrow")


def test_other_kind_of_file_is_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "x.arrow", [random_frame(0)])
    with pytest.raises(DataError, match="expected labels"):
        RecordFile(tmp_path / "x.arrow", "labels")


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": 0, "segments": []})])
def test_foreign_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=r"index\.json: not the index"):
        FrameStore(tmp_path)


def test_store_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("x")
    with pytest.raises(DataError, match="expected a folder"):
        plan_store(RandomSource(), "train", tmp_path / "store")


def test_unfinished_store_is_no_store(tmp_path: Path) -> None:
    root = converted(RandomSource(), tmp_path).frames.root
    (root / "index.json").unlink()
    with pytest.raises(DataError, match="no index"):
        FrameStore(root)
