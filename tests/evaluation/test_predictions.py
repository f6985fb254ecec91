"""Scores of a split: which points they are given, and what is said where nothing can be scored."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mwsis.core.instances import BACKGROUND, PointInstances, PointLabels
from mwsis.evaluation.point_instances import PointInstanceEvaluator
from mwsis.evaluation.predictions import FramePrediction, SplitScores
from mwsis.evaluation.protocols import OURS, PUBLISHED
from tests.data.frames_for_tests import random_frame

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")
NUM_POINTS = 12


def prediction(protocol_sees: torch.Tensor | None = None) -> FramePrediction:
    """Objects of three points at 5, 20, 40 and 60 m off the vertical axis, at any height; all but the last found."""
    frame = random_frame(0, NUM_POINTS)
    off, angle = torch.tensor([5.0, 20.0, 40.0, 60.0]).repeat_interleave(3), torch.arange(NUM_POINTS).float()
    xyz = torch.stack([off * angle.cos(), off * angle.sin(), 30 * angle.sin()], 1)
    ids = torch.arange(NUM_POINTS) // 3
    semantic = torch.tensor([0, 0, 1, 1])[ids]
    camera_index = torch.zeros(NUM_POINTS, 2, dtype=torch.int8)
    if protocol_sees is not None:
        camera_index[~protocol_sees] = -1
    frame = replace(
        frame,
        points=replace(frame.points, xyz=xyz, ring=torch.zeros(NUM_POINTS, dtype=torch.int16)),
        pixels=replace(frame.pixels, camera_index=camera_index),
        truth=replace(frame.truth, semantic_labels=semantic, instance_ids=ids),
    )
    index = torch.randperm(NUM_POINTS, generator=torch.Generator().manual_seed(1))
    found = ids.where(ids < 3, -1)[index]
    labels = torch.tensor([0, 0, 1])
    points = PointInstances(semantic[index].where(found >= 0, BACKGROUND), found, labels, torch.ones(3))
    return FramePrediction(frame, PointLabels(semantic, ids)[index], index, None, points)


def test_rows_by_distance_follow_the_points_that_were_seen():
    scores = SplitScores(CLASSES)
    scores.add(prediction())
    rows = {(row["bin"], row["class"]): row for row in scores.compute()["lidar_rows"]}
    by_distance = {key: row["instance_ap"] for key, row in rows.items() if key[0].endswith(" m") and key[1] != "mean"}
    assert by_distance == {
        ("0-15 m", "Vehicle"): pytest.approx(1),
        ("15-30 m", "Vehicle"): pytest.approx(1),
        ("30-50 m", "Pedestrian"): pytest.approx(1),
        (">50 m", "Pedestrian"): 0,
    }
    assert rows["<20 points", "mean"]["objects"] == 4


def test_a_protocol_leaves_points_out_of_rows_too():
    seen = torch.arange(NUM_POINTS) >= 3  # no image sees the object at 5 m
    objects = {}
    for protocol in (OURS, PUBLISHED):
        scores = SplitScores(CLASSES, protocol)
        scores.add(prediction(seen))
        rows = scores.compute()["lidar_rows"]
        objects[protocol.name] = [row["objects"] for row in rows if row["bin"] == "0-15 m"]
    assert objects == {"ours": [1, 1], "published": []}


def test_scores_are_those_of_the_evaluator_and_can_be_written():
    one, evaluator, scores = prediction(), PointInstanceEvaluator(CLASSES), SplitScores(CLASSES)
    scores.add(one)
    evaluator.add(one.points, one.gt_points)
    found = scores.compute()
    assert found["lidar"]["instance_ap75"] == evaluator.compute()["instance_ap75"]
    assert found["lidar"]["instance_ap_large"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_branch_without_predictions_or_truth_has_no_scores():
    one = prediction()
    for nothing in (replace(one, points=None), replace(one, frame=one.frame.without_truth())):
        scores = SplitScores(CLASSES)
        scores.add(nothing)
        assert scores.compute() == {"camera": None, "lidar": None, "lidar_rows": None}
