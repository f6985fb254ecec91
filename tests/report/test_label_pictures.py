from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mwsis.core.frame import CameraView, Frame, FrameTruth, LidarGeometry, PixelMap, PointCloud
from mwsis.core.geometry import CameraModel
from mwsis.core.instances import BACKGROUND, IGNORE, Boxes2D
from mwsis.evaluation.label_quality import LabelQuality, ObjectScore
from mwsis.report.label_pictures import FALSE, HIT, MISSED, TAKEN, VIEW, draw_object, draw_sheet, object_points

CLASSES = ("Vehicle",)
ABOVE = VIEW[0] + 16
"""Where the view from above begins, pixels from the left."""


def make_frame() -> Frame:
    """An object of 30 points 10 m ahead, 10 points behind it, one that is ignored; the camera sees all but one."""
    draw = torch.Generator().manual_seed(0)
    xyz = torch.rand(42, 3, generator=draw) * torch.tensor([2.0, 1.5, 1.0]) + torch.tensor([9.0, -0.75, -0.5])
    xyz[30:40, 0] += 6
    uv = torch.rand(42, 1, 2, generator=draw) * torch.tensor([30.0, 20.0]) + torch.tensor([85.0, 30.0])
    camera_index = torch.zeros(42, 1, dtype=torch.int8)
    camera_index[29] = -1
    zeros = torch.zeros(42)
    points = PointCloud(
        xyz, torch.zeros(42, 2), zeros, zeros.to(torch.int16), zeros.to(torch.int32), zeros.to(torch.int8)
    )
    encoded = io.BytesIO()
    Image.new("RGB", (200, 100), (60, 60, 60)).save(encoded, "PNG")
    model = CameraModel(200, 100, torch.ones(4).double(), torch.zeros(5).double(), torch.eye(4).double())
    boxes = Boxes2D(torch.tensor([[80.0, 25, 120, 55]]), torch.tensor([0]), torch.tensor([False]))
    truth = FrameTruth(
        torch.tensor([0] * 30 + [BACKGROUND] * 10 + [IGNORE] + [BACKGROUND]),
        torch.tensor([5] * 30 + [-1] * 12),
        torch.tensor([[10.0, 0, 0, 2, 1.5, 1, 0.3]]),
        torch.tensor([0]),
        torch.tensor([5]),
        (torch.tensor([5]),),
        (None,),
    )
    cameras = (CameraView("FRONT", model, encoded.getvalue(), boxes),)
    return Frame("one", "drive", LidarGeometry(64, 512), points, PixelMap(uv, camera_index), cameras, truth)


def claimed(*points: int) -> torch.Tensor:
    return torch.tensor([(point, 0) for point in points], dtype=torch.int64).reshape(-1, 2)


def score_of(frame: Frame, pairs: torch.Tensor) -> ObjectScore:
    quality = LabelQuality(CLASSES)
    quality.add("any", frame, pairs)
    (score,) = quality.objects("any")
    return score


def test_points_shown_are_the_points_scored():
    frame, pairs = make_frame(), claimed(*range(20), *range(30, 35), 40)
    points, score = object_points(frame, pairs, 0), score_of(frame, pairs)
    assert points.hit.tolist() == list(range(20))
    assert points.missed.tolist() == list(range(20, 29))  # the camera does not see point 29
    assert points.false.tolist() == list(range(30, 35))  # point 40 is ignored
    assert len(points.hit) / (len(points.hit) + len(points.missed) + len(points.false)) == score.point_iou
    assert (len(points.hit) + len(points.missed), len(points.hit) + len(points.false)) == (score.points, score.labelled)


def test_points_of_another_box_are_told_from_points_of_none():
    frame = make_frame()
    to_another = torch.tensor([(point, 1) for point in (5, 6, 30)])
    points = object_points(frame, torch.cat([claimed(0, 1), to_another]), 0)
    assert points.taken.tolist() == [5, 6]
    assert points.missed.tolist() == [2, 3, 4, *range(7, 29)]
    assert points.false.tolist() == []


def test_the_sheet_names_every_colour():
    frame, score = make_frame(), score_of(make_frame(), claimed(*range(5)))
    sheet = np.asarray(draw_sheet("one", [draw_object(frame, claimed(*range(5)), score)], columns=2))[:90]
    for colour in (HIT, MISSED, TAKEN, FALSE):
        assert (sheet == colour).all(-1).sum() > 50


@pytest.mark.parametrize(
    ("pairs", "shown"),
    [
        (claimed(*range(29)), {HIT}),
        (claimed(), {MISSED}),
        (claimed(*range(30, 40)), {MISSED, FALSE}),
        (claimed(*range(20), *range(30, 35)), {HIT, MISSED, FALSE}),
    ],
)
def test_both_views_show_exactly_the_colours_that_are_there(pairs, shown):
    frame = make_frame()
    picture = np.asarray(draw_object(frame, pairs, score_of(frame, pairs)))
    for view in (picture[:, : VIEW[0]], picture[:, ABOVE:]):
        present = {colour for colour in (HIT, MISSED, FALSE) if (view == colour).all(-1).any()}
        assert present == shown


def test_the_view_from_above_has_the_far_points_above_the_object():
    frame = make_frame()
    pairs = claimed(*range(29), *range(30, 40))
    view = np.asarray(draw_object(frame, pairs, score_of(frame, pairs)))[60:, ABOVE:]
    rows = {colour: (view == colour).all(-1).nonzero()[0] for colour in (HIT, FALSE)}
    assert rows[FALSE].max() < rows[HIT].min()


def test_a_box_at_the_edge_and_an_object_without_3d_box():
    frame = make_frame()
    view = frame.cameras[0]
    edge = Boxes2D(torch.tensor([[150.0, 0, 200, 90]]), view.labels.labels, view.labels.ignore)
    truth = replace(
        frame.truth, boxes3d=torch.zeros(0, 7), box3d_labels=torch.zeros(0).long(), box3d_ids=torch.zeros(0).long()
    )
    frame = replace(frame, cameras=(replace(view, labels=edge),), truth=truth)
    score = score_of(frame, claimed(*range(5)))
    assert score.tolerant_iou is None
    assert draw_object(frame, claimed(*range(5)), score).size == (VIEW[0] + 16 + VIEW[1], VIEW[1] + 60)


def test_a_sheet_holds_every_picture_at_its_size():
    pictures = [Image.new("RGB", (50, 30), (0, 0, 200 + number)) for number in range(3)]
    sheet = np.asarray(draw_sheet("three", pictures))
    for number in range(3):
        assert (sheet == (0, 0, 200 + number)).all(-1).sum() == 50 * 30
