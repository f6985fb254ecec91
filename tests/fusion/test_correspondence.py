"""Points in 2D boxes and maps read at pixels."""

import pytest
import torch
from torch.nn.functional import grid_sample

from fusion.correspondence import point_pixel_pairs, points_in_boxes2d, sample_maps
from mwsis.core.frame import PixelMap
from mwsis.core.instances import Boxes2D


def boxes(*rows: tuple[float, float, float, float], ignore: tuple[int, ...] = ()) -> Boxes2D:
    ignored = torch.tensor([index in ignore for index in range(len(rows))], dtype=torch.bool)
    return Boxes2D(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4), torch.where(ignored, -1, 0), ignored)


def test_half_open_boxes():
    pixels = PixelMap(
        torch.tensor([[[10.0, 20.0]], [[30.0, 30.0]], [[29.9, 39.9]], [[15.0, 40.0]]]),
        torch.zeros(4, 1, dtype=torch.int8),
    )
    assert points_in_boxes2d(pixels, [boxes((10, 20, 30, 40))]).tolist() == [[0, 0], [2, 0]]


def test_boxes_count_on_over_cameras_and_pairs_are_unique():
    pixels = PixelMap(
        torch.tensor([[[5.0, 5.0], [6.0, 6.0]], [[5.0, 5.0], [5.0, 5.0]]]),
        torch.tensor([[0, 0], [0, 1]], dtype=torch.int8),
    )
    labels = [boxes((0, 0, 10, 10), (0, 0, 9, 9), ignore=(1,)), boxes((0, 0, 10, 10))]
    assert points_in_boxes2d(pixels, labels).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [1, 2]]


def test_no_points_no_boxes():
    nothing = PixelMap(torch.zeros(0, 2, 2), torch.zeros(0, 2, dtype=torch.int8))
    assert points_in_boxes2d(nothing, [boxes((0, 0, 1, 1))]).shape == (0, 2)
    some = PixelMap(torch.zeros(3, 2, 2), torch.zeros(3, 2, dtype=torch.int8))
    assert points_in_boxes2d(some, [Boxes2D.empty()]).shape == (0, 2)


def test_pairs_are_the_filled_slots():
    pixel_uv = torch.arange(12.0).reshape(3, 2, 2)
    pairs = point_pixel_pairs(pixel_uv, torch.tensor([[1, -1], [-1, -1], [0, 2]]))
    assert pairs.point_index.tolist() == [0, 2, 2]
    assert pairs.image_index.tolist() == [1, 0, 2]
    assert torch.equal(pairs.pixel_uv, torch.stack([pixel_uv[0, 0], pixel_uv[2, 0], pixel_uv[2, 1]]))


@pytest.mark.parametrize("seed", range(3))
def test_sampling_and_its_gradient_equal_grid_sample(seed):
    generator = torch.Generator().manual_seed(seed)
    images, channels, height, width, stride = 3, 2, 7, 11, 4.0
    ours = torch.rand(images, channels, height, width, generator=generator, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    size = torch.tensor([width * stride, height * stride])
    pixel_uv = (torch.rand(200, 2, generator=generator) * 1.2 - 0.1) * size  # some beyond the edges
    image_index = torch.randint(images, (200,), generator=generator)
    grid = (pixel_uv / size * 2 - 1).double()
    expected = torch.stack(
        [
            grid_sample(theirs[i : i + 1], xy.reshape(1, 1, 1, 2), align_corners=False, padding_mode="zeros").flatten()
            for i, xy in zip(image_index.tolist(), grid)
        ]
    )
    sampled = sample_maps(ours, stride, pixel_uv, image_index)
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=0)
    upstream = torch.rand(sampled.shape, generator=generator, dtype=torch.float64)
    sampled.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=0)


def test_sampling_a_cell_centre_returns_the_cell():
    maps = torch.arange(12.0).reshape(1, 1, 3, 4)
    centre = torch.tensor([[(2 + 0.5) * 8, (1 + 0.5) * 8]])
    assert sample_maps(maps, 8, centre, torch.zeros(1, dtype=torch.int64)).item() == 6
