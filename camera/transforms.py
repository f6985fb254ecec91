"""Decoding, resizing, cropping and mirroring of images, with the boxes, masks, depths and pixels that lie on them.

One `ImageGeometry` is applied to everything on an image, so nothing can be moved in one place and forgotten in another.
Padding is done by `mwsis.data.dataset.collate`, normalisation by the model. Next: `fusion.transforms`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from camera.condinst import MASK_STRIDE
from mwsis.core.batch import DepthMaps
from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import BoxMasks
from mwsis.core.instances import Boxes2D, MaskSet
from mwsis.data.image_files import IMAGE_FORMATS, NO_IMAGE

__all__ = ["ImageGeometry", "ResizeCropFlip", "decode_image"]

HALF = 0.5 - 1e-5
"""Covered share from which a cell belongs to a mask; a little less, so that rounding does not decide on halves."""
LEAST_SHARE = 1e-6
"""Known share of a cell from which it has a depth: any, beyond rounding."""
LEAST_SIDE = 2.0
"""Pixels that a box must keep in each direction when an image is cropped. Our choice: half a cell of its mask."""


@dataclass(frozen=True)
class ImageGeometry:
    """How a recorded image becomes the one a model sees.

    Attributes:
        original_height, original_width: recorded size, pixels.
        height, width: size after resizing, pixels.
        flipped: mirrored left to right, last of all.
        crop: x1 y1 x2 y2, the part of the resized image that is kept, pixels; ``None`` keeps all.
    """

    original_height: int
    original_width: int
    height: int
    width: int
    flipped: bool
    crop: tuple[int, int, int, int] | None = None

    @property
    def kept(self) -> tuple[int, int, int, int]:
        """The part of the resized image that becomes the new one, x1 y1 x2 y2."""
        return self.crop or (0, 0, self.width, self.height)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the new image."""
        x1, y1, x2, y2 = self.kept
        return y2 - y1, x2 - x1

    def apply_image(self, image: Tensor) -> Tensor:
        """Return a (3, H, W) uint8 image resized (bilinear, antialiased), cropped and mirrored."""
        assert image.shape[-2:] == (self.original_height, self.original_width)
        if image.shape[-2:] != (self.height, self.width):
            size = (self.height, self.width)
            image = functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        x1, y1, x2, y2 = self.kept
        image = image[:, y1:y2, x1:x2]
        return image.flip(-1) if self.flipped else image.contiguous()

    def apply_uv(self, pixel_uv: Tensor) -> Tensor:
        """Return (..., 2) float pixels (centres at +0.5) on the new image or beyond it; each axis has a factor."""
        size, original_size = (self.width, self.height), (self.original_width, self.original_height)
        scaled = pixel_uv * pixel_uv.new_tensor(size) / pixel_uv.new_tensor(original_size)
        scaled = scaled - scaled.new_tensor(self.kept[:2])
        if not self.flipped:
            return scaled
        return torch.stack([self.size[1] - scaled[..., 0], scaled[..., 1]], -1)

    def shows(self, pixel_uv: Tensor) -> Tensor:
        """Return (...) bool: which pixels of the new image, as `apply_uv` gives them, the crop has kept."""
        if self.crop is None:
            return torch.ones_like(pixel_uv[..., 0], dtype=torch.bool)
        height, width = self.size
        return ((pixel_uv >= 0) & (pixel_uv < pixel_uv.new_tensor([width, height]))).all(-1)

    def shown(self, labels: Boxes2D) -> Tensor:
        """Return (G,) bool: which boxes keep at least `LEAST_SIDE` pixels in each direction; all without a crop."""
        if self.crop is None:
            return torch.ones(len(labels), dtype=torch.bool)
        boxes = self._move(labels.boxes)
        return (boxes[:, 2:] - boxes[:, :2]).amin(1) >= LEAST_SIDE

    def apply_boxes(self, labels: Boxes2D) -> Boxes2D:
        """Return the boxes on the new image; what a crop cuts off is cut off. Every box must be `shown`."""
        return Boxes2D(self._move(labels.boxes), labels.labels, labels.ignore)

    def _move(self, boxes: Tensor) -> Tensor:
        corners = self.apply_uv(boxes.reshape(-1, 2, 2))
        moved = torch.cat([corners.amin(1), corners.amax(1)], 1)
        height, width = self.size
        return moved if self.crop is None else moved.clamp(min=0).minimum(moved.new_tensor([width, height] * 2))

    def apply_masks(self, given: BoxMasks, stride: int = MASK_STRIDE) -> BoxMasks:
        """Return the masks on the cells of the new image, ``stride`` pixels each, that a mask covers by half or more.

        A mask that covers no cell by half gets the cell it covers most. Only crops are touched.
        """
        boxes, crops = [], []
        for index in range(len(given.masks)):
            box, crop = self._cells(given.masks.crop_boxes[index].tolist(), given.masks.crop(index), stride)
            boxes.append(box)
            crops.append(crop)
        size = [-(-side // stride) for side in self.size]
        masks = MaskSet.from_crops(size[0], size[1], torch.tensor(boxes, dtype=torch.int64), crops)
        return BoxMasks(masks, given.weight)

    def apply_depth(self, depth: DepthMaps) -> DepthMaps:
        """Return a map of the whole recorded image, of any resolution, on the new image at stride 4.

        A cell has the mean of what is known in it, and none where nothing is; it shows the ground where half of that
        does.

        Complexity: O(pixels of the map).
        """
        known = depth.valid.double()
        share, value, ground = (self._means(part * known) for part in (known, depth.value, depth.ground))
        valid = share > LEAST_SHARE
        share = share.where(valid, 1.0)
        return DepthMaps(
            (value / share).where(valid, 0.0).float(), valid, valid & (ground >= HALF * share), depth.metric
        )

    def _means(self, maps: Tensor) -> Tensor:
        """Return the mean over each cell of the new image of (n, m) values that cover the recorded one."""
        down, across = maps.shape[0] / self.height, maps.shape[1] / self.width
        left, upper, right, _ = self.kept
        start = -left * across
        if self.flipped:
            start, maps = right * across - maps.shape[1], maps.flip(1)
        rows, columns = self.size
        _, means = _cover(maps, -upper * down, down, rows)
        _, means = _cover(means.T, start, across, columns)
        return means.T

    def _cells(self, box: list[int], crop: Tensor, stride: int) -> tuple[list[int], Tensor]:
        """Return the crop box in cells and the covered cells of a mask in recorded pixels."""
        if not bool(crop.any()):
            return [0, 0, 0, 0], torch.zeros(0, 0, dtype=torch.bool)
        x1, y1, x2, _ = box
        down, across = self.original_height / self.height, self.original_width / self.width
        left, upper, right, _ = self.kept
        start = x1 - left * across
        if self.flipped:
            start, crop = right * across - x2, crop.flip(1)
        rows, columns = self.size
        first_row, cover = _cover(crop.float(), y1 - upper * down, down, rows, stride)
        first_column, cover = _cover(cover.T, start, across, columns, stride)
        cover = cover.T
        if not bool(cover.any()):
            return [0, 0, 0, 0], torch.zeros(0, 0, dtype=torch.bool)
        cells = cover >= min(HALF, float(cover.max()))
        return [first_column, first_row, first_column + cells.shape[1], first_row + cells.shape[0]], cells


def _cover(maps: Tensor, start: float, ratio: float, length: int, stride: int = MASK_STRIDE) -> tuple[int, Tensor]:
    """Return the first cell of the new image that the rows touch and the mean over each touched cell, zero beyond them.

    Args:
        maps: (n, m) float, rows ``start`` to ``start + n``.
        start: recorded pixels, from the edge of the new image.
        ratio: recorded pixels per pixel of the new image.
        length: rows of the new image; what lies beyond its edges is left out.
        stride: rows of the new image that a cell has.
    """
    num_rows, cell = len(maps), ratio * stride
    first = max(math.floor(start / cell), 0)
    last = min(math.ceil((start + num_rows) / cell), -(-length // stride))
    if first >= last:
        return 0, maps[:0]
    edge = torch.arange(first, last + 1, dtype=torch.float64) * cell - start
    edge = edge.clamp(max(-start, 0), min(length * ratio - start, num_rows))
    whole = edge.long().clamp(max=num_rows - 1)
    total = functional.pad(maps.cumsum(0), (0, 0, 1, 0))
    below = total[whole] + (edge - whole).float()[:, None] * maps[whole]
    return first, below.diff(dim=0) / cell


@dataclass(frozen=True)
class ResizeCropFlip:
    """Draws one width for all images of a frame, crops and mirrors each of them on its own.

    Attributes:
        widths: pixels to choose from; the height follows with the ratio kept.
        flip_prob: probability that an image is mirrored.
        crop: rows and columns of the part to train on, around the centre of an object drawn at random; ``None``: no
            crop. An image without objects is cropped anywhere; a side not longer than the crop's stays whole.

    Raises:
        ConfigError: no widths, or a value out of range.

    Source: MWSIS (AAAI 2024), released image pipeline: one scale for all views, flips independent with .5. The crop is
    ours: *generalised*. A step costs as much as on small images, and objects keep their recorded size.
    """

    widths: Sequence[int]
    flip_prob: float = 0.5
    crop: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"widths: expected at least one positive width in pixels, got {list(self.widths)}")
        if not 0 <= self.flip_prob <= 1:
            raise ConfigError(f"flip_prob: expected 0 to 1, got {self.flip_prob}")
        if self.crop is not None and min(self.crop) < 1:
            raise ConfigError(f"crop: expected positive rows and columns in pixels, got {list(self.crop)}")

    def draw(
        self, sizes: Sequence[tuple[int, int]], labels: Sequence[Boxes2D], generator: torch.Generator
    ) -> list[ImageGeometry]:
        """Draw the geometry of each image.

        Args:
            sizes: (height, width) of each recorded image, pixels.
            labels: the boxes of each image, recorded pixels; asked for crops only.
            generator: one number is used up for the width, one for each image, and with crops three more for each.
        """
        choice = int(torch.randint(len(self.widths), (), generator=generator))
        flips = torch.rand(len(sizes), generator=generator, dtype=torch.float64) < self.flip_prob
        whole = [
            self._geometry(size, int(self.widths[choice]), flipped)
            for size, flipped in zip(sizes, flips.tolist(), strict=True)
        ]
        if self.crop is None:
            return whole
        drawn = torch.rand(len(sizes), 3, generator=generator, dtype=torch.float64).tolist()
        return [self._cropped(*one, self.crop) for one in zip(whole, labels, drawn, strict=True)]

    @staticmethod
    def _cropped(geometry: ImageGeometry, labels: Boxes2D, drawn: list[float], crop: tuple[int, int]) -> ImageGeometry:
        """Return the geometry with a crop that holds the centre of the drawn object, at a drawn place within it."""
        which, *place = drawn
        objects = labels.objects
        sides = (min(crop[1], geometry.width), min(crop[0], geometry.height))
        room = (geometry.width - sides[0], geometry.height - sides[1])
        starts = [int(share * (free + 1)) for share, free in zip(place, room)]
        if len(objects):
            box = replace(geometry, flipped=False).apply_boxes(objects[torch.tensor([int(which * len(objects))])])
            centre = ((box.boxes[0, :2] + box.boxes[0, 2:]) / 2).tolist()
            starts = [
                min(max(int(at - share * side), 0), free) for at, share, side, free in zip(centre, place, sides, room)
            ]
        x1, y1 = starts
        return replace(geometry, crop=(x1, y1, x1 + sides[0], y1 + sides[1]))

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
        with Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS) as image:
            pixels = np.array(image.convert("RGB"))
    except NO_IMAGE as error:
        raise DataError(f"{what}: cannot decode the image ({error}); copy the data set's file again") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)
