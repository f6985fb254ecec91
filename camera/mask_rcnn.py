"""Mask R-CNN: the camera segmentor for training on given masks, with losses of its own.

torchvision's parts (pyramid, anchors, matching, RoIAlign, heads) on a timm backbone. What differs from its training is
here: samples are drawn for each image by itself, losses divide by counts of the whole step, regions to be ignored teach
nothing, and an object's mask counts as far as it is trusted. It has a mask per box and none per location, so terms,
sources of pseudo masks and teachers of CondInst (`segmentor.py`) have nothing to work on here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.faster_rcnn import AnchorGenerator, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from camera.backbone import ImageBackbone
from camera.box_masks import map_box_masks, mask_targets, paste_box_masks
from camera.condinst import MASK_STRIDE, paste_masks
from camera.fcos import inside_any
from camera.refinement import ColorRefinement
from mwsis.core.batch import ImageBatch
from mwsis.core.distributed import normaliser
from mwsis.core.errors import ConfigError
from mwsis.core.instances import Boxes2D, Detections, MaskSet
from mwsis.data.sampler import seeded_generator

__all__ = ["STRIDES", "MaskRCNN", "draw_samples"]

STRIDES = (4, 8, 16, 32)
"""Of the maps that boxes and masks are read from; proposals come from one of stride 64, too."""
LEVELS = ("0", "1", "2", "3")
PUBLISHED_ANCHOR_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
ASPECT_RATIOS = (0.5, 1.0, 2.0)
BOX_CELLS, MASK_CELLS = 7, 14
"""Sides of the maps that boxes and masks are made of; a mask has twice as many cells."""
POSITIVE_ANCHORS, POSITIVE_BOXES = 0.5, 0.25
"""Most of a sample that may be objects."""
SMOOTH = 1 / 9


@dataclass(frozen=True, eq=False)
class Proposals:
    """Where the network suspects objects in I images.

    Attributes:
        logits: (I, A), that an anchor is on an object.
        deltas: (I, A, 4), from anchor to object.
        anchors: (A, 4) float32, pixels.
        boxes: of each image, (P, 4) float32, pixels, best first; without gradient.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    boxes: list[Tensor]


@dataclass(frozen=True, eq=False)
class BoxSamples:
    """The boxes of one image that the heads learn from.

    Attributes:
        boxes: (S, 4) float32, pixels.
        labels: (S,) int64, class + 1, 0 for none.
        gt_index: (S,) int64, row of the image's objects; meaningless for none.
        gt_boxes: (S, 4) float32, the object's box; meaningless for none.
    """

    boxes: Tensor
    labels: Tensor
    gt_index: Tensor
    gt_boxes: Tensor


def draw_samples(
    labels: Tensor, count: int, positive_share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return which elements a loss is taken over.

    Args:
        labels: (N,), above 0 for objects, 0 for none, below 0 for what is left out.
        count: most elements to draw.
        positive_share: most of them that may be objects; the rest is filled with others.
        generator: a CPU generator, the only source of randomness.

    Returns:
        Rows of objects and rows of others, int64.
    """
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    positive = order[labels[order] > 0][: int(count * positive_share)]
    return positive, order[labels[order] == 0][: count - len(positive)]


def _left_out(labels: Tensor, boxes: Tensor, regions: Tensor) -> Tensor:
    """Return labels with -1 for boxes that learn no object and whose centre lies in a region to be ignored."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    image = torch.zeros(len(regions), dtype=torch.int64, device=regions.device)
    return labels.masked_fill((labels == 0) & inside_any(regions, image, centre, 1)[0], -1)


def _pooling(cells: int) -> MultiScaleRoIAlign:
    """Return what reads boxes from the maps; their strides are given, since torchvision guesses them from an image."""
    pooling = MultiScaleRoIAlign(LEVELS, cells, sampling_ratio=2)
    pooling.scales = [1 / stride for stride in STRIDES]
    pooling.map_levels = initLevelMapper(int(math.log2(STRIDES[0])), int(math.log2(STRIDES[-1])))
    return pooling


class MaskRCNN(nn.Module):
    """Boxes and masks of the objects in images.

    Args:
        backbone: maps of `STRIDES`.
        num_classes: C.
        channels: depth of the pyramid.
        anchor_sizes: side of the anchors on maps of stride 4 to 64, pixels.
        anchors_per_image: anchors that proposals learn from.
        proposals_train, proposals_test: most proposals of an image, in training and prediction.
        boxes_per_image: proposals that classes, boxes and masks learn from.
        box_channels: width of the box head.
        mask_channels: width of the mask head.
        score_threshold: detections at or below are dropped.
        nms_iou: overlap above which the weaker of two boxes of a class is dropped.
        max_per_image: most detections of an image.
        refinement: sharpens predicted masks (None is published).
        in_bfloat16: compute the maps in bfloat16 under autocast; boxes, masks and losses are made of them in float32.

    Raises:
        ConfigError: not one size of anchors for each map.

    Source: Mask R-CNN (ICCV 2017) on FPN, values as in torchvision; all losses have weight 1.
    """

    mask_stride = 1
    """Pixels per cell of the masks it learns from: its own cells are finer than 4 on objects below 112 pixels."""

    def __init__(
        self,
        backbone: ImageBackbone,
        num_classes: int,
        *,
        channels: int = 256,
        anchor_sizes: Sequence[float] = PUBLISHED_ANCHOR_SIZES,
        anchors_per_image: int = 256,
        proposals_train: int = 2000,
        proposals_test: int = 1000,
        boxes_per_image: int = 512,
        box_channels: int = 1024,
        mask_channels: int = 256,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        max_per_image: int = 100,
        refinement: ColorRefinement | None = None,
        in_bfloat16: bool = False,
    ) -> None:
        super().__init__()
        if len(anchor_sizes) != len(STRIDES) + 1 or min(anchor_sizes) <= 0:
            raise ConfigError(
                f"camera.mask_rcnn.anchor_sizes: expected {len(STRIDES) + 1} sides in pixels, for maps of stride 4 to "
                f"64, got {list(anchor_sizes)}"
            )
        if min(anchors_per_image, proposals_train, proposals_test, boxes_per_image, box_channels, mask_channels) < 1:
            raise ConfigError("camera.mask_rcnn: expected numbers of at least 1")
        self.backbone = backbone
        self.pyramid = FeaturePyramidNetwork(backbone.channels, channels, LastLevelMaxPool())
        kept = {"training": proposals_train, "testing": proposals_test}
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(tuple((size,) for size in anchor_sizes), (ASPECT_RATIOS,) * len(anchor_sizes)),
            RPNHead(channels, len(ASPECT_RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=anchors_per_image,
            positive_fraction=POSITIVE_ANCHORS,
            pre_nms_top_n=kept,
            post_nms_top_n=kept,
            nms_thresh=0.7,
        )
        self.heads = RoIHeads(
            _pooling(BOX_CELLS),
            TwoMLPHead(channels * BOX_CELLS**2, box_channels),
            FastRCNNPredictor(box_channels, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=boxes_per_image,
            positive_fraction=POSITIVE_BOXES,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=nms_iou,
            detections_per_img=max_per_image,
            mask_roi_pool=_pooling(MASK_CELLS),
            mask_head=MaskRCNNHeads(channels, (mask_channels,) * 4, dilation=1),
            mask_predictor=MaskRCNNPredictor(mask_channels, mask_channels, num_classes + 1),
        )
        self.anchors_per_image = anchors_per_image
        self.boxes_per_image = boxes_per_image
        self.refinement = refinement
        self.in_bfloat16 = in_bfloat16

    def losses(self, images: ImageBatch, progress: float) -> dict[str, Tensor]:
        """Return ``objectness``, ``proposal_box``, ``classification``, ``box`` and ``mask``.

        What is drawn depends on the pixels of each image and on ``progress`` alone: not on the other images of the
        batch, and not on what was drawn before, so that a run can continue anywhere.

        Args:
            images: with masks of their boxes, stride 1; weight 0 where an object has none, which then teaches its
                class and box only.
            progress: share of the run already done; each optimiser step has its own.

        Returns:
            Scalars; those that have nothing to learn from are zero but connected to the graph.

        Complexity: O(anchors times objects) time and memory for each image.
        """
        pyramid, sizes = self._maps(images), self._sizes(images)
        found = self._propose(pyramid, sizes)
        objects = [labels.objects for labels in images.labels]
        regions = [labels.boxes[labels.ignore] for labels in images.labels]
        keys = images.images.flatten(1).sum(1, dtype=torch.int64).tolist()
        draws = [seeded_generator("mask_rcnn", key, int(progress * 1e9)) for key in keys]
        losses = self._proposal_losses(found, objects, regions, draws)
        samples = self._box_samples(found, objects, regions, draws)
        losses |= self._box_losses(pyramid, samples, sizes)
        return losses | {"mask": self._mask_loss(pyramid, samples, sizes, images)}

    @torch.no_grad()
    def predict(self, images: ImageBatch) -> list[Detections]:
        """Return the detections of each image in pixels of the recorded image, on the CPU.

        Images must not be flipped. Call in evaluation mode.
        """
        pyramid, sizes = self._maps(images), self._sizes(images)
        found, _ = self.heads(pyramid, self._propose(pyramid, sizes).boxes, sizes)
        return [self._on_recorded_image(one, images, index) for index, one in enumerate(found)]

    def _maps(self, images: ImageBatch) -> dict[str, Tensor]:
        """Return the pyramid of stride 4 to 64."""
        with torch.autocast(images.images.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            maps = self.backbone(images.images, images.sizes)
            pyramid = self.pyramid(dict(zip(LEVELS, maps, strict=True)))
        return {name: level.float() for name, level in pyramid.items()}

    @staticmethod
    def _sizes(images: ImageBatch) -> list[tuple[int, int]]:
        return [(int(height), int(width)) for height, width in images.sizes.tolist()]

    def _propose(self, pyramid: dict[str, Tensor], sizes: list[tuple[int, int]]) -> Proposals:
        levels = list(pyramid.values())
        with torch.autocast(levels[0].device.type, torch.bfloat16, enabled=self.in_bfloat16):
            outputs = self.rpn.head(levels)
        logits, deltas = concat_box_prediction_layers(*([one.float() for one in output] for output in outputs))
        self.rpn.anchor_generator.set_cell_anchors(torch.float32, levels[0].device)
        strides = [[stride, stride] for stride in (*STRIDES, 2 * STRIDES[-1])]
        per_level = self.rpn.anchor_generator.grid_anchors([level.shape[-2:] for level in levels], strides)
        anchors = torch.cat(per_level)
        logits, deltas = logits.view(len(sizes), -1), deltas.view(len(sizes), -1, 4)
        moved = self.rpn.box_coder.decode(deltas.detach().flatten(0, 1), [anchors] * len(sizes)).view_as(deltas)
        boxes, _ = self.rpn.filter_proposals(moved, logits, sizes, [len(one) for one in per_level])
        return Proposals(logits, deltas, anchors, boxes)

    def _proposal_losses(
        self, found: Proposals, objects: list[Boxes2D], regions: list[Tensor], draws: list[torch.Generator]
    ) -> dict[str, Tensor]:
        anchors = found.anchors
        labels, matched = self.rpn.assign_targets_to_anchors(
            [anchors] * len(objects), [{"boxes": one.boxes} for one in objects]
        )
        logits, wanted, deltas, moves = [], [], [], []
        for image, draw in enumerate(draws):
            label = _left_out(labels[image], anchors, regions[image])
            positive, negative = draw_samples(label, self.anchors_per_image, POSITIVE_ANCHORS, draw)
            drawn = torch.cat([positive, negative])
            logits.append(found.logits[image, drawn])
            wanted.append(label[drawn])
            deltas.append(found.deltas[image, positive])
            moves.append(self.rpn.box_coder.encode_single(matched[image][positive], anchors[positive]))
        entropy = functional.binary_cross_entropy_with_logits(torch.cat(logits), torch.cat(wanted), reduction="sum")
        count = normaliser(entropy.new_tensor(sum(len(one) for one in wanted)))
        return {"objectness": entropy / count, "proposal_box": _smooth_l1(torch.cat(deltas), torch.cat(moves)) / count}

    @torch.no_grad()
    def _box_samples(
        self, found: Proposals, objects: list[Boxes2D], regions: list[Tensor], draws: list[torch.Generator]
    ) -> list[BoxSamples]:
        gt_boxes = [one.boxes for one in objects]
        boxes = self.heads.add_gt_proposals(found.boxes, gt_boxes)
        matched, labels = self.heads.assign_targets_to_proposals(boxes, gt_boxes, [one.labels + 1 for one in objects])
        samples = []
        for image, draw in enumerate(draws):
            label = _left_out(labels[image], boxes[image], regions[image])
            drawn = torch.cat(draw_samples(label, self.boxes_per_image, POSITIVE_BOXES, draw))
            own = gt_boxes[image] if len(gt_boxes[image]) else boxes[image].new_zeros(1, 4)
            gt_index = matched[image][drawn]
            samples.append(BoxSamples(boxes[image][drawn], label[drawn], gt_index, own[gt_index]))
        return samples

    def _box_losses(
        self, pyramid: dict[str, Tensor], samples: list[BoxSamples], sizes: list[tuple[int, int]]
    ) -> dict[str, Tensor]:
        features = self.heads.box_roi_pool(pyramid, [one.boxes for one in samples], sizes)
        logits, deltas = self.heads.box_predictor(self.heads.box_head(features))
        boxes, labels, gt_boxes = (
            torch.cat([getattr(one, name) for one in samples]) for name in ("boxes", "labels", "gt_boxes")
        )
        objects = (labels > 0).nonzero()[:, 0]
        deltas = deltas.view(*logits.shape, 4)[objects, labels[objects]]
        moves = self.heads.box_coder.encode_single(gt_boxes[objects], boxes[objects])
        count = normaliser(logits.new_tensor(len(labels)))
        entropy = functional.cross_entropy(logits, labels, reduction="sum")
        return {"classification": entropy / count, "box": _smooth_l1(deltas, moves) / count}

    def _mask_loss(
        self,
        pyramid: dict[str, Tensor],
        samples: list[BoxSamples],
        sizes: list[tuple[int, int]],
        images: ImageBatch,
    ) -> Tensor:
        """Return the mean entropy of the boxes whose object has a mask, each as far as that is trusted."""
        boxes, labels, targets, trust = [], [], [], []
        for sample, given, known in zip(samples, images.masks, images.labels, strict=True):
            of_object = (~known.ignore).nonzero()[:, 0]
            learning = sample.labels > 0
            mask_index = of_object[sample.gt_index[learning]]
            weight = given.weight[mask_index]
            boxes.append(sample.boxes[learning][weight > 0])
            labels.append(sample.labels[learning][weight > 0])
            trust.append(weight[weight > 0])
            targets.append(mask_targets(given.masks, mask_index[weight > 0], boxes[-1], 2 * MASK_CELLS))
        logits = self.heads.mask_predictor(self.heads.mask_head(self.heads.mask_roi_pool(pyramid, boxes, sizes)))
        label = torch.cat(labels)
        logits = logits[torch.arange(len(label), device=label.device), label]
        entropy = functional.binary_cross_entropy_with_logits(logits, torch.cat(targets), reduction="none")
        return (entropy.mean((1, 2)) * torch.cat(trust)).sum() / normaliser(logits.new_tensor(len(label)))

    def _on_recorded_image(self, found: dict[str, Tensor], images: ImageBatch, image: int) -> Detections:
        size, original = images.sizes[image].tolist(), images.original_sizes[image].tolist()
        boxes, prob = found["boxes"], found["masks"][:, 0]
        ratio = boxes.new_tensor([original[1] / size[1], original[0] / size[0]]).repeat(2)
        if self.refinement is None:
            masks = paste_box_masks(prob, boxes * ratio, original[0], original[1])
        else:
            masks = self._refined(prob, boxes, images, image)
        return Detections((boxes * ratio).cpu(), found["labels"].cpu() - 1, found["scores"].cpu(), masks)

    def _refined(self, prob: Tensor, boxes: Tensor, images: ImageBatch, image: int) -> MaskSet:
        assert self.refinement is not None
        height, width = (side // MASK_STRIDE for side in images.images.shape[-2:])
        maps = map_box_masks(prob, boxes / MASK_STRIDE, height, width)
        maps = self.refinement(maps, boxes, images.images[image])
        size, original = images.sizes[image].tolist(), images.original_sizes[image].tolist()
        return paste_masks(maps, (size[0], size[1]), (original[0], original[1]), self.refinement.cell)


def _smooth_l1(found: Tensor, wanted: Tensor) -> Tensor:
    return functional.smooth_l1_loss(found, wanted, beta=SMOOTH, reduction="sum")
