"""Which neighbouring cells belong together: by colour, depth, features, a teacher's masks, or several at once.

Only similarities; the loss that uses them is `camera.terms.Pairwise`. An affinity is computed once per step, on the
device of the images, and is then read at the cells that some box needs (`CellAffinity`): no map is made per sample and
neighbour. Another one is another class with the members of `Affinity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from camera.condinst import aligned_bilinear
from camera.context import MaskContext
from mwsis.core.batch import DepthMaps, ImageBatch
from mwsis.core.errors import ConfigError, closest_name

__all__ = [
    "Affinity",
    "CellAffinity",
    "Color",
    "Depth",
    "Feature",
    "Mask",
    "ObjectAffinity",
    "PairAffinity",
    "Product",
    "color_distance",
    "forward_offsets",
    "pixel_feats",
    "rgb_to_lab",
    "shifted",
    "valid_cells",
]

Offsets = tuple[tuple[int, int], ...]

CELL = 4
"""Edge of a mask cell, pixels; cell j stands for pixel ``4 j + 2``."""
WHITE_D65 = (0.95047, 1.0, 1.08883)
RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
"""sRGB primaries and D65 white, 2 degree observer (the constants of scikit-image)."""


def forward_offsets(dilation: int) -> Offsets:
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


def valid_cells(images: ImageBatch, height: int, width: int) -> Tensor:
    """Return (I, height, width) bool: the cell at stride 4 shows image content, not padding."""
    sizes = images.sizes.to(images.images.device)
    rows = torch.arange(height, device=sizes.device) * CELL + CELL // 2 < sizes[:, :1]
    cols = torch.arange(width, device=sizes.device) * CELL + CELL // 2 < sizes[:, 1:]
    return rows[:, :, None] & cols[:, None, :]


def pixel_feats(ctx: MaskContext, network: str) -> Tensor:
    """Return the mask features of the ``student`` or the ``teacher`` at stride 4, (I, D, h, w), without gradient."""
    feats = ctx.teaching.dense.mask_feats if network == "teacher" else ctx.pixel_feats
    assert feats is not None
    return aligned_bilinear(feats.detach().float(), 2)


class CellAffinity(Protocol):
    """Similarities that can be read at picked cells.

    Attributes:
        valid: (I, h, w) bool, the cell shows image content, not padding.
        offsets: the four forward (rows, columns) steps, cells.
    """

    @property
    def valid(self) -> Tensor: ...
    @property
    def offsets(self) -> Offsets: ...

    def at(self, owner: Tensor, image: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """Return (4, M) in [0, 1]: the similarity of M cells with their forward neighbours, 0 outside the map.

        Args:
            owner: (M,) int64, the object the cell is looked at for.
            image: (M,) int64, its image.
            row, col: (M,) int64, the cell.
        """
        ...


class Affinity(Protocol):
    """What makes similarities of a step.

    Attributes:
        needs: what must be there, as for a term.
        offsets: the four forward (rows, columns) steps, cells.
    """

    needs: frozenset[str]
    offsets: Offsets

    def of(self, ctx: MaskContext) -> CellAffinity:
        """Return the similarities of the images (or the objects) of a step."""
        ...


@dataclass(frozen=True, eq=False)
class PairAffinity:
    """Similarity of neighbouring cells at stride 4, the same for all objects of an image.

    Attributes:
        similarity: (I, 4, h, w) float32 in [0, 1], of cell (y, x) and its neighbour at each forward offset; 0 where the
            neighbour lies outside the map.
        valid: (I, h, w) bool, the cell shows image content, not padding.
        offsets: the four forward (rows, columns) steps, cells.
    """

    similarity: Tensor
    valid: Tensor
    offsets: Offsets

    def at(self, owner: Tensor, image: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """Return (4, M) similarities, see `CellAffinity.at`."""
        return self.similarity[image, :, row, col].T


@dataclass(frozen=True, eq=False)
class ObjectAffinity:
    """How far neighbouring cells agree about one object: both on it, or both off it.

    Attributes:
        prob: (G, h, w) float32 in [0, 1], the object's mask.
        present: (G,) bool; without a mask nothing agrees.
        valid, offsets: as of `PairAffinity`.
    """

    prob: Tensor
    present: Tensor
    valid: Tensor
    offsets: Offsets

    def at(self, owner: Tensor, image: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """Return (4, M) agreements ``p q + (1 - p)(1 - q)``, see `CellAffinity.at`."""
        height, width = self.prob.shape[1:]
        step = torch.tensor(self.offsets, device=row.device)
        rows, cols = row + step[:, :1], col + step[:, 1:]
        inside = (rows < height) & (cols >= 0) & (cols < width) & self.present[owner]
        here = self.prob[owner, row, col]
        there = self.prob[owner, rows.clamp(max=height - 1), cols.clamp(0, width - 1)]
        return (here * there + (1 - here) * (1 - there)) * inside


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
        inside = torch.ones_like(lab[:, 0])
        maps = [
            (-0.5 * color_distance(lab, shifted(lab, *step))).exp() * shifted(inside, *step) for step in self.offsets
        ]
        return PairAffinity(torch.stack(maps, 1), valid_cells(images, *lab.shape[-2:]), self.offsets)

    def of(self, ctx: MaskContext) -> PairAffinity:
        """Return the affinity of a step's images."""
        return self(ctx.images)


class Depth:
    """Similarity of depths; a cell without depth, or on the ground, is similar to none.

    Metric maps: ``exp(-|z_i - z_j| / (metres + metres_per_metre * min(z_i, z_j)))``. Relative maps:
    ``exp(-|d_i - d_j| / grey_levels)``, d in grey levels from 0 to 255.

    Args:
        dilation: distance of the paired cells, in cells.
        metres, metres_per_metre: difference in metres, and what each metre of distance adds to it, over which the
            similarity falls to 1/e.
        grey_levels: the same of relative maps (published: 1, in the released code 2).

    Raises:
        ConfigError: a scale is negative, or that of metric or of relative maps is zero.

    Source: Pseudo-Depth (arXiv 2403.01214), depth consistency, threshold 0.5; its maps have whole grey levels, of which
    0.5 then allows no step, ours have 16 bits. The metric form is ours, from the spread of LiDAR points on a surface.
    """

    needs = frozenset({"depth"})

    def __init__(
        self, dilation: int = 2, *, metres: float = 0.1, metres_per_metre: float = 0.01, grey_levels: float = 1.0
    ) -> None:
        if min(metres, metres_per_metre) < 0 or metres + metres_per_metre <= 0 or grey_levels <= 0:
            raise ConfigError(
                "Depth: expected metres and metres_per_metre not below 0 and one above, and grey_levels above 0, got "
                f"{metres}, {metres_per_metre} and {grey_levels}"
            )
        self.metres = metres
        self.metres_per_metre = metres_per_metre
        self.grey_levels = grey_levels
        self.offsets = forward_offsets(dilation)

    @torch.no_grad()
    def similarity(self, depth: DepthMaps, rows: int, cols: int) -> tuple[Tensor, Tensor]:
        """Return how similar each cell is to the one ``rows`` below and ``cols`` to its right, and which are known.

        Returns:
            similarity: (I, h, w) float32 in [0, 1], 0 where not known.
            known: (I, h, w) bool, both cells have a depth and neither is ground.
        """
        usable = depth.valid & ~depth.ground
        known = usable & shifted(usable, rows, cols)
        here, there = depth.value, shifted(depth.value, rows, cols)
        scale: Tensor | float = self.grey_levels
        if depth.metric:
            scale = (self.metres + self.metres_per_metre * here.minimum(there)).where(known, 1.0)
        return (-(here - there).abs() / scale).exp() * known, known

    def of(self, ctx: MaskContext) -> PairAffinity:
        """Return the affinity of a step's images."""
        maps = [self.similarity(ctx.depth, *step)[0] for step in self.offsets]
        return PairAffinity(torch.stack(maps, 1), valid_cells(ctx.images, *ctx.map_size), self.offsets)


class Feature:
    """Similarity of a network's pixel features, their cosine where positive.

    Args:
        network: ``teacher`` or ``student``.
        dilation: distance of the paired cells, in cells.

    Raises:
        ConfigError: no such network.

    Source: the feature factor of SIM (CVPR 2023), with the cosine in place of ``exp(-|f_i - f_j|)`` (*generalised*: no
    scale to choose).
    """

    def __init__(self, network: str = "teacher", dilation: int = 2) -> None:
        if network not in (known := ("teacher", "student")):
            raise ConfigError(f"Feature: no network '{network}'{closest_name(network, known)}")
        self.needs = frozenset({"teacher"}) if network == "teacher" else frozenset({"images"})
        self.network = network
        self.offsets = forward_offsets(dilation)

    @torch.no_grad()
    def of(self, ctx: MaskContext) -> PairAffinity:
        """Return the affinity of a step's images.

        Complexity: O(cells times channels), whatever the number of boxes.
        """
        feats = functional.normalize(pixel_feats(ctx, self.network), dim=1)
        maps = [(feats * shifted(feats, *step)).sum(1).clamp(0, 1) for step in self.offsets]
        return PairAffinity(torch.stack(maps, 1), valid_cells(ctx.images, *feats.shape[-2:]), self.offsets)


class Mask:
    """Agreement of an object's pseudo mask, smoothed by the mean of its 3 by 3 neighbours, at two cells.

    Args:
        dilation: distance of the paired cells, in cells.

    Source: BoxTeacher (CVPR 2023), noise-reduced mask affinity: ``(m + mean3x3(m)) / 2``, threshold 0.5. The mean takes
    out single wrong cells.
    """

    needs = frozenset({"target"})

    def __init__(self, dilation: int = 2) -> None:
        self.offsets = forward_offsets(dilation)

    @torch.no_grad()
    def of(self, ctx: MaskContext) -> ObjectAffinity:
        """Return the agreement within each object of a step; none where an object has no pseudo mask."""
        assert ctx.target is not None
        prob = ctx.target.per_gt
        if len(prob):
            prob = (prob + functional.avg_pool2d(prob[:, None], 3, stride=1, padding=1)[:, 0]) / 2
        return ObjectAffinity(prob, ctx.target.present, valid_cells(ctx.images, *ctx.map_size), self.offsets)


@dataclass(frozen=True, eq=False)
class _Together:
    parts: Sequence[CellAffinity]

    @property
    def valid(self) -> Tensor:
        return self.parts[0].valid

    @property
    def offsets(self) -> Offsets:
        return self.parts[0].offsets

    def at(self, owner: Tensor, image: Tensor, row: Tensor, col: Tensor) -> Tensor:
        return reduce(torch.mul, [part.at(owner, image, row, col) for part in self.parts])


class Product:
    """Cells belong together when all of several affinities say so: their product.

    Args:
        affinities: at least one, all with the same dilation.

    Raises:
        ConfigError: there is none, or their dilations differ.

    Source: SIM (CVPR 2023): colour times features.
    """

    def __init__(self, affinities: Sequence[Affinity]) -> None:
        offsets = {affinity.offsets for affinity in affinities}
        if len(offsets) != 1:
            raise ConfigError(
                f"Product: expected affinities of one dilation, got {sorted(step[0][1] for step in offsets)}"
            )
        self.affinities = list(affinities)
        self.needs = frozenset[str]().union(*(affinity.needs for affinity in affinities))
        (self.offsets,) = offsets

    def of(self, ctx: MaskContext) -> CellAffinity:
        """Return the product over a step's images and objects; each factor is computed once."""
        return _Together([affinity.of(ctx) for affinity in self.affinities])
