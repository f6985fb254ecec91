"""The real nuScenes keyframe as a frame: stored rings, six cameras, boxes of both kinds.

A reader for one file of the mmdetection3d "infos" kind, for tests only; 2D boxes are projected 3D boxes.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import torch

from mwsis.core.frame import CameraView, Frame, FrameTruth, LidarGeometry, PixelMap, PointCloud
from mwsis.core.geometry import CameraModel, points_in_boxes3d, transform_points
from mwsis.core.instances import BACKGROUND, Boxes2D
from mwsis.data.range_image import azimuth_columns

SHARED = Path(os.environ.get("MWSIS_SHARED", Path(__file__).resolve().parents[3] / "shared"))
FOLDER = SHARED / "data" / "nuscenes_keyframe"
NUM_BEAMS, NUM_COLUMNS = 32, 1084
CLASS_OF_LABEL = {0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 6: 0, 7: 1, 5: 2}  # cars of all kinds, pedestrians, bicycles
CLASS_NAMES = ("Vehicle", "Pedestrian", "Cyclist")


def keyframe() -> Frame:
    """Return the frame, with truth; the vehicle frame is nuScenes' ego frame at the time of the sweep."""
    info = json.loads((FOLDER / "info.json").read_text())["data_list"][0]
    ego_SE3_lidar = torch.tensor(info["lidar_points"]["lidar2ego"], dtype=torch.float64)
    rows = torch.from_numpy(np.fromfile(FOLDER / "LIDAR_TOP.pcd.bin", "<f4").reshape(-1, 5))
    sensor = rows[:, :3].contiguous()
    xyz = transform_points(ego_SE3_lidar, sensor.double()).float()
    points = PointCloud(
        xyz,
        torch.stack([(rows[:, 3] / 255).tanh(), torch.zeros(len(rows))], 1),
        sensor.norm(dim=1),
        (NUM_BEAMS - 1 - rows[:, 4]).to(torch.int16),
        azimuth_columns(sensor, NUM_COLUMNS),
        torch.zeros(len(rows), dtype=torch.int8),
    )
    boxes3d, labels3d = boxes_3d(info, ego_SE3_lidar)
    views, box_ids = [], []
    for name, image in info["images"].items():
        camera = camera_model(image, ego_SE3_lidar)
        labels, ids = boxes_2d(info["cam_instances"][name], camera, boxes3d)
        views.append(CameraView(name, camera, (FOLDER / f"{name}.jpg").read_bytes(), labels))
        box_ids.append(ids)
    truth = point_truth(xyz, boxes3d, labels3d, tuple(box_ids))
    return Frame(
        "keyframe", "scene", LidarGeometry(NUM_BEAMS, NUM_COLUMNS), points, pixels(xyz, views), tuple(views), truth
    )


def boxes_3d(info: dict, ego_SE3_lidar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = [item for item in info["instances"] if item["bbox_label_3d"] in CLASS_OF_LABEL]
    boxes = torch.tensor([item["bbox_3d"] for item in found], dtype=torch.float64)
    turn = math.atan2(float(ego_SE3_lidar[1, 0]), float(ego_SE3_lidar[0, 0]))
    boxes[:, :3] = transform_points(ego_SE3_lidar, boxes[:, :3])
    boxes[:, 6] += turn
    return boxes.float(), torch.tensor([CLASS_OF_LABEL[item["bbox_label_3d"]] for item in found])


def camera_model(image: dict, ego_SE3_lidar: torch.Tensor) -> CameraModel:
    matrix = torch.tensor(image["cam2img"], dtype=torch.float64)
    camera_SE3_lidar = torch.tensor(image["lidar2cam"], dtype=torch.float64)
    return CameraModel(
        width=1600,
        height=900,
        intrinsics=torch.stack([matrix[0, 0], matrix[1, 1], matrix[0, 2] + 0.5, matrix[1, 2] + 0.5]),
        distortion=torch.zeros(5, dtype=torch.float64),
        camera_SE3_vehicle=camera_SE3_lidar @ torch.linalg.inv(ego_SE3_lidar),
    )


def boxes_2d(items: list[dict], camera: CameraModel, boxes3d: torch.Tensor) -> tuple[Boxes2D, torch.Tensor]:
    """Return the boxes of one image and the 3D box of each: the one whose centre lies at the box's centre and depth."""
    found = [item for item in items if item["bbox_label_3d"] in CLASS_OF_LABEL]
    corners = torch.tensor([item["bbox"] for item in found], dtype=torch.float32).reshape(-1, 4) + 0.5
    labels = torch.tensor([CLASS_OF_LABEL[item["bbox_label_3d"]] for item in found], dtype=torch.int64)
    centres = transform_points(camera.camera_SE3_vehicle, boxes3d[:, :3].double())
    uv = centres[:, :2] / centres[:, 2:] * camera.intrinsics[:2] + camera.intrinsics[2:] - 0.5
    spot = torch.cat([uv, centres[:, 2:]], 1)
    wanted = torch.tensor([[*item["center_2d"], item["depth"]] for item in found], dtype=torch.float64).reshape(-1, 3)
    distance = torch.cdist(wanted, spot)
    assert not len(found) or float(distance.amin(1).max()) < 1, "every 2D box has its 3D box"
    ids = distance.argmin(1) if len(found) else torch.zeros(0, dtype=torch.int64)
    return Boxes2D(corners, labels, torch.zeros(len(labels), dtype=torch.bool)), ids


def pixels(xyz: torch.Tensor, views: list[CameraView]) -> PixelMap:
    uv, index = torch.zeros(len(xyz), 2, 2), torch.full((len(xyz), 2), -1, dtype=torch.int8)
    for number, view in enumerate(views):
        shown_uv, _, visible = view.camera.project(xyz)
        slot = (index[:, 0] >= 0).long()
        rows = visible.nonzero()[:, 0]
        uv[rows, slot[rows]] = shown_uv[rows].float()
        index[rows, slot[rows]] = number
    return PixelMap(uv, index)


def point_truth(xyz: torch.Tensor, boxes3d: torch.Tensor, labels3d: torch.Tensor, box_ids: tuple) -> FrameTruth:
    inside = points_in_boxes3d(xyz, boxes3d)
    distance = torch.cdist(xyz, boxes3d[:, :3]).where(inside, math.inf)
    nearest, index = distance.min(1)
    owner = torch.where(nearest < math.inf, index, -1)
    semantic = torch.where(owner >= 0, labels3d[owner.clamp(min=0)], BACKGROUND)
    ids = torch.arange(len(boxes3d))
    return FrameTruth(semantic, owner, boxes3d, labels3d, ids, box_ids, (None,) * len(box_ids))
