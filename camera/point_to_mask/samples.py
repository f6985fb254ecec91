"""Training samples of P2Seg: an image with its map of classes, its points, and the instances these two give.

Instances are found on the recorded image, then moved with everything else, so that a crop does not tear a region from
its point. What is drawn depends on the seed and the position in the run alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from camera.color_jitter import ColorJitter
from camera.point_to_mask.instances_from_semantics import UNKNOWN_CLASS, instances_of_components
from camera.point_to_mask.points import ImagePoints, PointedImage, drifted
from camera.point_to_mask.semantic_maps import SemanticMaps
from camera.transforms import ImageGeometry, ResizeCropFlip, decode_image
from mwsis.core.errors import DataError
from mwsis.core.instances import IGNORE, Boxes2D
from mwsis.data.dataset import rounded_up
from mwsis.data.sampler import seeded_generator

__all__ = ["PointBatch", "PointSample", "PointSamples", "collate_points", "load_image", "padded"]

COLORS = ColorJitter(gray_prob=0.0)
"""Photometric distortion; the amounts are those of `ColorJitter` (P2Seg names the operation alone)."""


@dataclass(frozen=True, eq=False)
class PointSample:
    """One image after augmentation.

    Attributes:
        name: of the image file.
        image: (3, H, W) uint8 RGB.
        semantic: (H, W) uint8, 0 background, c + 1 for class c, 255 unknown.
        instances: (H, W) int64, index of a point, `BACKGROUND` or `IGNORE`.
        points: all of the recorded image's, in pixels of the new one or beyond it.
    """

    name: str
    image: Tensor
    semantic: Tensor
    instances: Tensor
    points: ImagePoints


@dataclass(frozen=True, eq=False)
class PointBatch:
    """I images padded right and bottom to one size, with zeros, unknown classes and unknown instances.

    Attributes:
        frame_ids: names of the files.
        images: (I, 3, H, W) uint8 RGB; H and W are multiples of 32.
        sizes: (I, 2) int64, rows and columns of content.
        semantic: (I, H, W) uint8.
        instances: (I, H, W) int64.
        points: of each image.
    """

    frame_ids: tuple[str, ...]
    images: Tensor
    sizes: Tensor
    semantic: Tensor
    instances: Tensor
    points: tuple[ImagePoints, ...]


class PointSamples(Dataset[PointSample]):
    """Training samples of pointed images.

    Args:
        images: the images and their points; at least one.
        folder: of the image files.
        maps: of their classes.
        geometry: resizing, cropping (around a point drawn at random) and mirroring.
        min_area: see `instances_of_components`.
        drift: points are moved anew at each visit, with this standard deviation in recorded pixels.
        seed: of all draws.
    """

    def __init__(
        self,
        images: Sequence[PointedImage],
        folder: Path,
        maps: SemanticMaps,
        geometry: ResizeCropFlip,
        min_area: int,
        drift: float,
        seed: int,
    ) -> None:
        self.images = images
        self.folder = folder
        self.maps = maps
        self.geometry = geometry
        self.min_area = min_area
        self.drift = drift
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> PointSample:
        """Return the sample of ``(index, position)``, as `ResumableSampler` yields them."""
        index, position = key
        generator = seeded_generator("sample", self.seed, position)
        image = self.images[index]
        size = (image.height, image.width)
        points = ImagePoints(drifted(image.points.xy, self.drift, size, generator), image.points.labels)
        semantic = self.maps.of(image)
        instances = instances_of_components(semantic, points, self.min_area)
        geometry = self.geometry.draw([size], [_around(points, size)], generator)[0]
        pixels = geometry.apply_image(load_image(self.folder, image))
        return PointSample(
            image.file_name,
            COLORS(pixels, generator),
            _moved(semantic, geometry),
            _moved(instances, geometry),
            ImagePoints(geometry.apply_uv(points.xy), points.labels),
        )


def load_image(folder: Path, image: PointedImage) -> Tensor:
    """Return an image, (3, H, W) uint8 RGB.

    Raises:
        DataError: there is no such file, or it is no image of the size that was said.
    """
    path = folder / image.file_name
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}), but the file of points lists it") from None
    pixels = decode_image(encoded, str(path))
    if pixels.shape[1:] != (image.height, image.width):
        got, listed = tuple(pixels.shape[1:]), (image.height, image.width)
        raise DataError(f"{path}: height, width: the file of points says {listed}, the image is {got}")
    return pixels


def _around(points: ImagePoints, size: tuple[int, int]) -> Boxes2D:
    """Return a box of at most 2 pixels around each point inside the image, for crops to hold one of them."""
    highest = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
    boxes = torch.cat([points.xy - 1, points.xy + 1], 1).clamp(min=0).minimum(highest)
    return Boxes2D(boxes, points.labels, torch.zeros(len(points), dtype=torch.bool))


def _moved(values: Tensor, geometry: ImageGeometry) -> Tensor:
    """Return an (H, W) map on the new image, each pixel with the value recorded at its centre."""
    rows = (torch.arange(geometry.height) + 0.5) * geometry.original_height / geometry.height
    columns = (torch.arange(geometry.width) + 0.5) * geometry.original_width / geometry.width
    x1, y1, x2, y2 = geometry.kept
    picked = values[rows[y1:y2].long()][:, columns[x1:x2].long()]
    return picked.flip(1) if geometry.flipped else picked


def collate_points(samples: Sequence[PointSample]) -> PointBatch:
    """Join samples, padded to the largest height and width, rounded up to multiples of 32."""
    sizes = torch.tensor([sample.semantic.shape for sample in samples])
    height, width = (rounded_up(int(side)) for side in sizes.amax(0))
    return PointBatch(
        tuple(sample.name for sample in samples),
        torch.stack([padded(sample.image, height, width, 0) for sample in samples]),
        sizes,
        torch.stack([padded(sample.semantic, height, width, UNKNOWN_CLASS) for sample in samples]),
        torch.stack([padded(sample.instances, height, width, IGNORE) for sample in samples]),
        tuple(sample.points for sample in samples),
    )


def padded(values: Tensor, height: int, width: int, value: int) -> Tensor:
    """Return (..., H, W) values as (..., height, width), with ``value`` right and below."""
    return functional.pad(values, (0, width - values.shape[-1], 0, height - values.shape[-2]), value=value)
