import math

import pytest
import torch

from camera.affinity import Color, rgb_to_lab, shifted
from mwsis.core.batch import ImageBatch
from mwsis.core.instances import Boxes2D
from tests.reference.lab import lab_of_rgb


def batch(images, sizes=None):
    size = torch.tensor([images.shape[2:]] * len(images)) if sizes is None else torch.tensor(sizes)
    return ImageBatch(images, size, size, tuple(Boxes2D.empty() for _ in images))


def test_lab_equals_scikit_image_on_a_grid_of_colours():
    level = torch.arange(0, 256, 15, dtype=torch.uint8)
    rgb = torch.cartesian_prod(level, level, level).T.reshape(1, 3, len(level), -1)
    assert (rgb_to_lab(rgb.float()) - lab_of_rgb(rgb)).abs().max() < 0.05


def test_threshold_is_a_lab_distance():
    assert -2 * math.log(0.3) == pytest.approx(2.408, abs=1e-3)


def test_similarity_of_each_forward_neighbour():
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    affinity = Color()(batch(images))
    mean = images.float().reshape(2, 3, 8, 4, 12, 4).mean((3, 5)).floor()
    lab = lab_of_rgb(mean.byte())
    assert affinity.similarity.shape == (2, 4, 8, 12)
    for index, (row, col) in enumerate(affinity.offsets):
        for y, x in ((0, 0), (0, 5), (5, 3), (7, 11)):
            inside = y + row < 8 and 0 <= x + col < 12
            expected = torch.zeros(2)
            if inside:
                expected = (-0.5 * (lab[:, :, y, x] - lab[:, :, y + row, x + col]).norm(dim=1)).exp()
            torch.testing.assert_close(affinity.similarity[:, index, y, x], expected, atol=1e-3, rtol=1e-3)


def test_padding_is_not_valid():
    images = torch.zeros(2, 3, 32, 64, dtype=torch.uint8)
    valid = Color()(batch(images, [[32, 64], [19, 34]])).valid
    assert valid[0].all()
    assert valid[1].nonzero().amax(0).tolist() == [4, 7]  # pixels 18 and 30 are content, 22 and 34 are not


def test_shifted_reads_ahead():
    maps = torch.arange(12.0).reshape(1, 3, 4)
    assert torch.equal(shifted(maps, 1, -1)[0, 0], torch.tensor([0.0, 4, 5, 6]))
    assert not shifted(maps, 1, -1)[0, 2].any()
