"""Point labels from 2D boxes for plain arrays: no data set, no store, no training; for scripts and other frameworks.

The recipes are those of `label_methods.py`; this module makes their `Frame` from arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fusion.label_methods import LABEL_METHODS
from fusion.spatial_labels import CLASS_RADII
from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.core.frame import CameraView, Frame, LidarGeometry, PointCloud, PointFeature
from mwsis.core.geometry import CameraModel
from mwsis.core.instances import Boxes2D, PointLabels
from mwsis.data.classes import KINDS
from mwsis.data.frame_parts import pixel_map
from mwsis.data.range_image import azimuth_columns

__all__ = ["BoxedCamera", "label_points"]


@dataclass(frozen=True, eq=False)
class BoxedCamera:
    """A camera and the 2D boxes in its image; arrays, nested lists or tensors.

    Attributes:
        intrinsics: (3, 3) or larger, the upper left 3 x 3 is taken: ``K``, pixels; the first pixel's centre is
            ``pixel_centre``. No skew.
        camera_SE3_lidar: (4, 4), LiDAR frame to optical camera frame (x right, y down, z forward), metres.
        size: width and height of the image, pixels.
        boxes: (G, 4), x1 y1 x2 y2, pixels.
        labels: (G,), classes from 0, of the ``kinds`` given to `label_points`; -1 is an ignore region.
        distortion: k1 k2 p1 p2 k3, as OpenCV has them.
        pixel_centre: 0 as in OpenCV and KITTI, .5 as in Waymo.
    """

    intrinsics: ArrayLike | Tensor
    camera_SE3_lidar: ArrayLike | Tensor
    size: tuple[int, int]
    boxes: ArrayLike | Tensor
    labels: ArrayLike | Tensor
    distortion: Sequence[float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    pixel_centre: float = 0.0


def label_points(
    xyz: ArrayLike | Tensor,
    cameras: Sequence[BoxedCamera],
    *,
    beams: int,
    columns: int,
    ring: ArrayLike | Tensor | None = None,
    method: str = "spg_default",
    kinds: Sequence[str] = KINDS,
) -> PointLabels:
    """Label the points of one sweep from the 2D boxes of its images.

    Args:
        xyz: (N, 3) or wider, of which the first three columns are taken: metres, LiDAR frame, z up, finite.
        cameras: the rig with its boxes. A point is linked to the first two whose image it falls into.
        beams: of the sensor.
        columns: firings per turn.
        ring: (N,), beam of each point, 0 = highest; ``None``: unknown, then ring segments are not used, which costs
            quality. For sweeps written beam by beam `mwsis.data.range_image.rings_from_file_order` recovers it.
        method: a name of `LABEL_METHODS`.
        kinds: what each class is like, ``vehicle``, ``pedestrian`` or ``cyclist``: their sizes are expected, and their
            `CLASS_RADII` taken where the method has some.

    Returns:
        N pseudo labels: ``semantic_labels`` (class, `BACKGROUND` or `IGNORE`), ``instance_ids`` (-1 none, else the
        first box that shows the object, counted on over the cameras), ``confidence``.

    Raises:
        DataError: an array has another shape or values that it cannot have.
        ConfigError: no such method or kind.
    """
    if method not in LABEL_METHODS:
        raise ConfigError(f"method={method}: no such labels{closest_name(method, LABEL_METHODS)}")
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"kinds: no '{kind}'{closest_name(kind, KINDS)}")
    sweep = _array(xyz, "xyz", (None, None), torch.float32)[:, :3].contiguous()
    if sweep.shape[1] != 3:
        raise DataError(f"xyz: expected at least 3 columns, got {sweep.shape[1]}")
    unknown = torch.full((len(sweep),), -1)
    beam = unknown if ring is None else _array(ring, "ring", (len(sweep),), torch.int64)
    if len(beam) and not -1 <= int(beam.min()) <= int(beam.max()) < beams:
        raise DataError(f"ring: expected -1 to {beams - 1}, got {int(beam.min())} to {int(beam.max())}")
    views = tuple(_view(number, camera, len(kinds)) for number, camera in enumerate(cameras))
    frame = Frame(
        frame_id="arrays",
        segment="arrays",
        lidar=LidarGeometry(beams, columns),
        points=PointCloud(
            xyz=sweep,
            point_feats=torch.zeros(len(sweep), len(PointFeature)),
            ranges=sweep.norm(dim=1),
            ring=beam.to(torch.int16),
            azimuth_column=azimuth_columns(sweep, columns),
            return_index=torch.zeros(len(sweep), dtype=torch.int8),
        ),
        pixels=pixel_map(sweep, [view.camera for view in views]),
        cameras=views,
    )
    chosen = LABEL_METHODS[method]
    places = [KINDS.index(kind) for kind in kinds]
    return chosen.labels(frame, chosen.segments(frame), [CLASS_RADII[place] for place in places], places)


def _view(number: int, camera: BoxedCamera, num_classes: int) -> CameraView:
    where = f"cameras[{number}]"
    matrix = _array(camera.intrinsics, f"{where}.intrinsics", (None, None), torch.float64)
    if min(matrix.shape) < 3:
        raise DataError(f"{where}.intrinsics: expected at least (3, 3), got {tuple(matrix.shape)}")
    boxes = _array(camera.boxes, f"{where}.boxes", (None, 4), torch.float32)
    labels = _array(camera.labels, f"{where}.labels", (len(boxes),), torch.int64)
    if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise DataError(
            f"{where}.labels: expected -1 to {num_classes - 1}, a place in kinds, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    width, height = camera.size
    model = CameraModel(
        width=width,
        height=height,
        intrinsics=torch.stack([matrix[0, 0], matrix[1, 1], *(matrix[:2, 2] + 0.5 - camera.pixel_centre)]),
        distortion=_array(camera.distortion, f"{where}.distortion", (5,), torch.float64),
        camera_SE3_vehicle=_array(camera.camera_SE3_lidar, f"{where}.camera_SE3_lidar", (4, 4), torch.float64),
    )
    return CameraView(str(number), model, b"", Boxes2D(boxes, labels, labels < 0))


def _array(values: ArrayLike | Tensor, name: str, shape: tuple[int | None, ...], dtype: torch.dtype) -> Tensor:
    given = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if given.numel() == 0 and given.ndim == 1 and len(shape) == 2:
        given = given.reshape(0, shape[1] or 0)
    if given.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, given.shape, strict=True)):
        want = tuple("any" if size is None else size for size in shape)
        raise DataError(f"{name}: expected shape {want}, got {tuple(given.shape)}")
    if not bool(torch.isfinite(given).all()):
        raise DataError(f"{name}: expected finite numbers, got NaN or infinity")
    if not dtype.is_floating_point and not bool((given == given.to(dtype)).all()):
        raise DataError(f"{name}: expected whole numbers, got {float(given[given != given.to(dtype)][0])}")
    return given.detach().cpu().to(dtype)
