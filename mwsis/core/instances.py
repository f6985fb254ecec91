"""Objects: 2D boxes, ragged mask sets, camera detections, LiDAR instances.

Masks are kept as crops (a box of cells and its bits), never as a stack of full-size images. Run-length coding for
scoring lives in `mwsis.evaluation.coco_masks`. Next: `frame.py`, which uses these.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mwsis.core.errors import DataError

__all__ = ["BACKGROUND", "IGNORE", "Boxes2D", "Detections", "MaskSet", "PointInstances", "PointLabels"]

IGNORE = -1
"""Label of what is neither trained on nor scored (255 in uint8 files)."""
BACKGROUND = -2
"""Label of what is known to be no object; not a class index, so ``labels >= 0`` is the foreground."""


@dataclass(frozen=True, eq=False)
class Boxes2D:
    """Axis-aligned boxes in one image.

    Attributes:
        boxes: (G, 4) float32, x1 y1 x2 y2 in pixels, half-open, x1 < x2 and y1 < y2.
        labels: (G,) int64, class index from 0.
        ignore: (G,) bool, a region that is neither trained on nor scored (crowd, DontCare); its label is -1.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4 or self.boxes.dtype != torch.float32:
            raise DataError(f"boxes: expected float32 (G, 4), got {self.boxes.dtype} {tuple(self.boxes.shape)}")
        if not len(self.boxes) == len(self.labels) == len(self.ignore):
            raise DataError("boxes, labels and ignore: expected equal lengths")
        if self.labels.dtype != torch.int64 or self.ignore.dtype != torch.bool:
            raise DataError("labels: expected int64; ignore: expected bool")
        if len(self.boxes) and not bool((self.boxes[:, 2:] > self.boxes[:, :2]).all()):
            raise DataError("boxes: expected x1 < x2 and y1 < y2")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, keep: Tensor) -> Boxes2D:
        return Boxes2D(self.boxes[keep], self.labels[keep], self.ignore[keep])

    @classmethod
    def empty(cls) -> Boxes2D:
        """Return a set of no boxes."""
        return cls(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))

    @property
    def objects(self) -> Boxes2D:
        """The boxes that are not ignore regions."""
        return self[~self.ignore]

    def to(self, device: torch.device | str) -> Boxes2D:
        return Boxes2D(self.boxes.to(device), self.labels.to(device), self.ignore.to(device))


@dataclass(frozen=True, eq=False)
class MaskSet:
    """Binary masks of one image, stored as crops.

    Attributes:
        height, width: size of the image the masks lie on, pixels.
        crop_boxes: (G, 4) int64, x1 y1 x2 y2 of each crop, half-open, inside the image; all zero for an empty mask.
        bits: (sum of crop areas,) bool, the crops row by row, one after the other.
    """

    height: int
    width: int
    crop_boxes: Tensor
    bits: Tensor

    def __post_init__(self) -> None:
        sizes = self.crop_boxes[:, 2:] - self.crop_boxes[:, :2]
        if self.bits.dtype != torch.bool or int(sizes.prod(1).sum()) != len(self.bits):
            raise DataError("masks: expected bool bits as many as the crops have cells")

    def __len__(self) -> int:
        return len(self.crop_boxes)

    def crop(self, index: int) -> Tensor:
        """Return mask ``index`` inside its crop box, (h, w) bool."""
        x1, y1, x2, y2 = self.crop_boxes[index].tolist()
        start = int(self._offsets[index])
        return self.bits[start : start + (y2 - y1) * (x2 - x1)].reshape(y2 - y1, x2 - x1)

    def dense(self, index: int) -> Tensor:
        """Return mask ``index`` on the whole image, (H, W) bool."""
        full = torch.zeros(self.height, self.width, dtype=torch.bool)
        x1, y1, x2, y2 = self.crop_boxes[index].tolist()
        full[y1:y2, x1:x2] = self.crop(index)
        return full

    def areas(self) -> Tensor:
        """Return the number of set pixels of each mask, (G,) int64."""
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), self.bits.long().cumsum(0)])
        offsets = self._offsets
        return ends[offsets[1:]] - ends[offsets[:-1]]

    def __getitem__(self, keep: Tensor) -> MaskSet:
        indices = keep.nonzero()[:, 0] if keep.dtype == torch.bool else keep
        crops = [self.crop(int(index)).reshape(-1) for index in indices]
        bits = torch.cat(crops) if crops else torch.zeros(0, dtype=torch.bool)
        return MaskSet(self.height, self.width, self.crop_boxes[indices], bits)

    @cached_property
    def _offsets(self) -> Tensor:
        sizes = self.crop_boxes[:, 2:] - self.crop_boxes[:, :2]
        return torch.cat([torch.zeros(1, dtype=torch.int64), sizes.prod(1).cumsum(0)])

    @classmethod
    def from_crops(cls, height: int, width: int, crop_boxes: Tensor, crops: list[Tensor]) -> MaskSet:
        """Build from (G, 4) int64 crop boxes and as many (h, w) bool crops."""
        bits = torch.cat([crop.reshape(-1) for crop in crops]) if crops else torch.zeros(0, dtype=torch.bool)
        return cls(height, width, crop_boxes.reshape(-1, 4).long(), bits.bool())

    @staticmethod
    def tight_crop(mask: Tensor) -> tuple[list[int], Tensor]:
        """Return the least half-open x1 y1 x2 y2 around the set pixels of an (H, W) bool mask, and a copy of that part.

        Zeros and an empty crop for an empty mask.
        """
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        if not len(rows):
            return [0, 0, 0, 0], torch.zeros(0, 0, dtype=torch.bool)
        x1, y1, x2, y2 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        return [x1, y1, x2, y2], mask[y1:y2, x1:x2].clone()

    @classmethod
    def from_id_map(cls, id_map: Tensor, ids: Tensor) -> MaskSet:
        """Build the masks ``id_map == id`` from an (H, W) integer image, each cropped to its own extent."""
        height, width = id_map.shape
        boxes, crops = [], []
        for wanted in ids.tolist():
            extent, crop = cls.tight_crop(id_map == wanted)
            boxes.append(extent)
            crops.append(crop)
        return cls.from_crops(height, width, torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4), crops)


@dataclass(frozen=True, eq=False)
class Detections:
    """What a camera segmentor found in one image.

    Attributes:
        boxes: (G, 4) float32, pixels of the recorded image.
        labels: (G,) int64.
        scores: (G,) float32 in [0, 1], descending.
        masks: same order, on the recorded image.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: MaskSet

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class PointLabels:
    """Per-point labels of one frame, made up (`pseudo_*`) or given (`gt_*`): the variable's name must say which.

    Attributes:
        semantic_labels: (N,) int64, class, `BACKGROUND` or `IGNORE`.
        instance_ids: (N,) int64, unique within the frame, -1 none.
        confidence: (N,) float32 in [0, 1], how likely the semantic label is right; None = all certain, as those given
            are. A certain label of a point is 1.
    """

    semantic_labels: Tensor
    instance_ids: Tensor
    confidence: Tensor | None = None

    def __len__(self) -> int:
        return len(self.semantic_labels)

    def __getitem__(self, keep: Tensor) -> PointLabels:
        confidence = None if self.confidence is None else self.confidence[keep]
        return PointLabels(self.semantic_labels[keep], self.instance_ids[keep], confidence)

    @property
    def weight(self) -> Tensor:
        """(N,) float32: the confidence, 1 where there is none."""
        if self.confidence is not None:
            return self.confidence
        return torch.ones(len(self), device=self.semantic_labels.device)


@dataclass(frozen=True, eq=False)
class PointInstances:
    """What a LiDAR segmentor found in one frame.

    Attributes:
        semantic_labels: (N,) int64, class or `BACKGROUND`.
        instance_ids: (N,) int64, 0..K-1 or -1: each point belongs to at most one instance.
        labels: (K,) int64, class of each instance.
        scores: (K,) float32 in [0, 1].
    """

    semantic_labels: Tensor
    instance_ids: Tensor
    labels: Tensor
    scores: Tensor
