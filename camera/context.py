"""What mask terms, affinities and pseudo-mask sources may look at in one step.

Made once per step by `fusion.step`. `TeacherView` asks the teacher only for what somebody reads, and runs its backbone
once at most. Terms are in `terms.py`, affinities in `affinity.py`, sources in `sources.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from camera.fcos import Cells, Positives
from mwsis.core.batch import DepthMaps, ImageBatch

if TYPE_CHECKING:  # the segmentor refines masks by colour, which is an affinity, which looks at a context
    from camera.segmentor import CondInst, Dense, Found

__all__ = ["DenseTarget", "MaskContext", "TeacherView"]


@dataclass(frozen=True, eq=False)
class DenseTarget:
    """A soft mask per object, stride 4; carries no gradient.

    Attributes:
        per_gt: (G, h, w) float32 in [0, 1]; zero where not ``present``.
        present: (G,) bool, the object has a pseudo mask; without one it supervises nothing.
        inst_weight: (G,) float32 in [0, 1], how far each mask is to be trusted; None = all present ones wholly.
    """

    per_gt: Tensor
    present: Tensor
    inst_weight: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """(G,) float32: the trust in each mask, 0 where there is none."""
        present = self.present.float()
        return present if self.inst_weight is None else present * self.inst_weight


class TeacherView:
    """What the teacher says about a batch, each part computed when it is first read.

    Args:
        lend: lends the teaching network, in evaluation mode, for a ``with`` block.
        images: the batch.
        positives: the student's samples.
    """

    def __init__(
        self, lend: Callable[[], AbstractContextManager[CondInst]], images: ImageBatch, positives: Positives
    ) -> None:
        self._lend = lend
        self._images = images
        self._positives = positives

    @cached_property
    def dense(self) -> Dense:
        """The teacher's maps: its only pass over the images of a step."""
        with torch.no_grad(), self._lend() as camera:
            return camera.dense(self._images)

    @cached_property
    def masks(self) -> Tensor:
        """(K, h, w) float in [0, 1], the teacher's masks at the student's positives."""
        return self.decode(self._positives)

    @cached_property
    def evidence(self) -> tuple[Tensor, Tensor]:
        """(K,) score of each sample's class and (K,) IoU of its box, see `CondInst.evidence`."""
        dense = self.dense
        with self._lend() as camera:
            return camera.evidence(dense, self._positives)

    @cached_property
    def found(self) -> Found:
        """The teacher's detections, see `CondInst.detect`."""
        dense = self.dense
        with self._lend() as camera:
            return camera.detect(dense, self._images)

    def decode(self, cells: Cells) -> Tensor:
        """Return the teacher's mask probabilities at picked locations (ascending image index), (K, h, w)."""
        dense = self.dense
        with torch.no_grad(), self._lend() as camera:
            return camera.decode_masks(dense, cells).sigmoid()


@dataclass(frozen=True, eq=False)
class MaskContext:
    """One step of the camera branch.

    Attributes:
        mask_logits: (K, h, w), stride 4, of the sampled positives.
        positives: the samples and the objects of the batch.
        images: the batch.
        target: pseudo masks, ``None`` before their source starts.
        teacher: of whom masks, boxes and features can be asked; ``None`` where there is no step around.
        pixel_feats: (I, D, H/8, W/8), the student's mask features; ``None`` where there is no step around.
        progress: share of the run already done; each optimiser step has its own.
        pasted: exact masks of the objects pasted into the images, ``None`` where nothing is pasted.
        depth_output: (K, h, w) in [0, 1], how near the student takes each cell of an object to be; ``None`` of networks
            without that output.
    """

    mask_logits: Tensor
    positives: Positives
    images: ImageBatch
    target: DenseTarget | None = None
    teacher: TeacherView | None = None
    pixel_feats: Tensor | None = None
    progress: float = 0.0
    pasted: DenseTarget | None = None
    depth_output: Tensor | None = None

    @property
    def gt_boxes(self) -> Tensor:
        """(G, 4) float32, pixels of the resized image."""
        return self.positives.gt_boxes

    @property
    def gt_labels(self) -> Tensor:
        """(G,) int64."""
        return self.positives.gt_labels

    @property
    def gt_image(self) -> Tensor:
        """(G,) int64."""
        return self.positives.gt_image

    @property
    def map_size(self) -> tuple[int, int]:
        """Rows and columns of the masks."""
        return int(self.mask_logits.shape[1]), int(self.mask_logits.shape[2])

    @property
    def depth(self) -> DepthMaps:
        """The images' depth, for those who say in ``needs`` that they look at it."""
        assert self.images.depth is not None
        return self.images.depth

    @property
    def teaching(self) -> TeacherView:
        """The teacher, for those who say in ``needs`` that they ask one."""
        assert self.teacher is not None
        return self.teacher
