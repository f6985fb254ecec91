"""Class and centre vote of every point from the feature of its voxel, and the losses that train them.

Votes are predicted in a root-compressed space (`encode_votes`), so that long offsets do not drown short ones; only
`decode_votes` gives metres. Not here: turning votes into instances (`grouping.py`, next) and the distillation losses
(`fusion.distillation`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lidar.unet_v2 import BN_EPS, BN_MOMENTUM
from mwsis.core.distributed import normaliser
from mwsis.core.instances import IGNORE
from mwsis.core.losses import sigmoid_focal
from mwsis.core.segment_ops import segment_mean

__all__ = [
    "PointHead",
    "decode_votes",
    "encode_votes",
    "instance_centroids",
    "semantic_loss",
    "vote_loss",
]

PRIOR = 0.01
"""Probability of each class before training."""
LOGIT_STD = 0.01
FOCAL_GAMMA = 3.0
FOCAL_ALPHA = 0.8
SEMANTIC_WEIGHT = 100.0


def encode_votes(offsets: Tensor) -> Tensor:
    """Return ``sign(x) * sqrt(|x|)`` of offsets in metres, any shape.

    Source: MWSIS and FSD, vote targets.
    """
    return offsets.sign() * offsets.abs().sqrt()


def decode_votes(vote_encoded: Tensor) -> Tensor:
    """Return the offsets in metres, ``x * |x|``, of encoded votes, any shape; the inverse of `encode_votes`."""
    return vote_encoded * vote_encoded.abs()


class PointHead(nn.Module):
    """Two hidden layers, then one linear layer for the classes and one for a vote per class.

    Args:
        in_channels: features of a point (voxel feature and offset from the voxel's centre).
        num_classes: C.
        hidden: width of the hidden layers.

    Source: FSD's VoteSegHead (Linear without bias, BatchNorm, ReLU, twice; class weights from a normal distribution of
        0.01). Width 64 instead of 128, and a class bias that starts every probability at 0.01: *simplified*, for a
        backbone of 16 instead of 64 output channels.
    """

    def __init__(self, in_channels: int, num_classes: int, hidden: int = 64, prior: float = PRIOR) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.shared = nn.Sequential(
            *(nn.Linear(in_channels, hidden, bias=False), nn.BatchNorm1d(hidden, BN_EPS, BN_MOMENTUM), nn.ReLU()),
            *(nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden, BN_EPS, BN_MOMENTUM), nn.ReLU()),
        )
        self.classes = nn.Linear(hidden, num_classes)
        self.votes = nn.Linear(hidden, num_classes * 3)
        nn.init.normal_(self.classes.weight, std=LOGIT_STD)
        nn.init.constant_(self.classes.bias, -math.log((1 - prior) / prior))

    def forward(self, point_features: Tensor) -> tuple[Tensor, Tensor]:
        """Predict class and vote.

        Args:
            point_features: (N, in_channels) float32.

        Returns:
            class_logits: (N, C) float32, before the sigmoid.
            vote_encoded: (N, C, 3) float32, one vote per class, encoded (`decode_votes` gives metres).
        """
        shared = self.shared(point_features)
        return self.classes(shared).float(), self.votes(shared).float().unflatten(1, (self.num_classes, 3))


def semantic_loss(
    class_logits: Tensor,
    semantic_labels: Tensor,
    *,
    valid: Tensor | None = None,
    confidence: Tensor | None = None,
    gamma: float = FOCAL_GAMMA,
    alpha: float = FOCAL_ALPHA,
    weight: float = SEMANTIC_WEIGHT,
    class_weights: Sequence[float] = (),
) -> Tensor:
    """Return the focal loss of the classes, one sigmoid each, over the points that have a label.

    Args:
        class_logits: (N, C) float32.
        semantic_labels: (N,) int64, class, `BACKGROUND` (all classes off) or `IGNORE` (left out).
        valid: (N,) bool, points to keep (`PointOutput.in_range`); all when None.
        confidence: (N,) float32, factor of each point's loss; 1 each when None (*generalised*).
        gamma: focusing exponent.
        alpha: share of the positives.
        weight: factor of the whole.
        class_weights: factor of each class; 1 each when empty (*generalised*: rare classes need it in short runs).

    Returns:
        Scalar, mean over the kept points of the step and classes (`normaliser`); 0 when no point is kept.

    Source: MWSIS, segmentation head: gamma 3, alpha 0.8, weight 100.
    """
    keep = semantic_labels != IGNORE
    if valid is not None:
        keep = keep & valid
    logits, labels = class_logits[keep], semantic_labels[keep]
    classes = torch.arange(class_logits.shape[1], device=labels.device)
    targets = (labels[:, None] == classes).to(logits.dtype)
    loss = sigmoid_focal(logits, targets, alpha, gamma)
    if class_weights:
        loss = loss * loss.new_tensor(class_weights)
    if confidence is not None:
        loss = loss * confidence[keep, None]
    return weight * loss.sum() / normaliser(loss.new_tensor(logits.numel()))


def instance_centroids(xyz: Tensor, instance_ids: Tensor, batch_index: Tensor) -> Tensor:
    """Return, for each point, the mean position of the points of its instance.

    Args:
        xyz: (N, 3) float32, metres, vehicle frame after augmentation.
        instance_ids: (N,) int64, unique within a frame, -1 none.
        batch_index: (N,) int64, frame of each point.

    Returns:
        (N, 3) float32, metres; the point itself where it has no instance.
    """
    member = instance_ids >= 0
    centroid = xyz.clone()
    if bool(member.any()):
        key = batch_index[member] * (instance_ids.max() + 1) + instance_ids[member]
        instances, index = torch.unique(key, return_inverse=True)
        centroid[member] = segment_mean(xyz[member], index, len(instances))[index]
    return centroid


def vote_loss(
    vote_encoded: Tensor,
    xyz: Tensor,
    semantic_labels: Tensor,
    instance_ids: Tensor,
    batch_index: Tensor,
    *,
    valid: Tensor | None = None,
) -> Tensor:
    """Return the L1 distance of votes to instance centroids, in encoded space.

    Only the vote of a point's own class counts, and only where the point has both a class and an instance: a point
    whose label was corrected to background votes for nothing.

    Args:
        vote_encoded: (N, C, 3) float32.
        xyz: (N, 3) float32, metres, vehicle frame after augmentation.
        semantic_labels: (N,) int64, class, `BACKGROUND` or `IGNORE`.
        instance_ids: (N,) int64, pseudo instance, unique within a frame, -1 none.
        batch_index: (N,) int64, frame of each point.
        valid: (N,) bool, points to keep (`PointOutput.in_range`); all when None.

    Returns:
        Scalar, mean over those points of the step and the three axes (`normaliser`); 0 when there is none.

    Source: MWSIS, segmentation head (weight 1).
    """
    keep = (semantic_labels >= 0) & (instance_ids >= 0)
    if valid is not None:
        keep = keep & valid
    target = encode_votes(instance_centroids(xyz, instance_ids, batch_index) - xyz)[keep]
    rows = keep.nonzero()[:, 0]
    vote = vote_encoded[rows, semantic_labels[rows]]
    return (vote - target).abs().sum() / normaliser(vote.new_tensor(vote.numel()))
