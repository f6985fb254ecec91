"""The street world: what its frames promise to everyone who trains or scores on them."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from mwsis.core.errors import ConfigError, DataError
from mwsis.core.geometry import points_in_boxes3d
from mwsis.core.instances import BACKGROUND, IGNORE
from mwsis.data.source import Source
from mwsis.data.street import StreetSource

SETTINGS = {
    "train_segments": 4,
    "train_frames_per_segment": 2,
    "val_segments": 2,
    "val_frames_per_segment": 1,
    "lidar_columns": 256,
    "image_width": 192,
}
SMALL = {**SETTINGS, "lidar_rows": 16, "lidar_columns": 64, "image_width": 64}
FRAMES = ("train_000_00", "train_001_01", "train_002_00")


@pytest.fixture(scope="module")
def source():
    return StreetSource(seed=3, **SETTINGS)


@pytest.fixture(scope="module")
def frames(source):
    return [source.read(frame_id) for frame_id in FRAMES]


def fields(frame):
    points = [getattr(frame.points, name) for name in frame.points.__dataclass_fields__]
    truth = frame.truth
    images = [tensor for image in truth.images for tensor in (image.labels.boxes, image.masks.bits, image.instance_ids)]
    return [*points, frame.pixels.pixel_uv, frame.pixels.camera_index, truth.semantic_labels, truth.boxes3d, *images]


def test_it_is_a_source(source):
    assert isinstance(source, Source)
    assert source.frame_ids("train")[:3] == ["train_000_00", "train_000_01", "train_001_00"]
    assert source.frame_ids("val") == ["val_000_00", "val_001_00"]
    assert source.segment_of("train_003_01") == "train_003"


def test_the_same_frame_comes_out_whatever_was_read_before():
    one, other = StreetSource(seed=3, **SMALL), StreetSource(seed=3, **SMALL)
    first = one.read("train_001_01")
    for frame_id in ("val_000_00", "train_001_00"):
        other.read(frame_id)
    again = other.read("train_001_01")
    assert all(torch.equal(this, that) for this, that in zip(fields(first), fields(again), strict=True))
    assert [view.image for view in first.cameras] == [view.image for view in again.cameras]


def test_another_seed_another_split_and_another_moment_are_other_frames():
    source = StreetSource(seed=3, **SMALL)
    first = source.read("train_000_00")
    others = [
        StreetSource(seed=4, **SMALL).read("train_000_00"),
        source.read("val_000_00"),
        source.read("train_000_01"),
    ]
    assert all(other.cameras[0].image != first.cameras[0].image for other in others)
    assert not torch.equal(others[2].truth.boxes3d[:3], first.truth.boxes3d[:3])


def test_the_fingerprint_follows_the_settings(source):
    assert source.fingerprint() == StreetSource(seed=3, **SETTINGS).fingerprint()
    changed = [StreetSource(seed=3, **{**SETTINGS, name: value + 1}) for name, value in SETTINGS.items()]
    prints = {each.fingerprint() for each in [source, StreetSource(seed=4, **SETTINGS), *changed]}
    assert len(prints) == len(SETTINGS) + 2


@pytest.mark.parametrize("frame_id", ["train_004_00", "train_000_02", "train_0_0", "train_000", "test_000_00", ""])
def test_a_frame_that_is_not_there_is_named(source, frame_id):
    with pytest.raises(DataError, match=f"no frame '{frame_id}'"):
        source.read(frame_id)


def test_wrong_settings_and_splits_are_named(source):
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        source.frame_ids("trian")
    with pytest.raises(ConfigError, match="lidar_columns is 2, expected at least 16"):
        StreetSource(lidar_columns=2)
    with pytest.raises(ConfigError, match="val_segments is -1"):
        StreetSource(val_segments=-1)


def test_images_have_the_rig_s_sizes_and_show_something(frames):
    for view, height in zip(frames[0].cameras, (128, 128, 128, 89, 89), strict=True):
        image = np.asarray(Image.open(io.BytesIO(view.image)))
        assert image.shape == (height, 192, 3) == (view.camera.height, view.camera.width, 3)
        assert 40 < image.mean() < 220
        assert image.std() > 20


def test_every_class_occurs_in_images_and_points(frames):
    images = [image for frame in frames for image in frame.truth.images]
    boxes = sum(torch.bincount(image.labels.objects.labels, minlength=3) for image in images)
    points = sum(torch.bincount(frame.truth.semantic_labels.clamp(min=-1) + 1, minlength=4) for frame in frames)
    assert (boxes >= 12).all(), boxes
    assert (points >= 200).all(), points


def test_training_labels_are_the_boxes_of_the_truth_and_touch_their_masks(frames):
    for frame in frames:
        for number, (view, image) in enumerate(zip(frame.cameras, frame.truth.images, strict=True)):
            assert torch.equal(view.labels.boxes, image.labels.boxes)
            assert torch.equal(frame.truth.box_instance_ids[number], image.instance_ids)
            claimed = torch.zeros(view.camera.height, view.camera.width, dtype=torch.int64)
            for index, box in enumerate(image.labels.boxes):
                rows, columns = image.masks.dense(index).nonzero(as_tuple=True)
                extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert box.tolist() == [float(edge) for edge in extent]
                claimed += image.masks.dense(index)
            assert claimed.max() <= 1
            assert (image.masks.areas() >= 5).all()


def test_points_of_an_object_lie_in_its_box(frames):
    for frame in frames:
        boxes = frame.truth.boxes3d.clone()
        boxes[:, 3:6] += 0.3
        inside = points_in_boxes3d(frame.points.xyz, boxes)
        own = frame.truth.instance_ids[:, None] == frame.truth.box3d_ids[None]
        assert bool((inside | ~own).all())
        assert torch.equal(own.any(1), frame.truth.instance_ids >= 0)


def test_boxes_and_points_agree_on_classes(frames):
    for frame in frames:
        truth = frame.truth
        label_of = dict(zip(truth.box3d_ids.tolist(), truth.box3d_labels.tolist(), strict=True)) | {-1: BACKGROUND}
        assert truth.semantic_labels.tolist() == [label_of[each] for each in truth.instance_ids.tolist()]
        for image in truth.images:
            wanted = [label_of[each] for each in image.instance_ids.tolist()]
            small = image.labels.ignore.tolist()
            assert image.labels.labels.tolist() == [
                IGNORE if ignored else label for label, ignored in zip(wanted, small, strict=True)
            ]


def test_points_fall_on_the_pixels_they_carry(frames):
    for frame in frames:
        seen_by = torch.zeros(len(frame.points), dtype=torch.int64)
        for number, view in enumerate(frame.cameras):
            pixel_uv, _, visible = view.camera.project(frame.points.xyz)
            carried = frame.pixels.camera_index == number
            seen_by += visible
            assert not bool((carried.any(1) & ~visible).any())
            point, slot = carried.nonzero(as_tuple=True)
            assert torch.equal(frame.pixels.pixel_uv[point, slot], pixel_uv[point])
        assert torch.equal((frame.pixels.camera_index >= 0).sum(1), seen_by.clamp(max=2))


def test_camera_and_lidar_see_the_same_things(frames):
    """Hidden points and the few centimetres between the sensors leave a minority that disagrees."""
    for frame in frames:
        agree = []
        for number, image in enumerate(frame.truth.images):
            ids = torch.full((frame.cameras[number].camera.height, frame.cameras[number].camera.width), -1)
            for index, instance_id in enumerate(image.instance_ids.tolist()):
                ids[image.masks.dense(index)] = instance_id
            point = ((frame.pixels.camera_index[:, 0] == number) & (frame.truth.instance_ids >= 0)).nonzero()[:, 0]
            u, v = frame.pixels.pixel_uv[point, 0].long().T
            agree.append(ids[v, u] == frame.truth.instance_ids[point])
        assert torch.cat(agree).float().mean() > 0.7


def test_the_range_image_has_two_returns_in_order(frames):
    for frame in frames:
        points = frame.points
        key = (points.ring.long() * 256 + points.azimuth_column.long()) * 2 + points.return_index
        assert bool((key.diff() > 0).all())
        second = points.return_index == 1
        assert 0.01 < second.float().mean() < 0.3
        first_range = {int(cell): float(reach) for cell, reach in zip(key[~second] // 2, points.ranges[~second])}
        gaps = [
            float(reach) - first_range[int(cell)]
            for cell, reach in zip(key[second] // 2, points.ranges[second])
            if int(cell) in first_range
        ]
        assert min(gaps) > 0.5
        assert int(points.ring.max()) <= 63
        assert int(points.ring.min()) >= 0


def test_points_lie_on_their_beams(source, frames):
    rig = source._lidar
    points = frames[0].points
    offset = points.xyz.numpy() - rig.origin
    assert np.allclose(np.linalg.norm(offset, axis=1), points.ranges, atol=1e-3)
    assert np.allclose(np.arcsin(offset[:, 2] / points.ranges.numpy()), rig.inclinations[points.ring], atol=1e-4)
    turn = np.arctan2(offset[:, 1], offset[:, 0]) - rig.azimuths[points.azimuth_column]
    assert np.allclose(np.sin(turn), 0, atol=1e-4)


def test_things_of_one_class_stand_next_to_each_other(frames):
    near = {"Vehicle": 0, "Pedestrian": 0, "Cyclist": 0}
    reach = {"Vehicle": 7.5, "Pedestrian": 0.95, "Cyclist": 1.2}
    for frame in frames:
        for label, name in enumerate(near):
            places = frame.truth.boxes3d[frame.truth.box3d_labels == label, :2]
            gap = torch.cdist(places, places) + torch.eye(len(places)) * 99
            near[name] += int((gap.min(1).values < reach[name]).sum()) if len(places) > 1 else 0
    assert min(near.values()) >= 4, near


def test_vehicles_run_into_nothing(frames):
    """No part of a shrunken footprint of anything lies in a vehicle's box."""
    steps = torch.tensor([*itertools.product((-0.42, 0.0, 0.42), repeat=2)])
    for frame in frames:
        boxes, labels = frame.truth.boxes3d, frame.truth.box3d_labels
        cos, sin = boxes[:, 6:].cos(), boxes[:, 6:].sin()
        along, across = steps[:, 0] * boxes[:, 3:4], steps[:, 1] * boxes[:, 4:5]
        spots = torch.stack([along * cos - across * sin, along * sin + across * cos, torch.zeros_like(along)], -1)
        spots = spots + boxes[:, None, :3]
        inside = points_in_boxes3d(spots.reshape(-1, 3), boxes).reshape(len(boxes), len(steps), len(boxes)).any(1)
        inside &= ~torch.eye(len(boxes), dtype=torch.bool)
        assert not bool(inside[:, labels == 0].any())


def test_a_frame_for_training_holds_no_truth(frames):
    assert frames[0].truth is not None
    assert frames[0].without_truth().truth is None
