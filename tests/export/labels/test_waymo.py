"""Waymo's submission message: the classes of the points are at their pixels of the range images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from waymo_open_dataset.protos import segmentation_metrics_pb2, segmentation_submission_pb2

from mwsis.core.errors import ConfigError
from mwsis.core.instances import BACKGROUND, IGNORE, PointLabels
from mwsis.data.waymo.source import WaymoV1Source
from mwsis.data.waymo.v1_write import write_segment
from mwsis.data.waymo.wire import decode_matrix
from mwsis.evaluation.waymo_segmentation import read_segmentation_frames, segmentation_scores
from mwsis.export.labels.exporter import LabelledFrame
from mwsis.export.labels.waymo import WaymoSegmentation
from tests.data.waymo_drive import COLUMNS, ROWS, SEGMENT, TIME, make_drive
from tests.export.labels.labelled import Drive, labelled

NUMBER_OF = {IGNORE: 0, BACKGROUND: 0, 0: 1, 1: 7, 2: 6}
"""Segmentation.Type: TYPE_UNDEFINED, TYPE_CAR, TYPE_PEDESTRIAN, TYPE_BICYCLIST."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two frames with range images and one without."""
    root = tmp_path_factory.mktemp("waymo")
    (root / "training").mkdir()
    records = [make_drive(number) for number in range(3)]
    bare = tuple(replace(lidar, returns=(None, None)) for lidar in records[2].lidars)
    records[2] = replace(records[2], lidars=bare)
    write_segment(root / "training" / "segment-a_with_camera_labels.tfrecord", records)
    return WaymoV1Source(root, lidars=("TOP", "FRONT"), frames="all")


def test_labels_lie_at_the_pixels_of_their_points(source, tmp_path):
    exporter = WaymoSegmentation(tmp_path, source)
    exporter.begin()
    made = [labelled(source.read(frame_id), seed) for seed, frame_id in enumerate(source.frame_ids("train"))]
    for one in made:
        exporter.add(one)
    sentence = exporter.finish({})
    assert sentence.endswith("(2 frames); 1 frame has no range image of TOP and is not in it")
    index = json.loads((tmp_path / "export.json").read_text())
    assert index["left_out"] == [made[2].frame.frame_id]
    message = segmentation_metrics_pb2.SegmentationFrameList.FromString((tmp_path / "segmentation.bin").read_bytes())
    assert [(one.context_name, one.frame_timestamp_micros) for one in message.frames] == [
        (SEGMENT, TIME),
        (SEGMENT, TIME + 100_000),
    ]
    for one, written in zip(made, message.frames, strict=False):
        (laser,) = written.segmentation_labels
        assert laser.name == 1
        images = [
            decode_matrix(part.segmentation_label_compressed, np.int32) for part in (laser.ri_return1, laser.ri_return2)
        ]
        assert [image.shape for image in images] == [(ROWS, COLUMNS, 2)] * 2
        num_labelled = check_pixels(one, images)
        assert num_labelled > 100
        assert sum(int((image[..., 1] > 0).sum()) for image in images) == num_labelled


def check_pixels(one, images):
    """Compare every point of TOP with its pixel; return how many have a class."""
    points, num_labelled, off_beam = one.frame.points, 0, 0
    for row in range(len(points)):
        if points.ring[row] < 0:
            off_beam += 1
            continue
        pixel = images[points.return_index[row]][points.ring[row], points.azimuth_column[row]]
        number = NUMBER_OF[int(one.points.semantic_labels[row])]
        assert pixel.tolist() == [int(one.points.instance_ids[row]) + 1, number]
        num_labelled += number > 0
    assert off_beam > 0  # points of FRONT, which have no place
    return num_labelled


def test_waymos_score_of_the_labels_themselves_is_one(source, tmp_path):
    """Read by the scorer, and as inference results of a submission."""
    exporter = WaymoSegmentation(tmp_path, source)
    exporter.begin()
    exporter.add(labelled(source.read(source.frame_ids("train")[0])))
    exporter.finish({})
    path = tmp_path / "segmentation.bin"
    assert list(read_segmentation_frames(path)) == [(SEGMENT, TIME)]
    assert segmentation_scores(path, path)["miou"] == 1
    submission = segmentation_submission_pb2.SemanticSegmentationSubmission(unique_method_name="m")
    submission.inference_results.ParseFromString(path.read_bytes())
    assert len(submission.inference_results.frames) == 1


def test_wrong_labels_score_less(source, tmp_path):
    frame = source.read(source.frame_ids("train")[0])
    for name, label in (("truth", 0), ("found", 1)):
        exporter = WaymoSegmentation(tmp_path / name, source)
        exporter.begin()
        count = len(frame.points)
        exporter.add(LabelledFrame(frame, PointLabels(torch.full((count,), label), torch.full((count,), -1)), None))
        exporter.finish({})
    scores = segmentation_scores(tmp_path / "found" / "segmentation.bin", tmp_path / "truth" / "segmentation.bin")
    assert scores["iou/CAR"] == scores["iou/PEDESTRIAN"] == 0


def test_other_data_sets_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="street has no range images of Waymo's; use kitti or nuscenes"):
        WaymoSegmentation(tmp_path, Drive())
