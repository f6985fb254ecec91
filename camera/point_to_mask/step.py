"""One training step of P2Seg: classes, offsets and affinities that teach each other; and what a network then sees.

Instances made of classes give offsets and affinities to learn (S2I); affinities refine the classes (I2S). It is run by
`mwsis.training.run.fit`, as every other step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from camera.point_to_mask.instances_from_semantics import (
    MIN_AREA,
    UNKNOWN_CLASS,
    instances_by_offsets,
    offset_targets,
)
from camera.point_to_mask.local_affinity import LocalAffinity, affinity_loss, local_affinity, refined_loss
from camera.point_to_mask.network import STRIDE, DenseOutput, PointNetwork, content_of, on_recorded_image
from camera.point_to_mask.points import ImagePoints
from camera.point_to_mask.samples import PointBatch
from mwsis.core.errors import ConfigError
from mwsis.data.dataset import rounded_up

__all__ = ["PointLosses", "PointStep", "hard_pixel_loss", "predict_dense"]


@dataclass(frozen=True)
class PointLosses:
    """What the network learns from, and how much.

    Attributes:
        min_area: pixels of a region of a class, at least; smaller ones teach no offsets.
        refine: offsets and affinities also learn from the instances that the offsets of the moment make.
        affinity: classes are refined by affinities, in training and in prediction.
        radius: cells of 4 px within which affinities are learned.
        beta: exponent of an affinity as a weight.
        hard_share: share of the pixels, those of the highest loss, that classes are learned from.
        offset_weight: for each cell that an offset is wrong by (published: .01 for each pixel).
        affinity_weight, refined_weight: of the affinities and of the refined classes.

    Raises:
        ConfigError: a value out of range.

    Source: P2Seg (arXiv 2401.09709), ``beta`` from table 10; the weights, the share and the area from its released
    code, whose refined classes have no weight of their own. The radius is ours.
    """

    min_area: int = MIN_AREA
    refine: bool = True
    affinity: bool = True
    radius: int = 8
    beta: float = 1.0
    hard_share: float = 0.2
    offset_weight: float = 0.04
    affinity_weight: float = 1.0
    refined_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.hard_share <= 1 or self.radius < 1 or self.beta <= 0:
            raise ConfigError("PointLosses: expected 0 < hard_share <= 1, radius of 1 or more, beta above 0")
        if min(self.min_area, self.offset_weight, self.affinity_weight, self.refined_weight) < 0:
            raise ConfigError("PointLosses: expected min_area and weights of 0 or more")


class PointStep(nn.Module):
    """A network and what it minimises.

    Args:
        network: trained.
        settings: of the losses.
    """

    vote_history: None = None

    def __init__(self, network: PointNetwork, settings: PointLosses) -> None:
        super().__init__()
        self.student = nn.ModuleDict({"camera": network})
        self.settings = settings

    def losses(self, batch: PointBatch, progress: float, with_lidar: bool = True) -> dict[str, Tensor]:
        """Return the weighted losses of one batch.

        Args:
            batch: images with maps of classes, instances and points.
            progress: share of the run already done; losses do not depend on it.
            with_lidar: without meaning here.
        """
        settings, output = self.settings, self.student["camera"](batch.images, batch.sizes)
        semantic = batch.semantic.long()
        cells, labels = _at_cells(semantic), [_at_cells(batch.instances)]
        if settings.refine:
            labels.append(_refined_instances(output, cells, batch.points))
        offsets = torch.stack([_offset_loss(output, one, batch.points) for one in labels]).mean()
        losses = {
            "camera/classes": hard_pixel_loss(output.class_logits, semantic, settings.hard_share),
            "camera/offsets": settings.offset_weight * offsets,
        }
        if settings.affinity:
            affinity = _affinity(output, batch.sizes, settings)
            refined = affinity.refined(output.class_logits.softmax(1), settings.beta)
            learned = torch.stack([affinity_loss(affinity, one) for one in labels]).mean()
            losses["camera/affinity"] = settings.affinity_weight * learned
            losses["camera/refined"] = settings.refined_weight * refined_loss(refined, cells)
        return losses

    @torch.no_grad()
    def update_teacher(self, progress: float) -> None:
        """Do nothing: there is no teacher."""


def _at_cells(values: Tensor) -> Tensor:
    """Return what an (I, H, W) map holds at the middle of each cell, (I, h, w)."""
    return values[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]


def _affinity(output: DenseOutput, sizes: Tensor, settings: PointLosses) -> LocalAffinity:
    height, width = (STRIDE * side for side in output.features.shape[2:])
    return local_affinity(output.features, _at_cells(content_of(sizes, height, width)), settings.radius)


@torch.no_grad()
def _refined_instances(output: DenseOutput, cells: Tensor, points: tuple[ImagePoints, ...]) -> Tensor:
    """Return the instances that the offsets of the moment make of the given classes, (I, h, w) int64."""
    images = zip(cells, points, output.offsets, strict=True)
    return torch.stack([instances_by_offsets(one, own, STRIDE * offsets, STRIDE) for one, own, offsets in images])


def _offset_loss(output: DenseOutput, instances: Tensor, points: tuple[ImagePoints, ...]) -> Tensor:
    """Return the smooth L1 distance in cells, added up over both axes, mean over the cells of objects."""
    pairs = [offset_targets(one, own, STRIDE) for one, own in zip(instances, points, strict=True)]
    target, weight = (torch.stack(part) for part in zip(*pairs, strict=True))
    distance = functional.smooth_l1_loss(output.offsets, target / STRIDE, reduction="none").sum(1)
    return (weight * distance).sum() / weight.sum().clamp(min=1)


def hard_pixel_loss(class_logits: Tensor, semantic: Tensor, share: float) -> Tensor:
    """Return the cross entropy of the pixels that are classified worst.

    Args:
        class_logits: (I, C+1, h, w) float32 for cells of 4 px; bilinear between their centres.
        semantic: (I, 4 h, 4 w) int64, 255 unknown: such pixels do not count.
        share: of the known pixels of all images, in (0, 1]; at least one pixel.

    Returns:
        Scalar; 0 with a gradient of 0 where every pixel is unknown.

    Source: P2Seg's released code, 20 %.
    """
    logits = functional.interpolate(class_logits, scale_factor=float(STRIDE), mode="bilinear")
    loss = functional.cross_entropy(logits, semantic, ignore_index=UNKNOWN_CLASS, reduction="none")
    known = loss[semantic != UNKNOWN_CLASS]
    if not len(known):
        return loss.sum()
    return known.topk(math.ceil(share * len(known))).values.mean()


@torch.no_grad()
def predict_dense(
    network: PointNetwork, settings: PointLosses, image: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return what the network sees in each pixel of one image; `masks_of_points` makes masks of it.

    Args:
        network: in evaluation mode.
        settings: with which it was trained.
        image: (3, H, W) uint8 RGB as the network is to see it.
        size: height and width of the recorded image.

    Returns:
        (C+1, height, width) float32 probabilities, channel 0 background, and (2, height, width) float32 offsets,
        column and row, pixels; both on the CPU.
    """
    device = network.pixel_mean.device
    sizes = torch.tensor([image.shape[1:]])
    height, width = (rounded_up(side) for side in image.shape[1:])
    padded = functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))[None]
    sizes = sizes.to(device)
    output = network(padded.to(device), sizes)
    prob = output.class_logits.softmax(1)
    if settings.affinity:
        prob = _affinity(output, sizes, settings).refined(prob, settings.beta)
    scale = prob.new_tensor([size[1] / image.shape[2], size[0] / image.shape[1]])
    offsets = STRIDE * output.offsets * scale[:, None, None]
    content = (int(image.shape[1]), int(image.shape[2]))
    dense = [on_recorded_image(one, STRIDE, content, size)[0].cpu() for one in (prob, offsets)]
    return dense[0], dense[1]
