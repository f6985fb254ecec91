"""One Waymo frame as both file formats tell it: what `v1.py` and `v2.py` read and write, before any maths.

Field meanings and units are the data set's own (sizes, list orders, -1 for missing pixels); turning a record into a
`Frame` of this project is `frame.py`. Arrays are numpy, so that writers can be run in workers without torch kernels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy.typing as npt

__all__ = [
    "CameraBox",
    "CameraName",
    "CameraRecord",
    "IndexedFrame",
    "LabelType",
    "LaserLabel",
    "LidarName",
    "LidarRecord",
    "LidarReturn",
    "PanopticLabel",
    "WaymoRecord",
]

Array = npt.NDArray[Any]


class CameraName(IntEnum):
    """Cameras, in the order in which a point's projections are recorded."""

    UNKNOWN = 0
    FRONT = 1
    FRONT_LEFT = 2
    FRONT_RIGHT = 3
    SIDE_LEFT = 4
    SIDE_RIGHT = 5


class LidarName(IntEnum):
    """LiDARs."""

    UNKNOWN = 0
    TOP = 1
    FRONT = 2
    SIDE_LEFT = 3
    SIDE_RIGHT = 4
    REAR = 5


class LabelType(IntEnum):
    """Classes of boxes."""

    UNKNOWN = 0
    VEHICLE = 1
    PEDESTRIAN = 2
    SIGN = 3
    CYCLIST = 4


@dataclass(frozen=True)
class IndexedFrame:
    """Where a frame lies in a segment and what it was labelled with, known without decoding it.

    Attributes:
        segment: ``context.name``.
        timestamp_micros: the frame's time, unique in its segment.
        offset, length: bytes of its record in a v1 file; 0 in v2.
        has_lidar_segmentation: TOP carries point labels.
        has_panoptic: at least one image carries a panoptic label.
    """

    segment: str
    timestamp_micros: int
    offset: int
    length: int
    has_lidar_segmentation: bool
    has_panoptic: bool


@dataclass(frozen=True, eq=False)
class LidarReturn:
    """The range image of one return.

    Attributes:
        values: (H, W, 4) float32: range (m, -1 missing), intensity, elongation, no-label-zone flag (1 inside, -1 not).
        projection: (H, W, 6) int32: camera, column, row twice, 0 for no camera; None where the file has none.
        segmentation: (H, W, 2) int32: instance, class; TOP of labelled frames only.
    """

    values: Array
    projection: Array | None
    segmentation: Array | None


@dataclass(frozen=True, eq=False)
class LidarRecord:
    """One LiDAR: calibration and what it recorded.

    Attributes:
        name: `LidarName`.
        vehicle_SE3_lidar: (4, 4) float64.
        inclinations: (H,) float64, rad, ascending; None where beams are evenly spaced between the two limits.
        inclination_min, inclination_max: rad.
        returns: first and second; None where the file has none (both None: calibration only).
        pixel_pose: (H, W, 6) float32, roll pitch yaw x y z of the vehicle in the world at each pixel; TOP only.
    """

    name: int
    vehicle_SE3_lidar: Array
    inclinations: Array | None
    inclination_min: float
    inclination_max: float
    returns: tuple[LidarReturn | None, LidarReturn | None]
    pixel_pose: Array | None


@dataclass(frozen=True)
class CameraBox:
    """A 2D box: drawn by a person, or the outline of a projected 3D box.

    Attributes:
        center_x, center_y, length, width: pixels; length along columns, width along rows.
        type: `LabelType`.
        id: of the object in this camera.
        detection_difficulty, tracking_difficulty: 0 unknown, 1, 2.
        laser_object_id: the 3D box of the same object, "" where nobody said.
    """

    center_x: float
    center_y: float
    length: float
    width: float
    type: int
    id: str
    detection_difficulty: int = 0
    tracking_difficulty: int = 0
    laser_object_id: str = ""


@dataclass(frozen=True, eq=False)
class PanopticLabel:
    """A label of every pixel.

    Attributes:
        png: encoded uint16 image, class times divisor plus instance.
        divisor: of the two.
        local_ids, global_ids, is_tracked: instances that stand for the same object across images and frames.
        sequence_id: name space of the global ids.
        num_cameras_covered: encoded uint8 image; b"" where absent.
    """

    png: bytes
    divisor: int
    local_ids: tuple[int, ...] = ()
    global_ids: tuple[int, ...] = ()
    is_tracked: tuple[bool, ...] = ()
    sequence_id: str = ""
    num_cameras_covered: bytes = b""


@dataclass(frozen=True, eq=False)
class CameraRecord:
    """One camera: calibration, image with its timing, labels.

    Attributes:
        name: `CameraName`.
        width, height: pixels.
        intrinsics: (9,) float64: f_u f_v c_u c_v k1 k2 p1 p2 k3.
        vehicle_SE3_camera: (4, 4) float64; x forward, y left, z up in the camera.
        shutter_direction: `mwsis.core.geometry.ShutterDirection`.
        image: JPEG; None where the file has none, and then nothing below up to ``readout_done_time`` means anything.
        world_SE3_vehicle: (4, 4) float64 at ``pose_timestamp``.
        velocity: (6,) float64: v in the world (m/s), w in the vehicle frame (rad/s).
        pose_timestamp, trigger_time, readout_done_time: seconds.
        shutter: exposure of a line, seconds.
        boxes: drawn by people; None where the file has no labels of this camera.
        projected: outlines of 3D boxes; None likewise.
        panoptic: None likewise.
    """

    name: int
    width: int
    height: int
    intrinsics: Array
    vehicle_SE3_camera: Array
    shutter_direction: int
    image: bytes | None = None
    world_SE3_vehicle: Array | None = None
    velocity: Array | None = None
    pose_timestamp: float = 0.0
    shutter: float = 0.0
    trigger_time: float = 0.0
    readout_done_time: float = 0.0
    boxes: tuple[CameraBox, ...] | None = None
    projected: tuple[CameraBox, ...] | None = None
    panoptic: PanopticLabel | None = None


@dataclass(frozen=True, eq=False)
class LaserLabel:
    """A 3D box.

    Attributes:
        box: (7,) float64: centre, length, width, height (m, vehicle frame), heading (rad).
        type: `LabelType`.
        id: of the object in its segment.
        num_points, num_top_points: points of all LiDARs, and of TOP, in the box.
        detection_difficulty, tracking_difficulty: 0 unknown, 1, 2.
        speed, acceleration: (3,) float64, m/s and m/s2.
        most_visible_camera: name of the camera, "" where nobody said.
        camera_synced_box: (7,) float64, as ``box`` when that camera saw the object; None where absent.
    """

    box: Array
    type: int
    id: str
    num_points: int
    num_top_points: int
    detection_difficulty: int
    tracking_difficulty: int
    speed: Array
    acceleration: Array
    most_visible_camera: str = ""
    camera_synced_box: Array | None = None


@dataclass(frozen=True, eq=False)
class WaymoRecord:
    """One frame of a segment.

    Attributes:
        segment: ``context.name``.
        timestamp_micros: the frame's time.
        world_SE3_vehicle: (4, 4) float64, ``Frame.pose``.
        lidars, cameras: those the file calibrates, any order.
        laser_labels: None where the file has none.
        no_label_zones: (P, 2) float64 polygons, x and y in the world; None where the format has none (v2).
        time_of_day, location, weather: "" where absent.
    """

    segment: str
    timestamp_micros: int
    world_SE3_vehicle: Array
    lidars: tuple[LidarRecord, ...]
    cameras: tuple[CameraRecord, ...]
    laser_labels: tuple[LaserLabel, ...] | None
    no_label_zones: tuple[Array, ...] | None = None
    time_of_day: str = ""
    location: str = ""
    weather: str = ""

    def missing(self) -> tuple[str, ...]:
        """Return what this frame lacks, in words; empty for a completely labelled frame."""
        top = next((lidar for lidar in self.lidars if lidar.name == LidarName.TOP), None)
        first = top.returns[0] if top else None
        present = {
            "camera calibrations": bool(self.cameras),
            "images": any(camera.image for camera in self.cameras),
            "2D boxes": any(camera.boxes is not None for camera in self.cameras),
            "range images": any(part is not None for lidar in self.lidars for part in lidar.returns),
            "3D boxes": self.laser_labels is not None,
            "LiDAR segmentation": first is not None and first.segmentation is not None,
            "panoptic labels": any(camera.panoptic is not None for camera in self.cameras),
        }
        return tuple(name for name, there in present.items() if not there)

    def object_counts(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return how many objects of each `LabelType` the LiDAR labels and the drawn camera boxes have, ascending."""
        objects = Counter(int(label.type) for label in self.laser_labels or ())
        drawn = Counter(int(box.type) for camera in self.cameras for box in camera.boxes or ())
        return dict(sorted(objects.items())), dict(sorted(drawn.items()))
