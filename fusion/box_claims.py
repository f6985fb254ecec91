"""Which points each 2D box may claim, and what is known about them: distance, share of their surroundings, outline.

Every point of every object's box is a row; all boxes of all cameras are measured at once, without a loop over boxes or
points. What is decided from it is in `default_labels.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusion.correspondence import point_pixel_pairs
from mwsis.core.clustering import connected_components
from mwsis.core.frame import Frame
from mwsis.core.geometry import transform_points
from mwsis.core.ground import height_above_ground
from mwsis.core.segment_ops import segment_mean

__all__ = ["BoxClaims", "in_radii"]

NUM_DIRECTIONS = 32
"""Directions in which the outline of a cluster is measured; it comes out at most half a percent too large."""


class BoxClaims:
    """The points of each object's box as P rows.

    Args:
        frame: N points, C cameras; never its ``truth``.
        pairs: (P, 2) int64 (point, box), sorted by box, then point.
        box_labels: (G,) int64, class of each box over all cameras.

    Attributes:
        point, box, label: (P,) int64, of each row.
        xyz, range, height: of the N points, float64; metres, from the vehicle's axis, above the ground.
        seen: (N, C) bool, whether a camera shows a point.
        box_camera: (G,) int64.
    """

    def __init__(self, frame: Frame, pairs: Tensor, box_labels: Tensor) -> None:
        device = pairs.device
        self.frame = frame
        self.point, self.box = pairs.T
        self.label = box_labels[self.box]
        self.num_boxes, self.num_cameras = len(box_labels), max(len(frame.cameras), 1)
        counts = torch.tensor([len(view.labels) for view in frame.cameras], dtype=torch.int64, device=device)
        self.box_camera = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)
        self.column_rad = 2 * math.pi / frame.lidar.num_columns
        self.xyz = frame.points.xyz.double()
        self.range = self.xyz[:, :2].norm(dim=1)
        self.height = height_above_ground(frame.points.xyz)
        slots = point_pixel_pairs(frame.pixels.pixel_uv, frame.pixels.camera_index)
        self.seen = torch.zeros(len(self.xyz), self.num_cameras, dtype=torch.bool, device=device)
        self.seen[slots.point_index, slots.image_index] = True

    def clusters(self, rows: Tensor, radii: tuple[float, ...], columns: tuple[float, ...], widest: float) -> Tensor:
        """Return the cluster of each of some rows, (M,) int64; rows of different boxes are never together.

        Args:
            rows: (M,) int64.
            radii: metres, by class.
            columns: or so many columns of the sensor at the point's range, by class; at most ``widest`` rad.
            widest: rad.
        """
        radius, per_metre = (
            torch.tensor(values, dtype=torch.float64, device=rows.device)[self.label[rows]]
            for values in (radii, [min(count * self.column_rad, widest) for count in columns])
        )
        return connected_components(in_radii(self.xyz[self.point[rows], :2], radius, per_metre), 1.0, self.box[rows])

    def scene_share(self, heights: tuple[float, float], radius: float) -> Tensor:
        """Return (P,) float64: of the thing that a row's point belongs to, the share that lies in the box.

        Things are clusters of all points between two heights above the ground, whatever the boxes; 1 for points that
        belong to none.
        """
        low, high = heights
        point = (self.seen.any(1) & (self.height > low) & (self.height < high)).nonzero()[:, 0]
        thing = torch.full_like(self.range, -1, dtype=torch.int64)
        thing[point] = connected_components(self.xyz[point, :2], radius)
        return self.share_in_box(thing)

    def share_in_box(self, group_of_point: Tensor) -> Tensor:
        """Return (P,) float64: of the points of a row's group that the box's image shows, the share in the box.

        Args:
            group_of_point: (N,) int64, -1 none; rows of points without a group get 1.
        """
        point, camera = (self.seen & (group_of_point >= 0)[:, None]).nonzero(as_tuple=True)
        shown = torch.bincount(group_of_point[point] * self.num_cameras + camera)
        group = group_of_point[self.point]
        rows = (group >= 0).nonzero()[:, 0]
        share = torch.ones(len(group), dtype=torch.float64, device=group.device)
        if len(rows):
            group, box = group[rows], self.box[rows]
            _, key, count = torch.unique(group * self.num_boxes + box, return_inverse=True, return_counts=True)
            share[rows] = count.double()[key] / shown[group * self.num_cameras + self.box_camera[box]]
        return share

    def depth(self, rows: Tensor) -> Tensor:
        """Return (M,) float64: metres along the optical axis of the box's camera, of some rows."""
        camera = self.box_camera[self.box[rows]]
        depth = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for index, view in enumerate(self.frame.cameras):
            own = (camera == index).nonzero()[:, 0]
            extrinsics = view.camera.camera_SE3_vehicle.to(rows.device)
            depth[own] = transform_points(extrinsics, self.xyz[self.point[rows[own]]])[:, 2]
        return depth

    def expected_depth(self, heights: tuple[float, ...]) -> Tensor:
        """Return (G,) float64: how far away each box says its object is, metres, from heights by class."""
        device = self.box.device
        focal = torch.tensor([float(view.camera.intrinsics[1]) for view in self.frame.cameras], device=device).double()
        tall = self._boxes[:, 3] - self._boxes[:, 1]
        return focal[self.box_camera] * self.of_box(heights) / tall.clamp(min=1)

    def of_box(self, by_class: tuple[float, ...]) -> Tensor:
        """Return (G,) float64: the value of each box's class; any for ignored regions and classes without a value."""
        labels = torch.cat([view.labels.labels for view in self.frame.cameras]).to(self.box.device)
        known = labels.clamp(0, len(by_class) - 1)
        return torch.tensor(by_class, dtype=torch.float64, device=self.box.device)[known]

    def filled(self, rows: Tensor) -> Tensor:
        """Return (G,) float64: the share of each box's area that the image extent of some of its rows takes; 0 none."""
        point, box = self.point[rows], self.box[rows]
        slot = (self.frame.pixels.camera_index[point] == self.box_camera[box, None]).long().argmax(1)
        uv = self.frame.pixels.pixel_uv[point, slot].double()
        index = box[:, None].expand(-1, 2)
        low = uv.new_full((self.num_boxes, 2), torch.inf).scatter_reduce(0, index, uv, "amin")
        high = uv.new_full((self.num_boxes, 2), -torch.inf).scatter_reduce(0, index, uv, "amax")
        area = (high - low).clamp(min=0).prod(1)
        return area / (self._boxes[:, 2:] - self._boxes[:, :2]).prod(1)

    def outside(self, rows: Tensor, within: float) -> Tensor:
        """Return (P,) float64: metres from each row to the outline of some rows of its box, in the ground plane.

        At most 0 within it; infinite where there is no outline and for rows that are certainly ``within`` metres or
        more away.
        """
        angle = torch.arange(NUM_DIRECTIONS, device=rows.device) * (2 * math.pi / NUM_DIRECTIONS)
        directions = torch.stack([angle.cos(), angle.sin()]).double()
        xy, box = self.xyz[self.point, :2], self.box[rows]
        outline = directions.new_full((self.num_boxes, NUM_DIRECTIONS), -torch.inf)
        outline = outline.scatter_reduce(0, box[:, None].expand(-1, NUM_DIRECTIONS), xy[rows] @ directions, "amax")
        east, north, west, south = outline[:, :: NUM_DIRECTIONS // 4].T
        far = torch.stack([xy[:, 0] - east[self.box], xy[:, 1] - north[self.box]], 1)
        far = torch.maximum(far, torch.stack([-xy[:, 0] - west[self.box], -xy[:, 1] - south[self.box]], 1))
        near = (far < within).all(1).nonzero()[:, 0]
        distance = torch.full_like(xy[:, 0], torch.inf)
        distance[near] = (xy[near] @ directions - outline[self.box[near]]).amax(1)
        return distance

    def mean_of_boxes(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return (G,) the mean over the rows of each box; 0 where there are none."""
        return segment_mean(values, self.box[rows], self.num_boxes)

    @property
    def _boxes(self) -> Tensor:
        return torch.cat([view.labels.boxes for view in self.frame.cameras]).double().to(self.box.device)


def in_radii(xy: Tensor, radius: Tensor, per_metre: Tensor) -> Tensor:
    """Return places (M, 3) whose distances count the radii that separate the points.

    The radius of a point is ``radius`` or, farther out, ``per_metre`` times its range. The near disk is divided by its
    radius; the plane beyond it is rolled onto a cylinder that stands on the disk's edge, where the height is the
    logarithm of the range. Both parts are free of distortion, so distances of neighbours are exact to second order.

    Args:
        xy: (M, 2) float64, metres from the sensor's axis.
        radius: (M,) or (), metres, > 0.
        per_metre: (M,) or (), > 0.
    """
    range_ = xy.norm(dim=1)
    bend = radius / per_metre
    scale = torch.where(range_ > bend, 1 / (per_metre * range_.clamp(min=1e-9)), 1 / radius)
    up = (range_ / bend).clamp(min=1).log() / per_metre
    return torch.cat([xy * scale[:, None], up[:, None]], 1)
