"""Which neighbouring pixels look alike: colour similarity of cell pairs, once per image, on the device of the images.

Only similarities; the loss that uses them is `camera.terms.Pairwise`. Another affinity (depth, features) is another
class with the same call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mwsis.core.batch import ImageBatch

__all__ = ["Color", "PairAffinity", "color_distance", "forward_offsets", "rgb_to_lab", "shifted"]

CELL = 4
"""Edge of a mask cell, pixels; cell j stands for pixel ``4 j + 2``."""
WHITE_D65 = (0.95047, 1.0, 1.08883)
RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
"""sRGB primaries and D65 white, 2 degree observer (the constants of scikit-image)."""


def forward_offsets(dilation: int) -> tuple[tuple[int, int], ...]:
    """Return the four (rows, columns) steps that name each unordered pair of 8-neighbours once."""
    return ((0, dilation), (dilation, -dilation), (dilation, 0), (dilation, dilation))


def shifted(maps: Tensor, rows: int, cols: int) -> Tensor:
    """Return maps whose cell (y, x) holds the input's cell (y + rows, x + cols), zero outside; rows >= 0."""
    height, width = maps.shape[-2:]
    reach = abs(cols)
    padded = functional.pad(maps, (reach, reach, 0, rows))
    return padded[..., rows : rows + height, reach + cols : reach + cols + width]


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Return CIE LAB of sRGB colours.

    Args:
        rgb: (I, 3, h, w) float, grey levels 0 to 255.

    Returns:
        (I, 3, h, w) float32: L in [0, 100], a and b about [-128, 127].

    Source: CIE 1976 with sRGB's transfer curve, white D65; equals scikit-image's ``rgb2lab``.
    """
    level = rgb.float() / 255
    linear = torch.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    xyz = torch.einsum("ij,njhw->nihw", rgb.new_tensor(RGB_TO_XYZ, dtype=torch.float32), linear)
    xyz = xyz / rgb.new_tensor(WHITE_D65, dtype=torch.float32).reshape(1, 3, 1, 1)
    root = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def color_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the Euclidean distance of colours, (..., h, w), of maps (..., 3, h, w).

    Written out, because `torch.Tensor.norm` along a dimension that is not the last takes some eighty times as long.
    """
    return (first - second).square().sum(-3).sqrt()


@dataclass(frozen=True, eq=False)
class PairAffinity:
    """Similarity of neighbouring cells at stride 4.

    Attributes:
        similarity: (I, 4, h, w) float32 in [0, 1], of cell (y, x) and its neighbour at each forward offset; 0 where the
            neighbour lies outside the map.
        valid: (I, h, w) bool, the cell shows image content, not padding.
        offsets: the four forward (rows, columns) steps, cells.
    """

    similarity: Tensor
    valid: Tensor
    offsets: tuple[tuple[int, int], ...]


class Color:
    """Similarity of colours, ``exp(-|LAB_i - LAB_j| / 2)``, of cells averaged over 4 by 4 pixels.

    Args:
        dilation: distance of the paired cells, in cells.

    Source: BoxInst, section 3.2; the average is cut to whole grey levels as in its code; 0.3 is a LAB
    distance of 2.408.
    """

    needs = frozenset({"images"})

    def __init__(self, dilation: int = 2) -> None:
        self.offsets = forward_offsets(dilation)

    @torch.no_grad()
    def __call__(self, images: ImageBatch) -> PairAffinity:
        """Return the affinity of every image, computed once whatever the number of boxes.

        Args:
            images: (I, 3, H, W) uint8 RGB, un-normalised, with the size of their content.
        """
        lab = rgb_to_lab(functional.avg_pool2d(images.images.float(), CELL).floor())
        height, width = lab.shape[-2:]
        sizes = images.sizes.to(lab.device)
        rows = torch.arange(height, device=lab.device) * CELL + CELL // 2 < sizes[:, :1]
        cols = torch.arange(width, device=lab.device) * CELL + CELL // 2 < sizes[:, 1:]
        inside = torch.ones_like(lab[:, 0])
        maps = [
            (-0.5 * color_distance(lab, shifted(lab, *step))).exp() * shifted(inside, *step) for step in self.offsets
        ]
        return PairAffinity(torch.stack(maps, 1), rows[:, :, None] & cols[:, None, :], self.offsets)
