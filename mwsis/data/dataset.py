"""From stored frames to batches: ground truth is dropped here, augmentation happens in the transform given.

Masks reach training through one door only: a transform that carries ``given_masks`` (`mwsis.data.given_masks`) is shown
those, because the configuration says so; every other one gets frames without any.

`FrameDataset` joins frames, labels and transform; `collate` joins samples. The transform is made of `lidar.transforms`,
`camera.transforms` and `fusion.transforms`; the order of visits is in `sampler.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mwsis.core.batch import Batch, DepthMaps, ImageBatch, PointBatch, Sample
from mwsis.core.errors import DataError
from mwsis.core.frame import Frame
from mwsis.core.instances import Boxes2D, PointLabels
from mwsis.data.given_masks import GivenMasks, require_masks
from mwsis.data.label_cache import FrameLabels
from mwsis.data.sampler import seeded_generator

__all__ = ["FrameDataset", "collate", "rounded_up"]

Transform = Callable[[Frame, FrameLabels, int, torch.Generator], Sample]
IMAGE_MULTIPLE = 32
"""Coarsest stride at which the camera backbone's maps must divide evenly."""
MAP_STRIDE = 4
"""Of depth maps, as of masks."""


class FrameDataset(Dataset[Sample]):
    """Training samples of a frame store.

    The transform never sees ground truth: it is taken off before. Where it has an attribute ``given_masks`` that is not
    ``None``, the frame carries the masks that this gives. What the transform draws depends on ``seed`` and the position
    in the run alone, so a resumed run continues with the samples it would have had.

    Args:
        frames: F frames.
        labels: F labels made from the 2D boxes, or ``None`` where none are needed.
        transform: makes the sample.
        seed: of the augmentation.

    Raises:
        DataError: frames and labels differ in number, or masks are given but no box of any frame has one.
    """

    def __init__(
        self, frames: Sequence[Frame], labels: Sequence[FrameLabels] | None, transform: Transform, seed: int
    ) -> None:
        if labels is not None and len(labels) != len(frames):
            raise DataError(f"labels: expected one per frame ({len(frames)}), got {len(labels)}; make them again")
        self.frames = frames
        self.labels = labels
        self.transform = transform
        self.seed = seed
        self.given_masks: GivenMasks | None = getattr(transform, "given_masks", None)
        if self.given_masks is not None:
            require_masks(self.given_masks, frames)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        """Return the sample of ``(index, position)``, as `ResumableSampler` yields them; an index is its own position.

        Raises:
            DataError: labels and frame differ in length, or an image cannot be decoded.
        """
        index, position = (key, key) if isinstance(key, int) else key
        stored = self.frames[index]
        frame = stored.without_truth()
        if self.given_masks is not None:
            frame = replace(frame, given_masks=self.given_masks.of(stored))
        labels = FrameLabels.unlabelled(len(frame.points)) if self.labels is None else self.labels[index]
        if len(labels.ring_segment_id) != len(frame.points):
            got = f"{len(labels.ring_segment_id)} labels for {len(frame.points)} points"
            raise DataError(f"{frame.frame_id}: {got}; the labels belong to other frames, so make them again")
        return self.transform(frame, labels, index, seeded_generator("sample", self.seed, position))


def collate(samples: list[Sample]) -> Batch:
    """Join samples: points one after the other, images padded to one size, indices and ids counted on.

    Args:
        samples: B samples.

    Returns:
        A batch; ring segments are unique over it, pseudo instances within their frame.
    """
    counts = torch.tensor([len(sample.xyz) for sample in samples])
    first_image = torch.tensor([len(sample.images) for sample in samples]).cumsum(0)
    num_slots = max(sample.pixels.camera_index.shape[1] for sample in samples)
    links = [_links(sample, num_slots) for sample in samples]
    image_index = [
        torch.where(index >= 0, index + first - len(sample.images), -1)
        for (_, index), first, sample in zip(links, first_image, samples, strict=True)
    ]
    points = PointBatch(
        xyz=torch.cat([sample.xyz for sample in samples]),
        point_feats=torch.cat([sample.point_feats for sample in samples]),
        batch_offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        point_index=torch.cat([sample.point_index for sample in samples]),
        ring_segment_id=_counted_on([sample.ring_segment_id for sample in samples]),
    )
    return Batch(
        frame_index=torch.tensor([sample.frame_index for sample in samples]),
        frame_ids=tuple(sample.frame_id for sample in samples),
        points=points,
        images=_image_batch(samples),
        pixel_uv=torch.cat([uv for uv, _ in links]),
        image_index=torch.cat(image_index),
        pseudo=PointLabels(
            torch.cat([sample.pseudo.semantic_labels for sample in samples]),
            torch.cat([sample.pseudo.instance_ids for sample in samples]),
            torch.cat([sample.pseudo.weight for sample in samples]),
        ),
        pixel_depth=_depths(samples, num_slots),
    )


def _depths(samples: list[Sample], num_slots: int) -> Tensor | None:
    """Return the depths of all samples, filled up with empty slots."""
    depths = [sample.pixel_depth for sample in samples if sample.pixel_depth is not None]
    if len(depths) < len(samples):
        return None
    return torch.cat([torch.nn.functional.pad(depth, (0, num_slots - depth.shape[1])) for depth in depths])


def _links(sample: Sample, num_slots: int) -> tuple[Tensor, Tensor]:
    """Return pixels and camera index (int64) of a sample, filled up with empty slots."""
    missing = num_slots - sample.pixels.camera_index.shape[1]
    pixel_uv = torch.nn.functional.pad(sample.pixels.pixel_uv, (0, 0, 0, missing))
    return pixel_uv, torch.nn.functional.pad(sample.pixels.camera_index.long(), (0, missing), value=-1)


def _counted_on(ids: list[Tensor]) -> Tensor:
    """Return the ids of all frames, each frame's beginning after the last one's; -1 stays."""
    shifted, start = [], 0
    for frame_ids in ids:
        shifted.append(torch.where(frame_ids >= 0, frame_ids + start, -1))
        start += int(frame_ids.max()) + 1 if len(frame_ids) else 0
    return torch.cat(shifted)


def _image_batch(samples: list[Sample]) -> ImageBatch:
    images = [image for sample in samples for image in sample.images]
    originals = [size for sample in samples for size in sample.original_sizes]
    labels: tuple[Boxes2D, ...] = tuple(boxes for sample in samples for boxes in sample.labels)
    sizes = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64).reshape(-1, 2)
    height, width = (rounded_up(int(size)) for size in (sizes.max(0).values if images else (1, 1)))
    masks = tuple(given for sample in samples for given in sample.masks)
    strong = [image for sample in samples for image in sample.strong]
    return ImageBatch(
        _padded(images, height, width),
        sizes,
        torch.tensor(originals, dtype=torch.int64).reshape(-1, 2),
        labels,
        masks,
        _padded(strong, height, width) if strong else None,
        _depth_maps([depth for sample in samples for depth in sample.depth], height, width),
    )


def _depth_maps(maps: list[DepthMaps], height: int, width: int) -> DepthMaps | None:
    """Return the maps of images padded to height and width, unknown where they end; None without any."""
    if not maps:
        return None
    whole = torch.zeros(len(maps), height // MAP_STRIDE, width // MAP_STRIDE)
    joined = DepthMaps(whole, whole.bool(), whole.bool(), maps[0].metric)
    for index, one in enumerate(maps):
        rows, cols = one.value.shape
        for canvas, part in ((whole, one.value), (joined.valid, one.valid), (joined.ground, one.ground)):
            canvas[index, :rows, :cols] = part
    return joined


def _padded(images: list[Tensor], height: int, width: int) -> Tensor:
    padded = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for canvas, image in zip(padded, images, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return padded


def rounded_up(size: int) -> int:
    """Return the least multiple of 32 that is not smaller: a side that the camera's coarsest stride divides."""
    return -(-size // IMAGE_MULTIPLE) * IMAGE_MULTIPLE
