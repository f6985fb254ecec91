"""The ways to label points from 2D boxes, by name: what training, `tools/label.py` and the quality report choose from.

Each says which ring segments it wants and makes labels from them; the recipes themselves are `spatial_labels.py`
(published) and `default_labels.py` (ours).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fusion.default_labels import default_labels
from fusion.spatial_labels import box_point_pairs, claimed_pairs, spatial_labels
from lidar.rings import LOCAL, PUBLISHED, RingRule, ring_segments
from mwsis.core.frame import Frame
from mwsis.core.instances import PointLabels

__all__ = ["LABEL_METHODS", "LabelMethod"]


@dataclass(frozen=True)
class LabelMethod:
    """A way to label points.

    Attributes:
        rule: of its ring segments.
        recipe: (frame, ring segments, cluster radii in metres by class) to labels.
        claims: the same to the (point, box) pairs that are scored; None = each labelled point with its box.
    """

    rule: RingRule
    recipe: Callable[[Frame, Tensor, Sequence[float]], PointLabels]
    claims: Callable[[Frame, Tensor, Sequence[float]], Tensor] | None = None

    def segments(self, frame: Frame) -> Tensor:
        """Return the ring segments of a frame, (N,) int64, -1 none; points that no image shows have none."""
        return ring_segments(frame.points, frame.lidar, frame.pixels.in_any_image, self.rule)

    def pairs(self, frame: Frame, radii: Sequence[float]) -> Tensor:
        """Return the points that each 2D box has claimed, for scoring labels against ground truth.

        Args:
            frame: the frame; its ``truth`` is not read.
            radii: cluster radius per class, metres; ours has its own.

        Returns:
            (P, 2) int64 rows (point, box), boxes counted on over the cameras.
        """
        if self.claims is not None:
            return self.claims(frame, self.segments(frame), radii)
        return claimed_pairs(self.recipe(frame, self.segments(frame), radii))


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
    "spg_default": LabelMethod(LOCAL, lambda frame, segments, radii: default_labels(frame, segments)),
}
"""Every point in a box; the largest cluster of each box; MWSIS as published; ours."""
