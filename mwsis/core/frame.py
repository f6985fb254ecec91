"""One moment of a drive: a LiDAR sweep, its cameras, and which pixel each point falls on.

Shape letters used everywhere: B frames, I images, N points, V voxels, P point-pixel pairs, G boxes, K mask samples,
C classes, D channels, H W rows columns, S projection slots. Everything here is validated once, when it is made.
Labels for training (2D boxes) sit in `CameraView`; ground truth for evaluation is a field of its own, so that training
can be given frames that cannot hold any. Next: `instances.py` (boxes, masks), `batch.py` (what a step sees).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from mwsis.core.errors import DataError
from mwsis.core.geometry import CameraModel
from mwsis.core.instances import Boxes2D, MaskSet

__all__ = [
    "BoxMasks",
    "CameraView",
    "Frame",
    "FrameTruth",
    "ImageTruth",
    "LidarGeometry",
    "PixelMap",
    "PointCloud",
    "PointFeature",
]


class PointFeature(IntEnum):
    """Columns of ``PointCloud.point_feats``."""

    INTENSITY = 0  # tanh of the recorded intensity
    ELONGATION = 1  # 0 where the sensor has none


def require(tensor: Tensor, name: str, shape: tuple[int | None, ...], dtype: torch.dtype) -> None:
    """Raise `DataError` unless ``tensor`` has this dtype and shape (``None`` = any size)."""
    fits = tensor.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
    if not fits or tensor.dtype != dtype:
        want = tuple("any" if size is None else size for size in shape)
        raise DataError(f"{name}: expected {dtype} {want}, got {tensor.dtype} {tuple(tensor.shape)}")


@dataclass(frozen=True, eq=False)
class LidarGeometry:
    """The scan pattern that ring segments need.

    Attributes:
        num_rings: beams (rows of the range image).
        num_columns: firings per turn (columns of the range image).
    """

    num_rings: int
    num_columns: int

    @property
    def azimuth_step(self) -> float:
        """Angle between neighbouring columns, rad."""
        return 2 * torch.pi / self.num_columns


@dataclass(frozen=True, eq=False)
class PointCloud:
    """All returns of one sweep.

    Attributes:
        xyz: (N, 3) float32, metres, vehicle frame (x forward, y left, z up), finite.
        point_feats: (N, 2) float32, columns of `PointFeature`.
        ranges: (N,) float32, metres from the sensor.
        ring: (N,) int16, beam index, 0 = highest beam; -1 unknown.
        azimuth_column: (N,) int32, column of the range image; -1 unknown.
        return_index: (N,) int8, 0 first return, 1 second.
    """

    xyz: Tensor
    point_feats: Tensor
    ranges: Tensor
    ring: Tensor
    azimuth_column: Tensor
    return_index: Tensor

    def __post_init__(self) -> None:
        num_points = len(self.xyz)
        require(self.xyz, "xyz", (num_points, 3), torch.float32)
        require(self.point_feats, "point_feats", (num_points, len(PointFeature)), torch.float32)
        require(self.ranges, "ranges", (num_points,), torch.float32)
        require(self.ring, "ring", (num_points,), torch.int16)
        require(self.azimuth_column, "azimuth_column", (num_points,), torch.int32)
        require(self.return_index, "return_index", (num_points,), torch.int8)
        if not bool(torch.isfinite(self.xyz).all()):
            raise DataError("xyz: expected finite coordinates, got NaN or infinity")

    def __len__(self) -> int:
        return len(self.xyz)

    def __getitem__(self, keep: Tensor) -> PointCloud:
        """Return the points selected by an (N,) bool mask or an index tensor."""
        return PointCloud(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class PixelMap:
    """The pixels each point falls on; carried by the points, so 3D augmentation never breaks the link.

    Attributes:
        pixel_uv: (N, S, 2) float32, u = column, v = row, pixel centres at +0.5.
        camera_index: (N, S) int8, index into ``Frame.cameras``, -1 = empty slot.
    """

    pixel_uv: Tensor
    camera_index: Tensor

    def __post_init__(self) -> None:
        num_points, num_slots = self.camera_index.shape
        require(self.pixel_uv, "pixel_uv", (num_points, num_slots, 2), torch.float32)
        require(self.camera_index, "camera_index", (num_points, num_slots), torch.int8)

    def __len__(self) -> int:
        return len(self.camera_index)

    def __getitem__(self, keep: Tensor) -> PixelMap:
        return PixelMap(self.pixel_uv[keep], self.camera_index[keep])

    @property
    def in_any_image(self) -> Tensor:
        """(N,) bool."""
        return (self.camera_index >= 0).any(1)


@dataclass(frozen=True, eq=False)
class CameraView:
    """One camera image with the 2D boxes a person drew on it (the only training labels).

    Attributes:
        name: the data set's name of the camera.
        camera: intrinsics, distortion, pose.
        image: encoded JPEG or PNG bytes, as recorded.
        labels: the boxes, pixel units of the recorded image.
        supervision: what a person gave of the objects, ``boxes``, ``points`` (then the boxes are made up) or ``masks``.
    """

    name: str
    camera: CameraModel
    image: bytes
    labels: Boxes2D
    supervision: str = "boxes"


@dataclass(frozen=True, eq=False)
class BoxMasks:
    """Masks given to training beside the boxes of one image.

    Attributes:
        masks: one per box of the image's labels, same order, ignore regions too; empty where there is none.
        weight: (G,) float32 in [0, 1], how far each is to be trusted; 0 = there is none.
    """

    masks: MaskSet
    weight: Tensor

    def __post_init__(self) -> None:
        require(self.weight, "weight", (len(self.masks),), torch.float32)

    def __getitem__(self, keep: Tensor) -> BoxMasks:
        return BoxMasks(self.masks[keep], self.weight[keep])


@dataclass(frozen=True, eq=False)
class ImageTruth:
    """Ground truth of one image, for evaluation only.

    Attributes:
        labels: the objects' boxes (tight, visible part), classes and ignore flags.
        masks: their masks, same order.
        instance_ids: (G,) int64, the object's id in ``FrameTruth.instance_ids``.
    """

    labels: Boxes2D
    masks: MaskSet
    instance_ids: Tensor

    def __post_init__(self) -> None:
        require(self.instance_ids, "instance_ids", (len(self.labels),), torch.int64)
        assert len(self.masks) == len(self.labels)


@dataclass(frozen=True, eq=False)
class FrameTruth:
    """Ground truth of one frame, for evaluation only.

    Attributes:
        semantic_labels: (N,) int64, class, `BACKGROUND` or `IGNORE`.
        instance_ids: (N,) int64, -1 none.
        boxes3d: (M, 7) float32, centre xyz, length, width, height (metres, vehicle frame), yaw (rad, about +z).
        box3d_labels: (M,) int64.
        box3d_ids: (M,) int64, the object's id in ``instance_ids``.
        box_instance_ids: per camera (G,) int64, the object of each box of ``CameraView.labels``, -1 none.
        images: per camera, or None where a camera has no mask truth.
    """

    semantic_labels: Tensor
    instance_ids: Tensor
    boxes3d: Tensor
    box3d_labels: Tensor
    box3d_ids: Tensor
    box_instance_ids: tuple[Tensor, ...]
    images: tuple[ImageTruth | None, ...]

    def __post_init__(self) -> None:
        num_points, num_boxes = len(self.semantic_labels), len(self.boxes3d)
        require(self.semantic_labels, "semantic_labels", (num_points,), torch.int64)
        require(self.instance_ids, "instance_ids", (num_points,), torch.int64)
        require(self.boxes3d, "boxes3d", (num_boxes, 7), torch.float32)
        require(self.box3d_labels, "box3d_labels", (num_boxes,), torch.int64)
        require(self.box3d_ids, "box3d_ids", (num_boxes,), torch.int64)


@dataclass(frozen=True, eq=False)
class Frame:
    """One sweep with its cameras.

    Attributes:
        frame_id: unique in its data set.
        segment: the drive it belongs to (splits are made by segment).
        lidar: scan pattern.
        points: the sweep.
        pixels: per point, same order.
        cameras: the images.
        truth: evaluation only; ``None`` where the data set has none. Training never receives it (`without_truth`).
        given_masks: per camera, masks that the configuration lets training see; () = none, as in a store. Filled in by
            `mwsis.data.dataset` alone.
    """

    frame_id: str
    segment: str
    lidar: LidarGeometry
    points: PointCloud
    pixels: PixelMap
    cameras: tuple[CameraView, ...]
    truth: FrameTruth | None = None
    given_masks: tuple[BoxMasks, ...] = ()

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.points):
            raise DataError(f"{self.frame_id}: {len(self.points)} points but {len(self.pixels)} rows of pixels")
        if len(self.pixels) and int(self.pixels.camera_index.max()) >= len(self.cameras):
            raise DataError(f"{self.frame_id}: a point names a camera beyond the {len(self.cameras)} of this frame")
        if self.truth is not None and len(self.truth.semantic_labels) != len(self.points):
            raise DataError(f"{self.frame_id}: ground truth does not have one label per point")

    def without_truth(self) -> Frame:
        """Return the frame as training sees it: no masks, no point labels, no 3D boxes."""
        return replace(self, truth=None, given_masks=())
