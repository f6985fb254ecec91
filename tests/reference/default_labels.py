"""Our labels from 2D boxes, one box, one cluster and one point at a time."""

from __future__ import annotations

import math

import numpy as np
import torch

from fusion.default_labels import LabelRecipe
from mwsis.core.frame import Frame
from mwsis.core.ground import height_above_ground
from tests.reference.clustering import connected_components
from tests.reference.spatial_labels import BACKGROUND, IGNORE, points_in_boxes2d


def place(xy: np.ndarray, radius: float, per_metre: float) -> np.ndarray:
    """The near disk, and beyond its edge the cylinder that stands on it."""
    reach = math.hypot(*xy)
    bend = radius / per_metre
    if reach <= bend:
        return np.array([*(xy / radius), 0.0])
    return np.array([*(xy / reach / per_metre), math.log(reach / bend) / per_metre])


def clusters(places: dict[int, np.ndarray]) -> list[list[int]]:
    points = sorted(places)
    if not points:
        return []
    component = connected_components(torch.from_numpy(np.stack([places[point] for point in points])), 1.0).tolist()
    return [[p for p, own in zip(points, component, strict=True) if own == one] for one in range(max(component) + 1)]


def lower_median(values: list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


def default_labels(frame: Frame, segment_id: np.ndarray, recipe: LabelRecipe) -> tuple[np.ndarray, np.ndarray]:
    """Return semantic labels and instance ids."""
    members, classes = points_in_boxes2d(frame)
    boxes = [(camera, box) for camera, view in enumerate(frame.cameras) for box in view.labels.boxes.tolist()]
    xyz = frame.points.xyz.double().numpy()
    height = height_above_ground(frame.points.xyz).numpy()
    reach = np.hypot(xyz[:, 0], xyz[:, 1])
    shown = [{point for point in range(len(xyz)) if camera in frame.pixels.camera_index[point]}
             for camera in range(len(frame.cameras))]  # fmt: skip
    column = 2 * math.pi / frame.lidar.num_columns
    low, high = recipe.scene_heights
    scene = {
        point: place(xyz[point, :2], recipe.scene_radius, recipe.scene_columns * column)
        for point in range(len(xyz))
        if low < height[point] < high and any(point in points for points in shown)
    }
    scene_of = {point: set(cluster) for cluster in clusters(scene) for point in cluster}
    segment_of = {point: set(np.flatnonzero(segment_id == number).tolist()) for point, number in enumerate(segment_id)}

    def share(group: set[int] | None, box: int) -> float:
        if group is None:
            return 1.0
        visible = group & shown[boxes[box][0]]
        return len(visible & set(members[box])) / len(visible)

    claims: dict[int, list[int]] = {}
    unsure: set[int] = set()
    for box, inside in members.items():
        if classes[box] < 0:
            continue
        camera, (_, top, _, bottom) = boxes[box]
        view, kind = frame.cameras[camera].camera, classes[box]
        raised = [p for p in inside if height[p] >= recipe.low or reach[p] >= recipe.low_range]
        on_object = [
            p for p in raised if share(segment_of[p] if segment_id[p] >= 0 else None, box) >= recipe.ring_share
        ]
        per_metre = recipe.columns[kind] * column
        places = {p: place(xyz[p, :2], recipe.radii[kind], per_metre) for p in on_object or raised}
        best, winner = -1.0, []
        for cluster in clusters(places):
            to_camera = view.camera_SE3_vehicle.numpy()
            depth = lower_median([float(to_camera[2, :3] @ xyz[p] + to_camera[2, 3]) for p in cluster])
            expected = float(view.intrinsics[1]) * recipe.heights[kind] / max(bottom - top, 1.0)
            off = math.log(max(depth, 0.1) / expected)
            sigma = recipe.nearer_sigma if off < 0 else recipe.depth_sigma
            fits = max(math.exp(-0.5 * (off / sigma) ** 2), 1e-3)
            inside_share = sum(share(scene_of.get(p), box) for p in cluster) / len(cluster)
            score = len(cluster) * inside_share**recipe.share_power * fits
            if score > best * (1 + 1e-12):
                best, winner = score, cluster
        if not winner:
            continue
        angles = np.arange(32) * (2 * math.pi / 32)
        along = xyz[:, :2] @ np.stack([np.cos(angles), np.sin(angles)])
        outline = along[winner].max(0) + recipe.footprint
        unsure |= {p for p in places if (along[p] - along[winner].max(0)).max() < recipe.unsure}
        claims[box] = [
            p
            for p in inside
            if p in winner
            or ((along[p] <= outline).all() and height[p] > recipe.floor - recipe.floor_slope * max(reach[p] - 20, 0))
        ]
    semantic, instance = np.full(len(xyz), BACKGROUND), np.full(len(xyz), -1)
    for box in sorted(claims, key=lambda box: (-lower_median([reach[p] for p in claims[box]]), -box)):
        for point in claims[box]:  # nearer boxes come later and overwrite
            semantic[point], instance[point] = classes[box], box
    hidden = {point for box, points in members.items() if classes[box] < 0 for point in points}
    for point in np.flatnonzero(instance < 0).tolist():
        if point in hidden or point in unsure or not any(point in points for points in shown):
            semantic[point] = IGNORE
    return semantic, instance
