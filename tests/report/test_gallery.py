"""The pictures of a frame: what there is nothing to show of is left out."""

from __future__ import annotations

from dataclasses import replace

import torch

from mwsis.core.instances import PointLabels
from mwsis.evaluation.predictions import FramePrediction
from mwsis.report.gallery import draw_frame
from mwsis.report.picture_files import write_pictures
from tests.data.frames_for_tests import random_frame

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")
RANGE = (-20.0, -20.0, -2.0, 20.0, 20.0, 4.0)


def names(frame, tmp_path):
    count = len(frame.points)
    labels = PointLabels(torch.zeros(count, dtype=torch.int64), torch.full((count,), -1))
    prediction = FramePrediction(frame, labels, torch.arange(count), None, None)
    gallery = draw_frame(prediction, RANGE, CLASSES, split="val", predicted_by="teacher")
    return [path.stem for path in write_pictures(gallery, tmp_path)]


def test_a_frame_with_everything(tmp_path):
    made = names(random_frame(2), tmp_path)
    assert made == [
        *("birds_eye_gt", "birds_eye_pseudo"),
        *("CAM_0_boxes", "CAM_0_truth", "CAM_0_points", "CAM_1_boxes", "CAM_1_points"),
    ]


def test_images_without_a_sweep(tmp_path):
    """True 3D boxes alone are still worth a view from above."""
    bare = random_frame(2, num_points=0)
    assert names(bare, tmp_path) == ["birds_eye_gt", "CAM_0_boxes", "CAM_0_truth", "CAM_1_boxes"]
    without = replace(
        bare.truth, boxes3d=torch.zeros(0, 7), box3d_labels=torch.zeros(0).long(), box3d_ids=torch.zeros(0).long()
    )
    assert names(replace(bare, truth=without), tmp_path) == ["CAM_0_boxes", "CAM_0_truth", "CAM_1_boxes"]
