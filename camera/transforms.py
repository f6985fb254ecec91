"""Decoding, resizing and mirroring of images, with the boxes, masks and pixels that lie on them.

One `ImageGeometry` is applied to everything on an image, so nothing can be moved in one place and forgotten in another.
Padding is done by `mwsis.data.dataset.collate`, normalisation by the model. Next: `fusion.transforms`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from camera.condinst import MASK_STRIDE
from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import BoxMasks
from mwsis.core.instances import Boxes2D, MaskSet

__all__ = ["ImageGeometry", "ResizeFlip", "decode_image"]


HALF = 0.5 - 1e-5
"""Covered share from which a cell belongs to a mask; a little less, so that rounding does not decide on halves."""


@dataclass(frozen=True)
class ImageGeometry:
    """How a recorded image becomes the one a model sees.

    Attributes:
        original_height, original_width: recorded size, pixels.
        height, width: size after resizing, pixels.
        flipped: mirrored left to right after resizing.
    """

    original_height: int
    original_width: int
    height: int
    width: int
    flipped: bool

    def apply_image(self, image: Tensor) -> Tensor:
        """Return a (3, H, W) uint8 image resized (bilinear, antialiased) and mirrored."""
        assert image.shape[-2:] == (self.original_height, self.original_width)
        if image.shape[-2:] != (self.height, self.width):
            size = (self.height, self.width)
            image = functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        return image.flip(-1) if self.flipped else image.contiguous()

    def apply_uv(self, pixel_uv: Tensor) -> Tensor:
        """Return (..., 2) float pixels (centres at +0.5) on the new image; each axis has its own factor."""
        size, original_size = (self.width, self.height), (self.original_width, self.original_height)
        scaled = pixel_uv * pixel_uv.new_tensor(size) / pixel_uv.new_tensor(original_size)
        if not self.flipped:
            return scaled
        return torch.stack([self.width - scaled[..., 0], scaled[..., 1]], -1)

    def apply_boxes(self, labels: Boxes2D) -> Boxes2D:
        """Return the boxes on the new image."""
        corners = self.apply_uv(labels.boxes.reshape(-1, 2, 2))
        boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
        return Boxes2D(boxes, labels.labels, labels.ignore)

    def apply_masks(self, given: BoxMasks) -> BoxMasks:
        """Return the masks on the new image at stride 4: the cells that a mask covers by half or more.

        A mask that covers no cell by half gets the cell it covers most. Only crops are touched.
        """
        boxes, crops = [], []
        for index in range(len(given.masks)):
            box, crop = self._cells(given.masks.crop_boxes[index].tolist(), given.masks.crop(index))
            boxes.append(box)
            crops.append(crop)
        size = (-(-self.height // MASK_STRIDE), -(-self.width // MASK_STRIDE))
        masks = MaskSet.from_crops(*size, torch.tensor(boxes, dtype=torch.int64), crops)
        return BoxMasks(masks, given.weight)

    def _cells(self, box: list[int], crop: Tensor) -> tuple[list[int], Tensor]:
        """Return the crop box in cells and the covered cells of a mask in recorded pixels."""
        if not bool(crop.any()):
            return [0, 0, 0, 0], torch.zeros(0, 0, dtype=torch.bool)
        x1, y1, x2, _ = box
        if self.flipped:
            x1, crop = self.original_width - x2, crop.flip(1)
        top, cover = _cover(crop.float(), y1, self.original_height / self.height * MASK_STRIDE)
        left, cover = _cover(cover.T, x1, self.original_width / self.width * MASK_STRIDE)
        cover = cover.T
        cells = cover >= min(HALF, float(cover.max()))
        return [left, top, left + cells.shape[1], top + cells.shape[0]], cells


def _cover(maps: Tensor, start: int, cell: float) -> tuple[int, Tensor]:
    """Return the first cell that the rows touch and the mean over each touched cell, zero beyond the rows.

    Args:
        maps: (n, m) float, rows ``start`` to ``start + n``.
        start: pixels.
        cell: edge of a cell, pixels.
    """
    num_rows = len(maps)
    first, last = math.floor(start / cell), math.ceil((start + num_rows) / cell)
    edge = (torch.arange(first, last + 1, dtype=torch.float64) * cell - start).clamp(0, num_rows)
    whole = edge.long().clamp(max=num_rows - 1)
    total = functional.pad(maps.cumsum(0), (0, 0, 1, 0))
    below = total[whole] + (edge - whole).float()[:, None] * maps[whole]
    return first, below.diff(dim=0) / cell


@dataclass(frozen=True)
class ResizeFlip:
    """Draws one width for all images of a frame and mirrors each of them on its own.

    Attributes:
        widths: pixels to choose from; the height follows with the ratio kept.
        flip_prob: probability that an image is mirrored.

    Raises:
        ConfigError: no widths, or a value out of range.

    Source: MWSIS (AAAI 2024), released image pipeline: one scale for all views, flips independent with .5.
    """

    widths: Sequence[int]
    flip_prob: float = 0.5

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"widths: expected at least one positive width in pixels, got {list(self.widths)}")
        if not 0 <= self.flip_prob <= 1:
            raise ConfigError(f"flip_prob: expected 0 to 1, got {self.flip_prob}")

    def draw(self, sizes: Sequence[tuple[int, int]], generator: torch.Generator) -> list[ImageGeometry]:
        """Draw the geometry of each image.

        Args:
            sizes: (height, width) of each recorded image, pixels.
            generator: one number is used up for the width and one for each image.
        """
        choice = int(torch.randint(len(self.widths), (), generator=generator))
        flips = torch.rand(len(sizes), generator=generator, dtype=torch.float64) < self.flip_prob
        return [
            self._geometry(size, int(self.widths[choice]), flipped)
            for size, flipped in zip(sizes, flips.tolist(), strict=True)
        ]

    def deterministic(self, sizes: Sequence[tuple[int, int]]) -> list[ImageGeometry]:
        """Return the geometry for evaluation: the largest width, no mirroring."""
        return [self._geometry(size, int(max(self.widths)), flipped=False) for size in sizes]

    @staticmethod
    def _geometry(size: tuple[int, int], width: int, flipped: bool) -> ImageGeometry:
        height = max(1, round(size[0] * width / size[1]))
        return ImageGeometry(size[0], size[1], height, width, flipped)


def decode_image(encoded: bytes, what: str) -> Tensor:
    """Return the pixels of a JPEG or PNG file.

    Args:
        encoded: the file's bytes.
        what: named in the error, e.g. frame and camera.

    Returns:
        (3, H, W) uint8, RGB.

    Raises:
        DataError: the bytes are no image, or the image is truncated.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{what}: cannot decode the image ({error}); copy the data set's file again") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)
