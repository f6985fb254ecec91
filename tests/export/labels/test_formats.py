"""Which formats are asked for and what is refused; a prediction as labels of the whole sweep."""

from __future__ import annotations

import pytest
import torch

from mwsis.core.errors import ConfigError, DataError
from mwsis.core.instances import BACKGROUND, IGNORE, PointInstances, PointLabels
from mwsis.evaluation.predictions import FramePrediction
from mwsis.export.labels.exporter import LabelledFrame, labelled_by
from mwsis.export.labels.formats import FORMATS, ExportSet, format_names
from tests.data.frames_for_tests import random_frame
from tests.export.labels.labelled import Drive, labelled


def test_all_five_are_known():
    assert list(FORMATS) == ["coco", "kitti", "nuscenes", "waymo", "labelme"]


def test_an_unknown_format():
    with pytest.raises(ConfigError, match=r"export=\[coco,kiti\]: no format 'kiti'; did you mean 'kitti'"):
        format_names("[coco,kiti]")


def test_a_format_of_what_is_not_made_removes_nothing(tmp_path):
    kept = tmp_path / "export_kitti" / "export.json"
    kept.parent.mkdir()
    kept.write_text("earlier")
    with pytest.raises(ConfigError, match="export=coco: this format holds masks, but only points are made"):
        ExportSet(["kitti", "coco"], tmp_path, Drive(), ("points",))
    with pytest.raises(ConfigError, match="export=waymo"):
        ExportSet(["kitti", "waymo"], tmp_path, Drive(), ("points",))
    assert kept.read_text() == "earlier"


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "export_coco").write_text("mine")
    with pytest.raises(DataError, match="expected a folder"):
        ExportSet(["coco"], tmp_path, Drive(), ("masks",))
    assert (tmp_path / "export_coco").read_text() == "mine"


def test_every_format_gets_every_frame(tmp_path):
    exports = ExportSet(["coco", "kitti", "nuscenes", "labelme"], tmp_path, Drive(), ("masks", "points"))
    exports.begin()
    exports.add(labelled(random_frame(1)))
    sentences = exports.finish({})
    assert [sentence.split(":")[0] for sentence in sentences] == [
        "export coco",
        "export kitti",
        "export nuscenes",
        "export labelme",
    ]
    assert all(sentence.endswith("(1 frame)") for sentence in sentences)


def test_points_that_the_network_did_not_see_are_unlabelled_and_instances_have_one_class():
    frame = random_frame(1, num_points=6)
    found = PointInstances(
        semantic_labels=torch.tensor([2, 0, BACKGROUND, 1]),
        instance_ids=torch.tensor([1, 0, -1, -1]),
        labels=torch.tensor([0, 1]),
        scores=torch.tensor([0.9, 0.8]),
    )
    prediction = FramePrediction(frame, PointLabels(*[torch.zeros(4)] * 2), torch.tensor([5, 0, 1, 3]), None, found)
    made = labelled_by(prediction)
    assert made.points.semantic_labels.tolist() == [0, BACKGROUND, IGNORE, 1, IGNORE, 1]
    assert made.points.instance_ids.tolist() == [0, -1, -1, -1, -1, 1]
    assert made.detections is None


def test_labels_of_another_sweep():
    with pytest.raises(DataError, match="expected labels of 51 points, got 3"):
        LabelledFrame(random_frame(1), PointLabels(*[torch.zeros(3)] * 2), None)
