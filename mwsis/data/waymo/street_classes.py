"""What the things and surfaces of the street are in Waymo's class spaces, and the names objects go by.

Numbers come from `classes.py`. Next: `street_lidar.py` and `street_camera.py`, which record them.
"""

from __future__ import annotations

import base64
import hashlib
import uuid

import numpy as np

from mwsis.data.street.actors import CYCLIST, PEDESTRIAN, VEHICLE, Actor, VehicleShape
from mwsis.data.street.materials import Material
from mwsis.data.street.shapes import Array
from mwsis.data.waymo.classes import CAMERA_CLASSES, LIDAR_CLASSES
from mwsis.data.waymo.record import LabelType
from mwsis.data.waymo.street_stage import Stage

__all__ = ["LABEL_TYPE", "camera_classes", "camera_id", "laser_id", "lidar_classes"]

LABEL_TYPE = {VEHICLE: LabelType.VEHICLE, PEDESTRIAN: LabelType.PEDESTRIAN, CYCLIST: LabelType.CYCLIST}

_CAMERA = {name: number for number, (name, *_) in enumerate(CAMERA_CLASSES)}
_LIDAR = {name: number for number, (name, *_) in enumerate(LIDAR_CLASSES)}
_SURFACES: dict[Material, tuple[str, str]] = {
    Material.ASPHALT: ("ROAD", "ROAD"),
    Material.PAVING: ("SIDEWALK", "SIDEWALK"),
    Material.KERB: ("SIDEWALK", "CURB"),
    Material.GRASS: ("GROUND", "OTHER_GROUND"),
    Material.FACADE: ("BUILDING", "BUILDING"),
    Material.ROOF: ("BUILDING", "BUILDING"),
    Material.CLOTH: ("BUILDING", "BUILDING"),
    Material.METAL: ("POLE", "POLE"),
    Material.LAMP: ("POLE", "POLE"),
    Material.PLATE: ("SIGN", "SIGN"),
    Material.BARK: ("VEGETATION", "TREE_TRUNK"),
    Material.LEAF: ("VEGETATION", "VEGETATION"),
}
"""Surfaces of what is no object, for cameras and for LiDARs; the rest is STATIC to a camera, unlabelled to a LiDAR."""


def _actor_class(actor: Actor) -> tuple[str, str]:
    if isinstance(actor.shape, VehicleShape):
        kind = {"lorry": "TRUCK", "bus": "BUS"}.get(actor.shape.kind, "CAR")
        return kind, kind
    return ("CYCLIST", "BICYCLIST") if actor.shape.rides else ("PEDESTRIAN", "PEDESTRIAN")


def _classes(stage: Stage, entity: Array, material: Array, camera: bool) -> Array:
    """Return the class of each spot, same shape, 0 for no entity (-1)."""
    space, rest = (_CAMERA, "STATIC") if camera else (_LIDAR, "UNDEFINED")
    surfaces = np.array([space[_SURFACES.get(each, (rest, rest))[not camera]] for each in Material])
    actors = [space[_actor_class(actor)[not camera]] for actor in stage.actors]
    of_entity = np.array([0] * stage.num_props + actors)
    found = np.where(entity >= stage.num_props, of_entity[entity], surfaces[material])
    return np.where(entity >= 0, found, 0)


def camera_classes(stage: Stage, entity: Array, material: Array) -> Array:
    """Return the image class of each pixel.

    Args:
        stage: what was seen.
        entity: (H, W) int32, row of `World.entities`, -1 sky.
        material: (H, W) uint8, `Material`; any value where there is sky.
    """
    return np.where(entity < 0, _CAMERA["SKY"], _classes(stage, entity, material, camera=True))


def lidar_classes(stage: Stage, entity: Array, material: Array) -> Array:
    """Return the LiDAR class of each pixel of a range image, 0 where nothing was hit or what it is has no class."""
    return _classes(stage, entity, material, camera=False)


def laser_id(segment: str, actor: Actor) -> str:
    """Return the 22 characters that name an object in the 3D boxes of its segment."""
    digest = hashlib.sha256(f"{segment} {actor.instance_id}".encode()).digest()
    return base64.urlsafe_b64encode(digest[:18])[:22].decode()


def camera_id(segment: str, camera: str, actor: Actor) -> str:
    """Return the name of an object in the 2D boxes of one camera; nothing links it to its 3D box."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{segment}/{camera}/{actor.instance_id}"))
