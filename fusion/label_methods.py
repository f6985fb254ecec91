"""The ways to label points from 2D boxes, by name: what training, `tools/label.py` and the quality report choose from.

Each says which ring segments it wants and makes labels from them; the recipes themselves are `spatial_labels.py`
(published) and `default_labels.py` (ours).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusion.default_labels import default_labels
from fusion.spatial_labels import box_point_pairs, claimed_pairs, spatial_labels
from lidar.rings import LOCAL, PUBLISHED, RingRule, ring_segments
from mwsis.core.frame import Frame
from mwsis.core.instances import PointLabels

__all__ = ["LABEL_METHODS", "LabelMethod", "relabelled"]


@dataclass(frozen=True)
class LabelMethod:
    """A way to label points.

    Attributes:
        rule: of its ring segments.
        recipe: (frame, ring segments, cluster radii in metres by class) to labels.
        claims: the same to the (point, box) pairs that are scored; None = each labelled point with its box.
        by_kind: the recipe goes by what a class is like (`mwsis.data.classes.KINDS`), not by the class itself.
    """

    rule: RingRule
    recipe: Callable[[Frame, Tensor, Sequence[float]], PointLabels]
    claims: Callable[[Frame, Tensor, Sequence[float]], Tensor] | None = None
    by_kind: bool = False

    def segments(self, frame: Frame) -> Tensor:
        """Return the ring segments of a frame, (N,) int64, -1 none; points that no image shows have none."""
        return ring_segments(frame.points, frame.lidar, frame.pixels.in_any_image, self.rule)

    def labels(
        self, frame: Frame, segments: Tensor, radii: Sequence[float], kinds: Sequence[int] | None = None
    ) -> PointLabels:
        """Return the labels of the points.

        Args:
            frame: the frame; its ``truth`` is not read.
            segments: of `segments`.
            radii: cluster radius per class, metres; ours has its own.
            kinds: what each class is like (`mwsis.data.classes.kinds_of`); None: the classes are the kinds.

        Raises:
            ConfigError: a box with points in it has a class without constants.
        """
        if kinds is None or not self.by_kind:
            return self.recipe(frame, segments, radii)
        made = self.recipe(relabelled(frame, kinds), segments, radii)
        classes = torch.cat([view.labels.labels for view in frame.cameras])
        labelled = made.instance_ids >= 0
        semantic_labels = made.semantic_labels.clone()
        semantic_labels[labelled] = classes[made.instance_ids[labelled]]
        return replace(made, semantic_labels=semantic_labels)

    def pairs(self, frame: Frame, radii: Sequence[float], kinds: Sequence[int] | None = None) -> Tensor:
        """Return the points that each 2D box has claimed, for scoring labels against ground truth.

        Args:
            frame, radii, kinds: see `labels`.

        Returns:
            (P, 2) int64 rows (point, box), boxes counted on over the cameras.
        """
        if self.claims is not None:
            return self.claims(frame, self.segments(frame), radii)
        return claimed_pairs(self.labels(frame, self.segments(frame), radii, kinds))


def relabelled(frame: Frame, classes: Sequence[int]) -> Frame:
    """Return the frame with class ``classes[c]`` for each box of class c; ignore regions stay."""
    table, views = torch.tensor(classes), []
    for view in frame.cameras:
        boxes = view.labels
        labels = torch.where(boxes.ignore, boxes.labels, table[boxes.labels.clamp(min=0)])
        views.append(replace(view, labels=replace(boxes, labels=labels)))
    return replace(frame, cameras=tuple(views))


LABEL_METHODS = {
    "frustum": LabelMethod(
        PUBLISHED,
        lambda frame, segments, radii: spatial_labels(frame, segments, rings=False, clustering=False),
        lambda frame, segments, radii: box_point_pairs(frame),
    ),
    "clustering": LabelMethod(
        PUBLISHED, lambda frame, segments, radii: spatial_labels(frame, segments, rings=False, radii=radii)
    ),
    "spg": LabelMethod(PUBLISHED, lambda frame, segments, radii: spatial_labels(frame, segments, radii=radii)),
    "spg_default": LabelMethod(LOCAL, lambda frame, segments, radii: default_labels(frame, segments), by_kind=True),
}
"""Every point in a box; the largest cluster of each box; MWSIS as published; ours."""
