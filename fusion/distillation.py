"""Cross-modal distillation: each branch learns from the other one's teacher where points and pixels meet.

Pure functions over tensors; ramps and weights are the caller's (`mwsis.core.schedule`). The teacher side never receives
a gradient, and every loss is connected to the student even when nothing matches. Next: `correspondence.sample_maps`,
which reads the maps at the points' pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fusion.correspondence import PointPixelPairs, sample_maps
from mwsis.core.distributed import normaliser
from mwsis.core.losses import soft_bce

__all__ = ["border_certainty", "camera_to_lidar", "class_maps", "lidar_to_camera"]

CONFIDENT = (0.3, 0.7)
"""A probability below the first or above the second value is sure (MWSIS, CSCS)."""


def class_maps(
    per_gt: Tensor, gt_labels: Tensor, gt_image: Tensor, num_images: int, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Merge instance maps into one map per image and class, by maximum.

    Args:
        per_gt: (G, h, w) float in [0, 1], one map per object (or per mask sample).
        gt_labels: (G,) int64, class of each.
        gt_image: (G,) int64, image of each.
        num_images: I.
        num_classes: C.

    Returns:
        maps: (I, C, h, w), dtype of ``per_gt``, differentiable; zero where the class has no instance.
        present: (I, C) bool, the class has an instance in the image.

    Source: MWSIS (AAAI 2024), CSCS (cross-modal semantic consistency supervision).
    """
    height, width = per_gt.shape[1:]
    row = gt_image * num_classes + gt_labels
    present = torch.zeros(num_images * num_classes, dtype=torch.bool, device=per_gt.device)
    present[row] = True
    maps = per_gt.new_zeros(num_images * num_classes, height, width)
    index = row[:, None, None].expand(-1, height, width)
    maps = maps.scatter_reduce(0, index, per_gt, "amax", include_self=False)
    return maps.view(num_images, num_classes, height, width), present.view(num_images, num_classes)


@torch.no_grad()
def border_certainty(pairs: PointPixelPairs, maps: Tensor, stride: float, reach: int) -> Tensor:
    """Return how little it matters that a point's pixel is known to some cells only.

    Args:
        pairs: P points and their pixels.
        maps: (I, C, h, w) float in [0, 1].
        stride: pixels per cell of the maps.
        reach: cells by which a projected point may be off, in rows and columns.

    Returns:
        (P, C) float in [0, 1]: 1 minus the spread of the map around the pixel; 1 inside and outside objects, 0 on a
        sharp border.

    Source: *generalised* from MWSIS's CSCS, where every point counts the same.
    """
    window = 2 * reach + 1
    high = functional.max_pool2d(maps, window, 1, reach)
    low = -functional.max_pool2d(-maps, window, 1, reach)
    spread = sample_maps(high - low, stride, pairs.pixel_uv, pairs.image_index)
    return 1 - spread.clamp(0, 1)


def lidar_to_camera(
    pairs: PointPixelPairs,
    student_maps: Tensor,
    present: Tensor,
    stride: float,
    teacher_prob: Tensor,
    confident: tuple[float, float] = CONFIDENT,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the loss that teaches the camera's masks what the LiDAR teacher says about the points on them.

    Args:
        pairs: P points and their pixels.
        student_maps: (I, C, h, w) float in [0, 1], merged masks of the camera student (`class_maps`).
        present: (I, C) bool; a class without an instance in an image is not supervised there.
        stride: pixels per cell of the maps.
        teacher_prob: (N, C) float in [0, 1], class probabilities of the LiDAR teacher; detached here.
        confident: a pair counts if either side is below the first or above the second value.
        weight: (P, C) float in [0, 1], how far each pair counts; None = each wholly, as published.

    Returns:
        Scalar: sum over confident pairs, divided by the number (weight) of all supervised pairs and classes of the step
        (`normaliser`); 0 without any.

    Source: MWSIS (AAAI 2024), CSCS 3D to 2D; normaliser from its released code.
    """
    prob = sample_maps(student_maps, stride, pairs.pixel_uv, pairs.image_index)
    target = teacher_prob.detach()[pairs.point_index]
    supervised = _weighted(present[pairs.image_index], weight)
    loss, _ = _gated_bce(prob, target, supervised, confident)
    return loss / normaliser(supervised.sum())


def camera_to_lidar(
    pairs: PointPixelPairs,
    target_maps: Tensor,
    present: Tensor,
    stride: float,
    student_logits: Tensor,
    confident: tuple[float, float] = CONFIDENT,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the loss that teaches the LiDAR branch what the camera teacher's masks say about its points.

    Args:
        pairs: P points and their pixels.
        target_maps: (I, C, h, w) float in [0, 1], merged pseudo masks of the camera teacher; detached here.
        present: (I, C) bool; a class without an instance in an image is not supervised there.
        stride: pixels per cell of the maps.
        student_logits: (N, C) float, class logits of the LiDAR student.
        confident: a pair counts if either side is below the first or above the second value.
        weight: (P, C) float in [0, 1], how far each pair counts; None = each wholly, as published.

    Returns:
        Scalar: (weighted) mean over confident pairs and classes of the step (`normaliser`); 0 without any.

    Source: MWSIS (AAAI 2024), CSCS 2D to 3D; normaliser from its released code. *Corrected*: the target is detached
    also when student and teacher are one network.
    """
    target = sample_maps(target_maps.detach(), stride, pairs.pixel_uv, pairs.image_index)
    prob = student_logits[pairs.point_index].float().sigmoid()
    loss, num_confident = _gated_bce(prob, target, _weighted(present[pairs.image_index], weight), confident)
    return loss / normaliser(num_confident)


def _weighted(supervised: Tensor, weight: Tensor | None) -> Tensor:
    return supervised.float() if weight is None else supervised * weight.float()


def _gated_bce(
    prob: Tensor, target: Tensor, supervised: Tensor, confident: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return the soft cross-entropy summed over (P, C) cells with a confident side by their weight, and that weight."""
    prob, target = prob.float(), target.float()
    low, high = confident
    sure = (prob < low) | (prob > high) | (target < low) | (target > high)
    counted = supervised * sure
    loss = torch.where(counted > 0, soft_bce(prob, target), 0.0) * counted
    return loss.sum(), counted.sum()
