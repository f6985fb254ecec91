"""What is known about a street frame: 3D boxes, 2D boxes, outlines of 3D boxes, the zone without labels.

People draw 2D boxes around what they see, and name them anew in each camera; 3D boxes are whole, whatever hides them.
All belong to the time of ``Frame.pose`` except the 2D boxes, which belong to their image. Next: `street.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mwsis.core.geometry import CameraModel, box_corners
from mwsis.data.street.actors import PEDESTRIAN
from mwsis.data.street.scene import Scene
from mwsis.data.street.shapes import Array
from mwsis.data.street.truth import LABELLED_AREA_PX, MEASURED_AT_WIDTH, MIN_AREA_PX, MIN_SIDE_PX
from mwsis.data.waymo.camera import project_boxes3d
from mwsis.data.waymo.record import CameraBox, CameraName, LaserLabel, LidarName
from mwsis.data.waymo.street_camera import Exposure
from mwsis.data.waymo.street_classes import LABEL_TYPE, camera_id, laser_id
from mwsis.data.waymo.street_lidar import Sweep
from mwsis.data.waymo.street_motion import Motion
from mwsis.data.waymo.street_stage import Stage

__all__ = ["Seen", "camera_boxes", "inside_zone", "laser_labels", "outlines", "place_zone", "to_world", "visible_boxes"]

HARD_POINTS = 10
"""Objects with at most so many points are marked as difficult (level 2)."""
ZONE_LENGTH, ZONE_ACROSS = 14.0, (7.2, 13.0)
"""Size of the zone without labels along the street, and its lateral edges, metres: a piece of pavement."""


@dataclass(frozen=True)
class Seen:
    """The visible part of one object in one image.

    Attributes:
        row: of `Stage.actors`.
        box: x1 y1 x2 y2, pixels, half-open, touching the visible pixels.
        area: visible pixels.
    """

    row: int
    box: tuple[int, int, int, int]
    area: int


def visible_boxes(stage: Stage, exposure: Exposure) -> list[Seen]:
    """Return the objects large enough in an image to be labelled, in order of their rows."""
    entity, scale = exposure.entity - stage.num_props, exposure.entity.shape[1] / MEASURED_AT_WIDTH
    seen = []
    for row, area in enumerate(np.bincount(entity[entity >= 0], minlength=len(stage.actors))):
        if area < max(MIN_AREA_PX * scale**2, 1):
            continue
        rows, columns = np.nonzero(entity == row)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        if min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE_PX * scale:
            seen.append(Seen(row, box, int(area)))
    return seen


def camera_boxes(
    stage: Stage, exposure: Exposure, seen: list[Seen], segment: str, labels: dict[int, LaserLabel]
) -> tuple[CameraBox, ...]:
    """Return an image's 2D boxes; those of pedestrians name the 3D box in ``labels``, by row of `Stage.actors`."""
    hard = LABELLED_AREA_PX * (exposure.entity.shape[1] / MEASURED_AT_WIDTH) ** 2
    boxes = []
    for each in seen:
        actor, (x1, y1, x2, y2) = stage.actors[each.row], each.box
        associated = actor.label == PEDESTRIAN and each.row in labels
        boxes.append(
            CameraBox(
                center_x=(x1 + x2) / 2,
                center_y=(y1 + y2) / 2,
                length=float(x2 - x1),
                width=float(y2 - y1),
                type=LABEL_TYPE[actor.label],
                id=camera_id(segment, exposure.lens.name.name, actor),
                detection_difficulty=2 if each.area < hard else 0,
                laser_object_id=labels[each.row].id if associated else "",
            )
        )
    return tuple(boxes)


def outlines(camera: CameraModel, name: CameraName, labels: Sequence[LaserLabel]) -> tuple[CameraBox, ...]:
    """Return the outlines of 3D boxes in one image, hidden ones included; none where the lens is not trusted."""
    boxes3d = torch.from_numpy(np.array([label.box for label in labels]).reshape(-1, 7))
    boxes, shown = project_boxes3d(camera, boxes3d)
    _, _, trusted = camera.project_unbounded(box_corners(boxes3d).reshape(-1, 3))
    shown &= trusted.reshape(-1, 8).all(1)
    found = []
    for label, (x1, y1, x2, y2), is_shown in zip(labels, boxes.tolist(), shown.tolist(), strict=True):
        if is_shown:
            identity = f"{label.id}_{name.name}"
            found.append(CameraBox((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, label.type, identity))
    return tuple(found)


def _count(sweeps: Sequence[Sweep], stage: Stage) -> Array:
    rows = [sweep.entity[sweep.entity >= stage.num_props] - stage.num_props for sweep in sweeps]
    return np.bincount(np.concatenate(rows), minlength=len(stage.actors))


def laser_labels(
    stage: Stage,
    motion: Motion,
    sweeps: dict[LidarName, Sweep],
    seen: dict[CameraName, list[Seen]],
    zone: Array,
    segment: str,
    exposures: dict[CameraName, Exposure],
) -> dict[int, LaserLabel]:
    """Return the 3D boxes of what a LiDAR hit or a camera shows outside the zone, by row of `Stage.actors`.

    Points are counted by what they hit, in both returns, not by the box: what moves leaves its box meanwhile.
    """
    street_SE3_vehicle = motion.street_SE3_vehicle(np.array([stage.middle]))[0]
    counts, top_counts = _count(list(sweeps.values()), stage), _count([sweeps[LidarName.TOP]], stage)
    shown = {each.row for boxes in seen.values() for each in boxes}
    labels = {}
    for row, actor in enumerate(stage.actors):
        place = stage.scene.street.place(*actor.path.at(stage.middle))[1]
        if (not counts[row] and row not in shown) or inside_zone(np.array([place]), zone)[0]:
            continue
        speed, acceleration = (motion.world_SE3_street[:3, :3] @ each for each in stage.motion(row, stage.middle))
        label = LaserLabel(
            box=stage.box(row, stage.middle, street_SE3_vehicle),
            type=LABEL_TYPE[actor.label],
            id=laser_id(segment, actor),
            num_points=int(counts[row]),
            num_top_points=int(top_counts[row]),
            detection_difficulty=2 if counts[row] <= HARD_POINTS else 0,
            tracking_difficulty=0,
            speed=speed,
            acceleration=acceleration,
        )
        labels[row] = _synced(label, row, stage, street_SE3_vehicle, seen, exposures)
    return labels


def _synced(
    label: LaserLabel,
    row: int,
    stage: Stage,
    street_SE3_vehicle: Array,
    seen: dict[CameraName, list[Seen]],
    exposures: dict[CameraName, Exposure],
) -> LaserLabel:
    """Add the camera that shows most of the object, and the box with its centre as it was when that camera did."""
    views = [(each.area, name, each.box) for name, boxes in seen.items() for each in boxes if each.row == row]
    if not views:
        return label
    _, name, (x1, _, x2, _) = max(views)
    lens = exposures[name].lens
    time = stage.start + float(lens.clock.column_times(lens.model.width)[(x1 + x2) // 2])
    box = np.concatenate([stage.box(row, time, street_SE3_vehicle)[:3], label.box[3:]])
    return replace(label, most_visible_camera=name.name, camera_synced_box=box)


def place_zone(scene: Scene, rng: np.random.Generator) -> Array:
    """Return the corners of the zone without labels, (10, 2) float64, metres, street, around its rim."""
    start, side = scene.plan.ego_start + rng.uniform(12.0, 30.0), float(rng.choice([-1.0, 1.0]))
    along = np.linspace(start, start + ZONE_LENGTH, 5)
    near, far = (np.stack([along, scene.street.centre(along) + side * edge], 1) for edge in ZONE_ACROSS)
    return np.concatenate([near, far[::-1]])


def to_world(zone: Array, motion: Motion) -> Array:
    """Return a zone of the street in the world, (P, 2) float64, metres."""
    return np.asarray(zone @ motion.world_SE3_street[:2, :2].T + motion.world_SE3_street[:2, 3])


def inside_zone(points: Array, zone: Array) -> Array:
    """Return which (..., 3) points lie above or below a polygon (P, 2), (...) bool; NaN does not."""
    x, y = points[..., 0], points[..., 1]
    inside = np.zeros(x.shape, bool)
    for (x1, y1), (x2, y2) in zip(zone, np.roll(zone, -1, 0)):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return inside
