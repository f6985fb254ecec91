"""Who moves: vehicles, pedestrians and cyclists, where each is at any time, and what it looks like then.

An actor's place is a function of time alone, so frames can be read in any order. Where actors start is `layout.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mwsis.data.street.materials import Material
from mwsis.data.street.people import Look, cyclist_mesh, pedestrian_mesh, random_look
from mwsis.data.street.shapes import Color, Mesh
from mwsis.data.street.vehicles import PAINTS, VEHICLES, vehicle_mesh

__all__ = [
    "CYCLIST",
    "PEDESTRIAN",
    "VEHICLE",
    "Actor",
    "Path",
    "PersonShape",
    "VehicleShape",
    "random_cyclist",
    "random_pedestrian",
    "random_vehicle",
]

VEHICLE, PEDESTRIAN, CYCLIST = 0, 1, 2
"""Class indices of ("Vehicle", "Pedestrian", "Cyclist")."""


@dataclass(frozen=True)
class Path:
    """Where something is at time t, in street coordinates (along, across), metres.

    Attributes:
        along, across: place at t = 0.
        turn: heading relative to the street, rad.
        speed: metres a second, in the direction of the heading.
        shore: None, or the distance across at which one who crosses turns back.
    """

    along: float
    across: float
    turn: float = 0.0
    speed: float = 0.0
    shore: float | None = None

    def at(self, time: float) -> tuple[float, float, float]:
        """Return along, across and turn at ``time`` (seconds)."""
        if self.shore is None:
            forward = self.speed * time * np.cos(self.turn)
            return self.along + float(forward), self.across, self.turn
        start = self.across if self.turn > 0 else 2 * self.shore - self.across
        step = (start + self.shore + self.speed * time) % (4 * self.shore)
        onward = step < 2 * self.shore
        across = step - self.shore if onward else 3 * self.shore - step
        return self.along, across, np.pi / 2 if onward else -np.pi / 2


@dataclass(frozen=True)
class VehicleShape:
    """A body type in one paint."""

    kind: str
    paint: Color

    @property
    def length(self) -> float:
        """Metres from bumper to bumper."""
        return VEHICLES[self.kind].length

    def mesh(self, travelled: float, sides: int) -> Mesh:
        """Return the mesh at the origin, the same however far it went; ``sides`` below 5 leaves details out."""
        return _painted(self.kind, self.paint, sides >= 5)


@lru_cache(maxsize=256)
def _painted(kind: str, paint: Color, detailed: bool) -> Mesh:
    mesh = vehicle_mesh(kind, detailed).painted(Material.PAINT, paint)
    if kind == "lorry":
        shade = tuple(0.25 + 0.6 * channel for channel in paint)
        mesh = mesh.painted(Material.CARGO, shade if sum(paint) < 1.2 else (0.74, 0.74, 0.72))
    return mesh


@dataclass(frozen=True)
class PersonShape:
    """A pedestrian or a rider, whose pose depends on how far they went.

    Attributes:
        look: build and clothes.
        rides: on a bicycle.
        phase: of the gait or the pedals at the start, rad.
        effort: stride of a walker, lean of a rider, 0..1.
        gesture: see `pedestrian_mesh`.
    """

    look: Look
    rides: bool
    phase: float
    effort: float
    gesture: float

    def mesh(self, travelled: float, sides: int) -> Mesh:
        """Return the mesh at the origin after ``travelled`` metres, limbs with so many ``sides``."""
        if self.rides:
            return cyclist_mesh(self.look, self.phase - travelled * 1.2, self.effort, sides)
        return pedestrian_mesh(self.look, self.phase + travelled * 2 * np.pi / 1.4, self.effort, self.gesture, sides)


@dataclass(frozen=True)
class Actor:
    """One labelled object of a segment.

    Attributes:
        instance_id: unique in the segment, from 1.
        label: class index.
        shape: what it looks like.
        path: where it is.
    """

    instance_id: int
    label: int
    shape: VehicleShape | PersonShape
    path: Path

    def mesh(self, time: float, sides: int) -> Mesh:
        """Return the mesh in its own frame at ``time`` (seconds); fewer ``sides`` do for people far away."""
        return self.shape.mesh(self.path.speed * time, sides)


def random_vehicle(rng: np.random.Generator, *, parked: bool) -> VehicleShape:
    """Return a vehicle drawn at random; buses and lorries do not park in the row."""
    kinds = ("sedan", "hatch", "suv", "van", "pickup", "lorry", "bus")
    share = (0.32, 0.26, 0.22, 0.12, 0.08, 0.0, 0.0) if parked else (0.27, 0.2, 0.2, 0.12, 0.06, 0.1, 0.05)
    paint = np.array(PAINTS[int(rng.integers(len(PAINTS)))]) * rng.uniform(0.85, 1.1)
    return VehicleShape(str(rng.choice(kinds, p=share)), (float(paint[0]), float(paint[1]), float(paint[2])))


def random_pedestrian(rng: np.random.Generator, *, walks: bool) -> PersonShape:
    """Return a pedestrian drawn at random, walking or standing about."""
    effort = rng.uniform(0.6, 1.0) if walks else rng.uniform(0.0, 0.12)
    gesture = float(rng.random() < 0.25) * rng.uniform(0.5, 1.0)
    return PersonShape(random_look(rng, rider=False), False, float(rng.uniform(0, 6.28)), float(effort), float(gesture))


def random_cyclist(rng: np.random.Generator) -> PersonShape:
    """Return a rider drawn at random."""
    return PersonShape(random_look(rng, rider=True), True, float(rng.uniform(0, 6.28)), float(rng.uniform(0, 1)), 0.0)
