"""Where the depth of training images comes from: the points of the sweep, or maps that a network made elsewhere.

Both give maps at stride 4 on the images as they are after resizing, cropping and mirroring. Methods that look at depth
are `camera/depth_terms.py`, `camera.affinity.Depth` and `camera/matching.py`; at inference nothing here is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from camera.transforms import ImageGeometry
from fusion.lidar_depth import pixel_depth, raster_depth
from mwsis.core.batch import DepthMaps
from mwsis.core.errors import DataError
from mwsis.core.frame import Frame
from mwsis.core.ground import height_above_ground
from mwsis.data.depth_files import DepthFolder

__all__ = ["DepthSource", "FileDepth", "LidarDepth"]


class DepthSource(Protocol):
    """What knows the depth of a frame's images."""

    def of(self, frame: Frame, cameras: Sequence[int], geometries: Sequence[ImageGeometry]) -> tuple[DepthMaps, ...]:
        """Return the map of each chosen camera's image after its geometry, (h, w) at stride 4."""
        ...


@dataclass(frozen=True)
class LidarDepth:
    """Depth of the sweep's points, all of them: also those that the LiDAR branch leaves out.

    Attributes:
        ground_height: points lower above the ground plane count as ground, metres.

    Source: ours, beyond Pseudo-Depth (arXiv 2403.01214). An object and the road at its foot are equally deep, so pairs
    with the ground would join them. On six streets of world 3, 384 px wide, pairs two cells apart in boxes join the
    same thing in .798 of all cases, in .948 of those of like depth, in .952 (.952) of those without ground below .2
    (.5) m, which are 3 % (14 %) fewer; pairs of like colour in .992.
    """

    ground_height: float = 0.2

    def of(self, frame: Frame, cameras: Sequence[int], geometries: Sequence[ImageGeometry]) -> tuple[DepthMaps, ...]:
        """Return the maps of the chosen cameras.

        Raises:
            DataError: the frame has no points.

        Complexity: O(N) for N points: .04 s for 31,000 points and five cameras on one core, half of it the ground.
        """
        if not len(frame.points):
            raise DataError(
                f"frame {frame.frame_id}: data.depth=lidar needs a sweep, and this frame has no points; set data.depth "
                "to a folder of depth maps"
            )
        slots = frame.pixels.camera_index
        ground = height_above_ground(frame.points.xyz) < self.ground_height
        maps = []
        for index, geometry in zip(cameras, geometries, strict=True):
            point, slot = (slots == index).nonzero(as_tuple=True)
            pixel_uv = geometry.apply_uv(frame.pixels.pixel_uv[point, slot])
            depth = pixel_depth(frame.points.xyz[point], slots.new_zeros(len(point), 1), [frame.cameras[index]])[:, 0]
            maps.append(raster_depth(pixel_uv, depth, ground[point], geometry.size))
        return tuple(maps)


@dataclass(frozen=True)
class FileDepth:
    """Depth maps of a folder.

    Attributes:
        folder: with a map of every training image.
    """

    folder: DepthFolder

    def of(self, frame: Frame, cameras: Sequence[int], geometries: Sequence[ImageGeometry]) -> tuple[DepthMaps, ...]:
        """Return the maps of the chosen cameras.

        Raises:
            DataError: see `mwsis.data.depth_files.DepthFolder.of`.
        """
        maps = []
        for index, geometry in zip(cameras, geometries, strict=True):
            view = frame.cameras[index]
            recorded = self.folder.of(frame.frame_id, view.name, view.camera.height, view.camera.width)
            maps.append(geometry.apply_depth(recorded))
        return tuple(maps)
