"""Boxes fitted to labelled points: against a slow twin, and on objects whose box is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidar.boxes_from_instances import USUAL_SIZES, fit_boxes3d
from mwsis.core.boxes3d import bev_iou, iou_3d
from mwsis.core.ground import height_above_ground
from mwsis.core.instances import BACKGROUND, PointLabels
from tests.reference import boxes_from_instances as reference

USUAL = USUAL_SIZES["waymo"]
VEHICLE, PEDESTRIAN, CYCLIST = range(3)


def ground(spread=30.0):
    line = torch.arange(-spread, spread, 0.9)
    x, y = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten(), torch.full((len(line) ** 2,), -0.02)], 1)


def seen_from_origin(box, step=0.15):
    """Return points on the two upright sides of a box that face the origin, and on its top."""
    x, y, z, length, width, height, yaw = box
    along, across = torch.arange(-length / 2, length / 2 + 1e-6, step), torch.arange(-width / 2, width / 2 + 1e-6, step)
    up = torch.arange(-height / 2 + 0.05, height / 2 + 1e-6, step)
    to_sensor = (-x * math.cos(yaw) - y * math.sin(yaw), x * math.sin(yaw) - y * math.cos(yaw))
    front, side = math.copysign(length / 2, to_sensor[0]), math.copysign(width / 2, to_sensor[1])
    faces = [torch.cartesian_prod(torch.tensor([front]), across, up)] if abs(to_sensor[0]) > length / 2 else []
    faces += [torch.cartesian_prod(along, torch.tensor([side]), up)] if abs(to_sensor[1]) > width / 2 else []
    u, v, w = torch.cat([*faces, torch.cartesian_prod(along, across, torch.tensor([height / 2]))]).unbind(1)
    return torch.stack([x + u * math.cos(yaw) - v * math.sin(yaw), y + u * math.sin(yaw) + v * math.cos(yaw), z + w], 1)


def labelled(*objects):
    """Return a sweep of a road and objects (points, class), and its labels."""
    floor = ground()
    xyz = torch.cat([floor, *(points for points, _ in objects)])
    classes = [torch.full((len(floor),), BACKGROUND), *(torch.full((len(points),), label) for points, label in objects)]
    ids = [torch.full((len(floor),), -1), *(torch.full((len(p),), 7 * k) for k, (p, _) in enumerate(objects))]
    return xyz, PointLabels(torch.cat(classes), torch.cat(ids))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    label=st.integers(0, 2),
    count=st.sampled_from([1, 2, 3, 8, 60]),
    bearing=st.floats(-3, 3),
)
def test_equals_the_slow_twin(seed, label, count, bearing):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 3, generator=generator) * torch.tensor([1.5, 0.6, 0.5])
    if seed % 3 == 0:
        points[0] *= 9  # an outlier
    turn = torch.rand(1, generator=generator) * 3
    x, y = points[:, 0] * turn.cos() - points[:, 1] * turn.sin(), points[:, 0] * turn.sin() + points[:, 1] * turn.cos()
    points = torch.stack([x + 12 * math.cos(bearing), y + 12 * math.sin(bearing), points[:, 2] + 0.8], 1)
    xyz, labels = labelled((points, label))
    fitted = fit_boxes3d(xyz, labels, USUAL)
    heights = height_above_ground(xyz)[-count:].tolist()
    slow = reference.fit_box([tuple(row) for row in points.tolist()], heights, label, USUAL[label])
    box = fitted.boxes3d[0].tolist()
    apart = (box[6] - slow[6] + math.pi / 2) % math.pi - math.pi / 2
    if count > 2:  # of fewer the direction may be anybody's guess
        assert box[:6] == pytest.approx(slow[:6], abs=2e-4)
        assert apart == pytest.approx(0, abs=2e-3)
    assert -math.pi / 2 < box[6] <= math.pi / 2 + 1e-6


@pytest.mark.parametrize("yaw", [0.0, 0.3, -0.6, 1.5])
@pytest.mark.parametrize("place", [(12.0, 5.0), (-10.0, 8.0), (9.0, -9.0)])
def test_a_car_of_usual_size_seen_at_a_corner_is_found(yaw, place):
    box = [*place, 0.85, *USUAL[VEHICLE], yaw]
    fitted = fit_boxes3d(*labelled((seen_from_origin(box), VEHICLE)), USUAL)
    assert float(iou_3d(fitted.boxes3d, torch.tensor([box]))) > 0.9
    assert fitted.labels.tolist() == [VEHICLE]
    assert fitted.instance_ids.tolist() == [0]


def test_a_car_seen_from_behind_grows_away_from_the_sensor():
    box = [15.0, 0.0, 0.85, *USUAL[VEHICLE], 0.0]
    points = seen_from_origin(box)
    rear = points[points[:, 0] < box[0] - box[3] / 2 + 0.01]
    fitted = fit_boxes3d(*labelled((rear, VEHICLE)), USUAL)
    assert float(rear[:, 0].max() - rear[:, 0].min()) < 0.1  # nothing says how long it is
    assert float(bev_iou(fitted.boxes3d, torch.tensor([box]))) > 0.9
    mirrored = rear * torch.tensor([-1.0, 1, 1])
    behind = fit_boxes3d(*labelled((mirrored, VEHICLE)), USUAL).boxes3d
    assert float(bev_iou(behind, torch.tensor([[-15.0, *box[1:]]]))) > 0.9


def test_a_long_vehicle_is_as_long_as_it_is_seen():
    bus = [12.0, 6.0, 1.6, 11.0, 2.6, 3.2, 0.1]
    fitted = fit_boxes3d(*labelled((seen_from_origin(bus), VEHICLE)), USUAL)
    assert float(iou_3d(fitted.boxes3d, torch.tensor([bus]))) > 0.9


def test_stray_points_move_a_box_by_the_slack_at_most():
    box = [12.0, 5.0, 0.85, *USUAL[VEHICLE], 0.2]
    points = seen_from_origin(box)
    stray = points[:3] + torch.tensor([[6.0, 0, 0], [0, 7.0, 0], [-2.0, 5.0, 9.0]])
    clean, dirty = (fit_boxes3d(*labelled((p, VEHICLE)), USUAL).boxes3d for p in (points, torch.cat([points, stray])))
    assert float((clean - dirty).abs().max()) < 0.35


def test_people_and_cyclists_stand_on_the_ground():
    person, rider = [8.0, 3.0, 0.85, 0.6, 0.5, 1.74, 0.0], [10.0, -4.0, 0.87, 1.78, 0.6, 1.78, 0.9]
    xyz, labels = labelled((seen_from_origin(person, 0.1), PEDESTRIAN), (seen_from_origin(rider, 0.1), CYCLIST))
    fitted = fit_boxes3d(xyz, labels, USUAL)
    assert fitted.labels.tolist() == [PEDESTRIAN, CYCLIST]
    bottom = fitted.boxes3d[:, 2] - fitted.boxes3d[:, 5] / 2
    assert bottom.tolist() == pytest.approx([-0.02, -0.02], abs=0.02)
    assert fitted.boxes3d[:, 5].tolist() == pytest.approx([1.74, 1.78], abs=0.05)
    assert float(fitted.boxes3d[1, 6]) == pytest.approx(0.9, abs=0.15)
    assert float(bev_iou(fitted.boxes3d[1:], torch.tensor([rider]))) > 0.6


def test_more_and_surer_points_score_higher():
    box = [12.0, 5.0, 0.85, *USUAL[VEHICLE], 0.2]
    points = seen_from_origin(box)
    xyz, labels = labelled((points, VEHICLE))
    few = fit_boxes3d(*labelled((points[::20], VEHICLE)), USUAL)
    unsure = PointLabels(labels.semantic_labels, labels.instance_ids, torch.full((len(xyz),), 0.5))
    many, half = fit_boxes3d(xyz, labels, USUAL), fit_boxes3d(xyz, unsure, USUAL)
    assert 0 < float(few.scores) < float(many.scores) < 1
    assert float(half.scores) == pytest.approx(float(many.scores) / 2)
    assert few.num_points.tolist() == [len(points[::20])]


def test_nothing_labelled_gives_nothing():
    for xyz, labels in (labelled(), (torch.zeros(0, 3), PointLabels(*torch.zeros(2, 0, dtype=torch.int64)))):
        fitted = fit_boxes3d(xyz, labels, USUAL)
        assert len(fitted) == 0
        assert fitted.boxes3d.shape == (0, 7)
