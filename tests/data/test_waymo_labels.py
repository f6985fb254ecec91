"""Waymo records as frames: pixels, boxes, ground truth, and what malformed fields are answered with."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mwsis.core.errors import DataError
from mwsis.core.frame import Frame, FrameTruth, ImageTruth
from mwsis.core.instances import BACKGROUND, IGNORE
from mwsis.data.store import FrameStore, write_frames
from mwsis.data.waymo.record import CameraBox, LabelType, PanopticLabel, WaymoRecord
from tests.data.frames_for_tests import assert_same
from tests.data.test_waymo_frame import frame_of, top_of, with_camera
from tests.data.waymo_drive import CAR, HEIGHT, WALKER, WIDTH, make_drive, panoptic, png, without_labels

FRONT = 1
"""Position of FRONT in the record; in the frame it is camera 0."""
CAR_ID, WALKER_ID, SPLIT_ID = CAR * 3, WALKER * 3 + 1, CAR * 3 + 2


def truth_of(record: WaymoRecord, **settings: object) -> FrameTruth:
    truth = frame_of(record, **settings).truth
    assert truth is not None
    return truth


def front_masks(record: WaymoRecord, **settings: object) -> ImageTruth:
    image = truth_of(record, **settings).images[0]
    assert image is not None
    return image


def cell(frame: Frame, row: int, column: int, return_index: int = 0) -> int:
    points = frame.points
    here = (points.ring == row) & (points.azimuth_column == column) & (points.return_index == return_index)
    return int(here.nonzero()[0, 0])


def without_projections(record: WaymoRecord) -> WaymoRecord:
    lidars = tuple(
        replace(lidar, returns=tuple(None if one is None else replace(one, projection=None) for one in lidar.returns))
        for lidar in record.lidars
    )
    return replace(record, lidars=lidars)


def test_recorded_pixels_of_each_return() -> None:
    record = make_drive()
    second = top_of(record).returns[1]
    assert second is not None
    assert second.projection is not None
    second.projection[2, 20, 1] += 5
    frame = frame_of(record)
    first, other = cell(frame, 2, 20), cell(frame, 2, 20, 1)
    assert frame.pixels.camera_index[first].tolist() == [0, 1]  # FRONT and SIDE_LEFT, in the frame's order
    assert frame.pixels.pixel_uv[first].tolist() == [[40.5, 22.5], [WIDTH - 0.5, 0.5]]
    assert frame.pixels.pixel_uv[other, 0].tolist() == [45.5, 22.5]
    assert frame.pixels.camera_index[cell(frame, 2, 30)].tolist() == [-1, -1]


def test_cameras_without_image_are_left_out_and_pixels_follow() -> None:
    record = with_camera(make_drive(), FRONT, image=None)
    frame = frame_of(record)
    assert [view.name for view in frame.cameras] == ["SIDE_LEFT"]
    point = cell(frame, 2, 20)
    assert frame.pixels.camera_index[point].tolist() == [-1, 0]
    assert frame.pixels.pixel_uv[point, 0].tolist() == [0, 0]


def test_pixels_outside_their_image_are_no_pixels() -> None:
    record = make_drive()
    first = top_of(record).returns[0]
    assert first is not None
    assert first.projection is not None
    first.projection[2, 20, :3] = (1, WIDTH, 3)
    frame = frame_of(record)
    assert frame.pixels.camera_index[cell(frame, 2, 20)].tolist() == [-1, 1]


def test_without_recorded_pixels_the_camera_models_say() -> None:
    frame = frame_of(without_projections(make_drive()))
    seen = [view.camera.project(frame.points.xyz) for view in frame.cameras]
    for position, (pixel_uv, _, visible) in enumerate(seen):
        rows, slots = (frame.pixels.camera_index == position).nonzero(as_tuple=True)
        assert rows.tolist() == visible.nonzero()[:, 0].tolist()
        assert len(rows) > 10
        torch.testing.assert_close(frame.pixels.pixel_uv[rows, slots], pixel_uv[visible])


def test_boxes_are_what_people_drew() -> None:
    labels = frame_of(make_drive()).cameras[0].labels
    assert labels.labels.tolist() == [1, 0, 0, IGNORE]  # no sign, nothing outside the image
    assert labels.ignore.tolist() == [False, False, False, True]
    expected = torch.tensor([[43.9, 19.8, 48.1, 26.2], [39.8, 19.8, 44.2, 26.2], [75, 6, WIDTH, 14], [17, 47, 23, 53]])
    torch.testing.assert_close(labels.boxes, expected)


def test_an_image_that_nobody_labelled_is_ignored_as_a_whole() -> None:
    labels = frame_of(with_camera(make_drive(), FRONT, boxes=None)).cameras[0].labels
    assert labels.boxes.tolist() == [[0, 0, WIDTH, HEIGHT]]
    assert labels.ignore.tolist() == [True]
    assert len(frame_of(make_drive()).cameras[1].labels) == 0  # labelled, and nothing was there


def test_point_truth_and_instances_of_two_classes() -> None:
    frame = frame_of(make_drive())
    truth = frame.truth
    assert truth is not None
    for (row, column), label, instance in (
        ((3, 21), 0, CAR_ID),
        ((3, 25), 1, WALKER_ID),
        ((5, 21), 2, SPLIT_ID),  # recorded as the car's instance
        ((2, 30), BACKGROUND, -1),
        ((4, 41), IGNORE, -1),  # a bicycle without rider
        ((3, 45), IGNORE, -1),  # unlabelled
    ):
        for return_index in (0, 1):
            point = cell(frame, row, column, return_index)
            assert (int(truth.semantic_labels[point]), int(truth.instance_ids[point])) == (label, instance)


def test_published_classes() -> None:
    frame = frame_of(make_drive(), class_map="published", min_mask_px=4)
    truth = frame.truth
    assert truth is not None
    assert truth.images[0] is not None
    for row, column in ((4, 41), (3, 45)):
        assert int(truth.semantic_labels[cell(frame, row, column)]) == BACKGROUND
    labels = truth.images[0].labels
    assert labels.labels.tolist() == [IGNORE, 0, 2, 1]  # the bicycle counts, the car of 4 pixels does not exist
    assert labels.ignore.tolist() == [True, False, False, False]
    assert front_masks(make_drive(), class_map="published", min_mask_px=30).labels.labels.tolist() == [IGNORE, 2]


def test_points_of_other_lidars_have_no_labels() -> None:
    truth = truth_of(make_drive(), lidars=("FRONT", "TOP"))
    assert set(truth.semantic_labels[:10].tolist()) == {IGNORE}
    assert set(truth.instance_ids[:10].tolist()) == {-1}


def test_links_between_boxes_masks_and_points() -> None:
    truth = truth_of(make_drive(), min_mask_px=4)
    assert truth.box_instance_ids[0].tolist() == [WALKER_ID, CAR_ID, -1, -1]
    assert truth.box_instance_ids[1].tolist() == []
    image = truth.images[0]
    assert image is not None
    by_label = dict(zip(image.labels.labels.tolist(), image.instance_ids.tolist(), strict=True))
    assert (by_label[0], by_label[1], by_label[IGNORE]) == (CAR_ID, WALKER_ID, -1)
    assert truth.box3d_labels.tolist() == [0, 2]  # no sign
    assert int(truth.box3d_ids[1]) == -1  # no point


def test_3d_boxes_take_the_instance_of_their_points() -> None:
    record = make_drive()
    frame = frame_of(record)
    assert frame.truth is not None
    assert record.laser_labels is not None
    car = frame.points.xyz[(frame.truth.instance_ids == CAR_ID)].double()
    low, high = car.amin(0) - 0.1, car.amax(0) + 0.1
    box = torch.cat([(low + high) / 2, high - low, torch.zeros(1)]).numpy()
    around = replace(record, laser_labels=(replace(record.laser_labels[0], box=box),))
    assert truth_of(around).box3d_ids.tolist() == [CAR_ID]
    walker = replace(record.laser_labels[0], box=box, type=LabelType.CYCLIST, id="w")
    assert truth_of(replace(record, laser_labels=(walker,))).box3d_ids.tolist() != [CAR_ID]


def test_a_box_follows_the_files_own_link_first() -> None:
    record = make_drive()
    frame = frame_of(record)
    assert frame.truth is not None
    assert record.laser_labels is not None
    car = frame.points.xyz[(frame.truth.instance_ids == CAR_ID)].double()
    box = np.array([*((car.amin(0) + car.amax(0)) / 2).tolist(), *(car.amax(0) - car.amin(0) + 0.1).tolist(), 0.0])
    linked = CameraBox(10.0, 50.0, 6.0, 6.0, LabelType.VEHICLE, "far from its points", laser_object_id="car")
    boxes = (*(record.cameras[FRONT].boxes or ()), linked)
    record = with_camera(record, FRONT, boxes=boxes)
    record = replace(record, laser_labels=(replace(record.laser_labels[0], box=box),))
    assert truth_of(record).box_instance_ids[0].tolist() == [WALKER_ID, -1, -1, -1, CAR_ID]


def test_masks_and_what_is_ignored() -> None:
    image = front_masks(make_drive(), min_mask_px=4)
    values = panoptic()
    recorded = [0, 2_000, 2_001, 3_004, 6_003, 9_002]  # sky is background
    assert image.labels.labels.tolist() == [IGNORE, IGNORE, 0, IGNORE, IGNORE, 1]
    assert image.labels.ignore.tolist() == [True, True, False, True, True, False]
    for index, number in enumerate(recorded):
        assert np.array_equal(image.masks.dense(index).numpy(), values == number)
    assert image.labels.boxes[2].tolist() == [40, 20, 44, 26]
    assert bool(front_masks(make_drive(), min_mask_px=24).labels.ignore.all())


def test_truth_is_none_only_where_nothing_is_known() -> None:
    record = without_labels(make_drive())
    assert frame_of(record).truth is None
    assert frame_of(replace(record, laser_labels=())).truth is None
    boxed = truth_of(replace(record, laser_labels=make_drive().laser_labels))
    assert set(boxed.semantic_labels.tolist()) == {IGNORE}
    assert boxed.images == (None, None)
    masked = with_camera(record, FRONT, panoptic=PanopticLabel(png(panoptic()), 1000))
    assert front_masks(masked).instance_ids.tolist() == [-1] * 6


def test_a_frame_survives_the_store(tmp_path: Path) -> None:
    frame = frame_of(make_drive())
    assert frame.cameras[0].camera.shutter is not None
    write_frames(tmp_path / "one.arrow", [frame])
    (stored,) = FrameStore(tmp_path / "one.arrow")[:]
    assert_same(replace(stored, segment=frame.segment), frame)
    xyz = frame.points.xyz
    for got, wanted in zip(stored.cameras[0].camera.project(xyz), frame.cameras[0].camera.project(xyz), strict=True):
        assert torch.equal(got, wanted)


def grey(width: int, height: int, mode: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"panoptic": PanopticLabel(png(np.zeros((64, 97))), 1000)}, r"panoptic label: expected 16-bit grey .*97, 64"),
        ({"panoptic": PanopticLabel(grey(30_000, 30_000, "1"), 1000)}, "panoptic label: expected"),
        ({"panoptic": PanopticLabel(grey(WIDTH, HEIGHT, "RGB"), 1000)}, "panoptic label: .* mode RGB"),
        ({"panoptic": PanopticLabel(png(panoptic())[:60], 1000)}, "panoptic label: expected a PNG, got 60 bytes"),
        ({"panoptic": PanopticLabel(png(panoptic()), 0)}, "panoptic_label_divisor: expected 1 or more, got 0"),
        ({"panoptic": PanopticLabel(png(panoptic()), 100)}, "panoptic label: expected classes 0 to 28, got 250"),
        ({"image": b"no image"}, "FRONT: image: expected a JPEG, got 8 bytes that are none"),
        ({"width": 95}, r"FRONT: image: expected \(width, height\) \(95, 64\), got \(96, 64\)"),
        ({"height": 1 << 30}, "FRONT: width and height: expected"),
        ({"velocity": None}, "FRONT: velocity: expected .6,. finite numbers, got nothing"),
        ({"intrinsics": np.full(9, np.nan)}, "FRONT: intrinsics: .* with 0 finite"),
        ({"shutter_direction": 0}, "FRONT: rolling_shutter_direction: expected 1 to 5, got 0"),
        ({"readout_done_time": 0.0}, "FRONT: camera_readout_done_time"),
        ({"boxes": (CameraBox(np.nan, 3, 3, 3, 1, "a"),)}, "FRONT: camera labels: expected finite boxes"),
    ],
)
def test_malformed_cameras_are_refused_in_one_sentence(changes: dict[str, object], message: str) -> None:
    record = with_camera(make_drive(), FRONT, **changes)
    with pytest.raises(DataError, match=message):
        frame_of(record)


def test_malformed_range_images_are_refused_in_one_sentence() -> None:
    record = make_drive()
    top = top_of(record)
    first = top.returns[0]
    assert first is not None
    assert first.segmentation is not None
    assert first.projection is not None
    unknown = np.full_like(first.segmentation, 23)
    for changed, message in (
        ({"segmentation": unknown}, "LiDAR segmentation: expected classes 0 to 22, got 23"),
        ({"segmentation": first.segmentation[:5]}, r"return 1: segmentation: expected \(6, 48, 2\), got \(5, 48, 2\)"),
        ({"projection": first.projection[..., :3]}, "camera projection: expected"),
        ({"values": first.values[..., :3]}, "range image: expected"),
    ):
        broken = replace(top, returns=(replace(first, **changed), None))
        with pytest.raises(DataError, match=message):
            frame_of(replace(record, lidars=(broken,)))
