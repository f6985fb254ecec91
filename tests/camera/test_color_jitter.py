"""The strong view of an image: other colours, as often and as far as published."""

from __future__ import annotations

import pytest
import torch

from camera.color_jitter import ColorJitter
from mwsis.core.errors import ConfigError


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=generator(0))


def test_the_published_shares_are_met(image):
    views = [ColorJitter()(image, generator(seed)) for seed in range(400)]
    assert all(view.shape == image.shape and view.dtype == torch.uint8 for view in views)
    gray = sum(bool((view[0] == view[1]).all() and (view[1] == view[2]).all()) for view in views)
    same = sum(torch.equal(view, image) for view in views)
    assert 0.14 * 400 < gray < 0.26 * 400
    assert 0.10 * 400 < same < 0.22 * 400  # neither jittered (.2) nor grey (.2): .16


def test_switched_off_it_changes_nothing(image):
    assert torch.equal(ColorJitter(prob=0, gray_prob=0)(image, generator(1)), image)
    still = ColorJitter(0, 0, 0, 0, prob=1, gray_prob=0)(image, generator(1))
    assert int((still.int() - image.int()).abs().max()) <= 2  # through hue and back in 8 bits


def test_brightness_is_a_factor(image):
    bright = ColorJitter(0.4, 0, 0, 0, prob=1, gray_prob=0)
    seen = [bright(image, generator(seed)).double().mean() / image.double().mean() for seed in range(60)]
    assert 0.58 < min(seen) < 0.75
    assert 1.15 < max(seen) < 1.4


def test_a_blur_takes_contrast_and_keeps_the_mean(image):
    blurred = ColorJitter(prob=0, gray_prob=0, blur_prob=1)(image, generator(2)).double()
    assert blurred.std() < 0.8 * image.double().std()
    assert float(blurred.mean()) == pytest.approx(float(image.double().mean()), rel=0.03)


@pytest.mark.parametrize("wrong", [{"hue": 0.6}, {"brightness": -0.1}, {"gray_prob": 1.5}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="ColorJitter"):
        ColorJitter(**wrong)
