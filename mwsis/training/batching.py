"""Batches whose images all have one size, given beforehand: the same on every process and at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.nn import functional

from mwsis.core.batch import Batch, DepthMaps, Sample
from mwsis.core.errors import ConfigError
from mwsis.data.dataset import MAP_STRIDE, collate

__all__ = ["collate_padded"]


def collate_padded(samples: list[Sample], size: Sequence[int]) -> Batch:
    """Join samples as `collate` does and pad their images right and bottom to one size.

    Args:
        samples: B samples.
        size: height and width, pixels, multiples of 32 (MWSIS: 800, 1344).

    Raises:
        ConfigError: an image is larger.
    """
    batch = collate(samples)
    height, width = (int(side) for side in batch.images.images.shape[-2:])
    if height > size[0] or width > size[1]:
        raise ConfigError(f"data.pad_to: expected at least [{height}, {width}] for these images, got {list(size)}")
    margin = (0, size[1] - width, 0, size[0] - height)
    images, strong, depth = batch.images.images, batch.images.strong, batch.images.depth
    padded = replace(
        batch.images,
        images=functional.pad(images, margin),
        strong=None if strong is None else functional.pad(strong, margin),
        depth=None if depth is None else _padded(depth, [side // MAP_STRIDE for side in margin]),
    )
    return replace(batch, images=padded)


def _padded(depth: DepthMaps, margin: list[int]) -> DepthMaps:
    value, valid, ground = (functional.pad(each, margin) for each in (depth.value, depth.valid, depth.ground))
    return DepthMaps(value, valid, ground, depth.metric)
