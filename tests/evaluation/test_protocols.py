"""The published protocol equals pycocotools on 1 x N masks in which unlabelled points are background."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mwsis.core.errors import ConfigError
from mwsis.core.instances import BACKGROUND, IGNORE, Detections, PointLabels
from mwsis.evaluation.point_instances import PointInstanceEvaluator
from mwsis.evaluation.predictions import FramePrediction, SplitScores
from mwsis.evaluation.protocols import OURS, PUBLISHED, protocol_named
from tests.data.frames_for_tests import random_frame
from tests.evaluation.test_point_instances import CLASSES, with_pycocotools
from tests.evaluation.test_point_instances import random_frame as random_labels


def predicted_frame(seed, num_points=400):
    """A frame whose points carry random labels and predictions, all of them in an image and on a ring."""
    found, gt = random_labels(seed, num_points)
    frame = random_frame(0, num_points)
    points = replace(frame.points, ring=torch.zeros(num_points, dtype=torch.int16))
    pixels = replace(frame.pixels, camera_index=torch.zeros(num_points, 2, dtype=torch.int8))
    truth = replace(frame.truth, semantic_labels=gt.semantic_labels, instance_ids=gt.instance_ids)
    frame = replace(frame, points=points, pixels=pixels, truth=truth)
    return FramePrediction(frame, gt, torch.arange(num_points), None, found), gt


def test_published_points_equal_pycocotools():
    scores, frames = SplitScores(CLASSES, PUBLISHED), []
    for seed in range(6):
        prediction, gt = predicted_frame(seed)
        scores.add(prediction)
        background = gt.semantic_labels.where(gt.semantic_labels != IGNORE, BACKGROUND)
        frames.append((prediction.points, PointLabels(background, gt.instance_ids)))
        assert bool((gt.semantic_labels == IGNORE).any())
    table = with_pycocotools(frames, np.linspace(0.5, 0.95, 10))
    valid = (table > -1).all(0)
    found = scores.compute()["lidar"]
    assert found["instance_ap"] == pytest.approx(table[:, valid].mean(), abs=1e-12)
    assert found["instance_ap50"] == pytest.approx(table[0, valid].mean(), abs=1e-12)


def test_unlabelled_points_cost_under_the_published_protocol_only():
    found = {}
    for protocol in (OURS, PUBLISHED):
        scores = SplitScores(CLASSES, protocol)
        prediction, gt = predicted_frame(1)
        truth = replace(prediction.frame.truth, semantic_labels=gt.semantic_labels.where(gt.instance_ids >= 0, IGNORE))
        scores.add(replace(prediction, frame=replace(prediction.frame, truth=truth)))
        found[protocol.name] = scores.compute()["lidar"]
    assert found["published"]["instance_ap"] < found["ours"]["instance_ap"]
    assert found["published"]["miou"] < found["ours"]["miou"]
    assert found["published"]["num_objects"] == found["ours"]["num_objects"]


def test_published_leaves_out_other_lidars_and_points_that_no_image_sees():
    prediction, _ = predicted_frame(2, 40)
    ring, camera_index = torch.zeros(40, dtype=torch.int16), torch.zeros(40, 2, dtype=torch.int8)
    ring[3], camera_index[5], camera_index[6, 0] = -1, -1, -1
    frame = replace(
        prediction.frame,
        points=replace(prediction.frame.points, ring=ring),
        pixels=replace(prediction.frame.pixels, camera_index=camera_index),
    )
    index = torch.arange(2, 40)
    assert index[~PUBLISHED.scored_points(frame, index)].tolist() == [3, 5]
    assert bool(OURS.scored_points(frame, index).all())
    without_rings = replace(frame, points=replace(frame.points, ring=torch.full_like(ring, -1)))
    assert index[~PUBLISHED.scored_points(without_rings, index)].tolist() == [5]


def test_a_detection_on_an_ignored_mask_is_wrong_under_the_published_protocol_only():
    frame = random_frame(0, num_cameras=1)
    image = frame.truth.images[0]
    assert image.labels.ignore.tolist() == [False, True]
    detections = Detections(image.labels.boxes, torch.tensor([1, 1]), torch.tensor([0.9, 0.95]), image.masks)
    aps = {}
    for protocol in (OURS, PUBLISHED):
        scores = SplitScores(CLASSES, protocol)
        scores.add(FramePrediction(frame, None, torch.arange(0), [detections], None))
        aps[protocol.name] = scores.compute()["camera"]["mask_ap/Pedestrian"]
    assert aps == {"ours": pytest.approx(1), "published": pytest.approx(0.5)}


def test_names():
    assert protocol_named("published") is PUBLISHED
    with pytest.raises(ConfigError, match="did you mean 'published'"):
        protocol_named("publishd")


def test_the_evaluator_alone_is_the_same_arithmetic():
    prediction, gt = predicted_frame(3)
    scores, evaluator = SplitScores(CLASSES), PointInstanceEvaluator(CLASSES)
    scores.add(prediction)
    evaluator.add(prediction.points, gt)
    assert scores.compute()["lidar"]["instance_ap"] == evaluator.compute()["instance_ap"]
