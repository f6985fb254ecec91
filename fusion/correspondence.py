"""Where points and pixels meet: points in 2D boxes, and image maps read at the pixels of points.

Pixels are attributes that the points carry (`mwsis.core.frame.PixelMap`), so nothing here knows a camera model or an
augmentation; the paired augmentation lives in `fusion/transforms.py`. Next: `spatial_labels.py`, `distillation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mwsis.core.frame import PixelMap
from mwsis.core.instances import Boxes2D

__all__ = ["PointPixelPairs", "point_pixel_pairs", "points_in_boxes2d", "sample_maps"]


@dataclass(frozen=True, eq=False)
class PointPixelPairs:
    """Every filled projection slot as one row; a point seen by two cameras has two.

    Attributes:
        point_index: (P,) int64, row of the point.
        pixel_uv: (P, 2) float32, u = column, v = row, pixel centres at +0.5.
        image_index: (P,) int64, image the pixel lies in.
    """

    point_index: Tensor
    pixel_uv: Tensor
    image_index: Tensor

    def __len__(self) -> int:
        return len(self.point_index)

    def __getitem__(self, keep: Tensor) -> PointPixelPairs:
        return PointPixelPairs(self.point_index[keep], self.pixel_uv[keep], self.image_index[keep])


def point_pixel_pairs(pixel_uv: Tensor, image_index: Tensor) -> PointPixelPairs:
    """Flatten the projection slots of all points to one row per point and pixel.

    Args:
        pixel_uv: (N, S, 2) float32, pixels.
        image_index: (N, S) integer, -1 = empty slot.

    Returns:
        The P filled slots, by point, then by slot.
    """
    row = (image_index >= 0).flatten().nonzero()[:, 0]
    uv, image = pixel_uv.reshape(-1, 2).index_select(0, row), image_index.flatten().index_select(0, row)
    return PointPixelPairs(row // image_index.shape[1], uv, image.long())


def points_in_boxes2d(pixels: PixelMap, labels: Sequence[Boxes2D]) -> Tensor:
    """Return which points fall into which 2D boxes, whichever slot the camera's pixel is kept in.

    Args:
        pixels: N points with S slots each; ``camera_index`` counts ``labels``.
        labels: the boxes of each camera, pixels.

    Returns:
        (P, 2) int64 rows (point, box), unique, sorted by box, then point. Boxes count on over the cameras, objects and
        ignore regions alike. A pixel on a box's left or top edge is inside, on its right or bottom edge outside.

    Complexity: O(N log N) plus the points in the columns of each box.

    Source: MWSIS (AAAI 2024), half-open box test in either slot (*corrected*: upstream compares x2, not y2, with the
    lower edge in the second slot).
    """
    slots = point_pixel_pairs(pixels.pixel_uv, pixels.camera_index)
    device, num_points = slots.point_index.device, max(len(pixels), 1)
    boxes = torch.cat([torch.zeros(0, 4), *(view.boxes for view in labels)]).to(device)
    counts = torch.tensor([len(view) for view in labels], dtype=torch.int64, device=device)
    camera = torch.repeat_interleave(torch.arange(len(labels), device=device), counts)
    # Sorted by image and column (whole pixels, which sort fast), the pixels near a box's columns are neighbours.
    column = slots.pixel_uv[:, 0].floor().long()
    low = int(column.min()) if len(column) else 0
    width = int(column.max()) - low + 1 if len(column) else 1
    along, order = torch.sort(slots.image_index * width + column - low)
    left, right = ((boxes[:, side].floor().long() - low).clamp(0, width - 1) + camera * width for side in (0, 2))
    first = torch.searchsorted(along, left)
    length = torch.searchsorted(along, right, right=True) - first
    box = torch.repeat_interleave(torch.arange(len(boxes), device=device), length)
    skipped = first - (length.cumsum(0) - length)
    row = order.index_select(0, torch.arange(len(box), device=device) + skipped.index_select(0, box))
    uv, corners = slots.pixel_uv.index_select(0, row), boxes.index_select(0, box)
    inside = ((corners[:, :2] <= uv) & (uv < corners[:, 2:])).all(1).nonzero()[:, 0]
    box, row = box.index_select(0, inside), row.index_select(0, inside)
    key = torch.unique(box * num_points + slots.point_index.index_select(0, row))
    return torch.stack([key % num_points, key // num_points], 1)


def sample_maps(maps: Tensor, stride: float, pixel_uv: Tensor, image_index: Tensor) -> Tensor:
    """Read maps at pixels, bilinearly, with zeros beyond their edges; differentiable with respect to the maps.

    Equals ``grid_sample(align_corners=False, padding_mode="zeros")`` per image, in one gather for all images.

    Args:
        maps: (I, C, h, w) float; cell (row i, column j) has its centre at pixel ((j + .5) stride, (i + .5) stride).
        stride: pixels of the (padded) image per cell.
        pixel_uv: (P, 2) float, pixels, centres at +0.5.
        image_index: (P,) int64.

    Returns:
        (P, C), dtype of ``maps``.
    """
    num_images, num_channels, height, width = maps.shape
    cells = maps.reshape(num_images, num_channels, height * width)
    position = pixel_uv.float() / stride - 0.5
    corner = position.floor()
    upper_share = position - corner
    column, row = corner.long().unbind(1)
    sampled = maps.new_zeros(len(pixel_uv), num_channels)
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        u, v = column + right, row + below
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        share_u = upper_share[:, 0] if right else 1 - upper_share[:, 0]
        share_v = upper_share[:, 1] if below else 1 - upper_share[:, 1]
        cell = v.clamp(0, height - 1) * width + u.clamp(0, width - 1)
        weight = (share_u * share_v * inside).to(maps.dtype)
        sampled = sampled + cells[image_index, :, cell] * weight[:, None]
    return sampled
