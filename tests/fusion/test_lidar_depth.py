"""Which projected points a camera cannot see: against loops over points, and against the street world's ray casting."""

from __future__ import annotations

import pytest
import torch

from fusion.correspondence import PointPixelPairs, point_pixel_pairs
from fusion.lidar_depth import pixel_depth, unoccluded


def slow_unoccluded(pairs, depth, height, width):
    """Compare every point with every other one of its image whose cell is its own or next to it."""
    kept = []
    cell = (pairs.pixel_uv / 4).floor()
    for one in range(len(pairs)):
        near = (pairs.image_index == pairs.image_index[one]) & ((cell - cell[one]).abs() <= 1).all(1)
        kept.append(bool(depth[one] <= 1.05 * depth[near].min() + 1.0))
    return torch.tensor(kept)


@pytest.mark.parametrize("seed", range(4))
def test_equals_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    uv = torch.rand(300, 2, generator=generator) * torch.tensor([96.0, 64.0])
    image = torch.randint(0, 2, (300,), generator=generator)
    depth = 2 + 40 * torch.rand(300, generator=generator)
    pairs = PointPixelPairs(torch.arange(300), uv, image)
    kept = unoccluded(pairs, depth, 2, 64, 96)
    assert torch.equal(kept, slow_unoccluded(pairs, depth, 64, 96))
    assert 0 < int(kept.sum()) < 300


def test_points_of_other_images_hide_nothing_and_none_is_fine():
    uv = torch.tensor([[10.0, 10.0], [10.0, 10.0]])
    pairs = PointPixelPairs(torch.arange(2), uv, torch.tensor([0, 1]))
    assert unoccluded(pairs, torch.tensor([5.0, 50.0]), 2, 32, 32).all()
    same = PointPixelPairs(torch.arange(2), uv, torch.tensor([0, 0]))
    assert unoccluded(same, torch.tensor([5.0, 50.0]), 1, 32, 32).tolist() == [True, False]
    assert len(unoccluded(pairs[torch.zeros(0, dtype=torch.int64)], torch.zeros(0), 2, 32, 32)) == 0


def test_depth_is_that_of_the_projection(street):
    depth = pixel_depth(street.points.xyz, street.pixels.camera_index, list(street.cameras))
    for index, view in enumerate(street.cameras):
        point, slot = (street.pixels.camera_index == index).nonzero(as_tuple=True)
        assert len(point)
        torch.testing.assert_close(depth[point, slot], view.camera.project(street.points.xyz[point])[1])
    assert not depth[street.pixels.camera_index < 0].any()


def test_what_is_left_out_is_what_the_camera_does_not_show(street):
    """On the street world the true mask at a point's pixel says whether the point's object is seen there."""
    pairs = point_pixel_pairs(street.pixels.pixel_uv, street.pixels.camera_index)
    depth = pixel_depth(street.points.xyz, street.pixels.camera_index, list(street.cameras))
    size = max(view.camera.height for view in street.cameras), max(view.camera.width for view in street.cameras)
    kept = unoccluded(pairs, depth[street.pixels.camera_index >= 0], len(street.cameras), *size)
    point_id = street.truth.instance_ids[pairs.point_index]
    shown = torch.zeros_like(point_id) - 1
    for index, truth in enumerate(street.truth.images):
        column, row = (pairs.pixel_uv[:, axis].long() for axis in (0, 1))
        for k, number in enumerate(truth.instance_ids.tolist()):
            mask = truth.masks.dense(k)
            here = (pairs.image_index == index).nonzero()[:, 0]
            inside = mask[row[here].clamp(max=mask.shape[0] - 1), column[here].clamp(max=mask.shape[1] - 1)]
            shown[here[inside]] = number
    on_object = (point_id >= 0) | (shown >= 0)
    wrong = shown != point_id
    assert int((on_object & wrong).sum()) > 200  # else the scene tests nothing
    wrong_before, wrong_after = (float(wrong[chosen].float().mean()) for chosen in (on_object, on_object & kept))
    assert wrong_after < wrong_before / 2
    assert float(wrong[on_object & ~kept].float().mean()) > 0.5
    assert float(kept[on_object & ~wrong].float().mean()) > 0.85
