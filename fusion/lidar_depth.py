"""What a camera can see of a sweep: how deep its points lie, and which of them something nearer hides.

The roof LiDAR looks over what blocks a camera's view, so a projected point may belong to an object that the pixel does
not show. Pure functions over tensors. Next: `distillation.py`, which must not teach across such pairs, and
`depth_maps.py`, where depth comes from.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fusion.correspondence import PointPixelPairs
from mwsis.core.batch import DepthMaps
from mwsis.core.frame import CameraView
from mwsis.core.geometry import transform_points

__all__ = ["pixel_depth", "raster_depth", "unoccluded"]

CELL = 4
"""Edge of a cell of the depth buffer, pixels of the resized image: the masks' stride."""
WINDOW = 3
"""Cells around a point's own in which something nearer hides it."""
SLACK = (1.05, 1.0)
"""A point is hidden beyond this factor of the least depth plus so many metres. Chosen on six streets of world 3, 384 px
wide: of the pairs with an object on either side .216 join different things, of those kept .066; a quarter is left out,
two thirds of it rightly. (A starting point of .3 m keeps .059 wrong ones and leaves out .300.)"""


def pixel_depth(xyz: Tensor, camera_index: Tensor, cameras: list[CameraView]) -> Tensor:
    """Return how far along the camera's axis each point lies from the camera of each of its pixels.

    Args:
        xyz: (N, 3) float32, metres, vehicle frame, as recorded.
        camera_index: (N, S) integer, index into ``cameras``, -1 = empty slot.
        cameras: those of the frame that are loaded.

    Returns:
        (N, S) float32, metres; 0 in empty slots. The vehicle's motion during the exposure is left out (*simplified*:
        some decimetres at 25 m/s, where the slack of `unoccluded` is 1 m and 5 %).
    """
    depth = torch.zeros(camera_index.shape)
    for index, view in enumerate(cameras):
        along = transform_points(view.camera.camera_SE3_vehicle, xyz)[:, 2].float()
        depth = torch.where(camera_index == index, along[:, None], depth)
    return depth


def unoccluded(pairs: PointPixelPairs, depth: Tensor, num_images: int, height: int, width: int) -> Tensor:
    """Return which pairs have no much nearer point around their pixel.

    Args:
        pairs: P points and their pixels.
        depth: (P,) float, metres along the camera's axis.
        num_images: I.
        height, width: of the padded images, pixels.

    Returns:
        (P,) bool.

    Complexity: O(P + I cells).

    Source: depth buffer at stride 4 with a 3 by 3 window, ``z > 1.05 z_min + 1 m`` is hidden (constants: `SLACK`).
    """
    rows, cols = -(-height // CELL), -(-width // CELL)
    column = (pairs.pixel_uv[:, 0] / CELL).floor().long().clamp(0, cols - 1)
    row = (pairs.pixel_uv[:, 1] / CELL).floor().long().clamp(0, rows - 1)
    cell = (pairs.image_index * rows + row) * cols + column
    nearness = depth.new_zeros(num_images * rows * cols).scatter_reduce(0, cell, 1 / depth.clamp(min=1e-3), "amax")
    around = functional.max_pool2d(nearness.view(num_images, 1, rows, cols), WINDOW, 1, WINDOW // 2)
    return depth <= SLACK[0] / around.flatten()[cell] + SLACK[1]


def raster_depth(pixel_uv: Tensor, depth: Tensor, ground: Tensor, size: tuple[int, int]) -> DepthMaps:
    """Return the depth of an image's cells: that of the nearest point in each which nothing hides.

    Args:
        pixel_uv: (P, 2) float32, pixels of the image.
        depth: (P,) float32, metres along the camera's axis.
        ground: (P,) bool, the point lies on the ground.
        size: rows and columns of the image, pixels.

    Returns:
        Metric maps (h, w) at stride 4; no depth where no point falls. Points that are equally near are ground if one
        of them is.

    Complexity: O(P + cells).

    Source: our design, after the depth maps of Pseudo-Depth (arXiv 2403.01214), which a network makes of the image.
    """
    height, width = size
    rows, cols = -(-height // CELL), -(-width // CELL)
    on_image = (pixel_uv >= 0).all(1) & (pixel_uv < pixel_uv.new_tensor([width, height])).all(1) & (depth > 0)
    pixel_uv, depth, ground = pixel_uv[on_image], depth[on_image], ground[on_image]
    row = torch.arange(len(depth), device=depth.device)
    kept = unoccluded(PointPixelPairs(row, pixel_uv, torch.zeros_like(row)), depth, 1, height, width)
    column, line = (pixel_uv[kept] / CELL).long().T
    cell, depth, ground = line * cols + column, depth[kept], ground[kept]
    nearest = depth.new_full((rows * cols,), torch.inf).scatter_reduce(0, cell, depth, "amin")
    on_ground = ground & (depth == nearest[cell])
    ground_cells = ground.new_zeros(rows * cols).index_put((cell[on_ground],), on_ground.new_tensor(True))
    valid = nearest.isfinite()
    value, valid, on_ground = (each.view(rows, cols) for each in (nearest.where(valid, 0.0), valid, ground_cells))
    return DepthMaps(value, valid, on_ground, metric=True)
