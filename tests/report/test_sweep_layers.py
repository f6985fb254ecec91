"""Colourings of a sweep: what a label is against the true one, one object in one colour."""

from __future__ import annotations

from dataclasses import replace

import torch

from mwsis.core.instances import BACKGROUND, IGNORE, PointInstances, PointLabels
from mwsis.evaluation.predictions import FramePrediction
from mwsis.report.pictures import BACKGROUND_COLOUR, IGNORE_COLOUR, class_colour
from mwsis.report.sweep_layers import ERRORS, sweep_layers
from tests.data.frames_for_tests import random_frame

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")


def prediction(gt: list[int], gt_ids: list[int], found: list[int], found_ids: list[int], seen: list[int]):
    frame = random_frame(2, num_points=len(gt))
    truth = replace(frame.truth, semantic_labels=torch.tensor(gt), instance_ids=torch.tensor(gt_ids))
    labels = PointLabels(torch.tensor(found), torch.tensor(found_ids))
    instances = PointInstances(torch.tensor(found), torch.tensor(found_ids), torch.zeros(9).long(), torch.ones(9))
    return FramePrediction(replace(frame, truth=truth), labels, torch.tensor(seen), None, instances)


def names_of(layer):
    return [layer.palette[row][0] for row in layer.index.tolist()]


def by_name(made):
    return {layer.name: layer for layer in sweep_layers(made, CLASSES)}


def test_errors_point_by_point():
    gt = [BACKGROUND, BACKGROUND, 0, 0, 0, IGNORE, 1, 0]
    found = [BACKGROUND, 2, 0, 1, BACKGROUND, 0, IGNORE]
    layers = by_name(prediction(gt, [-1] * 8, found, [-1] * 7, list(range(7))))
    expected = ["background", "false alarm", "right", "wrong class", "missed", *["not labelled"] * 3]
    assert names_of(layers["predicted_error"]) == names_of(layers["pseudo_error"]) == expected
    assert layers["predicted_error"].colours[2].tolist() == list(dict(ERRORS)["right"])


def test_classes_have_the_colours_of_the_pictures():
    layers = by_name(prediction([0, 2, BACKGROUND, IGNORE], [-1] * 4, [0], [-1], [0]))
    expected = [class_colour(0), class_colour(2), BACKGROUND_COLOUR, IGNORE_COLOUR]
    assert layers["gt_class"].colours.tolist() == [list(colour) for colour in expected]


def test_points_that_were_not_seen_are_not_labelled():
    layers = by_name(prediction([0, 0, 0], [4, 4, 4], [0], [3], [1]))
    assert names_of(layers["predicted_class"]) == ["not labelled", "Vehicle", "not labelled"]
    assert names_of(layers["predicted_instance"])[0] == "no instance"


def test_one_object_has_one_colour():
    layers = by_name(prediction([0, 0, 1, 1], [5, 5, 8, 8], [0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 2, 3]))
    wanted = layers["gt_instance"].colours
    assert (layers["pseudo_instance"].colours == wanted).all()
    assert (layers["predicted_instance"].colours == wanted).all()
    assert (wanted[0] != wanted[2]).any()


def test_without_truth_there_are_no_errors():
    made = prediction([0], [0], [0], [0], [0])
    made = replace(made, frame=made.frame.without_truth(), points=None)
    assert list(by_name(made)) == ["pseudo_class", "pseudo_instance"]
