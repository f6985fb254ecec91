import math
from types import SimpleNamespace

import pytest
import torch

from camera.affinity import Color, Feature, Product, rgb_to_lab, shifted
from camera.condinst import aligned_bilinear
from camera.context import MaskContext
from mwsis.core.batch import ImageBatch
from mwsis.core.errors import ConfigError
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


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_feature_similarity_is_the_cosine(network):
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 2, 5, 4, 6, generator=generator)
    images = batch(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), [[32, 48], [19, 34]])
    teacher = SimpleNamespace(dense=SimpleNamespace(mask_feats=other))
    ctx = MaskContext(torch.zeros(0, 8, 12), None, images, None, teacher, own.requires_grad_())
    feature = Feature(network, dilation=1)
    assert feature.needs == ({"teacher"} if network == "teacher" else {"images"})
    affinity = feature.of(ctx)
    feats = aligned_bilinear(own if network == "student" else other, 2)
    assert not affinity.similarity.requires_grad
    assert affinity.valid[1].nonzero().amax(0).tolist() == [4, 7]
    for index, (row, col) in enumerate(affinity.offsets):
        for y, x in ((0, 0), (3, 5), (7, 11)):
            expected = torch.zeros(2)
            if y + row < 8 and 0 <= x + col < 12:
                expected = torch.cosine_similarity(feats[:, :, y, x], feats[:, :, y + row, x + col]).clamp(min=0)
            torch.testing.assert_close(affinity.similarity[:, index, y, x], expected)


def test_product_multiplies_and_computes_each_factor_once():
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    feats = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(1))
    ctx = MaskContext(torch.zeros(0, 8, 12), None, batch(images), None, None, feats)
    product = Product([Color(), Feature("student")])
    assert product.needs == {"images"}
    whole = product.of(ctx)
    place = (torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]), torch.tensor([1, 5, 7]), torch.tensor([2, 0, 11]))
    expected = Color().of(ctx).at(*place) * Feature("student").of(ctx).at(*place)
    torch.testing.assert_close(whole.at(*place), expected)
    assert torch.equal(whole.valid, Color().of(ctx).valid)
    assert whole.offsets == product.offsets
    with pytest.raises(ConfigError, match="one dilation"):
        Product([Color(1), Feature(dilation=2)])
    with pytest.raises(ConfigError, match="no network 'techer'; did you mean 'teacher'"):
        Feature("techer")
