"""Masks of points without training: what they take of their class, and that they stay in it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camera.point_to_mask.baselines import nearest_points, squares, watersheds
from camera.point_to_mask.points import ImagePoints


def points(xy, labels):
    return ImagePoints(torch.tensor(xy, dtype=torch.float32).reshape(-1, 2), torch.tensor(labels, dtype=torch.int64))


def test_squares_are_cut_off_at_the_borders():
    found = squares(points([[50.0, 50.0], [2.0, 95.0]], [0, 1]), (100, 120))
    assert found.crop_boxes.tolist() == [[18, 18, 82, 82], [0, 63, 34, 100]]
    assert found.areas().tolist() == [64 * 64, 34 * 37]
    assert len(squares(points([], []), (10, 10))) == 0


def test_an_edge_ends_a_basin_where_the_middle_would_not():
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    image[:, :, 12:] = 200  # the two objects meet at column 12, their points are at 2.5 and 37.5
    semantic = torch.ones(20, 40, dtype=torch.uint8)
    two = points([[2.5, 10.5], [37.5, 10.5]], [0, 0])
    near, flooded = nearest_points(semantic, two), watersheds(image, semantic, two)
    assert near.areas().tolist() == [400, 400]
    columns = flooded.dense(0).any(0).nonzero()[:, 0]
    assert 11 <= int(columns.max()) <= 13
    assert int(flooded.areas().sum()) == 800


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_every_pixel_of_a_class_goes_to_one_point_of_it(seed, count):
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.randint(0, 3, (12, 17), generator=generator).to(torch.uint8)
    semantic[0, 0] = 255
    image = torch.randint(0, 256, (3, 12, 17), generator=generator, dtype=torch.uint8)
    some = ImagePoints(
        torch.rand(count, 2, generator=generator) * torch.tensor([17.0, 12.0]),
        torch.randint(0, 2, (count,), generator=generator),
    )
    cells = [torch.tensor([[column + 0.5, row + 0.5] for column in range(17)]) for row in range(12)]
    for masks in (nearest_points(semantic, some), watersheds(image, semantic, some)):
        dense = torch.stack([masks.dense(index) for index in range(count)])
        for label in some.classes:
            own = dense[some.labels == label]
            assert torch.equal(own.sum(0) == 1, semantic == label + 1)
    near = nearest_points(semantic, some)
    for index in range(count):
        for row, column in near.dense(index).nonzero().tolist():
            rivals = some.xy[some.labels == some.labels[index]]
            distance = (cells[row][column] - rivals).square().sum(1).min()
            assert (cells[row][column] - some.xy[index]).square().sum() <= distance + 1e-4
