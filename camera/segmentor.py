"""The camera segmentor: backbone, detection head and masks joined, and prediction in recorded-image pixels.

Losses on masks are not here but in `terms.py`, pseudo masks in `sources.py`; the training step that calls all of them
is outside this package. `decode_masks` is a pure function of its arguments, so a teacher decodes the student's
positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from camera.backbone import FeaturePyramid, ImageBackbone
from camera.condinst import HIDDEN, MASK_STRIDE, Controller, DynamicMaskHead, MaskBranch, MaskOutput, paste_masks
from camera.fcos import (
    PUBLISHED_SIZE_RANGES,
    Cells,
    FCOSHead,
    HeadOutput,
    Locations,
    Positives,
    assign_objects,
    box_iou_aligned,
    detection_losses,
    ltrb_to_boxes,
    pyramid_locations,
    rank_within,
    target_ltrb,
)
from camera.refinement import ColorRefinement
from mwsis.core.batch import ImageBatch
from mwsis.core.errors import ConfigError
from mwsis.core.instances import Boxes2D, Detections

__all__ = ["CondInst", "Dense", "Found", "build_condinst"]


@dataclass(frozen=True, eq=False)
class Dense:
    """What the network says about a batch of images before any location is picked.

    Attributes:
        head: outputs at every location.
        locations: L cells of the pyramid.
        mask_feats: (I, D, H/8, W/8), shared by all objects of an image.
    """

    head: HeadOutput
    locations: Locations
    mask_feats: Tensor


@dataclass(frozen=True, eq=False)
class Found:
    """Detections of a batch before their masks are decoded, image by image, best score first.

    Attributes:
        cells: D locations, from which masks can be decoded.
        boxes: (D, 4) float32, pixels of the resized image.
        labels: (D,) int64.
        scores: (D,) float32 in [0, 1].
    """

    cells: Cells
    boxes: Tensor
    labels: Tensor
    scores: Tensor


class CondInst(nn.Module):
    """Boxes and masks of the objects in images.

    Args:
        backbone: maps of stride 8, 16, 32.
        pyramid: levels of equal depth.
        head: detection head.
        mask_branch: shared mask features.
        controller: predicts each mask network's weights.
        mask_head: applies them.
        size_ranges: largest distance to a box side per level, pixels, ascending, last infinite.
        score_threshold: candidates at or below are dropped at prediction.
        nms_iou: overlap above which the weaker of two boxes of a class is dropped.
        candidates_per_level: most candidates a level keeps.
        max_per_image: most detections of an image.
        box_weight: factor of the box loss (published: 1).
        refinement: sharpens predicted masks, not those that are trained (*generalised*; None is published).
        in_bfloat16: compute the maps in bfloat16 under autocast; masks, scores and losses are made of them in float32.

    Source: CondInst (ECCV 2020) on FCOS; prediction settings 0.05, 0.6, 1000, 100.
    """

    def __init__(
        self,
        backbone: ImageBackbone,
        pyramid: FeaturePyramid,
        head: FCOSHead,
        mask_branch: MaskBranch,
        controller: Controller,
        mask_head: DynamicMaskHead,
        *,
        size_ranges: Sequence[float] = PUBLISHED_SIZE_RANGES,
        score_threshold: float = 0.05,
        nms_iou: float = 0.6,
        candidates_per_level: int = 1000,
        max_per_image: int = 100,
        box_weight: float = 1.0,
        refinement: ColorRefinement | None = None,
        in_bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.head = head
        self.mask_branch = mask_branch
        self.controller = controller
        self.mask_head = mask_head
        self.size_ranges = tuple(size_ranges)
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.candidates_per_level = candidates_per_level
        self.max_per_image = max_per_image
        self.box_weight = box_weight
        self.refinement = refinement
        self.in_bfloat16 = in_bfloat16

    def dense(self, images: ImageBatch) -> Dense:
        """Return the network's maps for a batch of images (H and W multiples of 32)."""
        with torch.autocast(images.images.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            features = self.pyramid(self.backbone(images.images, images.sizes))
            head, mask_feats = self.head(features), self.mask_branch(features)
        shapes = [(int(feature.shape[2]), int(feature.shape[3])) for feature in features]
        locations = pyramid_locations(shapes, self.pyramid.strides, images.images.device)
        return Dense(head.float(), locations, mask_feats.float())

    def assign(self, dense: Dense, labels: Sequence[Boxes2D]) -> Positives:
        """Return all locations that learn an object; ``gt_index`` counts ``labels.objects`` of all images in order."""
        return assign_objects(dense.locations, labels, self.size_ranges)

    def sample(self, dense: Dense, positives: Positives, max_per_image: int = 64) -> Positives:
        """Return, per object, its best positives by class score times centre-ness.

        Args:
            dense: the network's maps.
            positives: all positives.
            max_per_image: shared evenly among the objects of an image that have positives, at least one each.

        Source: CondInst's code, 64 per image.
        """
        picked = (positives.image_index, positives.location_index)
        with torch.no_grad():
            score = dense.head.class_logits[picked].sigmoid().amax(1) * dense.head.centerness_logits[picked].sigmoid()
        has_positive = positives.gt_index.bincount(minlength=positives.num_gt) > 0
        objects = positives.gt_image[has_positive].bincount(minlength=len(dense.mask_feats))
        quota = (max_per_image // objects.clamp(min=1)).clamp(min=1)
        return positives.select(rank_within(positives.gt_index, score) < quota[positives.image_index])

    def decode(self, dense: Dense, cells: Cells) -> MaskOutput:
        """Return the masks of picked locations, and their depth if the network has that output.

        Args:
            dense: this network's maps (a teacher passes its own, with the student's positives).
            cells: K locations, ascending image index.
        """
        params = self.controller(dense.head.tower_feats, dense.locations, cells)
        output: MaskOutput = self.mask_head(dense.mask_feats, params, dense.locations, cells)
        return output

    def decode_masks(self, dense: Dense, cells: Cells) -> Tensor:
        """Return the mask logits of picked locations, (K, H/4, W/4), see `decode`."""
        return self.decode(dense, cells).logits

    def detection_loss(self, dense: Dense, positives: Positives) -> dict[str, Tensor]:
        """Return the scalars ``classification``, ``box`` and ``centerness`` over *all* positives (not a sample)."""
        losses = detection_losses(dense.head, dense.locations, positives)
        return losses | {"box": self.box_weight * losses["box"]}

    @torch.no_grad()
    def evidence(self, dense: Dense, positives: Positives) -> tuple[Tensor, Tensor]:
        """Return how far this network agrees with the objects at their positives.

        Args:
            dense: this network's maps.
            positives: K samples, which carry the objects.

        Returns:
            cls_prob_of_gt: (K,) score of the object's class, in [0, 1].
            iou: (K,) overlap of the predicted box with the object's, in [0, 1].
        """
        picked = (positives.image_index, positives.location_index)
        score = dense.head.class_logits[(*picked, positives.class_index)].sigmoid()
        return score, box_iou_aligned(dense.head.ltrb[picked], target_ltrb(positives, dense.locations))

    @torch.no_grad()
    def detect(self, dense: Dense, images: ImageBatch) -> Found:
        """Return the detections of all images, as `predict` finds them, without masks.

        Args:
            dense: this network's maps.
            images: the batch.
        """
        parts = [self._detect(dense, image, size) for image, size in enumerate(images.sizes.tolist())]
        counts = torch.tensor([len(part[0]) for part in parts], device=dense.mask_feats.device)
        image_index = torch.repeat_interleave(torch.arange(len(parts), device=counts.device), counts)
        boxes, scores, labels, location_index = (torch.cat(values) for values in zip(*parts, strict=True))
        return Found(Cells(image_index, location_index), boxes, labels, scores.sqrt())

    @torch.no_grad()
    def predict(self, images: ImageBatch) -> list[Detections]:
        """Return the detections of each image in pixels of the recorded image, on the CPU.

        Images must not be flipped. Masks are kept as crops; no stack of full-size masks is made. Call in evaluation
        mode.
        """
        dense = self.dense(images)
        return [self._predict_one(dense, images, index) for index in range(len(images))]

    def _predict_one(self, dense: Dense, images: ImageBatch, image: int) -> Detections:
        size = [int(side) for side in images.sizes[image]]
        original = [int(side) for side in images.original_sizes[image]]
        boxes, scores, labels, location_index = self._detect(dense, image, size)
        cells = Cells(torch.full_like(location_index, image), location_index)
        prob = self.decode_masks(dense, cells).sigmoid()
        ratio = boxes.new_tensor([original[1] / size[1], original[0] / size[0]]).repeat(2)
        stride = MASK_STRIDE
        if self.refinement is not None:
            prob, stride = self.refinement(prob, boxes, images.images[image]), self.refinement.cell
        masks = paste_masks(prob, (size[0], size[1]), (original[0], original[1]), stride)
        return Detections((boxes * ratio).cpu(), labels.cpu(), scores.sqrt().cpu(), masks)

    def _detect(self, dense: Dense, image: int, size: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return boxes (pixels of the resized image), scores (not yet square-rooted), labels and locations."""
        head, locations = dense.head, dense.locations
        score = head.class_logits[image].sigmoid() * head.centerness_logits[image].sigmoid()[:, None]
        location_index, labels = (score > self.score_threshold).nonzero(as_tuple=True)
        scores = score[location_index, labels]
        strong = rank_within(locations.level[location_index], scores) < self.candidates_per_level
        location_index, labels, scores = location_index[strong], labels[strong], scores[strong]
        place = (locations.xy[location_index], locations.stride[location_index])
        boxes = ltrb_to_boxes(head.ltrb[image, location_index], *place)
        limit = boxes.new_tensor([size[1], size[0]]).repeat(2)
        boxes = boxes.clamp(min=0).minimum(limit)
        filled = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero()[:, 0]
        kept = filled[batched_nms(boxes[filled], scores[filled], labels[filled], self.nms_iou)][: self.max_per_image]
        return boxes[kept], scores[kept], labels[kept], location_index[kept]


def _position_scale(size_ranges: Sequence[float]) -> tuple[float, ...]:
    """Return the divisors of relative positions: the levels' size limits, the infinite one twice the last finite."""
    finite = [float(limit) for limit in size_ranges[:-1]]
    return (*finite, 2 * finite[-1])


def build_condinst(
    num_classes: int,
    *,
    backbone: str = "resnet18",
    pretrained: bool | str = False,
    norm: str | None = None,
    frozen_stages: int = 0,
    pixel_style: str = "imagenet",
    channels: int = 64,
    num_levels: int = 5,
    num_convs: int = 2,
    centerness_tower: str = "box",
    mask_branch_channels: int = 64,
    mask_branch_convs: int = 2,
    mask_channels: int = 16,
    mask_hidden: int = HIDDEN,
    depth_gate: str | None = None,
    size_ranges: Sequence[float] = PUBLISHED_SIZE_RANGES,
    prior: float = 0.01,
    box_bias: float = 2.0,
    random_mask_start: bool = True,
    **settings: Any,
) -> CondInst:
    """Return a segmentor built from plain settings.

    Args:
        num_classes: C.
        backbone: timm model, see `camera.backbone.ImageBackbone`.
        pretrained: ImageNet weights, see `camera.timm_network.feature_network`.
        norm: normalisation of the backbone, see `camera.backbone.ImageBackbone`; ``None`` is ``frozen`` with pretrained
            weights and ``group`` without. The mask branch has group normalisation with ``group``, else batch.
        frozen_stages: stages of the backbone that are not trained.
        pixel_style: how the backbone's weights want pixels.
        channels: depth of the pyramid and the heads (published: 256).
        num_levels: 3 to 5 pyramid levels.
        num_convs: depth of the head's towers (published: 4).
        centerness_tower: ``box`` or ``class``, see `camera.fcos.FCOSHead`.
        mask_branch_channels: inner depth of the mask branch (published: 128).
        mask_branch_convs: its number of convolutions (published: 4).
        mask_channels: depth of the shared mask features (published: 16 for box supervision).
        mask_hidden: width of the mask networks (published: 8; mmdet's BoxInst: 16).
        depth_gate: mask networks say how near each cell is, too, see `camera.condinst.DynamicMaskHead`.
        size_ranges: largest distance to a box side per level, pixels; scale it with the image size.
        prior: score every class starts with.
        box_bias: initial distance to each side in strides (published: 0; 2 keeps the ReLU alive from the first step).
        random_mask_start: every object starts from one random mask network, see `camera.condinst.Controller`.
        **settings: further ones of `CondInst`: ``box_weight``, ``score_threshold``, ``nms_iou``,
            ``candidates_per_level``, ``max_per_image``, ``refinement``, ``in_bfloat16``.

    Raises:
        ConfigError: a setting does not fit the others.
    """
    if len(size_ranges) != num_levels or list(size_ranges) != sorted(size_ranges):
        raise ConfigError(
            f"camera.size_ranges: expected {num_levels} ascending limits, one per level of camera.num_levels, "
            f"got {list(size_ranges)}"
        )
    norm = norm or ("frozen" if pretrained else "group")
    body = ImageBackbone(
        backbone, pretrained=pretrained, norm=norm, frozen_stages=frozen_stages, pixel_style=pixel_style
    )
    branch_norm = "group" if norm == "group" else "batch"
    return CondInst(
        backbone=body,
        pyramid=FeaturePyramid(body.channels, channels, num_levels),
        head=FCOSHead(
            channels,
            num_classes,
            num_levels,
            num_convs=num_convs,
            prior=prior,
            box_bias=box_bias,
            centerness_tower=centerness_tower,
        ),
        mask_branch=MaskBranch(
            channels,
            channels=mask_branch_channels,
            num_convs=mask_branch_convs,
            out_channels=mask_channels,
            norm=branch_norm,
        ),
        controller=Controller(
            channels,
            mask_channels,
            hidden=mask_hidden,
            depth=depth_gate is not None,
            random_start=random_mask_start,
        ),
        mask_head=DynamicMaskHead(mask_channels, _position_scale(size_ranges), mask_hidden, depth_gate),
        size_ranges=size_ranges,
        **settings,
    )
