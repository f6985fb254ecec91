"""What one training step sees: ragged points, padded images, boxes, and the link between them; never ground truth.

Made by `mwsis.data.dataset.collate`; consumed by the two branches and by `fusion.step`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from mwsis.core.frame import BoxMasks, PixelMap
from mwsis.core.instances import Boxes2D, PointLabels

__all__ = ["Batch", "DepthMaps", "ImageBatch", "PointBatch", "Sample", "move"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class PointBatch:
    """The points of B frames, one after the other.

    Attributes:
        xyz: (N, 3) float32, metres, vehicle frame after augmentation.
        point_feats: (N, 2) float32, columns of `PointFeature`.
        batch_offsets: (B+1,) int64, starts with 0.
        point_index: (N,) int64, the point's row in its stored frame.
        ring_segment_id: (N,) int64, unique over the batch, -1 none.
    """

    xyz: Tensor
    point_feats: Tensor
    batch_offsets: Tensor
    point_index: Tensor
    ring_segment_id: Tensor

    @property
    def num_frames(self) -> int:
        return len(self.batch_offsets) - 1

    @property
    def batch_index(self) -> Tensor:
        """(N,) int64, the frame of each point."""
        counts = self.batch_offsets.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


@dataclass(frozen=True, eq=False)
class DepthMaps:
    """How deep the cells of images lie, from a network run elsewhere or from LiDAR points; training alone sees any.

    Attributes:
        value: (I, h, w) float32 at stride 4, (h, w) of one image. Metric: metres along the camera's axis; relative:
            inverse depth in grey levels, from 0, far, to 255, near. 0 where not ``valid``.
        valid: same shape, bool, the depth is known.
        ground: same shape, bool, a valid cell shows the ground; never from images alone, which do not tell.
        metric: metres, otherwise grey levels.
    """

    value: Tensor
    valid: Tensor
    ground: Tensor
    metric: bool

    def without(self, hidden: Tensor) -> DepthMaps:
        """Return the maps with nothing known of the cells in ``hidden``, bool, same shape."""
        shown = ~hidden
        return DepthMaps(self.value * shown, self.valid & shown, self.ground & shown, self.metric)


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """I images padded right and bottom to one size.

    Attributes:
        images: (I, 3, H, W) uint8 RGB, un-normalised, zero padded; H and W are multiples of 32.
        sizes: (I, 2) int64, height and width of the content.
        original_sizes: (I, 2) int64, height and width of the recorded image.
        labels: I sets of boxes, pixels of the resized image.
        masks: I sets of masks of these boxes, at the stride that the camera network learns them at, if the
            configuration lets training see any; else ().
        strong: (I, 3, H, W) uint8, the same images in other colours, for the student; None where both networks see
            ``images``.
        depth: of the images; None where no method asks, as always at inference.
    """

    images: Tensor
    sizes: Tensor
    original_sizes: Tensor
    labels: tuple[Boxes2D, ...]
    masks: tuple[BoxMasks, ...] = ()
    strong: Tensor | None = None
    depth: DepthMaps | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def for_student(self) -> ImageBatch:
        """The batch as the student sees it."""
        return self if self.strong is None else replace(self, images=self.strong)


@dataclass(frozen=True, eq=False)
class Sample:
    """One frame after augmentation, before batching; ``pixels.camera_index`` counts ``images`` (-1: not among them).

    ``strong`` holds the images in other colours, or nothing, ``depth`` a map of each image, or nothing;
    ``pixel_depth`` is as in `Batch`.
    """

    frame_index: int
    frame_id: str
    xyz: Tensor
    point_feats: Tensor
    point_index: Tensor
    ring_segment_id: Tensor
    pixels: PixelMap
    pseudo: PointLabels
    images: tuple[Tensor, ...]
    original_sizes: tuple[tuple[int, int], ...]
    labels: tuple[Boxes2D, ...]
    masks: tuple[BoxMasks, ...] = ()
    strong: tuple[Tensor, ...] = ()
    pixel_depth: Tensor | None = None
    depth: tuple[DepthMaps, ...] = ()


@dataclass(frozen=True, eq=False)
class Batch:
    """B frames.

    Attributes:
        frame_index: (B,) int64, index of each frame in its data set.
        frame_ids: B names.
        points: the sweeps.
        images: the images of all frames, in frame order.
        pixel_uv: (N, S, 2) float32, pixels of the resized, flipped image, centres at +0.5.
        image_index: (N, S) int64, index into ``images``, -1 none.
        pseudo: (N,) labels made from the 2D boxes; instance ids unique within a frame.
        pixel_depth: (N, S) float32, metres from each pixel's camera along its axis, 0 in empty slots; None where no
            method asks.
    """

    frame_index: Tensor
    frame_ids: tuple[str, ...]
    points: PointBatch
    images: ImageBatch
    pixel_uv: Tensor
    image_index: Tensor
    pseudo: PointLabels
    pixel_depth: Tensor | None = None


def move(value: T, device: torch.device | str) -> T:
    """Return ``value`` with every tensor in its (nested) dataclass fields and tuples on ``device``."""
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=True)
    elif isinstance(value, tuple):
        moved = tuple(move(item, device) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        moved = type(value)(**{field.name: move(getattr(value, field.name), device) for field in fields(value)})
    return moved
