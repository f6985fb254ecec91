"""Labelled sweeps for fine-tuning: which segments are labelled, augmentation and pasting, batches with ground truth.

This is the only training path that reads `Frame.truth`, and only of the labelled segments; pretraining samples are
`mwsis.data.dataset`, which drops it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from lidar.detection.boxes import Boxes3D
from lidar.detection.object_bank import ObjectBank
from lidar.detection.sweep import LabelledSweep
from lidar.transforms import RotateScaleFlip
from mwsis.core.batch import PointBatch
from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import Frame
from mwsis.core.instances import PointLabels
from mwsis.data.sampler import seeded_generator

__all__ = ["LabelledBatch", "LabelledFrames", "SweepTransform", "SweptFrames", "collate_sweeps", "labelled_segments"]


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """B sweeps with their given labels.

    Attributes:
        frame_ids: B names.
        points: the sweeps; rows and ring segments are unknown here, -1.
        gt: (N,) point labels; instance ids unique within a frame.
        gt_boxes: B sets of boxes.
    """

    frame_ids: tuple[str, ...]
    points: PointBatch
    gt: PointLabels
    gt_boxes: tuple[Boxes3D, ...]


def labelled_segments(segments: Sequence[str], fraction: float, seed: int) -> list[str]:
    """Return the segments whose labels may be used: the first of a seeded order, so that fractions are nested.

    Args:
        segments: all of the split, each once.
        fraction: of them, in (0, 1]; rounded up to whole segments.
        seed: of the order; another seed, another subset.

    Raises:
        ConfigError: the fraction is out of range.

    Source: subsets by sequence as in MV-JAR (CVPR 2023): single frames of all sequences would be as diverse as all.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"label_fraction: expected more than 0 and at most 1, got {fraction}")
    order = torch.randperm(len(segments), generator=seeded_generator("labelled segments", seed)).tolist()
    count = math.ceil(round(fraction * len(segments), 6))  # .1 * 30 is 3, not a little more
    return [segments[index] for index in order[:count]]


class LabelledFrames(Sequence[Frame]):
    """The frames of some segments of a store, in its order.

    Args:
        frames: of a split, with their ground truth.
        indices: of the labelled ones.

    Raises:
        DataError: there is none.
    """

    def __init__(self, frames: Sequence[Frame], indices: Sequence[int]) -> None:
        if not indices:
            raise DataError("fine-tuning: the labelled segments have no frames")
        self.frames = frames
        self.indices = tuple(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Frame:  # type: ignore[override]
        return self.frames[self.indices[index]]


@dataclass(frozen=True)
class SweepTransform:
    """Makes a training sweep of a labelled one.

    Attributes:
        point_cloud_range: x0 y0 z0 x1 y1 z1, metres; points and boxes outside are dropped, before and after.
        augment: turns, scales and mirrors; None leaves the sweep as it is.
        bank: objects to paste; None pastes none.
        wanted: boxes of each class that a sweep should hold after pasting.

    Source: OpenPCDet's order for Waymo: paste, then mirror, turn and scale the whole.
    """

    point_cloud_range: tuple[float, ...]
    augment: RotateScaleFlip | None = None
    bank: ObjectBank | None = None
    wanted: tuple[int, ...] = ()

    def __call__(self, sweep: LabelledSweep, generator: torch.Generator) -> LabelledSweep:
        """Return the sweep, boxes without points left out; draws come from ``generator`` alone."""
        sweep = sweep.cropped(self.point_cloud_range)
        if self.bank is not None:
            sweep = self.bank.paste(sweep, self.wanted, generator)
        if self.augment is not None:
            sweep = sweep.moved(self.augment.draw(generator)).cropped(self.point_cloud_range)
        return sweep.with_seen_boxes()


class SweptFrames(Dataset[LabelledSweep]):
    """Training sweeps of labelled frames; what is drawn depends on the seed and the position in the run alone.

    Args:
        frames: F labelled frames.
        transform: makes the training sweep.
        seed: of the augmentation.
        only_in_image: leave out points that no camera sees.
    """

    def __init__(self, frames: Sequence[Frame], transform: SweepTransform, seed: int, only_in_image: bool) -> None:
        self.frames = frames
        self.transform = transform
        self.seed = seed
        self.only_in_image = only_in_image

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: tuple[int, int]) -> LabelledSweep:
        """Return the sweep of ``(index, position)``, as `ResumableSampler` yields them."""
        index, position = key
        sweep = LabelledSweep.of(self.frames[index], self.only_in_image)
        return self.transform(sweep, seeded_generator("sample", self.seed, position))


def collate_sweeps(sweeps: Sequence[LabelledSweep]) -> LabelledBatch:
    """Join sweeps: points one after the other, boxes apart."""
    counts = torch.tensor([len(sweep.xyz) for sweep in sweeps])
    unknown = torch.full((int(counts.sum()),), -1)
    points = PointBatch(
        xyz=torch.cat([sweep.xyz for sweep in sweeps]),
        point_feats=torch.cat([sweep.point_feats for sweep in sweeps]),
        batch_offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        point_index=unknown,
        ring_segment_id=unknown,
    )
    gt = PointLabels(
        torch.cat([sweep.gt.semantic_labels for sweep in sweeps]),
        torch.cat([sweep.gt.instance_ids for sweep in sweeps]),
    )
    return LabelledBatch(
        tuple(sweep.frame_id for sweep in sweeps), points, gt, tuple(sweep.gt_boxes for sweep in sweeps)
    )
