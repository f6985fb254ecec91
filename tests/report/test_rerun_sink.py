"""Recordings: written without a display and read back."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from mwsis.core.errors import ConfigError
from mwsis.core.instances import PointLabels
from mwsis.evaluation.predictions import FramePrediction
from mwsis.report.rerun_sink import RerunSink, recording_file
from mwsis.report.sweep_layers import sweep_layers
from tests.data.frames_for_tests import random_frame
from tests.export.labels.labelled import CLASSES, labelled

GT_LAYERS = ("gt_class", "gt_instance", "pseudo_error")


def shown(seed: int) -> FramePrediction:
    made = labelled(random_frame(seed), seed)
    return FramePrediction(made.frame, made.points, torch.arange(51), list(made.detections), None)


def test_without_rerun_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ConfigError, match=r"backend=rerun: .*install the extra 'viz'"):
        RerunSink(CLASSES, "test")


@pytest.fixture
def recording(tmp_path):
    """Two frames, of which the first has ground truth."""
    pytest.importorskip("rerun", reason="rerun-sdk (extra viz) is not installed")
    frames, sink, path = [shown(2), shown(3)], RerunSink(CLASSES, "test"), tmp_path / "show.rrd"
    with recording_file(sink, path):
        sink.begin()
        for frame in frames:
            sink.add(frame)
    return path, frames


def chunks_of(path):
    reader = pytest.importorskip("rerun.chunk", reason="this rerun-sdk cannot read recordings").RrdReader
    return list(reader(path).stream())


def columns(chunks, entity, name):
    """Return (frame, value) of a component of an entity, in the order logged; static ones have no frame."""
    found = []
    for chunk in chunks:
        if chunk.entity_path != entity:
            continue
        batch = chunk.to_record_batch()
        for column in batch.schema.names:
            if column.split(":")[-1] == name:
                times = batch["frame"].to_pylist() if "frame" in batch.schema.names else [None] * batch.num_rows
                found += list(zip(times, batch[column].to_pylist(), strict=True))
    return found


def test_the_recording_holds_everything(recording):
    path, _ = recording
    entities = {chunk.entity_path for chunk in chunks_of(path)}
    for name in ("gt_class", "gt_instance", "pseudo_class", "pseudo_instance", "pseudo_error"):
        assert f"/vehicle/sweep/{name}/points" in entities
    assert "/vehicle/boxes3d" in entities
    for camera in ("CAM_0", "CAM_1"):
        for part in ("image", "boxes", "predicted_masks", "predicted_boxes"):
            assert f"/vehicle/cameras/{camera}/{part}" in entities
    assert [entry.name for entry in path.parent.iterdir()] == ["show.rrd"]


def test_points_and_classes_read_back(recording):
    path, frames = recording
    chunks = chunks_of(path)
    positions = dict(columns(chunks, "/vehicle/sweep/pseudo_class/points", "positions"))
    classes = dict(columns(chunks, "/vehicle/sweep/pseudo_class/points", "class_ids"))
    assert positions.keys() == classes.keys() == {0, 1}
    for step, frame in enumerate(frames):
        assert np.array_equal(np.array(positions[step], np.float32), frame.frame.points.xyz.numpy())
        layer = next(layer for layer in sweep_layers(frame, CLASSES) if layer.name == "pseudo_class")
        assert classes[step] == layer.index.tolist()
    ids = [text for _, (text,) in columns(chunks, "/frame_id", "text")]
    assert ids == [frame.frame.frame_id for frame in frames]


def test_boxes_and_images_read_back(recording):
    path, frames = recording
    chunks = chunks_of(path)
    centres = dict(columns(chunks, "/vehicle/boxes3d", "centers"))
    assert list(centres) == [0]  # the second frame has no ground truth
    assert np.allclose(centres[0], frames[0].frame.truth.boxes3d[:, :3].numpy())
    blobs = dict(columns(chunks, "/vehicle/cameras/CAM_1/image", "blob"))
    assert [bytes(blobs[step][0]) for step in (0, 1)] == [frame.frame.cameras[1].image for frame in frames]


def test_what_a_frame_lacks_is_cleared_and_nothing_else(recording):
    """Otherwise a viewer goes on showing what an earlier frame had."""
    path, _ = recording
    cleared = [
        (chunk.entity_path, chunk.to_record_batch()["frame"].to_pylist())
        for chunk in chunks_of(path)
        if any("is_recursive" in name for name in chunk.to_record_batch().schema.names)
    ]
    gone = ["boxes3d", "cameras/CAM_0/gt_masks", *(f"sweep/{name}/points" for name in GT_LAYERS)]
    assert sorted(cleared) == sorted((f"/vehicle/{place}", [1]) for place in gone)


def test_a_failure_leaves_no_recording(tmp_path):
    pytest.importorskip("rerun", reason="rerun-sdk (extra viz) is not installed")
    sink = RerunSink(CLASSES, "test")

    def fail():
        with recording_file(sink, tmp_path / "show.rrd"):
            sink.begin()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_labels_without_points(tmp_path):
    """Images of a data set without LiDAR: no sweep, no 3D view."""
    pytest.importorskip("rerun", reason="rerun-sdk (extra viz) is not installed")
    frame = random_frame(1, num_points=0)
    empty = PointLabels(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    sink = RerunSink(CLASSES, "test")
    with recording_file(sink, tmp_path / "show.rrd"):
        sink.begin()
        sink.add(FramePrediction(frame, empty, torch.arange(0), None, None))
    assert not any("sweep" in chunk.entity_path for chunk in chunks_of(tmp_path / "show.rrd"))
