"""One box per location: the detection head, which location learns which object, and the detection losses.

Every location of every pyramid level stands in one flat list (`Locations`), so targets and losses have no loop over
levels. Masks are in `condinst.py`; the two are joined in `segmentor.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mwsis.core.distributed import normaliser
from mwsis.core.errors import ConfigError, closest_name
from mwsis.core.instances import Boxes2D
from mwsis.core.losses import sigmoid_focal

__all__ = [
    "Cells",
    "FCOSHead",
    "HeadOutput",
    "Locations",
    "Positives",
    "assign_objects",
    "box_iou_aligned",
    "detection_losses",
    "inside_any",
    "ltrb_to_boxes",
    "norm_groups",
    "pyramid_locations",
    "rank_within",
    "target_ltrb",
]

PUBLISHED_SIZE_RANGES = (64.0, 128.0, 256.0, 512.0, math.inf)
"""Largest distance to a box side, pixels, that each pyramid level regresses (FCOS)."""
CENTRE_RADIUS = 1.5
CENTERNESS_TOWERS = ("box", "class")
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


def norm_groups(channels: int) -> int:
    """Return how many groups a group normalisation of ``channels`` gets: 32, or 16 below 128 channels."""
    return 32 if channels >= 128 else 16


def rank_within(groups: Tensor, scores: Tensor) -> Tensor:
    """Return each element's place (0 = best) among the elements of its group, ties in input order.

    Args:
        groups: (N,) int64.
        scores: (N,) float.

    Returns:
        (N,) int64.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    sorted_groups = groups[order]
    start = torch.searchsorted(sorted_groups, sorted_groups)
    rank = torch.empty_like(groups)
    rank[order] = torch.arange(len(groups), device=groups.device) - start
    return rank


@dataclass(frozen=True, eq=False)
class Locations:
    """Where the cells of all pyramid levels lie; L cells, finest level first, row by row.

    Attributes:
        xy: (L, 2) float32, pixels of the padded image, cell k of stride s at ``k s + s // 2``.
        level: (L,) int64.
        stride: (L,) float32, pixels.
        shapes: rows and columns of each level.
    """

    xy: Tensor
    level: Tensor
    stride: Tensor
    shapes: tuple[tuple[int, int], ...]

    def neighbours(self, cells: Tensor) -> Tensor:
        """Return the 3 by 3 neighbourhood, row by row, of (K,) cells as (K, 9) indices; L stands for "outside"."""
        heights, widths = torch.tensor(self.shapes, device=cells.device).unbind(1)
        starts = functional.pad((heights * widths).cumsum(0), (1, 0))[:-1]
        level = self.level[cells]
        height, width, start = heights[level, None], widths[level, None], starts[level, None]
        step = torch.arange(-1, 2, device=cells.device)
        row = (cells[:, None] - start) // width + step.repeat_interleave(3)
        col = (cells[:, None] - start) % width + step.repeat(3)
        inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
        return torch.where(inside, start + row * width + col, len(self.level))


def pyramid_locations(shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> Locations:
    """Return the cells of levels with these (rows, columns) and strides in pixels."""
    xy, level, stride = [], [], []
    for index, ((height, width), step) in enumerate(zip(shapes, strides, strict=True)):
        rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        xy.append(torch.stack([cols, rows], -1).reshape(-1, 2) * step + step // 2)
        level.append(torch.full((height * width,), index))
        stride.append(torch.full((height * width,), float(step)))
    return Locations(
        torch.cat(xy).float().to(device), torch.cat(level).to(device), torch.cat(stride).to(device), tuple(shapes)
    )


@dataclass(frozen=True, eq=False)
class HeadOutput:
    """What the head says at every location of every image.

    Attributes:
        class_logits: (I, L, C).
        ltrb: (I, L, 4), distances to the left, top, right, bottom side in units of the location's stride, >= 0.
        centerness_logits: (I, L).
        tower_feats: (I, L, D), features of the box tower, from which mask parameters are made.
    """

    class_logits: Tensor
    ltrb: Tensor
    centerness_logits: Tensor
    tower_feats: Tensor

    def float(self) -> HeadOutput:
        """Return the maps in float32."""
        maps = (self.class_logits, self.ltrb, self.centerness_logits, self.tower_feats)
        return HeadOutput(*(each.float() for each in maps))


class FCOSHead(nn.Module):
    """Class scores, box sides and centre-ness at every location, weights shared over levels.

    Args:
        channels: depth of the pyramid.
        num_classes: C.
        num_levels: pyramid levels (each has its own box scale).
        num_convs: depth of the two towers (published: 4).
        prior: score every class starts with (published: 0.01); it is the initial share of positives.
        box_bias: initial distance to each side in strides. Published 0; a positive value keeps the ReLU alive, so that
            short training from scratch moves from the first step (*generalised*).
        centerness_tower: ``box`` (FCOS as CondInst has it) or ``class`` (MWSIS).

    Raises:
        ConfigError: another tower.

    Source: FCOS, section 3; initial weights N(0, 0.01).
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        num_levels: int,
        *,
        num_convs: int = 4,
        prior: float = 0.01,
        box_bias: float = 0.0,
        centerness_tower: str = "box",
    ) -> None:
        super().__init__()
        if centerness_tower not in CENTERNESS_TOWERS:
            raise ConfigError(
                f"camera.centerness_tower: got '{centerness_tower}'{closest_name(centerness_tower, CENTERNESS_TOWERS)}"
            )
        self.centerness_tower = centerness_tower
        self.class_tower = self._tower(channels, num_convs)
        self.box_tower = self._tower(channels, num_convs)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.ltrb = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(num_levels))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 4:
                nn.init.normal_(parameter, std=0.01)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            if name == "class_logits.bias":
                nn.init.constant_(parameter, -math.log((1 - prior) / prior))
            elif name == "ltrb.bias":
                nn.init.constant_(parameter, box_bias)

    @staticmethod
    def _tower(channels: int, num_convs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(norm_groups(channels), channels)]
            layers += [nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def forward(self, pyramid: list[Tensor]) -> HeadOutput:
        """Return the outputs of (I, D, h, w) maps, finest first, flattened over levels."""
        per_level = []
        for level, feature in enumerate(pyramid):
            boxes, classes = self.box_tower(feature), self.class_tower(feature)
            ltrb = (self.ltrb(boxes) * self.scales[level]).relu()
            centerness = self.centerness(classes if self.centerness_tower == "class" else boxes)
            maps = (self.class_logits(classes), ltrb, centerness, boxes)
            per_level.append([value.flatten(2).transpose(1, 2) for value in maps])
        class_logits, ltrb, centerness, tower = (torch.cat(values, 1) for values in zip(*per_level, strict=True))
        return HeadOutput(class_logits, ltrb, centerness[..., 0], tower)


@dataclass(frozen=True, eq=False)
class Cells:
    """Locations picked from a batch; pure index data, so a teacher can decode masks at the student's.

    Attributes:
        image_index: (K,) int64, ascending.
        location_index: (K,) int64, row of `Locations`.
    """

    image_index: Tensor
    location_index: Tensor

    def __len__(self) -> int:
        return len(self.image_index)


@dataclass(frozen=True, eq=False)
class Positives(Cells):
    """Locations that learn an object, and the objects.

    Attributes:
        gt_index: (K,) int64, row of ``gt_boxes``.
        level: (K,) int64, pyramid level.
        location: (K, 2) float32, pixels.
        class_index: (K,) int64, class of the object.
        gt_boxes: (G, 4) float32, objects of all images, one image after the other, pixels of the resized image.
        gt_labels: (G,) int64.
        gt_image: (G,) int64, ascending.
        ignored: (I, L) bool, locations left out of the classification loss.
    """

    gt_index: Tensor
    level: Tensor
    location: Tensor
    class_index: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor
    gt_image: Tensor
    ignored: Tensor

    @property
    def num_gt(self) -> int:
        return len(self.gt_boxes)

    def select(self, keep: Tensor) -> Positives:
        """Return the samples of a (K,) bool mask; the objects and ignored locations stay as they are."""
        names = ("image_index", "location_index", "gt_index", "level", "location", "class_index")
        picked = {name: getattr(self, name)[keep] for name in names}
        return Positives(
            **picked, gt_boxes=self.gt_boxes, gt_labels=self.gt_labels, gt_image=self.gt_image, ignored=self.ignored
        )


def _stack(labels: Sequence[Boxes2D], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (G, 4), labels (G,) and image (G,) of all images."""
    counts = torch.tensor([len(one) for one in labels], device=device)
    image = torch.repeat_interleave(torch.arange(len(labels), device=device), counts)
    boxes = torch.cat([one.boxes for one in labels]).to(device)
    return boxes, torch.cat([one.labels for one in labels]).to(device), image


def _candidates(boxes: Tensor, locations: Locations, size_ranges: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the (box, location) pairs of centre sampling, (M,) each."""
    upper = boxes.new_tensor(size_ranges)
    lower = torch.cat([upper.new_full((1,), -1.0), upper[:-1]])
    x, y = locations.xy.unbind(1)
    sides = torch.stack([x - boxes[:, :1], y - boxes[:, 1:2], boxes[:, 2:3] - x, boxes[:, 3:] - y], -1)
    centre = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    near = ((locations.xy - centre).abs() < CENTRE_RADIUS * locations.stride[:, None]).all(-1)
    reach = sides.amax(-1)
    fits = (reach > lower[locations.level]) & (reach <= upper[locations.level])
    box, location = ((sides.amin(-1) > 0) & near & fits).nonzero(as_tuple=True)
    return box, location


def assign_objects(
    locations: Locations, labels: Sequence[Boxes2D], size_ranges: Sequence[float] = PUBLISHED_SIZE_RANGES
) -> Positives:
    """Return every location that learns an object.

    A location learns an object when it lies in the box and within 1.5 strides of the *box* centre, and its farthest
    side lies in the level's range; of several objects the smallest wins. Masks play no part, by construction: nothing
    here can receive one. Locations inside an ignore region that learn nothing are left out of the classification loss.

    Args:
        locations: L cells.
        labels: I sets of boxes, pixels of the resized image.
        size_ranges: largest distance of a side per level, pixels, ascending, last infinite.

    Returns:
        K positives ordered by image, then location.

    Complexity: O(G L) time and memory, G boxes of the batch.

    Source: FCOS; ignore regions *generalised* (published code drops crowd boxes before).
    """
    device, num_locations = locations.xy.device, len(locations.xy)
    boxes, classes, image = _stack([one.objects for one in labels], device)
    gt_index, location_index = _candidates(boxes, locations, size_ranges)
    key = image[gt_index] * num_locations + location_index
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)[gt_index]
    smallest = rank_within(key, -area) == 0
    order = key[smallest].argsort()
    gt_index, location_index = gt_index[smallest][order], location_index[smallest][order]
    regions, _, region_image = _stack([one[one.ignore] for one in labels], device)
    ignored = inside_any(regions, region_image, locations.xy, len(labels))
    ignored[image[gt_index], location_index] = False
    return Positives(
        image_index=image[gt_index],
        location_index=location_index,
        gt_index=gt_index,
        level=locations.level[location_index],
        location=locations.xy[location_index],
        class_index=classes[gt_index],
        gt_boxes=boxes,
        gt_labels=classes,
        gt_image=image,
        ignored=ignored,
    )


def inside_any(regions: Tensor, region_image: Tensor, xy: Tensor, num_images: int) -> Tensor:
    """Return where locations lie in a region of an image.

    Args:
        regions: (R, 4) float32 xyxy, pixels, half-open.
        region_image: (R,) int64 in [0, num_images).
        xy: (L, 2) float32, pixels.
        num_images: I.

    Returns:
        (I, L) bool.
    """
    inside = ((xy >= regions[:, None, :2]) & (xy < regions[:, None, 2:])).all(-1)
    hits = torch.zeros(num_images, len(xy), device=xy.device)
    return hits.index_add_(0, region_image, inside.float()) > 0


def ltrb_to_boxes(ltrb: Tensor, xy: Tensor, stride: Tensor) -> Tensor:
    """Return (K, 4) boxes in pixels of side distances in strides (K, 4) at locations (K, 2)."""
    reach = ltrb * stride[:, None]
    return torch.cat([xy - reach[:, :2], xy + reach[:, 2:]], 1)


def _overlap(ltrb: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return intersection, union and hull areas of boxes around the same locations, (K,) each."""
    inner, outer = torch.minimum(ltrb, target), torch.maximum(ltrb, target)
    extents = [(sides[:, 0] + sides[:, 2]) * (sides[:, 1] + sides[:, 3]) for sides in (inner, outer, ltrb, target)]
    return extents[0], extents[2] + extents[3] - extents[0], extents[1]


def box_iou_aligned(ltrb: Tensor, target: Tensor) -> Tensor:
    """Return (K,) IoU of boxes given as side distances (K, 4) from the same locations, in [0, 1]."""
    intersection, union, _ = _overlap(ltrb, target)
    return intersection / union.clamp(min=1e-6)


def target_ltrb(positives: Positives, locations: Locations) -> Tensor:
    """Return (K, 4) distances to the object's sides, in strides."""
    boxes = positives.gt_boxes[positives.gt_index]
    reach = torch.cat([positives.location - boxes[:, :2], boxes[:, 2:] - positives.location], 1)
    return reach / locations.stride[positives.location_index, None]


def _centerness(ltrb: Tensor) -> Tensor:
    across, along = ltrb[:, 0::2], ltrb[:, 1::2]
    ratio = across.amin(1) / across.amax(1) * (along.amin(1) / along.amax(1))
    return ratio.clamp(min=0).sqrt()


def _giou_loss(ltrb: Tensor, target: Tensor) -> Tensor:
    intersection, union, hull = _overlap(ltrb, target)
    iou = (intersection + 1) / (union + 1)
    return 1 - (iou - (hull - union) / hull)


def detection_losses(output: HeadOutput, locations: Locations, positives: Positives) -> dict[str, Tensor]:
    """Return the scalar losses ``classification``, ``box`` and ``centerness``.

    Args:
        output: the head's maps.
        locations: their cells.
        positives: all positives (not the subset sampled for masks).

    Returns:
        Three scalars; without positives the last two are zero but connected to the graph.

    Source: FCOS: focal loss (alpha 0.25, gamma 2) over the number of positives; GIoU loss weighted by centre-ness, with
    areas smoothed by one; centre-ness cross-entropy. Counts are those of the whole step (`normaliser`).
    """
    picked = (positives.image_index, positives.location_index)
    classes = torch.zeros_like(output.class_logits)
    classes[(*picked, positives.class_index)] = 1
    focal = sigmoid_focal(output.class_logits, classes, FOCAL_ALPHA, FOCAL_GAMMA)
    num_positives = normaliser(focal.new_tensor(len(positives)))
    target = target_ltrb(positives, locations)
    centre = _centerness(target)
    box = (_giou_loss(output.ltrb[picked], target) * centre).sum()
    entropy = functional.binary_cross_entropy_with_logits(output.centerness_logits[picked], centre, reduction="sum")
    return {
        "classification": focal.sum(-1).masked_fill(positives.ignored, 0).sum() / num_positives,
        "box": box / normaliser(centre.sum(), at_least=1e-6),
        "centerness": entropy / num_positives,
    }
