"""Depth of images from LiDAR points and from files: against loops, and in step with the images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from camera.affinity import Depth, PairAffinity
from camera.terms import look_alike_pairs, raster_boxes
from camera.transforms import ImageGeometry, ResizeCropFlip
from fusion.depth_maps import FileDepth, LidarDepth
from fusion.lidar_depth import raster_depth
from fusion.transforms import PairedTransform
from lidar.transforms import RotateScaleFlip
from mwsis.core.batch import DepthMaps, move
from mwsis.core.errors import DataError
from mwsis.core.frame import BoxMasks
from mwsis.data.dataset import FrameDataset, collate
from mwsis.data.depth_files import DepthFolder, DepthWriter
from mwsis.training.batching import collate_padded
from tests.data.frames_for_tests import random_frame
from tests.reference.depth import raster_one_by_one

TRANSFORM = PairedTransform(ResizeCropFlip([40, 52, 96]), RotateScaleFlip(), (-99.0, -99.0, -9.0, 99.0, 99.0, 9.0))


@pytest.mark.parametrize("seed", range(4))
def test_raster_equals_loops_over_points(seed):
    generator = torch.Generator().manual_seed(seed)
    uv = torch.rand(400, 2, generator=generator) * torch.tensor([70.0, 50.0]) - 5
    depth = (torch.rand(400, generator=generator) * 30).round() - 1  # ties, and points behind the camera
    ground = torch.rand(400, generator=generator) > 0.5
    maps = raster_depth(uv, depth, ground, (37, 58))
    value, on_ground = raster_one_by_one(uv, depth, ground, 37, 58)
    assert maps.metric
    assert torch.equal(maps.value, value)
    assert torch.equal(maps.valid, value > 0)
    assert torch.equal(maps.ground, on_ground)
    assert 15 < int(maps.valid.sum()) < 150
    none = raster_depth(uv[:0], depth[:0], ground[:0], (37, 58))
    assert not none.valid.any()


def test_lidar_depth_is_that_of_the_points(street):
    sizes = [(view.camera.height, view.camera.width) for view in street.cameras]
    geometries = ResizeCropFlip([384]).deterministic(sizes)
    maps = LidarDepth().of(street, range(len(sizes)), geometries)
    for index, (view, one) in enumerate(zip(street.cameras, maps, strict=True)):
        point, slot = (street.pixels.camera_index == index).nonzero(as_tuple=True)
        uv = geometries[index].apply_uv(street.pixels.pixel_uv[point, slot])
        depth = view.camera.project(street.points.xyz[point])[1]
        seen = one.valid[(uv[:, 1] / 4).long(), (uv[:, 0] / 4).long()]
        gap = depth - one.value[(uv[:, 1] / 4).long(), (uv[:, 0] / 4).long()]
        assert float(gap[seen].min()) > -1e-3  # nothing nearer in its cell
        assert one.value.shape == (-(-sizes[index][0] * 384 // sizes[index][1] // 4), 96)
        share = float((one.ground & one.valid).sum() / one.valid.sum())
        assert 0.05 < share < 0.9
    assert len(LidarDepth().of(street, [2, 4], [geometries[2], geometries[4]])) == 2
    blind = replace(street, points=street.points[:0], pixels=street.pixels[:0], truth=None)
    with pytest.raises(DataError, match=r"data.depth=lidar needs a sweep, and this frame has no points; set"):
        LidarDepth().of(blind, [0], geometries[:1])


def precision(street, ground_height):
    """Return the share of pairs of like depth with an object on a side that have it on both, and their number."""
    good = count = 0.0
    for index, (view, truth) in enumerate(zip(street.cameras, street.truth.images, strict=True)):
        geometry = ResizeCropFlip([384]).deterministic([(view.camera.height, view.camera.width)])[0]
        (one,) = LidarDepth(ground_height).of(street, [index], [geometry])
        maps = DepthMaps(one.value[None], one.valid[None], one.ground[None], True)
        similarity = torch.stack([Depth(2).similarity(maps, *step)[0] for step in Depth(2).offsets], 1)
        affinity = PairAffinity(similarity, torch.ones_like(maps.valid), Depth(2).offsets)
        masks = geometry.apply_masks(BoxMasks(truth.masks, torch.ones(len(truth.masks)))).masks
        extent = raster_boxes(geometry.apply_boxes(truth.labels).boxes, *one.value.shape)
        pairs = look_alike_pairs(affinity, extent, torch.zeros(len(extent), dtype=torch.int64), 0.5)
        for box in range(len(extent)):
            mine = slice(int(pairs.starts[box]), int(pairs.starts[box + 1]))
            first, second = (masks.dense(box).flatten()[cell[mine]] for cell in (pairs.first, pairs.second))
            count += float((first | second).sum())
            good += float((first & second).sum())
    return good / count, count


def test_pairs_of_like_depth_join_what_belongs_together(street):
    """Against true masks of the street world; without the ground fewer pairs join an object and the road."""
    with_ground, before = precision(street, -99.0)
    without, after = precision(street, 0.2)
    assert without > 0.9
    assert without > with_ground
    assert 0.9 * before < after < before


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("crop", [None, (8, 4, 40, 24), (5, 7, 42, 29)])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_map_made_of_the_image_stays_on_the_image(factor, crop, flipped):
    """The image's own red is the map: means over 4 by 4 pixels of the image that is moved are the map that is moved."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(1, 256, (30, 48), generator=generator).byte()
    large = small.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    part = None if crop is None else tuple(factor * side for side in crop)
    geometry = ImageGeometry(30, 48, 30 * factor, 48 * factor, flipped, part)
    whole = ImageGeometry(30 * factor, 48 * factor, 30 * factor, 48 * factor, flipped, part)
    known = torch.rand(30, 48, generator=generator) > 0.3
    got = geometry.apply_depth(DepthMaps(small.float() * known, known, ~known, False))
    image = whole.apply_image((large * known.repeat_interleave(factor, 0).repeat_interleave(factor, 1))[None])[0]
    rows, cols = (-(-side // 4) for side in geometry.size)
    assert got.value.shape == (rows, cols)
    for row in range(rows):
        for col in range(cols):
            cell = image[4 * row : 4 * row + 4, 4 * col : 4 * col + 4].float()
            assert bool(got.valid[row, col]) == bool(cell.any())
            if cell.any():
                assert float(got.value[row, col]) == pytest.approx(float(cell[cell > 0].mean()), rel=1e-4)
    assert not got.ground.any()


@pytest.mark.parametrize("flipped", [False, True])
def test_maps_of_another_resolution_cover_the_same_image(flipped):
    """A slope of 60 by 96 numbers, on an image of 30 by 48 px shown at 45 by 72 px."""
    slope = torch.linspace(1, 9, 96).expand(60, 96)
    geometry = ImageGeometry(30, 48, 45, 72, flipped)
    got = geometry.apply_depth(DepthMaps(slope, torch.ones(60, 96).bool(), torch.zeros(60, 96).bool(), True))
    middle = (torch.arange(18) * 4 + 2) / 72  # share of the width
    expected = 1 + 8 * (middle * 96 - 0.5) / 95
    torch.testing.assert_close(got.value, (expected.flip(0) if flipped else expected).expand(12, 18), atol=0.01, rtol=0)


def written(frame, folder):
    """Write a map of each image whose value is 1 + u + 100 v of the recorded pixel."""
    writer = DepthWriter(folder, metric=True, made_by="tests")
    for view in frame.cameras:
        v, u = torch.meshgrid(torch.arange(view.camera.height), torch.arange(view.camera.width), indexing="ij")
        writer.add(frame.frame_id, view.name, 1 + u + v * 4.0)
    writer.finish()
    return FileDepth(DepthFolder(folder))


@pytest.mark.parametrize("position", range(6))
def test_maps_travel_with_their_images_into_a_batch(tmp_path, position):
    frame = random_frame(0)
    transform = replace(TRANSFORM, depth=written(frame, tmp_path))
    samples = FrameDataset([frame], None, transform, seed=0)
    sample = samples[0, position]
    plain = FrameDataset([frame], None, TRANSFORM, seed=0)[0, position]
    assert torch.equal(sample.xyz, plain.xyz)  # depth draws nothing
    assert all(torch.equal(*pair) for pair in zip(sample.images, plain.images, strict=True))
    geometries = TRANSFORM._images(frame.cameras, _generator(position))[1]
    for one, geometry in zip(sample.depth, geometries, strict=True):
        height, width = geometry.size
        assert one.value.shape == (-(-height // 4), -(-width // 4))
        row, col = one.value.shape[0] // 2, 1
        u = (4 * col + 2) / width * 48
        expected = 0.5 + (48 - u if geometry.flipped else u) + (((4 * row + 2) / height * 30) - 0.5) * 4
        assert float(one.value[row, col]) == pytest.approx(expected, abs=0.3)
    batch = collate([sample, sample])
    depth = batch.images.depth
    height, width = batch.images.images.shape[-2:]
    assert depth.metric
    assert depth.value.shape == depth.valid.shape == depth.ground.shape == (4, height // 4, width // 4)
    for index, one in enumerate((*sample.depth, *sample.depth)):
        rows, cols = one.value.shape
        assert torch.equal(depth.value[index, :rows, :cols], one.value)
        assert not depth.valid[index, rows:].any()
        assert not depth.valid[index, :, cols:].any()
    padded = collate_padded([sample, sample], (96, 128)).images
    assert padded.depth.value.shape == (4, 24, 32)
    assert torch.equal(padded.depth.value[:, : height // 4, : width // 4], depth.value)
    assert float(padded.depth.value.sum()) == pytest.approx(float(depth.value.sum()))
    assert move(batch, "cpu").images.depth.metric is True


def _generator(position):
    from mwsis.data.sampler import seeded_generator

    return seeded_generator("sample", 0, position)


def test_lidar_depth_ignores_how_the_sweep_is_turned_and_cut():
    """Depth is that of all points in the image, whatever the LiDAR branch sees of the sweep."""
    frame = random_frame(3, 400)
    far = replace(TRANSFORM, depth=LidarDepth())
    near = replace(far, point_cloud_range=(-5.0, -5.0, -9.0, 5.0, 5.0, 9.0))
    samples = [FrameDataset([frame], None, one, seed=0)[0, 0] for one in (far, near)]
    assert len(samples[1].xyz) < len(samples[0].xyz)
    for one, other in zip(samples[0].depth, samples[1].depth, strict=True):
        assert bool(one.valid.any())
        assert torch.equal(one.value, other.value)


def test_without_a_source_nothing_is_loaded():
    frame = random_frame(0)
    batch = collate([FrameDataset([frame], None, TRANSFORM, seed=0)[0, 0]])
    assert batch.images.depth is None
    assert replace(TRANSFORM, depth=LidarDepth()).deterministic().depth is None
