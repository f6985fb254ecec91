from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mwsis.core.frame import ImageTruth
from mwsis.core.instances import BACKGROUND, IGNORE, Boxes2D, Detections, MaskSet, PointInstances, PointLabels
from mwsis.report import pictures
from mwsis.report.pictures import (
    CLASS_COLOURS,
    INSTANCE_COLOURS,
    align_instances,
    class_colour,
    depth_colours,
    draw_birds_eye,
    draw_image,
    instance_colours,
)
from tests.report.fake_run import CLASS_NAMES, POINT_CLOUD_RANGE, fake_frame

BLACK = torch.zeros(3, 120, 200, dtype=torch.uint8)
RANGE = (-20.0, -20.0, -2.0, 20.0, 20.0, 4.0)


def has_colour(picture: torch.Tensor, colour: tuple[int, int, int]) -> bool:
    return bool((picture == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all(0).any())


def one_box(label: int = 0, ignore: bool = False) -> Boxes2D:
    return Boxes2D(torch.tensor([[40.0, 30.0, 120.0, 90.0]]), torch.tensor([label]), torch.tensor([ignore]))


def one_mask() -> MaskSet:
    return MaskSet.from_crops(120, 200, torch.tensor([[40, 30, 120, 90]]), [torch.ones(60, 80, dtype=torch.bool)])


def detection(score: float) -> Detections:
    return Detections(one_box().boxes, torch.tensor([1]), torch.tensor([score]), one_mask())


@pytest.mark.parametrize(("width", "drawn"), [(200, 400), (640, 640), (1280, 1280), (1920, 960)])
def test_small_images_are_doubled_and_large_ones_halved(width: int, drawn: int) -> None:
    image = torch.zeros(3, 60, width, dtype=torch.uint8)
    picture = draw_image(image, class_names=CLASS_NAMES)
    assert picture.shape == (3, 60 * drawn // width, drawn)
    assert picture.dtype == torch.uint8


def test_the_image_given_is_not_changed() -> None:
    image = torch.full((3, 120, 700), 90, dtype=torch.uint8)
    draw_image(image, class_names=CLASS_NAMES, boxes=one_box(), detections=None)
    assert bool((image == 90).all())


def test_boxes_have_the_colour_of_their_class_and_ignored_ones_none() -> None:
    drawn = draw_image(BLACK, class_names=CLASS_NAMES, boxes=one_box(label=2))
    ignored = draw_image(BLACK, class_names=CLASS_NAMES, boxes=one_box(label=-1, ignore=True))
    assert has_colour(drawn, CLASS_COLOURS[2])
    assert not any(has_colour(ignored, colour) for colour in CLASS_COLOURS)
    assert bool(ignored.any())


def test_masks_are_filled_inside_outlined_and_absent_outside() -> None:
    drawn = draw_image(BLACK, class_names=CLASS_NAMES, detections=detection(0.9))
    assert bool(drawn[:, 120, 160].any())
    assert not bool(drawn[:, 120, 300].any())
    assert tuple(drawn[:, 120, 81].tolist()) == CLASS_COLOURS[1]
    assert bool((drawn[:, 120, 160].float() < torch.tensor(CLASS_COLOURS[1]) * 0.6).all())


def test_low_scores_are_left_out() -> None:
    assert not bool(draw_image(BLACK, class_names=CLASS_NAMES, detections=detection(0.29)).any())
    assert bool(draw_image(BLACK, class_names=CLASS_NAMES, detections=detection(0.31)).any())


def test_masks_at_the_border_and_empty_ones() -> None:
    crops = [
        torch.ones(20, 30, dtype=torch.bool),
        torch.ones(10, 10, dtype=torch.bool),
        torch.zeros(0, 0, dtype=torch.bool),
    ]
    boxes = torch.tensor([[0, 0, 30, 20], [190, 110, 200, 120], [0, 0, 0, 0]])
    masks = MaskSet.from_crops(120, 200, boxes, crops)
    labels = Boxes2D(
        torch.tensor([[0.0, 0, 30, 20], [190, 110, 200, 120], [0, 0, 1, 1]]),
        torch.tensor([0, 1, 2]),
        torch.zeros(3).bool(),
    )
    drawn = draw_image(BLACK, class_names=CLASS_NAMES, truth=ImageTruth(labels, masks, torch.arange(3)))
    assert tuple(drawn[:, 0, 0].tolist()) != (0, 0, 0)
    assert tuple(drawn[:, -1, -1].tolist()) != (0, 0, 0)


def test_no_detections_leave_the_image() -> None:
    none = Detections(
        torch.zeros(0, 4),
        torch.zeros(0).long(),
        torch.zeros(0),
        MaskSet.from_crops(120, 200, torch.zeros(0, 4).long(), []),
    )
    assert not bool(draw_image(BLACK, class_names=CLASS_NAMES, detections=none, boxes=Boxes2D.empty()).any())


def test_points_take_the_colour_of_their_label_and_hide_no_object() -> None:
    uv = torch.tensor([[50.5, 50.5], [50.5, 50.5], [199.9, 119.9], [0.0, 0.0]])
    labels = torch.tensor([1, BACKGROUND, IGNORE, 0])
    drawn = draw_image(BLACK, class_names=CLASS_NAMES, pixel_uv=uv, point_values=labels)
    assert tuple(drawn[:, 101, 101].tolist()) == CLASS_COLOURS[1]
    assert tuple(drawn[:, -1, -1].tolist()) == class_colour(IGNORE)
    assert tuple(drawn[:, 0, 0].tolist()) == CLASS_COLOURS[0]


def test_near_points_cover_far_ones() -> None:
    uv = torch.tensor([[50.5, 50.5], [50.5, 50.5]])
    drawn = draw_image(BLACK, class_names=CLASS_NAMES, pixel_uv=uv, point_values=torch.tensor([5.0, 50.0]))
    assert drawn[:, 101, 101].tolist() == depth_colours(torch.tensor([5.0]))[0].tolist()


def test_unknown_classes_are_drawn_all_the_same() -> None:
    boxes = Boxes2D(torch.tensor([[10.0, 10, 100, 100]]), torch.tensor([11]), torch.tensor([False]))
    assert bool(draw_image(BLACK, class_names=CLASS_NAMES, boxes=boxes).any())


def test_birds_eye_puts_forward_up_and_left_left() -> None:
    grid = torch.cartesian_prod(torch.arange(-19.0, 20), torch.arange(-19.0, 20), torch.zeros(1)).reshape(-1, 3)
    xyz = torch.cat([grid, torch.tensor([[15.0, 10.0, 0.0]])])
    ids = torch.full((len(xyz),), -1)
    ids[-1] = 4
    semantic = torch.where(ids >= 0, 0, BACKGROUND)
    drawn = draw_birds_eye(xyz, PointLabels(semantic, ids), RANGE, class_names=("",), size=400)
    rows, cols = (drawn == torch.tensor(INSTANCE_COLOURS[4])[:, None, None]).all(0).nonzero(as_tuple=True)
    height, width = drawn.shape[1:]
    assert rows.float().mean() / height == pytest.approx(5 / 40, abs=0.01)
    assert cols.float().mean() / width == pytest.approx(10 / 40, abs=0.02)


def test_birds_eye_cuts_off_sides_without_points_but_stays_wide_enough() -> None:
    xyz = torch.tensor([[float(x), 0.0, 0.0] for x in range(-19, 20)])
    labels = PointLabels(torch.full((39,), BACKGROUND), torch.full((39,), -1))
    drawn = draw_birds_eye(xyz, labels, RANGE, class_names=CLASS_NAMES, size=400)
    assert drawn.shape[1] == 400
    assert 200 <= drawn.shape[2] <= 280


def test_birds_eye_of_instances_boxes_and_nothing() -> None:
    frame = fake_frame()
    with_boxes = draw_birds_eye(
        frame.xyz, frame.gt_points, POINT_CLOUD_RANGE, class_names=CLASS_NAMES, boxes3d=frame.boxes3d, title="x"
    )
    found = draw_birds_eye(frame.xyz, frame.found, POINT_CLOUD_RANGE, class_names=CLASS_NAMES)
    assert with_boxes.shape == found.shape
    assert has_colour(found, INSTANCE_COLOURS[0])
    assert not has_colour(found, INSTANCE_COLOURS[4])
    none = torch.zeros(0, dtype=torch.int64)
    empty = draw_birds_eye(torch.zeros(0, 3), PointInstances(none, none, none, none.float()), RANGE, class_names=())
    assert empty.shape[0] == 3


def test_instances_are_renamed_by_overlap_one_to_one() -> None:
    gt_ids = torch.tensor([7, 7, 7, 2, 2, -1, -1, 5])
    found = torch.tensor([0, 0, 1, 3, 3, 4, -1, -1])
    aligned = align_instances(gt_ids, found)
    assert aligned[[0, 1, 3, 4, 6, 7]].tolist() == [7, 7, 2, 2, -1, -1]
    assert len({int(aligned[0]), int(aligned[2]), int(aligned[3]), int(aligned[5])}) == 4
    assert int(aligned[2]) > 7
    assert int(aligned[5]) > 7


def test_aligning_nothing() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert len(align_instances(none, none)) == 0
    assert align_instances(torch.tensor([-1, -1]), torch.tensor([3, -1])).tolist() == [0, -1]


def test_instance_colours_are_stable() -> None:
    colours = instance_colours(torch.tensor([3, 0, -1, 3 + len(INSTANCE_COLOURS)]))
    assert tuple(colours[0]) == tuple(colours[3]) == INSTANCE_COLOURS[3]
    assert tuple(colours[2]) == pictures.BACKGROUND_COLOUR


# Simulated colour vision, Machado et al. 2009, severity 1, linear RGB; OKLab of Ottosson 2020.
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
TO_CONES = [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]
TO_LAB = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]


def perceived(colour: tuple[int, int, int], vision: object) -> np.ndarray:
    scaled = np.array(colour) / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(vision) @ linear, 0, 1)
    return np.array(TO_LAB) @ np.cbrt(np.array(TO_CONES) @ seen)


@pytest.mark.parametrize("vision", [np.eye(3), PROTAN, DEUTAN], ids=["usual", "protan", "deutan"])
@pytest.mark.parametrize(("colours", "apart"), [(CLASS_COLOURS[:3], 0.1), (INSTANCE_COLOURS, 0.08)])
def test_colours_are_told_apart(colours: tuple[tuple[int, int, int], ...], apart: float, vision: object) -> None:
    seen = [perceived(colour, vision) for colour in colours]
    nearest = min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2))
    assert nearest > apart


def test_colours_stand_out_on_the_ground() -> None:
    ground = perceived(pictures.GROUND, np.eye(3))
    assert all(np.linalg.norm(perceived(colour, np.eye(3)) - ground) > 0.4 for colour in INSTANCE_COLOURS)
