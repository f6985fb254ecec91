"""Random rotation, scaling and mirroring of sweeps.

Pixels are attributes that points carry, so nothing here touches the link to the images. Cropping to the point cloud
range and the images' own augmentation are joined with this in `fusion.transforms`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mwsis.core.errors import ConfigError

__all__ = ["RotateScaleFlip"]


@dataclass(frozen=True)
class RotateScaleFlip:
    """Turns a sweep about the vertical axis, scales it, and mirrors it along x and along y.

    Attributes:
        rotation_deg: the angle is uniform in plus or minus this.
        scale: the factor is uniform in 1 plus or minus this.
        flip_prob: probability of each of the two mirrorings.

    Raises:
        ConfigError: a bound is out of range.

    Source: MWSIS (AAAI 2024), released point pipeline: 45 degrees, .05, .5; no translation.
    """

    rotation_deg: float = 45.0
    scale: float = 0.05
    flip_prob: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rotation_deg <= 180:
            raise ConfigError(f"rotation_deg: expected 0 to 180, got {self.rotation_deg}")
        if not 0 <= self.scale < 1:
            raise ConfigError(f"scale: expected 0 or more and below 1, got {self.scale}")
        if not 0 <= self.flip_prob <= 1:
            raise ConfigError(f"flip_prob: expected 0 to 1, got {self.flip_prob}")

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw a (3, 3) float32 matrix that maps columns of coordinates; four numbers of ``generator`` are used up."""
        turn, factor, flip_x, flip_y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        angle = math.radians(self.rotation_deg) * (2 * turn - 1)
        factor = 1 + self.scale * (2 * factor - 1)
        sign_x, sign_y = (-factor if flip < self.flip_prob else factor for flip in (flip_x, flip_y))
        cos, sin = math.cos(angle), math.sin(angle)
        return torch.tensor([[sign_x * cos, -sign_x * sin, 0], [sign_y * sin, sign_y * cos, 0], [0, 0, factor]])

    def __call__(self, xyz: Tensor, generator: torch.Generator) -> Tensor:
        """Return (N, 3) float32 points, metres, after one draw."""
        return xyz @ self.draw(generator).to(xyz.device).T
