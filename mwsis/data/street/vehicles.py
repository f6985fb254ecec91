"""Cars, vans, lorries and buses: a lofted body, a cabin with glass one can see through, wheels, lamps, seats.

A vehicle points along +x, stands on z = 0, its middle at the origin. Where it stands and who drives it is `layout.py`.
Next: `people.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mwsis.data.street.materials import Material
from mwsis.data.street.shapes import Array, Color, Mesh, box, disc, loft, merge, paned_quad, surface

__all__ = ["PAINTS", "VEHICLES", "BodyPlan", "vehicle_mesh"]

GLASS: tuple[Color, int] = ((0.03, 0.04, 0.05), Material.GLASS)
DARK: Color = (0.018, 0.018, 0.02)
PRIMER: Color = (0.5, 0.5, 0.5)
PAINTS: tuple[Color, ...] = (
    (0.78, 0.78, 0.76), (0.70, 0.71, 0.72), (0.42, 0.43, 0.45), (0.22, 0.23, 0.25), (0.06, 0.06, 0.07),
    (0.03, 0.03, 0.035), (0.45, 0.03, 0.03), (0.28, 0.02, 0.05), (0.03, 0.10, 0.34), (0.05, 0.20, 0.48),
    (0.02, 0.06, 0.16), (0.06, 0.20, 0.12), (0.50, 0.40, 0.26), (0.72, 0.45, 0.04), (0.60, 0.20, 0.03),
    (0.24, 0.36, 0.40),
)  # fmt: skip
"""Linear albedos of car paint: mostly white, grey and black, as on the road."""


@dataclass(frozen=True)
class BodyPlan:
    """The numbers a vehicle is drawn from; metres, x from the rear bumper.

    Attributes:
        length, width, height: outer size.
        stations: (x, underside, top edge, half-width fraction) of the lower body from rear to front.
        cabin: x of rear foot, rear roof edge, front roof edge, front foot of the glass house.
        belt: height of the glass house's foot.
        panes: side windows, fractions of the cabin's length from the rear; empty = closed sides.
        axles: x of the wheels.
        wheel: wheel radius.
        roof_inset: how much narrower the roof is than the belt, fraction.
        rear_glass: the back of the cabin is a window.
        cargo: x from, x to, height of a box behind the cabin, or None.
        trunks: heights of the front and rear lamps.
    """

    length: float
    width: float
    height: float
    stations: tuple[tuple[float, float, float, float], ...]
    cabin: tuple[float, float, float, float]
    belt: float
    panes: tuple[tuple[float, float], ...]
    axles: tuple[float, ...]
    wheel: float
    roof_inset: float = 0.16
    rear_glass: bool = True
    cargo: tuple[float, float, float] | None = None
    trunks: tuple[float, float] = (0.68, 0.84)


_SEDAN = BodyPlan(
    4.70, 1.84, 1.46,
    ((0.0, 0.40, 0.82, 0.84), (0.07, 0.28, 0.98, 0.93), (0.45, 0.22, 1.04, 0.985), (1.2, 0.20, 1.00, 1.0),
     (2.4, 0.20, 0.96, 1.0), (3.35, 0.20, 0.95, 1.0), (4.0, 0.22, 0.88, 0.985), (4.5, 0.26, 0.76, 0.93),
     (4.70, 0.36, 0.62, 0.80)),
    (0.50, 1.20, 2.55, 3.35), 0.95, ((0.20, 0.49), (0.53, 0.82)), (0.92, 3.72), 0.33,
)  # fmt: skip
_HATCH = BodyPlan(
    4.05, 1.76, 1.50,
    ((0.0, 0.38, 0.80, 0.86), (0.06, 0.26, 1.00, 0.94), (0.4, 0.22, 1.02, 1.0), (1.5, 0.20, 0.98, 1.0),
     (2.75, 0.20, 0.97, 1.0), (3.4, 0.22, 0.90, 0.98), (3.88, 0.27, 0.76, 0.92), (4.05, 0.36, 0.64, 0.80)),
    (0.10, 0.52, 2.05, 2.85), 0.96, ((0.12, 0.44), (0.49, 0.80)), (0.66, 3.22), 0.32,
)  # fmt: skip
_SUV = BodyPlan(
    4.75, 1.94, 1.76,
    ((0.0, 0.46, 0.92, 0.88), (0.06, 0.34, 1.12, 0.95), (0.4, 0.28, 1.14, 1.0), (1.6, 0.26, 1.12, 1.0),
     (3.2, 0.26, 1.10, 1.0), (4.0, 0.28, 1.04, 0.99), (4.58, 0.34, 0.92, 0.94), (4.75, 0.44, 0.78, 0.86)),
    (0.10, 0.42, 2.55, 3.30), 1.09, ((0.05, 0.27), (0.31, 0.57), (0.61, 0.85)), (0.92, 3.75), 0.38, 0.14,
    trunks=(0.86, 1.0),
)  # fmt: skip
_VAN = BodyPlan(
    5.30, 2.02, 2.26,
    ((0.0, 0.42, 1.10, 0.96), (0.05, 0.34, 1.22, 1.0), (1.8, 0.30, 1.22, 1.0), (3.9, 0.30, 1.22, 1.0),
     (4.55, 0.32, 1.14, 0.98), (5.12, 0.36, 0.94, 0.93), (5.30, 0.46, 0.74, 0.84)),
    (0.03, 0.10, 3.75, 4.60), 1.18, ((0.74, 0.90),), (0.95, 4.35), 0.36, 0.07, trunks=(0.84, 1.0),
)  # fmt: skip
_PICKUP = BodyPlan(
    5.40, 1.98, 1.82,
    ((0.0, 0.50, 0.98, 0.93), (0.05, 0.40, 1.12, 0.97), (1.6, 0.36, 1.12, 1.0), (2.6, 0.36, 1.12, 1.0),
     (4.0, 0.36, 1.12, 1.0), (4.7, 0.38, 1.06, 0.99), (5.28, 0.42, 0.94, 0.95), (5.40, 0.52, 0.80, 0.88)),
    (1.72, 1.86, 3.15, 3.92), 1.10, ((0.08, 0.42), (0.47, 0.80)), (1.05, 4.40), 0.40, 0.15, trunks=(0.86, 0.96),
)  # fmt: skip
_LORRY = BodyPlan(
    7.60, 2.34, 2.70,
    ((0.0, 0.56, 0.92, 0.92), (0.1, 0.52, 0.98, 0.94), (5.6, 0.52, 1.00, 0.94), (5.65, 0.40, 1.46, 0.96),
     (7.3, 0.40, 1.46, 0.96), (7.52, 0.42, 1.34, 0.94), (7.60, 0.50, 1.0, 0.90)),
    (5.70, 5.74, 6.95, 7.44), 1.42, ((0.28, 0.80),), (1.5, 6.6), 0.46, 0.06, rear_glass=False,
    cargo=(0.0, 5.5, 3.15), trunks=(0.82, 0.80),
)  # fmt: skip
_BUS = BodyPlan(
    10.8, 2.50, 3.05,
    ((0.0, 0.42, 1.10, 0.97), (0.06, 0.34, 1.20, 1.0), (5.0, 0.32, 1.20, 1.0), (10.6, 0.34, 1.20, 1.0),
     (10.8, 0.42, 1.10, 0.96)),
    (0.02, 0.08, 10.55, 10.74), 1.17,
    tuple((0.03 + 0.1175 * i, 0.03 + 0.1175 * i + 0.105) for i in range(8)), (2.6, 8.1), 0.48, 0.03,
    trunks=(0.76, 0.9),
)  # fmt: skip
VEHICLES: dict[str, BodyPlan] = {
    "sedan": _SEDAN, "hatch": _HATCH, "suv": _SUV, "van": _VAN, "pickup": _PICKUP, "lorry": _LORRY, "bus": _BUS,
}  # fmt: skip


@lru_cache(maxsize=16)
def vehicle_mesh(kind: str, detailed: bool = True) -> Mesh:
    """Return the mesh of one of `VEHICLES`, still in primer: repaint `Material.PAINT`.

    Args:
        kind: body type.
        detailed: with seats and round wheels; what is far away does without.

    Returns:
        About 1,200 faces, or 600, metres, x forward, standing on z = 0, centred in x and y.
    """
    plan = VEHICLES[kind]
    parts = [_lower_body(plan), _cabin(plan), _interior(plan, detailed), _lamps(plan), _trim(plan)]
    parts += [part for axle in plan.axles for part in _wheel_pair(plan, axle, 16 if detailed else 8)]
    if plan.cargo is not None:
        start, stop, top = plan.cargo
        size = (stop - start, plan.width, top - 0.98)
        parts.append(box(size, ((start + stop) / 2, 0, (top + 0.98) / 2), (0.72, 0.72, 0.7), Material.CARGO))
    whole = merge(parts)
    return whole.placed(0.0, (-plan.length / 2, 0, 0))


def _lower_body(plan: BodyPlan) -> Mesh:
    rings = []
    for x, low, high, fraction in plan.stations:
        half, middle = plan.width / 2 * fraction, low + 0.55 * (high - low)
        side = [(half * 0.86, low), (half * 0.97, low + 0.10), (half, middle), (half * 0.975, high - 0.07)]
        side += [(half * 0.88, high), (half * 0.45, high + 0.025)]
        rings.append([(x, y, z) for y, z in side] + [(x, -y, z) for y, z in reversed(side)])
    return loft(np.array(rings), PRIMER, Material.PAINT)


def _cabin_corners(plan: BodyPlan) -> tuple[Array, Array]:
    """Return the foot and the roof of the glass house, each (4, 3): rear right, front right, front left, rear left."""
    rear_foot, rear_roof, front_roof, front_foot = plan.cabin
    foot_half = plan.width / 2 * 0.91
    roof_half, roof = foot_half * (1 - plan.roof_inset), plan.height - 0.05
    signs = np.array([-1, -1, 1, 1.0])
    foot_x = np.array([rear_foot, front_foot, front_foot, rear_foot])
    roof_x = np.array([rear_roof, front_roof, front_roof, rear_roof])
    foot = np.stack([foot_x, signs * foot_half, np.full(4, plan.belt - 0.03)], 1)
    return foot, np.stack([roof_x, signs * roof_half, np.full(4, roof)], 1)


def _cabin(plan: BodyPlan) -> Mesh:
    foot, roof = _cabin_corners(plan)
    frame: tuple[Color, int] = (PRIMER, Material.PAINT)
    walls = []
    for index, panes in enumerate((plan.panes, ((0.05, 0.95),), plan.panes, ((0.07, 0.93),))):
        after = (index + 1) % 4
        corners = np.stack([foot[index], foot[after], roof[after], roof[index]])
        if index == 2:
            corners = corners[[1, 0, 3, 2]]
        glazed = panes if index != 3 or plan.rear_glass else ()
        walls.append(paned_quad(corners, glazed, (0.10, 0.90), frame, GLASS))
    across = np.linspace(0, 1, 5)[:, None, None]
    along = np.linspace(0, 1, 5)[None, :, None]
    grid = (roof[0] * (1 - along) + roof[1] * along) * (1 - across) + (roof[3] * (1 - along) + roof[2] * along) * across
    arch = (1 - (2 * across - 1) ** 2) * (1 - (2 * along - 1) ** 4)
    grid[..., 2:] += 0.05 * arch
    return merge([*walls, surface(grid, PRIMER, Material.PAINT)])


def _interior(plan: BodyPlan, detailed: bool) -> Mesh:
    """Return the deck under the windows, seats with head rests and a steering wheel: what glass lets one see."""
    rear_foot, _, front_roof, front_foot = plan.cabin
    deck = (front_foot - rear_foot - 0.1, plan.width * 0.84, 0.02)
    middle = (front_foot + rear_foot) / 2
    parts = [box(deck, (middle, 0, plan.belt - 0.05), DARK, Material.PLASTIC)]
    if not plan.panes or not detailed:
        return merge(parts)
    rows = np.arange(front_roof - 0.55, rear_foot + 0.75, -0.95)[: 9 if plan.length > 9 else 2]
    for x in rows:
        for y in (-0.36, 0.36):
            parts.append(box((0.14, 0.46, 0.34), (x, y, plan.belt + 0.06), (0.05, 0.05, 0.055), Material.CLOTH))
            parts.append(box((0.09, 0.24, 0.16), (x, y, plan.belt + 0.31), (0.05, 0.05, 0.055), Material.CLOTH))
    parts.append(box((0.06, 0.36, 0.10), (front_roof + 0.15, 0.36, plan.belt + 0.05), DARK, Material.PLASTIC))
    return merge(parts)


def _lamps(plan: BodyPlan) -> Mesh:
    front, rear = plan.trunks
    half, end = plan.width / 2, plan.length
    parts = []
    for side in (-1, 1):
        parts.append(
            box((0.22, 0.34, 0.13), (end - 0.17, side * (half * 0.74), front), (0.85, 0.86, 0.9), Material.LAMP)
        )
        parts.append(box((0.16, 0.24, 0.16), (0.10, side * (half * 0.79), rear), (0.5, 0.01, 0.01), Material.LAMP))
    plate_low = 0.45
    parts.append(box((0.03, 0.48, 0.11), (end - 0.005, 0, plate_low), (0.75, 0.75, 0.7), Material.PLATE))
    parts.append(box((0.03, 0.48, 0.11), (0.0, 0, plate_low + 0.15), (0.75, 0.75, 0.7), Material.PLATE))
    return merge(parts)


def _trim(plan: BodyPlan) -> Mesh:
    """Return grille, bumpers, sills, mirrors: the dark parts."""
    low, end, half = plan.stations[len(plan.stations) // 2][1], plan.length, plan.width / 2
    front = plan.trunks[0]
    parts = [
        box((0.16, plan.width * 0.42, 0.15), (end - 0.09, 0, front - 0.03), DARK, Material.PLASTIC),
        box((0.26, plan.width * 0.80, 0.14), (end - 0.16, 0, low + 0.18), DARK, Material.PLASTIC),
        box((0.24, plan.width * 0.84, 0.16), (0.15, 0, low + 0.20), DARK, Material.PLASTIC),
    ]
    for side in (-1, 1):
        sill = (plan.axles[-1] - plan.axles[0] - 2.2 * plan.wheel, 0.03, 0.12)
        parts.append(
            box(sill, ((plan.axles[0] + plan.axles[-1]) / 2, side * half * 0.955, low + 0.08), DARK, Material.PLASTIC)
        )
        mirror = (plan.cabin[3] - 0.42, side * (half + 0.05), plan.belt + 0.10)
        parts.append(box((0.12, 0.18, 0.14), mirror, PRIMER, Material.PAINT))
    return merge(parts)


def _wheel_pair(plan: BodyPlan, axle: float, corners: int) -> list[Mesh]:
    """Return both wheels of an axle with the dark arches above them."""
    angle = np.arange(corners) * 2 * np.pi / corners
    rim = np.stack([np.cos(angle), np.zeros(corners), np.sin(angle)], 1)
    centre, radius, outer = np.array([axle, 0, plan.wheel]), plan.wheel, plan.width / 2 + 0.012
    shape = ((-0.24, 0.97), (-0.22, 1.0), (-0.04, 1.0), (0.0, 0.93), (0.002, 0.66))
    rings = np.stack([centre + rim * radius * scale + [0, outer + y, 0] for y, scale in shape])
    tyre = loft(rings, (0.022, 0.022, 0.024), Material.RUBBER, caps=False)
    hub = disc(rings[-1], (0.42, 0.43, 0.45), Material.METAL)
    spoke = (np.arange(corners) % 3 == 2)[:, None]
    hub = Mesh(hub.triangles, hub.normals, np.where(spoke, np.float32(0.05), hub.colors), hub.materials)
    sweep = np.linspace(-0.22, np.pi + 0.22, 9)
    arch_rim = np.stack([np.cos(sweep), np.zeros(9), np.sin(sweep)], 1) * radius * 1.2 + centre + [0, outer - 0.008, 0]
    arch = disc(arch_rim, DARK, Material.PLASTIC)
    left = merge([tyre, hub, arch])
    return [left, left.mirrored()]
