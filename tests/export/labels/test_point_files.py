"""SemanticKITTI and nuScenes-lidarseg files, read by parsers written from the formats' definitions."""

from __future__ import annotations

import json
import struct

import pytest
import torch

from mwsis.core.errors import ConfigError, DataError
from mwsis.core.instances import BACKGROUND, IGNORE, PointLabels
from mwsis.export.labels.exporter import LabelledFrame
from mwsis.export.labels.point_files import NuScenesLidarseg, SemanticKitti
from tests.data.frames_for_tests import random_frame
from tests.export.labels.labelled import CLASSES, Drive, labelled

KITTI_NAMES = {0: "unlabeled", 10: "car", 30: "person", 31: "bicyclist", 99: "other-object"}
"""From semantic-kitti.yaml."""
NUSCENES_NAMES = {0: "noise", 2: "human.pedestrian.adult", 14: "vehicle.bicycle", 17: "vehicle.car", 29: "static.other"}
"""From category.json of nuScenes-lidarseg."""
EXPECTED = {
    IGNORE: ("unlabeled", "noise"),
    BACKGROUND: ("other-object", "static.other"),
    0: ("car", "vehicle.car"),
    1: ("person", "human.pedestrian.adult"),
    2: ("bicyclist", "vehicle.bicycle"),
}


def parse_semantic_kitti(path):
    """Return name of class and instance of each point: "the lower 16 bits correspond to the label, the upper 16 bits
    encode the instance id", unsigned 32-bit little-endian integers."""
    return [(KITTI_NAMES[word % 65536], word // 65536) for (word,) in struct.iter_unpack("<I", path.read_bytes())]


def parse_lidarseg(path):
    """Return name of category of each point: "uint8 values, the index of the class"."""
    return [NUSCENES_NAMES[byte] for byte in path.read_bytes()]


@pytest.fixture
def made():
    """Two frames of a drive."""
    return [labelled(random_frame(seed, num_points=997), seed) for seed in (1, 2)]


def export(kind, folder, frames):
    exporter = kind(folder, Drive())
    exporter.begin()
    for frame in frames:
        exporter.add(frame)
    sentence = exporter.finish({"method": "test"})
    return sentence, json.loads((folder / "export.json").read_text())


def test_semantic_kitti_files_read_back(tmp_path, made):
    sentence, index = export(SemanticKitti, tmp_path, made)
    assert sentence == f"export kitti: {tmp_path} (2 frames)"
    for one in made:
        entry = index["frames"][one.frame.frame_id]
        assert entry["file"] == f"sequences/drive/predictions/{one.frame.frame_id}.label"
        parsed = parse_semantic_kitti(tmp_path / entry["file"])
        assert [name for name, _ in parsed] == [EXPECTED[label][0] for label in one.points.semantic_labels.tolist()]
        assert [number - 1 for _, number in parsed] == one.points.instance_ids.tolist()
        assert entry["num_points"] == len(parsed) == 997


def test_lidarseg_files_read_back(tmp_path, made):
    _, index = export(NuScenesLidarseg, tmp_path, made)
    for one in made:
        parsed = parse_lidarseg(tmp_path / index["frames"][one.frame.frame_id]["file"])
        assert parsed == [EXPECTED[label][1] for label in one.points.semantic_labels.tolist()]
    assert index["codes"] == {"unlabelled": 0, "other": 29, "Vehicle": 17, "Pedestrian": 2, "Cyclist": 14}
    assert index["class_names"] == list(CLASSES)
    assert index["method"] == "test"


def test_an_export_replaces_an_earlier_one(tmp_path, made):
    export(SemanticKitti, tmp_path, made)
    exporter = SemanticKitti(tmp_path, Drive())
    assert (tmp_path / "export.json").exists()
    exporter.begin()
    exporter.add(made[0])
    assert not (tmp_path / "export.json").exists()
    exporter.finish({})
    assert [path.name for path in tmp_path.rglob("*.label")] == [f"{made[0].frame.frame_id}.label"]


def test_a_frame_that_would_leave_the_folder_stays_inside(tmp_path):
    frame = random_frame(3, segment="../../elsewhere")
    _, index = export(SemanticKitti, tmp_path / "a" / "b", [labelled(frame)])
    (entry,) = index["frames"].values()
    path = (tmp_path / "a" / "b" / entry["file"]).resolve()
    assert path.is_relative_to(tmp_path / "a" / "b" / "sequences")
    assert len(parse_semantic_kitti(path)) == 51


def test_more_instances_than_the_file_holds(tmp_path):
    frame = random_frame(1, num_points=2)
    too_many = LabelledFrame(frame, PointLabels(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 65535])), None)
    with pytest.raises(DataError, match="65536 instances"):
        export(SemanticKitti, tmp_path, [too_many])


@pytest.mark.parametrize("kind", [SemanticKitti, NuScenesLidarseg])
def test_a_class_that_the_format_lacks(tmp_path, kind):
    source = Drive()
    source.class_names = ("Vehicle", "sheep")
    with pytest.raises(ConfigError, match=r"class sheep: .* it knows .*car"):
        kind(tmp_path, source)
