"""Waymo's three class spaces and what each class is here.

Boxes know four types, LiDAR points 23 classes, image pixels 29. The boxes are what is trained from, so `OURS` follows
their labelling rule in the other two spaces. `PUBLISHED` is what MWSIS was scored with. Next: `frame.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.core.instances import BACKGROUND, IGNORE
from mwsis.data.waymo.record import Array, LabelType

__all__ = ["CAMERA_CLASSES", "CLASS_MAPS", "CLASS_NAMES", "LABEL_OF_TYPE", "LIDAR_CLASSES", "ClassMap", "class_map"]

CLASS_NAMES = ("Vehicle", "Pedestrian", "Cyclist")
VEHICLE, PEDESTRIAN, CYCLIST = range(3)

LABEL_OF_TYPE: dict[int, int] = {
    LabelType.VEHICLE: VEHICLE,
    LabelType.PEDESTRIAN: PEDESTRIAN,
    LabelType.CYCLIST: CYCLIST,
    LabelType.UNKNOWN: IGNORE,
}
"""Boxes; types that are missing, such as SIGN, are no objects here."""

# (name, ours, published); the row is the number in the files. Labelling rule of the boxes, which `ours` follows:
# motorcycles with and without rider and trailers are vehicles, people on kick scooters pedestrians, a ridden bicycle is
# a cyclist. Bicycles without a rider, the recording car, strollers and carts get no box: nothing was trained for or
# against them, so they are ignored.
LIDAR_CLASSES: tuple[tuple[str, int, int], ...] = (
    ("UNDEFINED", IGNORE, BACKGROUND),
    ("CAR", VEHICLE, VEHICLE),
    ("TRUCK", VEHICLE, VEHICLE),
    ("BUS", VEHICLE, VEHICLE),
    ("OTHER_VEHICLE", VEHICLE, VEHICLE),
    ("MOTORCYCLIST", VEHICLE, VEHICLE),
    ("BICYCLIST", CYCLIST, CYCLIST),
    ("PEDESTRIAN", PEDESTRIAN, PEDESTRIAN),
    ("SIGN", BACKGROUND, BACKGROUND),
    ("TRAFFIC_LIGHT", BACKGROUND, BACKGROUND),
    ("POLE", BACKGROUND, BACKGROUND),
    ("CONSTRUCTION_CONE", BACKGROUND, BACKGROUND),
    ("BICYCLE", IGNORE, BACKGROUND),
    ("MOTORCYCLE", VEHICLE, VEHICLE),
    ("BUILDING", BACKGROUND, BACKGROUND),
    ("VEGETATION", BACKGROUND, BACKGROUND),
    ("TREE_TRUNK", BACKGROUND, BACKGROUND),
    ("CURB", BACKGROUND, BACKGROUND),
    ("ROAD", BACKGROUND, BACKGROUND),
    ("LANE_MARKER", BACKGROUND, BACKGROUND),
    ("OTHER_GROUND", BACKGROUND, BACKGROUND),
    ("WALKABLE", BACKGROUND, BACKGROUND),
    ("SIDEWALK", BACKGROUND, BACKGROUND),
)
CAMERA_CLASSES: tuple[tuple[str, int, int], ...] = (
    ("UNDEFINED", IGNORE, BACKGROUND),
    ("EGO_VEHICLE", IGNORE, BACKGROUND),
    ("CAR", VEHICLE, VEHICLE),
    ("TRUCK", VEHICLE, VEHICLE),
    ("BUS", VEHICLE, VEHICLE),
    ("OTHER_LARGE_VEHICLE", VEHICLE, VEHICLE),
    ("BICYCLE", IGNORE, CYCLIST),
    ("MOTORCYCLE", VEHICLE, VEHICLE),
    ("TRAILER", VEHICLE, VEHICLE),
    ("PEDESTRIAN", PEDESTRIAN, PEDESTRIAN),
    ("CYCLIST", CYCLIST, CYCLIST),
    ("MOTORCYCLIST", VEHICLE, VEHICLE),
    ("BIRD", BACKGROUND, BACKGROUND),
    ("GROUND_ANIMAL", BACKGROUND, BACKGROUND),
    ("CONSTRUCTION_CONE_POLE", BACKGROUND, BACKGROUND),
    ("POLE", BACKGROUND, BACKGROUND),
    ("PEDESTRIAN_OBJECT", IGNORE, PEDESTRIAN),
    ("SIGN", BACKGROUND, BACKGROUND),
    ("TRAFFIC_LIGHT", BACKGROUND, BACKGROUND),
    ("BUILDING", BACKGROUND, BACKGROUND),
    ("ROAD", BACKGROUND, BACKGROUND),
    ("LANE_MARKER", BACKGROUND, BACKGROUND),
    ("ROAD_MARKER", BACKGROUND, BACKGROUND),
    ("SIDEWALK", BACKGROUND, BACKGROUND),
    ("VEGETATION", BACKGROUND, BACKGROUND),
    ("SKY", BACKGROUND, BACKGROUND),
    ("GROUND", BACKGROUND, BACKGROUND),
    ("DYNAMIC", BACKGROUND, BACKGROUND),
    ("STATIC", BACKGROUND, BACKGROUND),
)


@dataclass(frozen=True)
class ClassMap:
    """What the recorded classes of points and pixels count as.

    Attributes:
        lidar: (23,) class, `BACKGROUND` or `IGNORE` of each LiDAR class.
        camera: (29,) likewise of each image class.
        drops_small_masks: masks too small to score are left out, as if nothing were there; else they are ignored.
    """

    lidar: tuple[int, ...]
    camera: tuple[int, ...]
    drops_small_masks: bool

    def of_points(self, recorded: Array) -> Array:
        """Return int64 classes of any shape of recorded LiDAR classes.

        Raises:
            DataError: a number is no LiDAR class.
        """
        return _look_up(self.lidar, recorded, "LiDAR segmentation")

    def of_pixels(self, recorded: Array) -> Array:
        """Return int64 classes of any shape of recorded image classes.

        Raises:
            DataError: a number is no image class.
        """
        return _look_up(self.camera, recorded, "panoptic label")


CLASS_MAPS = {
    "ours": ClassMap(
        lidar=tuple(ours for _, ours, _ in LIDAR_CLASSES),
        camera=tuple(ours for _, ours, _ in CAMERA_CLASSES),
        drops_small_masks=False,
    ),
    "published": ClassMap(
        lidar=tuple(published for *_, published in LIDAR_CLASSES),
        camera=tuple(published for *_, published in CAMERA_CLASSES),
        drops_small_masks=True,
    ),
}


def class_map(name: str) -> ClassMap:
    """Return a class map by name.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in CLASS_MAPS:
        raise ConfigError(f"class_map: no '{name}'{closest_name(name, CLASS_MAPS)}")
    return CLASS_MAPS[name]


def _look_up(table: tuple[int, ...], recorded: Array, what: str) -> Array:
    if recorded.size and not 0 <= int(recorded.min()) <= int(recorded.max()) < len(table):
        wrong = int(recorded.min()) if int(recorded.min()) < 0 else int(recorded.max())
        raise DataError(f"{what}: expected classes 0 to {len(table) - 1}, got {wrong}")
    return np.array(table, dtype=np.int64)[recorded]
