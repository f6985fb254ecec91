"""Which points and masks are scored: ours, and the one MWSIS was published with, which punishes what nobody labelled.

Both are COCO average precision and class IoU; they differ in the ground truth handed to them. Every score file names
the protocol it was made with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mwsis.core.errors import ConfigError, closest_name
from mwsis.core.frame import Frame, FrameTruth, ImageTruth
from mwsis.core.instances import BACKGROUND, IGNORE, PointLabels

__all__ = ["OURS", "PROTOCOLS", "PUBLISHED", "Protocol", "protocol_named"]


@dataclass(frozen=True)
class Protocol:
    """What counts as ground truth.

    Attributes:
        name: written into score files.
        meaning: the same in a sentence.
        counts_unlabelled: points without a label count as background, masks that are not scored as absent; otherwise
            what is found there is neither right nor wrong.
        top_in_image_only: points that no image sees are left out, and those of other LiDARs than the main one.
        class_map: setting ``class_map`` of data sources that have one.
    """

    name: str
    meaning: str
    counts_unlabelled: bool
    top_in_image_only: bool
    class_map: str

    def scored_points(self, frame: Frame, point_index: Tensor) -> Tensor:
        """Return which of a frame's points are scored.

        Args:
            frame: the frame.
            point_index: (M,) int64, the points the network saw.

        Returns:
            (M,) bool.
        """
        if not self.top_in_image_only:
            return torch.ones(len(point_index), dtype=torch.bool)
        seen = frame.pixels.in_any_image
        if bool((frame.points.ring >= 0).any()):  # other LiDARs have no rings
            seen = seen & (frame.points.ring >= 0)
        return seen[point_index]

    def point_labels(self, truth: FrameTruth) -> PointLabels:
        """Return the true labels of all points of a frame."""
        semantic = truth.semantic_labels
        if self.counts_unlabelled:
            semantic = semantic.where(semantic != IGNORE, BACKGROUND)
        return PointLabels(semantic, truth.instance_ids)

    def image_truth(self, truth: ImageTruth) -> ImageTruth:
        """Return the true masks of an image."""
        return _without_ignored(truth) if self.counts_unlabelled else truth


OURS = Protocol(
    name="ours",
    meaning="points without a label, masks too small to be labelled and objects without a box class are ignored",
    counts_unlabelled=False,
    top_in_image_only=False,
    class_map="ours",
)
PUBLISHED = Protocol(
    name="published",
    meaning="points without a label are background, masks of at most 200 px are absent, classes as MWSIS counts them; "
    "TOP LiDAR, both returns, points in range and in an image",
    counts_unlabelled=True,
    top_in_image_only=True,
    class_map="published",
)
"""MWSIS (AAAI 2024), evaluation of its released code."""
PROTOCOLS = {protocol.name: protocol for protocol in (OURS, PUBLISHED)}


def protocol_named(name: str) -> Protocol:
    """Return a protocol by name.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol={name}: no such protocol{closest_name(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def _without_ignored(truth: ImageTruth) -> ImageTruth:
    kept = ~truth.labels.ignore
    return ImageTruth(truth.labels[kept], truth.masks[kept], truth.instance_ids[kept])
