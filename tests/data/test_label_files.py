"""Label files: what is written is what any reader of SemanticKITTI labels reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mwsis.core.errors import DataError
from mwsis.core.instances import BACKGROUND, IGNORE, PointLabels
from mwsis.data.label_files import LabelWriter, label_file_name, read_labels

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")


def labels(rows: list[tuple[int, int]]) -> PointLabels:
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
    return PointLabels(table[:, 0], table[:, 1])


ROWS = [(0, 0), (2, 7), (BACKGROUND, -1), (IGNORE, -1), (1, 65534)]


def test_bytes_on_disk(tmp_path):
    LabelWriter(tmp_path, CLASSES).add("7", labels(ROWS))
    recorded = (tmp_path / "7.label").read_bytes()
    assert len(recorded) == 4 * len(ROWS)
    codes = np.frombuffer(recorded, dtype="<u4")
    assert (codes & 0xFFFF).tolist() == [2, 4, 1, 0, 3]
    assert (codes >> 16).tolist() == [1, 8, 0, 0, 65535]


@given(st.lists(st.tuples(st.sampled_from([IGNORE, BACKGROUND, 0, 1, 2]), st.integers(-1, 65534))))
def test_round_trip(tmp_path_factory, rows):
    folder, made = tmp_path_factory.mktemp("labels"), labels(rows)
    LabelWriter(folder, CLASSES).add("7", made)
    again = read_labels(folder / "7.label")
    assert torch.equal(again.semantic_labels, made.semantic_labels)
    assert torch.equal(again.instance_ids, made.instance_ids)


def test_the_index_says_what_is_there(tmp_path):
    writer = LabelWriter(tmp_path / "labels", CLASSES)
    writer.add("7", labels(ROWS))
    writer.add("drive/8", labels(ROWS[:2]))
    assert not (tmp_path / "labels" / "labels.json").exists()
    writer.finish({"method": {"name": "spg"}})
    index = json.loads((tmp_path / "labels" / "labels.json").read_text())
    assert index["codes"] == {"0": "unlabelled", "1": "other", "2": "Vehicle", "3": "Pedestrian", "4": "Cyclist"}
    assert index["class_names"] == list(CLASSES)
    assert index["method"] == {"name": "spg"}
    assert {name: entry["num_points"] for name, entry in index["frames"].items()} == {"7": 5, "drive/8": 2}
    for entry in index["frames"].values():
        assert len(read_labels(tmp_path / "labels" / entry["file"])) == entry["num_points"]


def test_a_second_run_withdraws_the_index_of_the_first(tmp_path):
    first = LabelWriter(tmp_path, CLASSES)
    first.add("7", labels(ROWS))
    first.finish({})
    LabelWriter(tmp_path, CLASSES)
    assert not (tmp_path / "labels.json").exists()
    assert len(read_labels(tmp_path / "7.label")) == len(ROWS)


@given(st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=20))
def test_file_names_are_distinct_and_stay_in_the_folder(frame_ids):
    names = [label_file_name(frame_id) for frame_id in frame_ids]
    assert len(set(names)) == len(names)
    for name in names:
        assert not set(name) & set("/\\\0:")
        assert not name.startswith(".")


@pytest.mark.parametrize("frame_id", ["../../7", "/etc/7", "..", ".hidden", "a b/ü:7"])
def test_odd_frame_ids(tmp_path, frame_id):
    LabelWriter(tmp_path / "labels", CLASSES).add(frame_id, labels(ROWS))
    (written,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written == tmp_path / "labels" / label_file_name(frame_id)


def test_refused(tmp_path):
    with pytest.raises(DataError, match="65536 2D boxes"):
        LabelWriter(tmp_path, CLASSES).add("7", labels([(0, 65535)]))
    assert list(tmp_path.iterdir()) == []
    LabelWriter(tmp_path, ["x"] * 65534)
    with pytest.raises(DataError, match="65535 classes"):
        LabelWriter(tmp_path, ["x"] * 65535)
    (tmp_path / "cut.label").write_bytes(b"12345")
    with pytest.raises(DataError, match="got 5"):
        read_labels(tmp_path / "cut.label")
    with pytest.raises(DataError, match="no such file"):
        read_labels(tmp_path / "none.label")
    with pytest.raises(DataError, match="expected a folder"):
        LabelWriter(tmp_path / "cut.label", CLASSES)
