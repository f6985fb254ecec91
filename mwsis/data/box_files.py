"""3D boxes as files that other trainers read: KITTI labels, OpenPCDet infos, Waymo ``Objects``.

Three folders under one: ``kitti`` holds ``label_2`` and the ``calib`` that these labels are written for, ``openpcdet``
a pickle of infos, ``waymo`` one file of all frames. ``boxes.json`` says what they are and is written last. Not here:
how boxes are fitted (`lidar/boxes_from_instances.py`), files of point labels (`label_files.py`).
"""

from __future__ import annotations

import math
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mwsis.core.errors import DataError
from mwsis.core.files import atomic_write, write_json
from mwsis.core.frame import Frame, require
from mwsis.core.geometry import CameraModel, box_corners, transform_points
from mwsis.data.label_files import file_stem
from mwsis.data.waymo.messages import metrics_pb2

__all__ = ["BOX_INDEX", "BoxWriter", "FrameBoxes"]

BOX_INDEX = "boxes.json"
FORMAT = "mwsis 3D boxes 1"
ABOUT = {
    "kitti": "label_2 as KITTI writes it, objects that the first camera of the frame shows, occluded is 0 throughout "
    "(not judged); calib: the calibration that the labels are for, the same projection as the data set's own in a "
    "rectified frame that is this camera's, so use both",
    "openpcdet": "infos.pkl, a list of one dict per frame as OpenPCDet's Waymo infos: annos.name, annos.gt_boxes_lidar "
    "(centre x, y, z, length, width, height, heading; vehicle frame), annos.score, annos.num_points_in_gt; "
    "point_cloud.sample_idx counts the frames of a segment written here, metadata names them",
    "waymo": "objects.bin, a waymo.open_dataset.Objects message; a frame without a time of its own has its number",
}
TYPES = {"Vehicle": ("Car", 1), "Pedestrian": ("Pedestrian", 2), "Cyclist": ("Cyclist", 4)}
"""Class: KITTI's type, Waymo's Label.Type."""
OCCLUDED = 0
"""Nobody judged it. KITTI's word for that is 3, but trainers leave such objects out of the ones they paste."""
MIN_SEEN_PX = 1.0
"""Pixels: what is less wide or high in the image is not in it."""
NEAREST = 0.1
"""metres; a box that reaches nearer to the camera plane has no 2D box."""


@dataclass(frozen=True, eq=False)
class FrameBoxes:
    """The boxes of one frame.

    Attributes:
        boxes3d: (G, 7) float32, centre xyz, length, width, height (metres, vehicle frame), yaw (rad, about +z).
        labels: (G,) int64, class.
        scores: (G,) float32 in [0, 1].
        num_points: (G,) int64, LiDAR points of each object.
    """

    boxes3d: Tensor
    labels: Tensor
    scores: Tensor
    num_points: Tensor

    def __post_init__(self) -> None:
        count = len(self.boxes3d)
        require(self.boxes3d, "boxes3d", (count, 7), torch.float32)
        require(self.labels, "labels", (count,), torch.int64)
        require(self.scores, "scores", (count,), torch.float32)
        require(self.num_points, "num_points", (count,), torch.int64)

    def __len__(self) -> int:
        return len(self.boxes3d)


class BoxWriter:
    """Writes the boxes of a data set: KITTI's files frame by frame, the others at the end, each whole or not at all.

    Args:
        folder: made if needed; the ``boxes.json`` of an earlier run and its KITTI files are removed.
        class_names: names by class index, of `TYPES`.

    Raises:
        DataError: ``folder`` is a file, or there is a class that KITTI and Waymo have no word for.
    """

    def __init__(self, folder: Path | str, class_names: Sequence[str]) -> None:
        self.folder, self._class_names = Path(folder), tuple(class_names)
        unknown = [name for name in class_names if name not in TYPES]
        if unknown:
            raise DataError(f"class {unknown[0]}: box files know {', '.join(TYPES)} only; leave boxes3d off")
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder}: expected a folder for box files, got a file")
        (self.folder / BOX_INDEX).unlink(missing_ok=True)
        for name in ("label_2", "calib"):
            shutil.rmtree(self.folder / "kitti" / name, ignore_errors=True)
        self._infos: list[dict[str, Any]] = []
        self._objects = metrics_pb2.Objects()
        self._frames_of: dict[str, int] = {}

    def add(self, frame: Frame, boxes: FrameBoxes) -> None:
        """Write the KITTI files of a frame and keep its boxes for the others."""
        camera, name = frame.cameras[0].camera, f"{file_stem(frame.frame_id)}.txt"
        lines = kitti_lines(boxes, camera, self._class_names)
        for folder, text in (("label_2", "".join(f"{line}\n" for line in lines)), ("calib", kitti_calibration(camera))):
            with atomic_write(self.folder / "kitti" / folder / name) as unfinished:
                unfinished.write_text(text)
        number = self._frames_of.get(frame.segment, 0)
        self._frames_of[frame.segment] = number + 1
        last = frame.frame_id.rpartition("/")[2]
        time = int(last) if last.isdecimal() else number
        self._infos.append(openpcdet_info(frame, boxes, self._class_names, number, time))
        _add_objects(self._objects, frame.segment, time, boxes, self._class_names)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write the other files and ``boxes.json``.

        Args:
            facts: how the boxes were made and from what.
        """
        with atomic_write(self.folder / "openpcdet" / "infos.pkl") as unfinished:
            unfinished.write_bytes(pickle.dumps(self._infos, protocol=4))
        with atomic_write(self.folder / "waymo" / "objects.bin") as unfinished:
            unfinished.write_bytes(self._objects.SerializeToString())
        counts = {"num_frames": len(self._infos), "num_boxes": len(self._objects.objects)}
        index = {"format": FORMAT, "files": ABOUT, "class_names": self._class_names, **counts, **facts}
        write_json(self.folder / BOX_INDEX, index)


def kitti_lines(boxes: FrameBoxes, camera: CameraModel, class_names: Sequence[str]) -> list[str]:
    """Return the lines of a KITTI label file, one per box that the camera shows.

    Args:
        boxes: of the vehicle frame.
        camera: the one whose frame KITTI's coordinates are in; its lens and shutter bend the 2D boxes only.
        class_names: by class index.

    Returns:
        type, truncated (share of the 2D box outside the image), occluded (0, not judged), alpha, 2D box (of the
        projected corners, in the image, KITTI's pixels), height, width, length, bottom centre, rotation_y; a tilt
        between vehicle and camera is left out.

    Source: KITTI object development kit, readme.
    """
    bottom = boxes.boxes3d[:, :3].double()
    bottom[:, 2] -= boxes.boxes3d[:, 5].double() / 2
    x, y, z = transform_points(camera.camera_SE3_vehicle, bottom).unbind(1)
    yaw = boxes.boxes3d[:, 6].double()
    heading = torch.stack([yaw.cos(), yaw.sin(), torch.zeros_like(yaw)], 1) @ camera.camera_SE3_vehicle[:3, :3].T
    rotation_y = torch.atan2(-heading[:, 2], heading[:, 0])
    alpha = torch.remainder(rotation_y - torch.atan2(x, z) + math.pi, 2 * math.pi) - math.pi
    corner_uv, depth, trusted = camera.project_unbounded(box_corners(boxes.boxes3d).reshape(-1, 3))
    corner_uv, depth = corner_uv.reshape(-1, 8, 2) - 0.5, depth.reshape(-1, 8)
    low, high = corner_uv.amin(1), corner_uv.amax(1)
    limit = corner_uv.new_tensor([camera.width - 1, camera.height - 1])
    shown_low, shown_high = low.clamp(min=0), torch.minimum(high, limit)
    whole, shown = (high - low).clamp(min=MIN_SEEN_PX), (shown_high - shown_low).clamp(min=0)
    truncated = 1 - (shown / whole).prod(1).clamp(max=1)
    seen = (depth > NEAREST).all(1) & trusted.reshape(-1, 8).any(1) & (shown >= MIN_SEEN_PX).all(1)
    lines = []
    for row in seen.nonzero()[:, 0].tolist():
        length, width, height = boxes.boxes3d[row, 3:6].tolist()
        box = (*shown_low[row].tolist(), *shown_high[row].tolist())
        numbers = [float(alpha[row]), *box, height, width, length, float(x[row]), float(y[row]), float(z[row])]
        name = TYPES[class_names[int(boxes.labels[row])]][0]
        start = f"{name} {float(truncated[row]):.2f} {OCCLUDED}"
        lines.append(" ".join([start, *(f"{number:.3f}" for number in [*numbers, float(rotation_y[row])])]))
    return lines


def kitti_calibration(camera: CameraModel) -> str:
    """Return a KITTI calibration file for a camera: its intrinsics as P2, no rectification, its pose."""
    focal_u, focal_v, centre_u, centre_v = camera.intrinsics.tolist()
    projection = [focal_u, 0, centre_u - 0.5, 0, 0, focal_v, centre_v - 0.5, 0, 0, 0, 1, 0]
    rows = {f"P{number}": projection for number in range(4)}
    rows |= {
        "R0_rect": torch.eye(3).flatten().tolist(),
        "Tr_velo_to_cam": camera.camera_SE3_vehicle[:3].flatten().tolist(),
    }
    return "".join(f"{key}: {' '.join(f'{value:.12e}' for value in values)}\n" for key, values in rows.items())


def openpcdet_info(
    frame: Frame, boxes: FrameBoxes, class_names: Sequence[str], number: int, time: int
) -> dict[str, Any]:
    """Return one frame's info as OpenPCDet's Waymo infos have it.

    Args:
        frame: the frame.
        boxes: its boxes.
        class_names: by class index.
        number: of the frame in its segment.
        time: microseconds, or the number where the frame has no time.
    """
    table = boxes.boxes3d.double().numpy()
    count = len(boxes)
    return {
        "point_cloud": {"num_features": 5, "lidar_sequence": frame.segment, "sample_idx": number},
        "frame_id": frame.frame_id,
        "metadata": {"context_name": frame.segment, "timestamp_micros": time},
        "annos": {
            "name": np.array([class_names[label] for label in boxes.labels.tolist()], dtype=str),
            "gt_boxes_lidar": table,
            "location": table[:, :3],
            "dimensions": table[:, 3:6],
            "heading_angles": table[:, 6],
            "score": boxes.scores.numpy(),
            "num_points_in_gt": boxes.num_points.numpy(),
            "difficulty": np.zeros(count, np.int64),
            "tracking_difficulty": np.zeros(count, np.int64),
            "obj_ids": np.array([f"{frame.frame_id}/{index}" for index in range(count)], dtype=str),
        },
    }


def _add_objects(message: Any, segment: str, time: int, boxes: FrameBoxes, class_names: Sequence[str]) -> None:
    rows = zip(boxes.boxes3d.tolist(), boxes.labels.tolist(), boxes.scores.tolist(), boxes.num_points.tolist())
    for index, (row, label, score, num_points) in enumerate(rows):
        item = message.objects.add(score=score, context_name=segment, frame_timestamp_micros=time)
        item.object.id, item.object.type = f"{segment}/{time}/{index}", TYPES[class_names[label]][1]
        item.object.num_lidar_points_in_box = num_points
        names = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")
        for name, value in zip(names, row, strict=True):
            setattr(item.object.box, name, value)
