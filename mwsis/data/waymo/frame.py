"""A Waymo record as a `Frame`: the chosen LiDARs' points, the images there are, where each point falls in them.

Whatever a file lacks stays absent: a camera without an image is left out, a frame without range images has no points.
Points come from `range_image.py`, cameras from `camera.py`, what is only for evaluation from `truth.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.core.frame import CameraView, Frame, LidarGeometry, PixelMap, PointCloud, PointFeature
from mwsis.data.image_files import image_size
from mwsis.data.waymo.camera import camera_model, camera_name, drawn_boxes
from mwsis.data.waymo.classes import class_map
from mwsis.data.waymo.range_image import LidarPoints, lidar_points
from mwsis.data.waymo.record import Array, CameraRecord, LidarName, WaymoRecord
from mwsis.data.waymo.truth import frame_truth

__all__ = ["FrameSettings", "to_frame"]

LIDAR_NAMES = tuple(lidar.name for lidar in LidarName if lidar != LidarName.UNKNOWN)
NUM_SLOTS = 2
"""Images a point may fall in; as many as the files record."""
RECORDED_SIZE = LidarGeometry(num_rings=64, num_columns=2650)
"""TOP's range image in the released data; used where a frame has none."""
PIXEL_CENTRE = 0.5
"""Recorded pixels are numbered from 0; a pixel's centre is half a pixel further."""


@dataclass(frozen=True)
class FrameSettings:
    """What of a record becomes a frame.

    Attributes:
        lidars: names of the LiDARs whose points are used, in this order.
        returns: 1 = first returns only, 2 = both.
        class_map: name of a class map of `mwsis.data.waymo.classes`.
        min_mask_px: masks of at most this many pixels are not scored (MWSIS: 200).

    Raises:
        ConfigError: a name is unknown or a number out of range.
    """

    lidars: tuple[str, ...] = ("TOP",)
    returns: int = 2
    class_map: str = "ours"
    min_mask_px: int = 200

    def __post_init__(self) -> None:
        for name in self.lidars:
            if name not in LIDAR_NAMES:
                raise ConfigError(f"lidars: no '{name}'{closest_name(name, LIDAR_NAMES)}")
        if not self.lidars or len(set(self.lidars)) != len(self.lidars):
            raise ConfigError(f"lidars: expected different names, at least one, got {list(self.lidars)}")
        if self.returns not in (1, 2):
            raise ConfigError(f"returns: expected 1 or 2, got {self.returns}")
        if self.min_mask_px < 0:
            raise ConfigError(f"min_mask_px: expected 0 or more, got {self.min_mask_px}")
        class_map(self.class_map)

    @property
    def lidar_numbers(self) -> frozenset[int]:
        """The chosen LiDARs as numbers of `LidarName`."""
        return frozenset(int(LidarName[name]) for name in self.lidars)


@dataclass(frozen=True, eq=False)
class _Part:
    """One return of one LiDAR."""

    lidar: int
    return_index: int
    points: LidarPoints


def to_frame(record: WaymoRecord, frame_id: str, settings: FrameSettings) -> Frame:
    """Return a record as a frame.

    Points: LiDAR by LiDAR in the order of the settings, first returns before second ones. Ring and column are pixels of
    TOP's range image; other LiDARs have -1, because the frame's one `LidarGeometry` is TOP's.
    Pixels: those the file recorded, where it did; else from the camera models, the first two cameras in the order F,
    FL, FR, SL, SR that see the point.
    Boxes: those people drew, clamped to the image, without signs; boxes of unknown type are ignore regions, and so is
    an image that nobody drew boxes in.

    Args:
        record: what the file says.
        frame_id: name of the frame.
        settings: what to use.

    Returns:
        The frame; its truth is None where the record has neither point labels nor 3D boxes nor panoptic labels.

    Raises:
        DataError: the record has neither images nor the range images asked for, or a field is malformed.
    """
    seen = sorted((camera for camera in record.cameras if camera.image is not None), key=lambda camera: camera.name)
    parts = _parts(record, settings)
    if not seen and not parts:
        wanted = ", ".join(settings.lidars)
        raise DataError(
            f"{frame_id}: no images and no range images of {wanted}; it lacks {', '.join(record.missing())}"
        )
    cameras = tuple(_view(camera, record) for camera in seen)
    pixels = _pixel_map(parts, seen, cameras)
    clouds = [part.points for part in parts]
    truth = frame_truth(record, clouds, pixels, seen, class_map(settings.class_map), settings.min_mask_px)
    return Frame(
        frame_id=frame_id,
        segment=record.segment,
        lidar=_geometry(record),
        points=_point_cloud(parts),
        pixels=pixels,
        cameras=cameras,
        truth=truth,
    )


# ---------------------------------------------------------------------------------------------------------------------
# LiDAR
# ---------------------------------------------------------------------------------------------------------------------


def _parts(record: WaymoRecord, settings: FrameSettings) -> list[_Part]:
    by_name = {lidar.name: lidar for lidar in record.lidars}
    parts = []
    for name in settings.lidars:
        lidar = by_name.get(int(LidarName[name]))
        for return_index in range(settings.returns if lidar is not None else 0):
            assert lidar is not None
            points = lidar_points(lidar, record.world_SE3_vehicle, return_index)
            if points is not None:
                parts.append(_Part(lidar.name, return_index, points))
    return parts


def _geometry(record: WaymoRecord) -> LidarGeometry:
    images = [part for lidar in record.lidars if lidar.name == LidarName.TOP for part in lidar.returns if part]
    return LidarGeometry(*images[0].values.shape[:2]) if images else RECORDED_SIZE


def _point_cloud(parts: list[_Part]) -> PointCloud:
    clouds = [part.points for part in parts]
    point_feats = torch.zeros(sum(map(len, clouds)), len(PointFeature))
    point_feats[:, PointFeature.INTENSITY] = _join([cloud.intensity for cloud in clouds], torch.float32).tanh()
    point_feats[:, PointFeature.ELONGATION] = _join([cloud.elongation for cloud in clouds], torch.float32)
    on_top = [part.lidar == LidarName.TOP for part in parts]
    rows = [cloud.row if top else np.full(len(cloud), -1) for cloud, top in zip(clouds, on_top, strict=True)]
    columns = [cloud.column if top else np.full(len(cloud), -1) for cloud, top in zip(clouds, on_top, strict=True)]
    return PointCloud(
        xyz=_join([cloud.xyz for cloud in clouds], torch.float32, 3),
        point_feats=point_feats,
        ranges=_join([cloud.ranges for cloud in clouds], torch.float32),
        ring=_join(rows, torch.int16),
        azimuth_column=_join(columns, torch.int32),
        return_index=_join([np.full(len(part.points), part.return_index) for part in parts], torch.int8),
    )


def _join(arrays: list[Array], dtype: torch.dtype, *tail: int) -> torch.Tensor:
    """Return arrays one after the other; no arrays make an empty tensor of this tail shape."""
    joined = np.concatenate(arrays) if arrays else np.zeros((0, *tail), np.float32)
    return torch.from_numpy(joined).to(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Cameras
# ---------------------------------------------------------------------------------------------------------------------


def _view(camera: CameraRecord, record: WaymoRecord) -> CameraView:
    assert camera.image is not None
    model = camera_model(camera, record.world_SE3_vehicle)
    _check_image(camera.image, camera)
    return CameraView(camera_name(camera.name), model, camera.image, drawn_boxes(camera)[0])


def _check_image(image: bytes, camera: CameraRecord) -> None:
    """Compare the size in the image's header with the calibration; nothing is decoded."""
    name = camera_name(camera.name)
    size = image_size(image)
    if size is None:
        raise DataError(f"{name}: image: expected a JPEG, got {len(image)} bytes that are none")
    if size != (camera.width, camera.height):
        raise DataError(f"{name}: image: expected (width, height) {(camera.width, camera.height)}, got {size}")


# ---------------------------------------------------------------------------------------------------------------------
# Which pixel each point falls on
# ---------------------------------------------------------------------------------------------------------------------


def _pixel_map(parts: list[_Part], seen: list[CameraRecord], cameras: tuple[CameraView, ...]) -> PixelMap:
    maps = [
        _projected(part.points, cameras) if part.points.projection is None else _recorded(part.points, seen)
        for part in parts
    ]
    none = PixelMap(torch.zeros(0, NUM_SLOTS, 2), torch.zeros(0, NUM_SLOTS, dtype=torch.int8))
    return PixelMap(
        torch.cat([none.pixel_uv, *(item.pixel_uv for item in maps)]),
        torch.cat([none.camera_index, *(item.camera_index for item in maps)]),
    )


def _recorded(points: LidarPoints, seen: list[CameraRecord]) -> PixelMap:
    """Return the file's own pixels; slots of cameras without image, or outside their image, are empty."""
    assert points.projection is not None
    slots = torch.from_numpy(points.projection.astype(np.int64)).reshape(-1, NUM_SLOTS, 3)
    camera_index = torch.full(slots.shape[:2], -1, dtype=torch.int8)
    for position, camera in enumerate(seen):
        size = torch.tensor([camera.width, camera.height])
        inside = ((slots[..., 1:] >= 0) & (slots[..., 1:] < size)).all(-1)
        camera_index[(slots[..., 0] == camera.name) & inside] = position
    pixel_uv = (slots[..., 1:].float() + PIXEL_CENTRE) * (camera_index >= 0)[..., None]
    return PixelMap(pixel_uv, camera_index)


def _projected(points: LidarPoints, cameras: tuple[CameraView, ...]) -> PixelMap:
    """Return the pixels of the first cameras that see each point, by geometry."""
    xyz = torch.from_numpy(points.xyz)
    pixel_uv = torch.zeros(len(xyz), NUM_SLOTS, 2)
    camera_index = torch.full((len(xyz), NUM_SLOTS), -1, dtype=torch.int8)
    filled = torch.zeros(len(xyz), dtype=torch.int64)
    for position, view in enumerate(cameras):
        uv, _, visible = view.camera.project(xyz)
        rows = (visible & (filled < NUM_SLOTS)).nonzero()[:, 0]
        pixel_uv[rows, filled[rows]] = uv[rows]
        camera_index[rows, filled[rows]] = position
        filled[rows] += 1
    return PixelMap(pixel_uv, camera_index)
