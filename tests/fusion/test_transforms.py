from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from camera.transforms import ResizeCropFlip
from fusion.transforms import PairedTransform, in_range
from lidar.transforms import RotateScaleFlip
from mwsis.core.batch import Sample
from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import Frame
from mwsis.core.instances import PointLabels
from mwsis.data.label_cache import FrameLabels
from tests.data.frames_for_tests import random_frame

RANGE = (-15.0, -15.0, -2.0, 15.0, 15.0, 1.5)
TRANSFORM = PairedTransform(ResizeCropFlip([24, 36, 96]), RotateScaleFlip(), RANGE)


def labels_of(frame: Frame) -> FrameLabels:
    rows = torch.arange(len(frame.points))
    return FrameLabels(PointLabels(rows % 4 - 1, rows), rows * 3)


def sample_of(transform: PairedTransform, frame: Frame, seed: int = 0) -> Sample:
    return transform(frame, labels_of(frame), 11, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(6))
def test_membership_in_boxes_is_invariant(seed: int) -> None:
    """Points and boxes of an image move together, whatever is drawn for the sweep and the other images."""
    frame = random_frame(3, 400, num_cameras=2)
    sample = sample_of(TRANSFORM, frame, seed)
    for camera, (view, labels) in enumerate(zip(frame.cameras, sample.labels, strict=True)):
        for slot in (0, 1):
            seen = sample.pixels.camera_index[:, slot] == camera
            before = frame.pixels.pixel_uv[sample.point_index, slot][seen][:, None]
            after = sample.pixels.pixel_uv[:, slot][seen][:, None]
            inside = [
                ((uv > boxes[None, :, :2]) & (uv < boxes[None, :, 2:])).all(2)
                for uv, boxes in ((before, view.labels.boxes), (after, labels.boxes))
            ]
            assert torch.equal(*inside)


@pytest.mark.parametrize("seed", range(4))
def test_pixels_keep_their_colour(seed: int) -> None:
    """The image value under a point is the same before and after a flip at recorded size."""
    frame = random_frame(5, 300)
    sample = sample_of(replace(TRANSFORM, camera=ResizeCropFlip([48])), frame, seed)
    plain = sample_of(replace(TRANSFORM, camera=ResizeCropFlip([48]), augment=False), frame)
    for camera in range(2):
        for slot in (0, 1):
            seen = sample.pixels.camera_index[:, slot] == camera
            u, v = sample.pixels.pixel_uv[:, slot][seen].long().unbind(1)
            old_u, old_v = frame.pixels.pixel_uv[sample.point_index, slot][seen].long().unbind(1)
            assert torch.equal(sample.images[camera][:, v, u], plain.images[camera][:, old_v, old_u])


@pytest.mark.parametrize("seed", range(4))
def test_what_a_crop_cuts_off_is_seen_by_nobody(seed: int) -> None:
    frame = random_frame(5, 300)
    whole = replace(TRANSFORM, camera=ResizeCropFlip([48], flip_prob=0.0))
    sample = sample_of(replace(whole, camera=replace(whole.camera, crop=(16, 24))), frame, seed)
    plain = sample_of(replace(whole, augment=False), frame)
    kept = dict(zip(plain.point_index.tolist(), range(len(plain.point_index)), strict=True))
    lost = 0
    for row, point in enumerate(sample.point_index.tolist()):
        for slot in (0, 1):
            camera = int(plain.pixels.camera_index[kept[point], slot]) if point in kept else -1
            found = int(sample.pixels.camera_index[row, slot])
            if camera < 0 or found < 0:
                lost += camera >= 0
                continue
            assert found == camera
            u, v = sample.pixels.pixel_uv[row, slot].long().tolist()
            old_u, old_v = frame.pixels.pixel_uv[point, slot].long().tolist()
            assert torch.equal(sample.images[camera][:, v, u], plain.images[camera][:, old_v, old_u])
    assert lost > 50
    assert all(tuple(image.shape[1:]) == (16, 24) for image in sample.images)
    for labels in sample.labels:
        assert bool((labels.boxes >= 0).all())
        assert bool((labels.boxes <= torch.tensor([24, 16, 24, 16])).all())


def test_rows_follow_their_points() -> None:
    frame = random_frame(3, 400)
    sample = sample_of(TRANSFORM, frame)
    labels = labels_of(frame)
    rows = sample.point_index
    assert 0 < len(rows) < 400
    assert torch.equal(rows, rows.sort().values)
    assert torch.equal(sample.point_feats, frame.points.point_feats[rows])
    assert torch.equal(sample.ring_segment_id, labels.ring_segment_id[rows])
    assert torch.equal(sample.pseudo.instance_ids, rows)
    generator = torch.Generator().manual_seed(0)
    TRANSFORM._images(frame.cameras, generator)  # images draw first
    matrix = TRANSFORM.lidar.draw(generator)
    assert torch.allclose(sample.xyz, frame.points.xyz[rows] @ matrix.T, atol=1e-5)
    assert in_range(sample.xyz, RANGE).all()
    assert in_range(frame.points.xyz[rows], RANGE).all()
    assert frame.pixels.in_any_image[rows].all()
    assert sample.frame_index == 11


def test_points_are_those_that_the_chosen_cameras_see() -> None:
    frame = random_frame(3, 400, num_cameras=4)
    full = sample_of(TRANSFORM, frame, seed=3)
    for cameras_per_frame in (1, 2, 9):
        sample = sample_of(replace(TRANSFORM, cameras_per_frame=cameras_per_frame), frame, seed=3)
        assert len(sample.images) == len(sample.labels) == min(cameras_per_frame, 4)
        assert (sample.pixels.camera_index >= 0).any(1).all()
        assert int(sample.pixels.camera_index.max()) == min(cameras_per_frame, 4) - 1
        among = torch.isin(full.point_index, sample.point_index)
        assert among.sum() == len(sample.xyz)
        assert torch.equal(sample.xyz, full.xyz[among])


@pytest.mark.parametrize("only_in_image", [True, False])
def test_lidar_input_does_not_depend_on_whether_images_are_loaded(only_in_image: bool) -> None:
    frame = random_frame(3, 400, num_cameras=4)
    transform = replace(TRANSFORM, cameras_per_frame=2, only_in_image=only_in_image)
    sample = sample_of(transform, frame, seed=3)
    blind = sample_of(replace(transform, load_images=False), frame, seed=3)
    assert blind.images == blind.labels == ()
    assert torch.equal(sample.xyz, blind.xyz)
    assert torch.equal(sample.point_index, blind.point_index)


def test_links_point_to_the_loaded_cameras() -> None:
    frame = random_frame(3, 400, num_cameras=4)
    transform = replace(TRANSFORM, only_in_image=False)
    full = sample_of(transform, frame, seed=3)
    some = sample_of(replace(transform, cameras_per_frame=2), frame, seed=3)
    chosen = [next(i for i, image in enumerate(full.images) if torch.equal(image, loaded)) for loaded in some.images]
    assert chosen == sorted(chosen)
    for position, camera in enumerate(chosen):
        assert torch.equal(some.pixels.camera_index == position, full.pixels.camera_index == camera)
        linked = full.pixels.camera_index == camera
        assert torch.equal(some.pixels.pixel_uv[linked], full.pixels.pixel_uv[linked])
    assert some.pixels.pixel_uv[some.pixels.camera_index < 0].eq(0).all()


def test_every_camera_is_loaded_sometimes() -> None:
    frame = random_frame(3, 20, num_cameras=4)
    transform = replace(TRANSFORM, cameras_per_frame=1, camera=ResizeCropFlip([48], flip_prob=0.0))
    loaded = {sample_of(transform, frame, seed).images[0].sum().item() for seed in range(30)}
    assert len(loaded) == 4


def test_without_augmentation_nothing_is_drawn() -> None:
    frame = random_frame(3, 400, num_cameras=3)
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    transform = replace(TRANSFORM, cameras_per_frame=1).deterministic()
    sample = transform(frame, labels_of(frame), 0, generator)
    assert torch.equal(generator.get_state(), state)
    assert len(sample.images) == 3
    assert all(image.shape == (3, 60, 96) for image in sample.images)
    assert torch.equal(sample.xyz, frame.points.xyz[sample.point_index])
    seen = sample.pixels.camera_index >= 0
    assert torch.equal(sample.pixels.camera_index, frame.pixels.camera_index[sample.point_index])
    assert torch.allclose(sample.pixels.pixel_uv[seen], 2 * frame.pixels.pixel_uv[sample.point_index][seen])


def test_points_no_camera_sees_can_be_kept() -> None:
    frame = random_frame(3, 400)
    sample = sample_of(replace(TRANSFORM, only_in_image=False, augment=False), frame)
    assert torch.equal(sample.point_index, in_range(frame.points.xyz, RANGE).nonzero()[:, 0])


def test_the_stored_frame_is_not_written_to() -> None:
    frame = random_frame(3, 100)
    copies = [frame.points.xyz.clone(), frame.pixels.pixel_uv.clone(), frame.cameras[0].labels.boxes.clone()]
    for seed in range(3):
        sample_of(TRANSFORM, frame, seed)
    assert torch.equal(copies[0], frame.points.xyz)
    assert torch.equal(copies[1], frame.pixels.pixel_uv)
    assert torch.equal(copies[2], frame.cameras[0].labels.boxes)


def test_image_of_another_size_is_named() -> None:
    frame = random_frame(3)
    camera = replace(frame.cameras[1].camera, width=50)
    broken = replace(frame, cameras=(frame.cameras[0], replace(frame.cameras[1], camera=camera)))
    with pytest.raises(DataError, match=r"drive-3, camera CAM_1: expected an image of \(H, W\) \(30, 50\)"):
        sample_of(TRANSFORM, broken)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="point_cloud_range"):
        replace(TRANSFORM, point_cloud_range=(0, 0, 0, 1, 1, 0))
    with pytest.raises(ConfigError, match="cameras_per_frame"):
        replace(TRANSFORM, cameras_per_frame=0)
