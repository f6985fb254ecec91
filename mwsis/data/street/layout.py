"""Where everything starts: parked rows, traffic, groups of cyclists and pedestrians, houses, trees and poles.

Things never overlap because each keeps to its own band across the street and all in a band move at one speed; those
who cross keep to lines of their own on the zebra, where nothing else goes. Next: `scene.py`, which plays it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mwsis.data.street.actors import (
    CYCLIST,
    PEDESTRIAN,
    VEHICLE,
    Actor,
    Path,
    PersonShape,
    VehicleShape,
    random_cyclist,
    random_pedestrian,
    random_vehicle,
)
from mwsis.data.street.scenery import BIKE_EDGE, KERB, WALL, FacadeStyle, Street, building, furniture, hedge, tree
from mwsis.data.street.shapes import Array, Mesh

__all__ = ["ZEBRA_HALF", "Plan", "Prop", "plan_actors", "plan_props"]

ZEBRA_HALF = 2.6
"""Half the width of the zebra crossing at along = 0, metres; stop lines lie a metre before it."""
EGO_LANE, PARKING = -1.65, (BIKE_EDGE + KERB) / 2


@dataclass(frozen=True)
class Plan:
    """What kind of moment a segment shows.

    Attributes:
        crossing: traffic waits at a zebra at along = 0 while people cross.
        ego_start, ego_speed: the recording car's place (m) and speed (m/s).
        ego_stop: where it comes to a halt, m.
        reach: how far it gets in the segment, m.
    """

    crossing: bool
    ego_start: float
    ego_speed: float
    ego_stop: float
    reach: float

    @property
    def span(self) -> tuple[float, float]:
        """Stretch of street with people on it, metres."""
        return self.ego_start - 16.0, self.reach + 40.0

    def blocked(self, along: float, margin: float) -> bool:
        """Tell whether a place lies on the zebra or within ``margin`` metres of it."""
        return self.crossing and abs(along) < ZEBRA_HALF + margin


@dataclass(frozen=True, eq=False)
class Prop:
    """One thing that never moves.

    Attributes:
        mesh: in the world frame.
        yaw, position: its own frame in the world, for patterns fixed to it.
        style: (8,) float32, see `FacadeStyle.row`; zeros elsewhere.
        extent: from-to along the street, metres.
    """

    mesh: Mesh
    yaw: float
    position: tuple[float, float, float]
    style: Array
    extent: tuple[float, float]


Start = tuple[int, VehicleShape | PersonShape, Path]


def plan_actors(plan: Plan, rng: np.random.Generator) -> list[Actor]:
    """Return everyone and everything that is labelled in a segment, instance ids counted from 1."""
    starts: list[Start] = []
    for side in (-1, 1):
        starts += _parked_row(plan, side, rng)
        starts += _traffic(plan, side, rng)
        starts += _cyclists(plan, side, rng)
        starts += _walkers(plan, side, rng)
        starts += _standing(plan, side, rng)
    if plan.crossing:
        starts += _crossers(rng)
    return [Actor(number, *start) for number, start in enumerate(starts, 1)]


def _parked_row(plan: Plan, side: int, rng: np.random.Generator) -> Iterator[Start]:
    """Rows of cars bumper to bumper, with gaps in which people stand."""
    along, stop = plan.span[0] - 20, plan.span[1] + 15
    fullness = rng.uniform(0.25, 0.75)
    turn = 0.0 if side < 0 else np.pi
    while along < stop:
        if rng.random() < fullness:
            for _ in range(int(rng.integers(2, 5))):
                shape = random_vehicle(rng, parked=True)
                middle = along + shape.length / 2
                along += shape.length + rng.uniform(0.5, 1.1)
                if not plan.blocked(middle, 1.5 + shape.length / 2):
                    yield (
                        VEHICLE,
                        shape,
                        Path(middle, side * (PARKING + rng.uniform(-0.06, 0.06)), turn + rng.normal(0, 0.012)),
                    )
        gap = rng.uniform(2.5, 8.0)
        if rng.random() < 0.35 and not plan.blocked(along + gap / 2, 2.0) and along < plan.span[1]:
            for offset, across in _huddle(min(3, int(rng.integers(1, 4))), rng):
                if abs(offset) < gap / 2 - 0.5:
                    spot = Path(along + gap / 2 + offset, side * (PARKING + 0.4) + across, rng.uniform(-np.pi, np.pi))
                    yield PEDESTRIAN, random_pedestrian(rng, walks=False), spot
        along += gap


def _traffic(plan: Plan, side: int, rng: np.random.Generator) -> Iterator[Start]:
    """One lane of vehicles; in the recording car's lane they keep their distance from it."""
    own = side < 0
    turn, speed = (0.0, plan.ego_speed) if own else (np.pi, rng.uniform(5.0, 9.0))
    if plan.crossing:
        speed = 0.0
    gap = (2.0, 5.0) if plan.crossing else (9.0, 26.0)
    first = plan.ego_start + 13.0 if own else plan.span[0] - 30
    if plan.crossing:
        first = ZEBRA_HALF + (14.0 if own else 1.2)
    along, stop = first + rng.uniform(0, 4.0), plan.span[1] + (25 if own or plan.crossing else 25 + speed * 10)
    while along < stop:
        shape = random_vehicle(rng, parked=False)
        yield VEHICLE, shape, Path(along + shape.length / 2, EGO_LANE if own else -EGO_LANE, turn, speed)
        along += shape.length + rng.uniform(*gap)
    behind = plan.ego_start - rng.uniform(7.0, 12.0)
    if own and rng.random() < 0.7:
        yield VEHICLE, random_vehicle(rng, parked=True), Path(behind, EGO_LANE, 0.0, 0.0 if plan.crossing else speed)


def _cyclists(plan: Plan, side: int, rng: np.random.Generator) -> Iterator[Start]:
    """Groups riding two abreast in the bicycle lane, or waiting before the zebra."""
    turn, speed = (0.0 if side < 0 else np.pi), 0.0 if plan.crossing else float(rng.uniform(3.5, 5.0))
    along, stop = plan.span[0], plan.span[1] + (0 if side < 0 else speed * 6)
    while along < stop:
        for row in range(int(rng.integers(1, 4))):
            pair = (
                ((3.62, 0.0), (4.48, rng.uniform(-0.3, 0.3)))
                if rng.random() < 0.55
                else ((4.05 + rng.uniform(-0.3, 0.3), 0.0),)
            )
            for across, shift in pair:
                place = along + row * 2.35 + shift
                if not plan.blocked(place, 1.4):
                    yield CYCLIST, random_cyclist(rng), Path(place, side * across, turn, speed)
        along += 7.2 + rng.uniform(1.5, 9.0)


def _huddle(count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Return places (along, across) of a group standing 0.5 to 0.9 metres from one another."""
    spacing = rng.uniform(0.55, 0.85)
    if count == 1:
        return [(0.0, 0.0)]
    ring = np.arange(count) * 2 * np.pi / count + rng.uniform(0, 6.28)
    radius = spacing / (2 * np.sin(np.pi / count))
    return [(float(radius * np.cos(angle)), float(radius * np.sin(angle))) for angle in ring]


def _walkers(plan: Plan, side: int, rng: np.random.Generator) -> Iterator[Start]:
    """Two streams on the pavement, one each way, in groups side by side and behind one another."""
    for across, turn in ((9.85, 0.0), (11.2, np.pi)):
        speed, along = float(rng.uniform(1.0, 1.5)), plan.span[0] + rng.uniform(0, 6)
        while along < plan.span[1]:
            for rank in range(int(rng.integers(1, 3))):
                abreast = int(rng.integers(1, 3))
                for column in range(abreast):
                    lateral = (column - (abreast - 1) / 2) * rng.uniform(0.55, 0.7)
                    place = Path(
                        along + rank * rng.uniform(0.75, 0.95) + rng.uniform(-0.1, 0.1),
                        side * across + lateral,
                        turn,
                        speed,
                    )
                    yield PEDESTRIAN, random_pedestrian(rng, walks=True), place
            along += rng.uniform(9.0, 26.0)


def _standing(plan: Plan, side: int, rng: np.random.Generator) -> Iterator[Start]:
    """People waiting and talking between the trees at the kerb; places end on .5 of the furniture's grid."""
    for slot in np.arange(np.ceil(plan.span[0] / 5) * 5 + 2.5, plan.span[1], 5.0):
        near_zebra = plan.crossing and abs(abs(slot) - 7.5) < 2.6
        if rng.random() > (0.75 if near_zebra else 0.2) or plan.blocked(float(slot), 1.0):
            continue
        for offset, across in _huddle(int(rng.integers(1, 5)), rng):
            spot = Path(
                float(slot) + offset, side * 7.95 + across, float(np.arctan2(-across, -offset)) + rng.normal(0, 0.4)
            )
            yield PEDESTRIAN, random_pedestrian(rng, walks=False), spot


def _crossers(rng: np.random.Generator) -> Iterator[Start]:
    """People on the zebra, each on a line of their own, many in clumps."""
    clump = rng.uniform(-5.5, 5.5, 2)
    for line in np.arange(-ZEBRA_HALF + 0.3, ZEBRA_HALF - 0.2, 0.68):
        if rng.random() < 0.15:
            continue
        across = float(clump[int(rng.integers(2))] + rng.normal(0, 0.7))
        turn = float(rng.choice([-1, 1])) * np.pi / 2
        walker = random_pedestrian(rng, walks=True)
        yield (
            PEDESTRIAN,
            walker,
            Path(float(line), float(np.clip(across, -7.8, 7.8)), turn, float(rng.uniform(0.9, 1.4)), 8.0),
        )


def _prop(street: Street, mesh: Mesh, along: float, across: float, turn: float, style: Array | None = None) -> Prop:
    yaw, position = street.place(along, across, turn)
    placed = mesh.placed(yaw, position)
    low, high = placed.bounds()
    return Prop(
        placed, yaw, position, np.zeros(8, np.float32) if style is None else style, (float(low[0]), float(high[0]))
    )


def plan_props(plan: Plan, street: Street, rng: np.random.Generator) -> list[Prop]:
    """Return all that stands still, from 70 m behind the start to 90 m beyond the last place of the recording car."""
    start, stop = plan.ego_start - 70.0, plan.reach + 90.0
    props: list[Prop] = []
    for piece in np.arange(np.floor(start / 20) * 20, stop, 20.0):
        ground = street.mesh(float(piece), float(piece) + 20.0)
        props.append(Prop(ground, 0.0, (0.0, 0.0, 0.0), np.zeros(8, np.float32), (float(piece), float(piece) + 20.0)))
    for side in (-1, 1):
        facing = 0.0 if side > 0 else np.pi

        def put(
            mesh: Mesh,
            along: float,
            across: float,
            style: Array | None = None,
            side: int = side,
            facing: float = facing,
        ) -> None:
            props.append(_prop(street, mesh, along, side * across, facing, style))

        _houses(start, stop, side, rng, put)
        _kerbside(plan, start, stop, rng, put)
    return props


def _random_style(rng: np.random.Generator) -> FacadeStyle:
    shop = bool(rng.random() < 0.45)
    return FacadeStyle(
        floor=float(rng.uniform(2.8, 3.5)),
        bay=float(rng.uniform(1.8, 3.2)),
        window=(float(rng.uniform(0.42, 0.68)), float(rng.uniform(0.45, 0.62))),
        ground_floor=float(rng.uniform(3.4, 4.2)) if shop else float(rng.uniform(3.0, 3.4)),
        shop=shop,
        brick=float(rng.random() < 0.5) * float(rng.uniform(0.5, 1.0)),
        tint=float(rng.random()),
    )


def _houses(start: float, stop: float, side: int, rng: np.random.Generator, put: Callable[..., None]) -> None:
    """Line the pavement with houses, and here and there a garden behind a hedge."""
    along = start
    while along < stop:
        width = float(rng.uniform(9.0, 20.0))
        near = along if side > 0 else along + width
        if rng.random() < 0.2:
            put(hedge(width - 1.0, rng), near + (0.5 if side > 0 else -0.5), WALL + 0.7)
            for spot in np.arange(2.5, width - 2, 5.5):
                put(tree(rng), along + spot + rng.uniform(-1, 1), WALL + rng.uniform(3.0, 6.0))
        else:
            style = _random_style(rng)
            floors = int(rng.integers(1, 5))
            height = style.ground_floor + floors * style.floor + 0.5
            put(building(width, 10.0, height, style, rng), near, WALL + 0.25 + rng.uniform(0, 0.5), style.row())
        along += width + (rng.uniform(1.5, 4.0) if rng.random() < 0.25 else 0.0)


def _kerbside(plan: Plan, start: float, stop: float, rng: np.random.Generator, put: Callable[..., None]) -> None:
    """Put a tree, a lamp post or some furniture on every fifth metre of the kerb, or leave the place empty."""
    kinds = ("tree", "lamp", "sign", "bin", "bench", "bollard", "column", "bush", "none")
    share = (0.30, 0.14, 0.10, 0.06, 0.06, 0.08, 0.03, 0.07, 0.16)
    for slot in np.arange(np.ceil(start / 5) * 5, stop, 5.0):
        kind = str(rng.choice(kinds, p=share))
        if kind == "none" or plan.blocked(float(slot), 0.2):
            continue
        mesh = tree(rng) if kind == "tree" else furniture(kind, rng)
        put(mesh, float(slot) + rng.uniform(-0.25, 0.25), 7.75)
