"""Ground truth of a Waymo frame: point labels, masks and 3D boxes under one numbering of objects.

The data set numbers objects of points, of pixels and of boxes apart and links almost none of them, so links are found
by geometry: a 3D box is the instance most of its points belong to, a mask likewise, a 2D box the instance whose points
span most nearly the same box. Where that is not clear the link is -1. Only evaluation reads any of this.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from mwsis.core.errors import DataError
from mwsis.core.frame import FrameTruth, ImageTruth, PixelMap
from mwsis.core.geometry import points_in_boxes3d
from mwsis.core.instances import BACKGROUND, IGNORE, Boxes2D, MaskSet
from mwsis.data.image_files import NO_IMAGE
from mwsis.data.waymo.camera import camera_name, drawn_boxes
from mwsis.data.waymo.classes import CLASS_NAMES, LABEL_OF_TYPE, ClassMap
from mwsis.data.waymo.range_image import LidarPoints
from mwsis.data.waymo.record import Array, CameraRecord, LaserLabel, WaymoRecord

__all__ = ["decode_panoptic", "frame_truth"]

MIN_LINK_IOU = 0.3
"""Between a 2D box and the span of an instance's points in the image: points are sparse, so spans are smaller than
boxes. Our choice; links serve label quality only."""
PANOPTIC_MODES = ("I;16", "I;16B", "I")
"""Pillow's names of 16-bit grey, by version."""


def frame_truth(
    record: WaymoRecord,
    clouds: Sequence[LidarPoints],
    pixels: PixelMap,
    seen: Sequence[CameraRecord],
    classes: ClassMap,
    min_mask_px: int,
) -> FrameTruth | None:
    """Return what a record knows beyond 2D boxes.

    The id of an object is its recorded LiDAR instance times the number of classes plus its class, so an instance whose
    points are of two classes is two objects.

    Args:
        record: the frame.
        clouds: N points in all, in the frame's order.
        pixels: (N,) where they fall.
        seen: the cameras with images, in the frame's order.
        classes: what recorded classes count as.
        min_mask_px: masks of at most this many pixels are not scored.

    Returns:
        None where the record has neither point labels nor 3D boxes nor panoptic labels (no 3D box and no labelling of
        3D boxes look alike in v1). Points without label are `IGNORE`; cameras without panoptic label have no
        `ImageTruth`.

    Raises:
        DataError: a label is malformed.
    """
    segmented = any(cloud.segmentation is not None for cloud in clouds)
    if not segmented and not record.laser_labels and all(camera.panoptic is None for camera in seen):
        return None
    semantic_labels, instance_ids = _point_labels(clouds, classes)
    boxed = [item for item in record.laser_labels or () if LABEL_OF_TYPE.get(item.type, IGNORE) >= 0]
    boxes3d, box3d_labels = _boxes3d(boxed)
    points = _Points(_xyz(clouds), pixels, semantic_labels, instance_ids)
    box3d_ids = _box3d_ids(points, boxes3d, box3d_labels)
    known = dict(zip((item.id for item in boxed), box3d_ids.tolist(), strict=True))
    return FrameTruth(
        semantic_labels=semantic_labels,
        instance_ids=instance_ids,
        boxes3d=boxes3d,
        box3d_labels=box3d_labels,
        box3d_ids=box3d_ids,
        box_instance_ids=tuple(_box_ids(camera, points, view, known) for view, camera in enumerate(seen)),
        images=tuple(_image_truth(camera, points, view, classes, min_mask_px) for view, camera in enumerate(seen)),
    )


def decode_panoptic(camera: CameraRecord) -> tuple[Array, int]:
    """Return the panoptic label of a camera that has one.

    Returns:
        values: (H, W) int64, class times divisor plus instance.
        divisor: of the two.

    Raises:
        DataError: it is no 16-bit PNG of the camera's size.
    """
    assert camera.panoptic is not None
    name, png = f"{camera_name(camera.name)}: panoptic label", camera.panoptic.png
    wanted = (camera.width, camera.height)
    size: tuple[int, int] | None = None
    mode, values = "", np.zeros(0)
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            size, mode = image.size, image.mode
            if size == wanted and mode in PANOPTIC_MODES:  # only then is anything decoded
                values = np.asarray(image).astype(np.int64)
    except NO_IMAGE:
        raise DataError(f"{name}: expected a PNG, got {len(png)} bytes that cannot be decoded") from None
    if size != wanted or mode not in PANOPTIC_MODES:
        raise DataError(f"{name}: expected 16-bit grey (width, height) {wanted}, got mode {mode} and {size}")
    if camera.panoptic.divisor < 1:
        raise DataError(f"{name}: panoptic_label_divisor: expected 1 or more, got {camera.panoptic.divisor}")
    return values, camera.panoptic.divisor


# ---------------------------------------------------------------------------------------------------------------------
# Points and 3D boxes
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Points:
    """What links are found with."""

    xyz: Tensor
    pixels: PixelMap
    semantic_labels: Tensor
    instance_ids: Tensor

    def in_image(self, view: int) -> tuple[Tensor, Tensor]:
        """Return the rows and (P, 2) pixels of the points that belong to an instance and fall in an image."""
        here = (self.pixels.camera_index == view) & (self.instance_ids >= 0)[:, None]
        rows, slots = here.nonzero(as_tuple=True)
        return rows, self.pixels.pixel_uv[rows, slots]


def _xyz(clouds: Sequence[LidarPoints]) -> Tensor:
    return torch.cat([torch.zeros(0, 3), *(torch.from_numpy(cloud.xyz) for cloud in clouds)])


def _point_labels(clouds: Sequence[LidarPoints], classes: ClassMap) -> tuple[Tensor, Tensor]:
    semantic, instance = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for cloud in clouds:
        if cloud.segmentation is None:
            label, recorded = np.full(len(cloud), IGNORE), np.zeros(len(cloud), np.int64)
        else:
            label, recorded = classes.of_points(cloud.segmentation[:, 1]), cloud.segmentation[:, 0].astype(np.int64)
        semantic.append(label)
        instance.append(np.where((label >= 0) & (recorded > 0), recorded * len(CLASS_NAMES) + label, -1))
    return torch.from_numpy(np.concatenate(semantic)), torch.from_numpy(np.concatenate(instance))


def _boxes3d(boxed: Sequence[LaserLabel]) -> tuple[Tensor, Tensor]:
    boxes = torch.tensor(np.array([item.box for item in boxed], np.float64).reshape(-1, 7), dtype=torch.float32)
    if not bool(torch.isfinite(boxes).all()):
        raise DataError("laser labels: expected finite boxes, got NaN or infinity")
    return boxes, torch.tensor([LABEL_OF_TYPE[item.type] for item in boxed], dtype=torch.int64)


def _box3d_ids(points: _Points, boxes3d: Tensor, labels: Tensor) -> Tensor:
    """Return the instance that most points in each box belong to, -1 none; only points of the box's class count."""
    rows = (points.instance_ids >= 0).nonzero()[:, 0]
    point, box = points_in_boxes3d(points.xyz[rows], boxes3d).nonzero(as_tuple=True)
    same = points.semantic_labels[rows[point]] == labels[box]
    return _majority(box[same], points.instance_ids[rows[point[same]]], len(boxes3d))


def _majority(group: Tensor, ids: Tensor, num_groups: int) -> Tensor:
    """Return (num_groups,) the id that more than half of each group's entries have, -1 where none has."""
    names, index = torch.unique(ids, return_inverse=True)
    if not len(names):
        return torch.full((num_groups,), -1)
    counts = torch.bincount(group * len(names) + index, minlength=num_groups * len(names)).reshape(num_groups, -1)
    most, best = counts.max(1)
    return torch.where(2 * most > counts.sum(1), names[best], -1)


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


def _box_ids(camera: CameraRecord, points: _Points, view: int, known: Mapping[str, int]) -> Tensor:
    """Return the instance of each 2D box: by the file's own link to a 3D box, else the best of those whose points span
    the box, each instance once."""
    labels, laser_object_ids = drawn_boxes(camera)
    ids = torch.tensor([known.get(name, -1) for name in laser_object_ids], dtype=torch.int64)
    rows, pixel_uv = points.in_image(view)
    names, index = torch.unique(points.instance_ids[rows], return_inverse=True)
    if not len(names):
        return ids
    spans = torch.zeros(len(names), 4)
    where = index[:, None].expand(-1, 2)
    spans[:, :2].scatter_reduce_(0, where, pixel_uv, "amin", include_self=False)
    spans[:, 2:].scatter_reduce_(0, where, pixel_uv, "amax", include_self=False)
    overlap = _box_iou(labels.boxes, spans)
    overlap[labels.labels[:, None] != names % len(CLASS_NAMES)] = 0
    overlap[ids >= 0] = 0
    overlap[:, torch.isin(names, ids)] = 0
    while overlap.numel() and float(overlap.max()) >= MIN_LINK_IOU:
        box, name = divmod(int(overlap.argmax()), len(names))
        ids[box] = names[name]
        overlap[box], overlap[:, name] = 0, 0
    return ids


def _box_iou(one: Tensor, other: Tensor) -> Tensor:
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, other)]
    return shared / (areas[0][:, None] + areas[1] - shared).clamp(min=1e-9)


def _image_truth(
    camera: CameraRecord, points: _Points, view: int, classes: ClassMap, min_mask_px: int
) -> ImageTruth | None:
    if camera.panoptic is None:
        return None
    values, divisor = decode_panoptic(camera)
    areas = np.bincount(values.reshape(-1))
    recorded = np.flatnonzero(areas)
    labels = classes.of_pixels(recorded // divisor)
    small = (labels >= 0) & (areas[recorded] <= min_mask_px)
    kept = (labels != BACKGROUND) & ~(small & classes.drops_small_masks)
    recorded, labels, small = recorded[kept], labels[kept], small[kept]
    one_object = (labels >= 0) & (recorded % divisor > 0)  # instance 0: several objects that nobody told apart
    position = np.full(len(areas), -1)
    position[recorded] = np.arange(len(recorded))
    mask_of_pixel = position[values]
    masks = _masks(mask_of_pixel, len(recorded))
    ids = np.where(one_object, _mask_ids(mask_of_pixel, labels, points, view).numpy(), -1)
    ignore = torch.from_numpy(small | ~one_object)
    boxes = Boxes2D(masks.crop_boxes.float(), torch.where(ignore, IGNORE, torch.from_numpy(labels)), ignore)
    return ImageTruth(boxes, masks, torch.from_numpy(ids))


def _masks(mask_of_pixel: Array, count: int) -> MaskSet:
    """Return the masks 0 to ``count`` - 1 of an (H, W) map, none of them empty."""
    height, width = mask_of_pixel.shape
    boxes, crops = [], []
    for mask, (rows, columns) in enumerate(ndimage.find_objects(mask_of_pixel + 1, count)):
        boxes.append([columns.start, rows.start, columns.stop, rows.stop])
        crops.append(torch.from_numpy(mask_of_pixel[rows, columns] == mask))
    return MaskSet.from_crops(height, width, torch.tensor(boxes, dtype=torch.int64), crops)


def _mask_ids(mask_of_pixel: Array, labels: Array, points: _Points, view: int) -> Tensor:
    """Return the instance that most points on each mask belong to, -1 none; only points of the mask's class count."""
    rows, pixel_uv = points.in_image(view)
    column, row = pixel_uv.long().unbind(1)
    mask = torch.from_numpy(mask_of_pixel)[row, column]
    same = (mask >= 0) & (points.semantic_labels[rows] == torch.from_numpy(np.append(labels, -1))[mask])
    return _majority(mask[same], points.instance_ids[rows[same]], len(labels))
