"""Our labels from 2D boxes, one box, one cluster and one point at a time; written from the words, not for speed."""

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


def default_labels(
    frame: Frame, segment_id: np.ndarray, recipe: LabelRecipe
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return semantic labels, instance ids and confidences."""
    return Labeller(frame, segment_id, recipe).labels()


class Labeller:
    def __init__(self, frame: Frame, segment_id: np.ndarray, recipe: LabelRecipe) -> None:
        self.frame, self.recipe = frame, recipe
        self.members, self.classes = points_in_boxes2d(frame)
        self.objects = [box for box in self.members if self.classes[box] >= 0]
        self.boxes = [(camera, box) for camera, view in enumerate(frame.cameras) for box in view.labels.boxes.tolist()]
        self.xyz = frame.points.xyz.double().numpy()
        self.height = height_above_ground(frame.points.xyz).numpy()
        self.reach = np.hypot(self.xyz[:, 0], self.xyz[:, 1])
        index = frame.pixels.camera_index
        self.shown = [
            {point for point in range(len(self.xyz)) if camera in index[point]} for camera in range(len(frame.cameras))
        ]
        self.column = 2 * math.pi / frame.lidar.num_columns
        self.part: dict[int, float] = {}
        self.scene_of = {point: set(thing) for thing in self.things() for point in thing}
        self.segment_of = {
            point: set(np.flatnonzero(segment_id == number).tolist())
            for point, number in enumerate(segment_id)
            if number >= 0
        }

    def things(self) -> list[list[int]]:
        low, high = self.recipe.scene_heights
        visible = {point for points in self.shown for point in points if low < self.height[point] < high}
        return clusters({point: self.xyz[point, :2] / self.recipe.scene_radius for point in visible})

    def share(self, group: set[int] | None, box: int) -> float:
        if group is None:
            return 1.0
        visible = group & self.shown[self.boxes[box][0]]
        return len(visible & set(self.members[box])) / len(visible)

    def thing_share(self, points: list[int], box: int) -> float:
        return sum(self.share(self.scene_of.get(p), box) for p in points) / len(points)

    def candidates(self, box: int) -> list[int]:
        recipe = self.recipe
        raised = [p for p in self.members[box] if self.height[p] >= recipe.low or self.reach[p] >= recipe.low_range]
        kept = [p for p in raised if self.share(self.segment_of.get(p), box) >= recipe.ring_share]
        return kept or raised

    def winner(self, box: int, points: list[int]) -> list[int]:
        recipe, (camera, (_, top, _, bottom)) = self.recipe, self.boxes[box]
        view, kind = self.frame.cameras[camera].camera, self.classes[box]
        to_camera = view.camera_SE3_vehicle.numpy()
        expected = float(view.intrinsics[1]) * recipe.heights[kind] / max(bottom - top, 1.0)
        per_metre = min(recipe.columns[kind] * self.column, recipe.widest)
        best, chosen, scores = -1.0, [], [1e-9]
        for cluster in clusters({p: place(self.xyz[p, :2], recipe.radii[kind], per_metre) for p in points}):
            depth = lower_median([float(to_camera[2, :3] @ self.xyz[p] + to_camera[2, 3]) for p in cluster])
            farther = math.log(depth / expected) if depth > expected else 0.0
            fits = max(math.exp(-0.5 * (farther / recipe.depth_sigmas[kind]) ** 2), 1e-3)
            score = len(cluster) * self.thing_share(cluster, box) ** recipe.share_power * fits
            scores.append(score)
            if score > best * (1 + 1e-12):
                best, chosen = score, cluster
        self.part[box] = max(best, 0.0) / sum(scores)
        return chosen

    def reason(self, box: int, points: list[int]) -> float:
        camera, (x1, y1, x2, y2) = self.boxes[box]
        if not points:
            return 0.0
        pixels = []
        for point in points:
            slot = self.frame.pixels.camera_index[point].tolist().index(camera)
            pixels.append(self.frame.pixels.pixel_uv[point, slot].tolist())
        wide, tall = (max(axis) - min(axis) for axis in zip(*pixels, strict=True))
        return wide * tall / ((x2 - x1) * (y2 - y1)) * self.thing_share(points, box)

    def things_taken(self, free: dict[int, list[int]]) -> dict[int, list[int]]:
        won = {box: self.winner(box, free[box]) for box in self.objects}
        for _ in range(2):
            order = sorted(self.objects, key=lambda box: (-self.reason(box, won[box]), box))
            owner: list[dict[int, int]] = [{} for _ in self.frame.cameras]
            for box in reversed(order):
                owner[self.boxes[box][0]] |= dict.fromkeys(won[box], box)
            again = {box for box in self.objects if self.loses(box, won, owner[self.boxes[box][0]])}
            chosen = {}
            for box in again:
                better = set(order[: order.index(box)]) - again
                own = owner[self.boxes[box][0]]
                chosen[box] = self.winner(box, [p for p in free[box] if own.get(p) not in better])
            won |= chosen
        return won

    def loses(self, box: int, won: dict[int, list[int]], owner: dict[int, int]) -> bool:
        for better in {owner[p] for p in won[box]} - {box}:
            shared = sum(owner[p] == better for p in won[box])
            if shared > self.recipe.same * len(won[box]) and shared > self.recipe.same * len(won[better]):
                return True
        return False

    def overlap(self, one: int, other: int, won: dict[int, list[int]]) -> int:
        """Return the points that two boxes of different cameras share, if these are many of what both cameras show."""
        cameras = self.boxes[one][0], self.boxes[other][0]
        if cameras[0] == cameras[1] or self.classes[one] != self.classes[other]:
            return 0
        shared = len(set(won[one]) & set(won[other]))
        seen_by_other = len(set(won[one]) & self.shown[cameras[1]]), len(set(won[other]) & self.shown[cameras[0]])
        return shared if shared > self.recipe.same * min(seen_by_other) else 0

    def object_of(self, won: dict[int, list[int]]) -> dict[int, int]:
        def most(box: int, camera: int) -> int:
            others = [other for other in self.objects if self.boxes[other][0] == camera]
            return max((self.overlap(box, other, won) for other in others), default=0)

        group = {box: {box} for box in self.objects}
        for one in self.objects:
            for other in self.objects:
                shared = self.overlap(one, other, won)
                if shared and shared == most(one, self.boxes[other][0]) == most(other, self.boxes[one][0]):
                    joined = group[one] | group[other]
                    for box in joined:
                        group[box] = joined
        return {box: min(boxes) for box, boxes in group.items()}

    def confidence(self, box: int, won: list[int], point: int) -> float:
        logit = -6 + 2.75 * self.part[box] + 4.5 * self.thing_share(won, box) + 2.65 * (point in won)
        return 1 / (1 + math.exp(-logit))

    def labels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        recipe, xyz = self.recipe, self.xyz
        free = {box: self.candidates(box) for box in self.objects}
        won = self.things_taken(free)
        object_of = self.object_of(won)
        angles = np.arange(32) * (2 * math.pi / 32)
        along = xyz[:, :2] @ np.stack([np.cos(angles), np.sin(angles)])
        claims: dict[int, list[int]] = {}
        sure: dict[tuple[int, int], float] = {}
        unsure: set[int] = set()
        for box in self.objects:
            if not won[box]:
                unsure |= set(free[box])
            else:
                edge = along[won[box]].max(0)
                unsure |= {p for p in free[box] if (along[p] - edge).max() < recipe.unsure}
                below = (along <= edge + recipe.footprint).all(1) & (self.height > recipe.floor)
                claimed = [p for p in self.members[box] if p in won[box] or below[p]]
                claims.setdefault(object_of[box], []).extend(claimed)
                for point in claimed:
                    key = (object_of[box], point)
                    sure[key] = max(sure.get(key, 0.0), self.confidence(box, won[box], point))
        semantic, instance = np.full(len(xyz), BACKGROUND), np.full(len(xyz), -1)
        confidence = np.ones(len(xyz))
        for box in sorted(claims, key=lambda box: (-lower_median([self.reach[p] for p in claims[box]]), -box)):
            for point in claims[box]:  # nearer objects come later and overwrite
                semantic[point], instance[point], confidence[point] = self.classes[box], box, sure[box, point]
        hidden = {point for box, points in self.members.items() if self.classes[box] < 0 for point in points}
        for point in np.flatnonzero(instance < 0).tolist():
            if point in hidden or point in unsure or not any(point in points for points in self.shown):
                semantic[point] = IGNORE
        return semantic, instance, confidence
