"""One segment played: the street, the light, who is where at each frame, and the triangles rays are cast at.

`Scene` is a segment, `World` one moment of it. Nothing here looks through a sensor: `render.py` and `sweep.py` do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mwsis.data.street.actors import VEHICLE, Actor
from mwsis.data.street.layout import ZEBRA_HALF, Plan, Prop, plan_actors, plan_props
from mwsis.data.street.rays import PairCaster, RayCaster
from mwsis.data.street.scenery import Street
from mwsis.data.street.shapes import Array, Mesh, merge

__all__ = ["Entities", "Scene", "Thing", "Weather", "World", "make_scene", "still_thing"]

SIGHT, VEHICLE_SIGHT, PERSON_SIGHT = (70.0, 85.0), (45.0, 70.0), (16.0, 34.0)
"""How far behind and ahead of the recording car props, vehicles and people are kept, metres (the LiDAR sees 75)."""
FRAME_SECONDS = 1.0


@dataclass(frozen=True, eq=False)
class Weather:
    """The light of one segment.

    Attributes:
        sun: (3,) unit vector towards the sun, world frame.
        sun_color, zenith, horizon: (3,) linear radiance.
        clouds: share of the sky that is clouded, 0..1.
        haze: distance at which two thirds of a thing's colour is lost, metres.
        exposure: gain of the cameras.
    """

    sun: Array
    sun_color: Array
    zenith: Array
    horizon: Array
    clouds: float
    haze: float
    exposure: float


@dataclass(frozen=True, eq=False)
class Entities:
    """What each face belongs to, one row per thing.

    Attributes:
        instance_ids: (E,) int64, 0 for what is no object.
        labels: (E,) int64, class index, -1 for what is no object.
        yaw: (E,) float32, rad; position: (E, 3) float32, metres: the thing's own frame in the world.
        styles: (E, 8) float32, see `FacadeStyle.row`.
        boxes: (E, 6) float32, centre and size of the tight box in the thing's own frame; zeros for no object.
    """

    instance_ids: Array
    labels: Array
    yaw: Array
    position: Array
    styles: Array
    boxes: Array


@dataclass(frozen=True, eq=False)
class Thing:
    """One thing in its place: its faces in the world, and its row of `Entities`.

    Attributes:
        mesh: in the world frame.
        instance_id, label, yaw, position, style, box: see `Entities`.
    """

    mesh: Mesh
    instance_id: int
    label: int
    yaw: float
    position: tuple[float, float, float]
    style: Array
    box: Array


@dataclass(frozen=True, eq=False)
class World:
    """All surfaces around the recording car at one moment, in the segment's world frame.

    Attributes:
        mesh: every face.
        entity: (F,) int32, row of `entities` each face belongs to.
        entities: the things.
        caster: casts rays at ``mesh``.
        ego_yaw, ego_position: the vehicle frame in the world; it stays level.
        street, weather, crossing: as in the scene.
        zebra: half-width of a crossing at along = 0, or 0.
    """

    mesh: Mesh
    entity: Array
    entities: Entities
    caster: RayCaster | PairCaster
    ego_yaw: float
    ego_position: Array
    street: Street
    weather: Weather
    zebra: float

    def vehicle_to_world(self) -> Array:
        """Return the (3, 3) float64 rotation from the vehicle frame to the world."""
        cos, sin = np.cos(self.ego_yaw), np.sin(self.ego_yaw)
        return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])


@dataclass(frozen=True, eq=False)
class Scene:
    """One segment.

    Attributes:
        plan: what kind of moment it is.
        street: middle line and relief.
        weather: light.
        actors: labelled objects.
        props: everything that stands still.
    """

    plan: Plan
    street: Street
    weather: Weather
    actors: list[Actor]
    props: list[Prop]

    def ego(self, frame: float) -> tuple[float, Array]:
        """Return yaw (rad) and position (3,) of the vehicle frame at a frame, or between two."""
        along = min(self.plan.ego_start + self.plan.ego_speed * FRAME_SECONDS * frame, self.plan.ego_stop)
        across = -1.65 + 0.12 * np.sin(0.35 * along)
        yaw, (x, y, _) = self.street.place(along, across, 0.03 * np.cos(0.21 * along))
        return yaw, np.array([x, y, self.street.ground(along, across)])

    def world(self, frame: int) -> World:
        """Return everything around the recording car at frame ``frame`` of the segment."""
        yaw, position = self.ego(frame)
        time = FRAME_SECONDS * frame
        props, actors = self.near(frame)
        things = [still_thing(prop) for prop in props]
        things += [self.placed(actor, own, time) for actor, own in actors]
        mesh = merge([thing.mesh for thing in things])
        return self.world_of(things, mesh, RayCaster(mesh.triangles), yaw, position)

    def near(self, frame: float) -> tuple[list[Prop], list[tuple[Actor, Mesh]]]:
        """Return what is in sight of the recording car; actors with the shape they have at that moment."""
        _, position = self.ego(frame)
        time = FRAME_SECONDS * frame
        behind, ahead = position[0] - SIGHT[0], position[0] + SIGHT[1]
        props = [prop for prop in self.props if prop.extent[1] > behind and prop.extent[0] < ahead]
        actors = []
        for actor in self.actors:
            distance = actor.path.at(time)[0] - float(position[0])
            back, front = VEHICLE_SIGHT if actor.label == VEHICLE else PERSON_SIGHT
            if -back < distance < front:
                detail = 7 if abs(distance) < 11 else 5 if abs(distance) < 26 else 4
                actors.append((actor, actor.mesh(time, detail)))
        return props, actors

    def placed(self, actor: Actor, own: Mesh, time: float) -> Thing:
        """Return an actor where it is at ``time`` (seconds), in the shape ``own``."""
        along, across, turn = actor.path.at(time)
        heading, place = self.street.place(along, across, turn)
        low, high = own.bounds()
        box = np.concatenate([(low + high) / 2, high - low])
        return Thing(own.placed(heading, place), actor.instance_id, actor.label, heading, place, np.zeros(8), box)

    def world_of(
        self, things: list[Thing], mesh: Mesh, caster: RayCaster | PairCaster, yaw: float, position: Array
    ) -> World:
        """Return a moment made of things, whose faces in order are ``mesh``, seen from a vehicle frame."""
        entity = np.repeat(np.arange(len(things), dtype=np.int32), [len(thing.mesh) for thing in things])
        zebra = ZEBRA_HALF if self.plan.crossing else 0.0
        return World(mesh, entity, _entities(things), caster, yaw, position, self.street, self.weather, zebra)


def still_thing(prop: Prop) -> Thing:
    """Return a prop as a thing that is no object."""
    return Thing(prop.mesh, 0, -1, prop.yaw, prop.position, prop.style, np.zeros(6))


def _entities(things: list[Thing]) -> Entities:
    return Entities(
        np.array([thing.instance_id for thing in things], np.int64),
        np.array([thing.label for thing in things], np.int64),
        np.array([thing.yaw for thing in things], np.float32),
        np.array([thing.position for thing in things], np.float32),
        np.array([thing.style for thing in things], np.float32),
        np.array([thing.box for thing in things], np.float32),
    )


def make_scene(seed: tuple[int, ...], num_frames: int) -> Scene:
    """Return the segment that belongs to a seed.

    Args:
        seed: numbers that name the segment; equal seeds give equal segments.
        num_frames: frames the street must be long enough for.
    """
    rng = np.random.default_rng(seed)
    crossing = bool(rng.random() < 0.45)
    if crossing:
        stop = -ZEBRA_HALF - 1.2 - 2.6
        plan = Plan(True, stop - float(rng.uniform(2.0, 9.0)), float(rng.uniform(0.8, 1.6)), stop, stop)
    else:
        speed = float(rng.uniform(5.0, 8.0))
        plan = Plan(False, 0.0, speed, np.inf, speed * FRAME_SECONDS * max(num_frames - 1, 0))
    street = _street(rng)
    return Scene(plan, street, _weather(rng), plan_actors(plan, rng), plan_props(plan, street, rng))


def _street(rng: np.random.Generator) -> Street:
    bend = (float(rng.uniform(-6.0, 6.0)), float(rng.uniform(190, 320)), float(rng.uniform(0, 6.28)))
    rates = 2 * np.pi / rng.uniform([70, 28, 12], [120, 45, 20])
    sizes = rng.uniform([0.2, 0.04, 0.010], [0.4, 0.08, 0.02])
    across_rates = rng.uniform(-1, 1, 3) * np.array([0.02, 0.05, 0.10])
    return Street(bend, np.stack([sizes, rates, across_rates, rng.uniform(0, 6.28, 3)], 1))


def _weather(rng: np.random.Generator) -> Weather:
    """Draw noon, evening or an overcast day."""
    kind = str(rng.choice(["noon", "evening", "overcast"], p=[0.55, 0.22, 0.23]))
    height = {"noon": rng.uniform(0.6, 1.05), "evening": rng.uniform(0.24, 0.42), "overcast": rng.uniform(0.6, 1.0)}[
        kind
    ]
    turn = rng.uniform(-np.pi, np.pi)
    sun = np.array([np.cos(turn) * np.cos(height), np.sin(turn) * np.cos(height), np.sin(height)])
    strength, tint = {
        "noon": (3.4, (1.0, 0.95, 0.86)),
        "evening": (3.2, (1.0, 0.76, 0.50)),
        "overcast": (0.55, (1.0, 0.98, 0.95)),
    }[kind]
    zenith = {"noon": (0.16, 0.34, 0.80), "evening": (0.24, 0.32, 0.55), "overcast": (0.62, 0.66, 0.72)}[kind]
    horizon = {"noon": (0.72, 0.82, 0.95), "evening": (0.95, 0.78, 0.58), "overcast": (0.78, 0.80, 0.82)}[kind]
    return Weather(
        sun.astype(np.float32),
        np.array(tint, np.float32) * strength,
        np.array(zenith, np.float32),
        np.array(horizon, np.float32),
        float(rng.uniform(0.2, 0.6)) if kind != "overcast" else 0.95,
        float(rng.uniform(220, 480)),
        {"noon": 0.85, "evening": 1.0, "overcast": 1.25}[kind] * float(rng.uniform(0.9, 1.1)),
    )
