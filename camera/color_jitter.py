"""The strong view: an image whose colours were changed at random, for the student; its teacher sees the recorded ones.

Drawn by `fusion.transforms` after everything else, so that a method without it trains on the same samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import functional

from mwsis.core.errors import ConfigError

__all__ = ["ColorJitter"]

BLUR_SIGMA = (0.1, 2.0)
"""Range of the blur's width, pixels (BoxTeacher's code)."""


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue of an image, sometimes takes its colours or its sharpness.

    Attributes:
        brightness, contrast, saturation: factors are drawn from 1 - x to 1 + x, not below 0.
        hue: turned by up to this share of the colour circle, at most 0.5.
        prob: of the four together, which are applied in this order (*simplified*: published in random order).
        gray_prob: of an image without colours.
        blur_prob: of a Gaussian blur.

    Raises:
        ConfigError: a value out of range.

    Source: BoxTeacher (CVPR 2023), released code: .4, .4, .4, .1 with .8, grey .2; blur .5 in its long schedule only.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    prob: float = 0.8
    gray_prob: float = 0.2
    blur_prob: float = 0.0

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise ConfigError("ColorJitter: expected brightness, contrast, saturation of 0 or more, hue from 0 to .5")
        for name in ("prob", "gray_prob", "blur_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"ColorJitter.{name}: expected 0 to 1, got {getattr(self, name)}")

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Return a (3, H, W) uint8 image of the same size; eight numbers are used up."""
        jitter, gray, blur, *draws = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
        if jitter < self.prob:
            ranges = (self.brightness, self.contrast, self.saturation)
            factors = [max(0.0, 1 + (2 * draw - 1) * reach) for draw, reach in zip(draws, ranges)]
            image = functional.adjust_brightness(image, factors[0])
            image = functional.adjust_contrast(image, factors[1])
            image = functional.adjust_saturation(image, factors[2])
            image = functional.adjust_hue(image, (2 * draws[3] - 1) * self.hue)
        if gray < self.gray_prob:
            image = functional.rgb_to_grayscale(image, num_output_channels=3)
        if blur < self.blur_prob:
            sigma = BLUR_SIGMA[0] + draws[4] * (BLUR_SIGMA[1] - BLUR_SIGMA[0])
            image = functional.gaussian_blur(image, 2 * math.ceil(3 * sigma) + 1, sigma)
        return image
