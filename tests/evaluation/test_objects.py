"""Objects one by one: which points a network gave to each, and which objects it found worst."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mwsis.core.instances import BACKGROUND, IGNORE, PointInstances, PointLabels
from mwsis.evaluation.objects import ObjectQuality, label_pairs, predicted_pairs
from mwsis.evaluation.predictions import FramePrediction
from tests.evaluation.test_label_quality import CLASSES, scene, scenes
from tests.reference import predicted_pairs as reference


def prediction(found: dict[int, list[int]], classes: list[int], frame=None) -> FramePrediction:
    """``found``: points of each instance; the network saw the points in another order, and not the last."""
    frame = scene() if frame is None else frame
    seen = torch.arange(len(frame.points) - 1).flip(0)
    ids = torch.full((len(frame.points),), -1)
    for instance, points in found.items():
        ids[points] = instance
    labels = torch.tensor(classes, dtype=torch.int64)
    semantic = torch.cat([labels, torch.tensor([BACKGROUND])])[ids]
    pseudo = PointLabels(torch.zeros_like(ids), torch.full_like(ids, -1))
    pseudo.instance_ids[[0, 1, 20]] = 0
    points = PointInstances(semantic[seen], ids[seen], labels, torch.ones(len(labels)))
    return FramePrediction(frame, pseudo[seen], seen, None, points)


def by_box(pairs: torch.Tensor) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for point, box in sorted(pairs.tolist()):
        found.setdefault(box, []).append(point)
    return found


def test_the_points_of_an_object_go_to_every_box_of_it():
    """Object 7: points 0-9, boxes 0 and 2; object 8: points 10-15, box 3; point 20 is background."""
    made = prediction({0: [2, 3, 4, 5, 20], 1: [10, 11, 12]}, [0, 1])
    made.frame.pixels.camera_index[12] = -1  # no camera shows it
    assert by_box(predicted_pairs(made)) == {0: [2, 3, 4, 5, 20], 2: [2, 3, 4, 5, 20], 3: [10, 11]}


def test_an_object_gets_its_best_instance_and_an_instance_one_object():
    parts = {0: [0, 1], 1: [2, 3, 4, 5, 6, 11], 2: [7, 8, 9]}
    assert by_box(predicted_pairs(prediction(parts, [0, 0, 0])))[0] == [2, 3, 4, 5, 6, 11]
    one_for_both = {0: [5, 6, 7, 8, 9, 10, 11]}  # vehicles both
    frame = scene()
    frame = replace(frame, truth=replace(frame.truth, semantic_labels=frame.truth.semantic_labels.clone()))
    frame.truth.semantic_labels[10:16] = 0
    assert by_box(predicted_pairs(prediction(one_for_both, [0], frame))).keys() == {0, 2}


def test_an_object_takes_what_is_left_to_it_when_its_best_serves_another():
    """Instance 0 overlaps object 8 by 4/16 and object 7 by 8/12: it serves 7, and 8 has the small instance 1."""
    frame = scene()
    frame.truth.semantic_labels[10:16] = 0
    made = prediction({0: [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], 1: [14]}, [0, 0], frame)
    assert by_box(predicted_pairs(made))[3] == [14]


def test_instances_of_another_class_serve_nothing():
    assert len(predicted_pairs(prediction({0: [0, 1, 2, 3]}, [1]))) == 0


@pytest.mark.parametrize("classes", [[], [0]])
def test_nothing_found_or_nothing_there(classes):
    frame = scene()
    bare = replace(
        frame, truth=replace(frame.truth, semantic_labels=torch.full((24,), IGNORE), instance_ids=torch.full((24,), -1))
    )
    for each in (frame, bare):
        pairs = predicted_pairs(prediction({}, classes, each))
        assert pairs.shape == (0, 2)
        assert pairs.dtype == torch.int64


@st.composite
def predictions(draw):
    """Random frames, and instances cut out of them at random: often parts of objects, sometimes of two."""
    frame, _ = draw(scenes())
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_points, num_found = len(frame.points), draw(st.integers(0, 5))
    seen = torch.randperm(num_points, generator=numbers)[: draw(st.integers(0, num_points))]
    ids = torch.randint(-1, max(num_found, 1), (num_points,), generator=numbers) if num_found else torch.full((60,), -1)
    follow = torch.rand(num_points, generator=numbers) < 0.6
    ids = torch.where(follow & (frame.truth.instance_ids < num_found), frame.truth.instance_ids, ids[:num_points])
    labels = torch.randint(0, 3, (num_found,), generator=numbers)
    points = PointInstances(torch.zeros(len(seen)).long(), ids[seen], labels, torch.ones(num_found))
    nothing = PointLabels(torch.zeros(len(seen)).long(), torch.full((len(seen),), -1))
    return FramePrediction(frame, nothing, seen, None, points)


@settings(deadline=None, max_examples=200)
@given(predictions())
def test_pairs_equal_the_slow_twin(made):
    pairs = [tuple(pair) for pair in predicted_pairs(made).tolist()]
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == reference.predicted_pairs(made)


def test_labels_are_counted_on_the_same_points_of_the_frame():
    made = prediction({0: list(range(8))}, [0])
    assert by_box(label_pairs(made)) == {0: [0, 1, 20]}
    quality = ObjectQuality(CLASSES)
    quality.add(made)
    rows = quality.rows()
    assert rows.keys() == {"range", "hidden"}
    for by in rows:
        found = {(row["method"], row["class"]): (row["bin"], row["objects"], row["point_iou"]) for row in rows[by]}
        assert found["teacher", "Vehicle"][1:] == (1, 1)
        assert found["labels", "Vehicle"][1:] == (1, pytest.approx(2 / 9))
        assert found["teacher", "Pedestrian"][1:] == found["labels", "Pedestrian"][1:] == (1, 0)


def test_the_worst_objects_are_kept_and_nothing_else():
    quality = ObjectQuality(CLASSES, num_worst=3)
    frames = []
    for number in range(6):
        frame = scene(f"frame {number}")
        frames.append(weakref.ref(frame))
        quality.add(prediction({0: list(range(8 - number)), 1: list(range(10, 16))}, [0, 1], frame))
    del frame
    gc.collect()
    worst = quality.worst()
    assert [(one.score.frame_id, one.score.class_name) for one in worst] == [
        (f"frame {number}", "Vehicle") for number in (5, 4, 3)
    ]
    assert [one.score.point_iou for one in worst] == [pytest.approx(points / 8) for points in (3, 4, 5)]
    assert [frame() is None for frame in frames] == [True] * 3 + [False] * 3
    assert by_box(worst[0].pairs)[0] == [0, 1, 2]


def test_an_object_that_two_cameras_show_is_listed_once():
    frame = scene()
    frame.pixels.camera_index[5, 1] = 1  # camera 1 now shows five points of object 7, enough to be scored there
    quality = ObjectQuality(CLASSES)
    quality.add(prediction({0: [6, 7, 8]}, [0], frame))
    assert [one.score.box for one in quality.worst()] == [3, 0]
    assert sum(row["objects"] for row in quality.rows()["range"] if row["method"] == "teacher") == 3


def test_without_lidar_or_ground_truth_there_are_no_rows():
    made, quality = prediction({0: [1]}, [0]), ObjectQuality(CLASSES)
    quality.add(replace(made, points=None))
    quality.add(replace(made, frame=replace(made.frame, truth=None)))
    assert quality.rows() is None
    assert quality.worst() == []
