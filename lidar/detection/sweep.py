"""A sweep with its given labels, and what augmentation does to it: turn, scale, mirror, crop, paste.

Only fine-tuning sees this; pretraining works on `mwsis.core.batch`, which holds no ground truth. Which objects are
pasted: `object_bank.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lidar.detection.boxes import Boxes3D
from mwsis.core.errors import DataError
from mwsis.core.frame import Frame
from mwsis.core.geometry import points_in_boxes3d
from mwsis.core.instances import PointLabels

__all__ = ["LabelledSweep", "move_boxes"]


@dataclass(frozen=True, eq=False)
class LabelledSweep:
    """The points of one frame and what people said about them.

    Attributes:
        frame_id: of the stored frame.
        xyz: (N, 3) float32, metres, vehicle frame.
        point_feats: (N, 2) float32, columns of `PointFeature`.
        gt: (N,) point labels.
        gt_boxes: the 3D boxes.
    """

    frame_id: str
    xyz: Tensor
    point_feats: Tensor
    gt: PointLabels
    gt_boxes: Boxes3D

    @classmethod
    def of(cls, frame: Frame, only_in_image: bool = False) -> LabelledSweep:
        """Return a stored frame's sweep.

        Args:
            frame: with its ground truth.
            only_in_image: leave out the points that no camera sees.

        Raises:
            DataError: the frame has no ground truth.
        """
        if frame.truth is None:
            raise DataError(f"{frame.frame_id}: no ground truth; fine-tuning needs frames with given labels")
        truth = frame.truth
        sweep = cls(
            frame.frame_id,
            frame.points.xyz,
            frame.points.point_feats,
            PointLabels(truth.semantic_labels, truth.instance_ids),
            Boxes3D(truth.boxes3d, truth.box3d_labels),
        )
        return sweep[frame.pixels.in_any_image] if only_in_image else sweep

    def __getitem__(self, keep: Tensor) -> LabelledSweep:
        """Return the sweep with the points selected by an (N,) bool mask, and all boxes."""
        return replace(self, xyz=self.xyz[keep], point_feats=self.point_feats[keep], gt=self.gt[keep])

    def moved(self, matrix: Tensor) -> LabelledSweep:
        """Return the sweep after a (3, 3) map of `RotateScaleFlip.draw`."""
        boxes = replace(self.gt_boxes, boxes3d=move_boxes(self.gt_boxes.boxes3d, matrix))
        return replace(self, xyz=self.xyz @ matrix.T, gt_boxes=boxes)

    def cropped(self, point_cloud_range: Sequence[float]) -> LabelledSweep:
        """Return what lies in a range, half-open: points, and boxes by their centres."""
        bounds = self.xyz.new_tensor(point_cloud_range)
        points, centers = (
            ((xyz >= bounds[:3]) & (xyz < bounds[3:])).all(1) for xyz in (self.xyz, self.gt_boxes.boxes3d[:, :3])
        )
        return replace(self[points], gt_boxes=self.gt_boxes[centers])

    def with_seen_boxes(self) -> LabelledSweep:
        """Return the sweep without the boxes that hold no point: nobody could find those.

        Complexity: O(N log N), then for each box the points within its reach along x.
        """
        xyz, boxes3d = self.xyz[self.xyz[:, 0].argsort()], self.gt_boxes.boxes3d
        x, reach = xyz[:, 0].contiguous(), boxes3d[:, 3:5].norm(dim=1) / 2
        first = torch.searchsorted(x, boxes3d[:, 0] - reach).tolist()
        stop = torch.searchsorted(x, boxes3d[:, 0] + reach, right=True).tolist()
        spans = zip(first, stop, boxes3d[:, None], strict=True)
        seen = torch.tensor([bool(points_in_boxes3d(xyz[a:b], box).any()) for a, b, box in spans], dtype=torch.bool)
        return replace(self, gt_boxes=self.gt_boxes[seen])


def move_boxes(boxes3d: Tensor, matrix: Tensor) -> Tensor:
    """Return boxes after a turn about z, a scaling and mirrorings.

    Args:
        boxes3d: (G, 7) float32, metres, rad.
        matrix: (3, 3) float32 of `RotateScaleFlip.draw`; maps columns of coordinates.

    Returns:
        (G, 7) float32.
    """
    heading = torch.stack([boxes3d[:, 6].cos(), boxes3d[:, 6].sin()], 1) @ matrix[:2, :2].T
    yaw = torch.atan2(heading[:, 1], heading[:, 0])
    return torch.cat([boxes3d[:, :3] @ matrix.T, boxes3d[:, 3:6] * matrix[2, 2], yaw[:, None]], 1)
