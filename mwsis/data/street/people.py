"""Pedestrians with jointed limbs and clothes, and cyclists on bicycles.

Everyone faces +x and stands on z = 0; all of a body is one list of limbs, posed from the phase of its gait.
Where people go is `layout.py`. Next: `scenery.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mwsis.data.street.materials import Material
from mwsis.data.street.shapes import Array, Color, Limb, Mesh, limbs, loft, merge, quad

__all__ = ["Look", "cyclist_mesh", "pedestrian_mesh", "random_look"]

SKINS: tuple[Color, ...] = ((0.62, 0.40, 0.30), (0.50, 0.30, 0.20), (0.30, 0.16, 0.10), (0.14, 0.07, 0.045))
HAIRS: tuple[Color, ...] = (
    (0.02, 0.015, 0.01),
    (0.08, 0.04, 0.02),
    (0.30, 0.20, 0.09),
    (0.35, 0.34, 0.33),
    (0.22, 0.07, 0.03),
)
TOPS: tuple[Color, ...] = (
    (0.62, 0.05, 0.05), (0.04, 0.10, 0.40), (0.70, 0.68, 0.64), (0.03, 0.03, 0.035), (0.72, 0.50, 0.06),
    (0.05, 0.28, 0.12), (0.30, 0.31, 0.33), (0.32, 0.06, 0.30), (0.08, 0.34, 0.42), (0.48, 0.24, 0.12),
    (0.75, 0.26, 0.05), (0.60, 0.42, 0.45), (0.12, 0.13, 0.18),
)  # fmt: skip
BOTTOMS: tuple[Color, ...] = (
    (0.04, 0.07, 0.16), (0.02, 0.02, 0.025), (0.10, 0.14, 0.24), (0.36, 0.29, 0.18), (0.16, 0.16, 0.17),
    (0.12, 0.09, 0.06), (0.45, 0.44, 0.42), (0.06, 0.10, 0.07),
)  # fmt: skip
FRAMES: tuple[Color, ...] = (
    (0.5, 0.03, 0.03),
    (0.02, 0.02, 0.02),
    (0.03, 0.12, 0.42),
    (0.6, 0.6, 0.58),
    (0.04, 0.3, 0.12),
    (0.7, 0.4, 0.03),
)
BLACK: Color = (0.02, 0.02, 0.02)
STEEL: Color = (0.4, 0.4, 0.42)

# Body measures as fractions of height, from standard anthropometric tables, rounded.
HIP, KNEE, SHOULDER, NECK, HEAD = 0.52, 0.285, 0.815, 0.855, 0.935
THIGH, SHIN, UPPER_ARM, FOREARM = HIP - KNEE, KNEE - 0.04, 0.172, 0.157


@dataclass(frozen=True)
class Look:
    """Build and clothes of one person.

    Attributes:
        height: metres.
        girth: width over that of an average body.
        skin, hair, top, bottom, shoe: linear albedo.
        style: "trousers", "shorts", "skirt" or "coat".
        long_sleeves: the forearm wears the top's colour.
        cover: "hair", "hat", "hood" or "helmet".
        bag: "none", "backpack" or "handbag".
        bag_color: linear albedo; also the bicycle's frame.
    """

    height: float
    girth: float
    skin: Color
    hair: Color
    top: Color
    bottom: Color
    shoe: Color
    style: str
    long_sleeves: bool
    cover: str
    bag: str
    bag_color: Color


def _pick(rng: np.random.Generator, colors: tuple[Color, ...], spread: float = 0.25) -> Color:
    base = np.array(colors[int(rng.integers(len(colors)))]) * rng.uniform(1 - spread, 1 + spread)
    red, green, blue = np.clip(base + rng.uniform(-0.02, 0.02, 3), 0.01, 0.9).tolist()
    return red, green, blue


def random_look(rng: np.random.Generator, rider: bool) -> Look:
    """Return a person drawn at random; riders wear helmets more often than not and never coats."""
    child = not rider and rng.random() < 0.12
    style = str(
        rng.choice(["trousers", "shorts"] if rider else ["trousers", "trousers", "trousers", "shorts", "skirt", "coat"])
    )
    cover = str(rng.choice(["helmet", "helmet", "hair"] if rider else ["hair", "hair", "hair", "hat", "hood"]))
    return Look(
        height=float(rng.uniform(1.15, 1.42) if child else rng.normal(1.72, 0.08)),
        girth=float(rng.uniform(0.9, 1.22)),
        skin=_pick(rng, SKINS, 0.15),
        hair=_pick(rng, FRAMES if cover == "helmet" else HAIRS),
        top=_pick(rng, TOPS),
        bottom=_pick(rng, BOTTOMS),
        shoe=_pick(rng, ((0.03, 0.03, 0.03), (0.6, 0.6, 0.58), (0.2, 0.1, 0.05))),
        style=style,
        long_sleeves=bool(rng.random() < 0.65),
        cover=cover,
        bag=str(rng.choice(["none", "none", "backpack"] if rider else ["none", "none", "backpack", "handbag"])),
        bag_color=_pick(rng, FRAMES),
    )


def _swing(angle: float) -> Array:
    """Return the unit vector hanging down, turned forward by ``angle`` (rad)."""
    return np.array([np.sin(angle), 0.0, -np.cos(angle)])


def _joint(start: Array, goal: Array, first: float, second: float, bend: Array) -> Array:
    """Return the middle joint of two rods of given lengths from ``start`` to ``goal``, bent towards ``bend``."""
    span = goal - start
    distance = min(float(np.linalg.norm(span)), first + second - 1e-4)
    direction = span / np.linalg.norm(span)
    along = (first**2 - second**2 + distance**2) / (2 * distance)
    aside = bend - direction * (bend @ direction)
    return start + direction * along + aside / np.linalg.norm(aside) * np.sqrt(max(first**2 - along**2, 0.0))


def _leg(look: Look, hip: Array, knee: Array, ankle: Array, toe: Array) -> list[Limb]:
    scale, cloth = look.height * look.girth, Material.CLOTH
    bare = look.style in ("shorts", "skirt")
    shin_color, shin_material = (look.skin, Material.SKIN) if bare else (look.bottom, cloth)
    thigh_color = look.skin if look.style == "skirt" else look.bottom
    return [
        Limb(hip, knee, 0.050 * scale, 0.037 * scale, thigh_color, cloth),
        Limb(knee, ankle, 0.036 * scale, 0.026 * scale, shin_color, shin_material),
        Limb(ankle + (toe - ankle) * -0.25, toe, 0.026 * look.height, 0.021 * look.height, look.shoe, cloth),
    ]


def _arm(look: Look, shoulder: Array, elbow: Array, hand: Array) -> list[Limb]:
    scale = look.height * look.girth
    fore = (look.top, Material.CLOTH) if look.long_sleeves else (look.skin, Material.SKIN)
    wrist = elbow + (hand - elbow) * 0.86
    return [
        Limb(shoulder, elbow, 0.033 * scale, 0.026 * scale, look.top, Material.CLOTH),
        Limb(elbow, wrist, 0.025 * scale, 0.018 * scale, fore[0], fore[1]),
        Limb(wrist, hand, 0.020 * look.height, 0.019 * look.height, look.skin, Material.SKIN),
    ]


def _head(look: Look, neck: Array, up: Array) -> list[Limb]:
    """Return neck, head and what is on it; ``up`` points from neck to crown."""
    size, middle = look.height, neck + up * 0.066 * look.height
    parts = [
        Limb(neck - up * 0.03 * size, middle, 0.031 * size, 0.031 * size, look.skin, Material.SKIN),
        Limb(
            middle - up * 0.022 * size,
            middle + up * 0.026 * size,
            0.040 * size,
            0.045 * size,
            look.skin,
            Material.SKIN,
            1.18,
        ),
    ]
    crown = middle + up * 0.034 * size - np.array([0.010 * size, 0, 0])
    reach = {"hair": 0.049, "hat": 0.053, "hood": 0.062, "helmet": 0.060}[look.cover] * size
    color = look.top if look.cover == "hood" else look.hair
    parts.append(Limb(crown, crown + up * 0.014 * size, reach, reach * 0.86, color, Material.CLOTH, 1.15))
    if look.cover == "hat":
        parts.append(Limb(crown - up * 0.004, crown + up * 0.004, 0.08 * size, 0.08 * size, color, Material.CLOTH, 1.1))
    if look.cover == "hood":
        parts.append(Limb(neck - [0.03, 0, 0], crown - [0.02, 0, 0], 0.05 * size, 0.055 * size, color, Material.CLOTH))
    return parts


def _trunk(look: Look, hip: Array, neck: Array) -> list[Limb]:
    """Return pelvis, chest and shoulders; a coat or a skirt hangs from the hip."""
    scale, up = look.height * look.girth, (neck - hip) / np.linalg.norm(neck - hip)
    waist, chest = hip + (neck - hip) * 0.28, hip + (neck - hip) * 0.74
    parts = [
        Limb(hip - up * 0.02, waist, 0.088 * scale, 0.082 * scale, look.bottom, Material.CLOTH, 0.72),
        Limb(waist - up * 0.03, chest, 0.082 * scale, 0.104 * scale, look.top, Material.CLOTH, 0.66),
        Limb(chest, neck - up * 0.045 * look.height, 0.104 * scale, 0.080 * scale, look.top, Material.CLOTH, 0.64),
    ]
    if look.style in ("skirt", "coat"):
        color, reach = (look.bottom, 0.25) if look.style == "skirt" else (look.top, 0.27)
        hem = hip - np.array([0, 0, reach * look.height])
        parts.append(Limb(waist, hem, 0.086 * scale, 0.118 * scale, color, Material.CLOTH, 0.82))
    if look.bag == "backpack":
        low, high = hip + up * 0.10 - [0.13 * scale, 0, 0], chest - [0.12 * scale, 0, 0]
        parts.append(Limb(low, high, 0.082 * scale, 0.075 * scale, look.bag_color, Material.CLOTH, 0.6))
    return parts


def pedestrian_mesh(look: Look, phase: float, stride: float, gesture: float, sides: int = 7) -> Mesh:
    """Return a standing or walking person.

    Args:
        look: build and clothes.
        phase: of the gait, rad.
        stride: 0 standing .. 1 walking briskly.
        gesture: 0 arms down .. 1 right hand raised to the face, as with a phone.
        sides: faces around a limb.

    Returns:
        About 550 faces with seven sides, metres, facing +x, the lower foot on z = 0.
    """
    size, swing = look.height, 0.46 * stride * np.sin(phase)
    hip = np.array([0.0, 0.0, HIP * size])
    neck = hip + np.array([0.05 * stride, 0, 1.0]) * (NECK - HIP) * size
    parts = _trunk(look, hip, neck) + _head(look, neck, np.array([0.06, 0, 1.0]))
    for side, lead in ((-1, swing), (1, -swing)):
        lift = 0.75 * stride * max(0.0, float(np.cos(phase if side < 0 else phase + np.pi)))
        root = hip + np.array([0, side * (0.052 + 0.012 * (1 - stride)) * size, -0.01])
        knee = root + _swing(lead + 0.25 * lift) * THIGH * size
        ankle = knee + _swing(lead - lift * 0.9 - 0.04) * SHIN * size
        parts += _leg(look, root, knee, ankle, ankle + np.array([0.115 * size, side * 0.02, -0.022 * size]))
        shoulder = neck + np.array([0, side * 0.103 * size * look.girth, (SHOULDER - NECK) * size])
        raised = gesture if side < 0 else 0.0
        elbow = shoulder + (_swing(-lead * 0.8 + 0.25 * raised) + np.array([0, side * 0.16, 0])) * UPPER_ARM * size
        bend = -lead * 0.8 + 0.25 + 0.3 * stride + 1.9 * raised
        hand = elbow + (_swing(bend) + np.array([0, side * (0.05 - 0.3 * raised), 0])) * FOREARM * size
        parts += _arm(look, shoulder, elbow, hand)
        if look.bag == "handbag" and side > 0:
            parts.append(Limb(hand - [0, 0, 0.1], hand - [0, 0, 0.28], 0.11, 0.13, look.bag_color, Material.CLOTH, 0.8))
    body = limbs(parts, sides)
    return body.placed(0.0, (0, 0, -float(body.bounds()[0][2])))


REAR_HUB, FRONT_HUB = np.array([-0.45, 0, 0.34]), np.array([0.60, 0, 0.34])
CRANK, SADDLE, HEAD_TUBE = np.array([-0.02, 0, 0.29]), np.array([-0.20, 0, 0.90]), np.array([0.42, 0, 0.86])
BAR = np.array([0.46, 0, 1.02])
WHEEL_RADIUS = 0.34


@lru_cache(maxsize=512)
def _bicycle(frame: Color, sides: int) -> Mesh:
    """Return a bicycle without a rider; its wheels look the same however far it rolled."""

    def tube(start: Array, end: Array, radius: float, color: Color = frame) -> Limb:
        return Limb(start, end, radius, radius, color, Material.METAL)

    half_bar, half_saddle, half_axle = np.array([0, 0.27, 0]), np.array([0.12, 0, 0]), np.array([0, 0.02, 0])
    rods = [
        tube(CRANK, SADDLE - [0, 0, 0.08], 0.022), tube(CRANK, HEAD_TUBE - [0, 0, 0.08], 0.026),
        tube(SADDLE - [-0.02, 0, 0.14], HEAD_TUBE, 0.022), tube(CRANK, REAR_HUB, 0.016),
        tube(SADDLE - [-0.02, 0, 0.14], REAR_HUB, 0.014), tube(HEAD_TUBE, FRONT_HUB, 0.020),
        tube(HEAD_TUBE, BAR, 0.018, BLACK), tube(BAR - half_bar, BAR + half_bar, 0.017, BLACK),
        Limb(SADDLE - half_saddle, SADDLE + half_saddle, 0.07, 0.03, BLACK, Material.PLASTIC),
        Limb(CRANK - half_axle, CRANK + half_axle, 0.09, 0.09, STEEL, Material.METAL),
    ]  # fmt: skip
    corners = 9 + sides
    angle = np.arange(corners) * 2 * np.pi / corners
    wheel = np.stack([np.cos(angle), np.zeros(corners), np.sin(angle)], 1)
    shape = ((0.018, 1.0), (0.018, 0.90), (-0.018, 0.90), (-0.018, 1.0), (0.018, 1.0))
    wheels = []
    for hub in (REAR_HUB, FRONT_HUB):
        rings = np.stack([hub + wheel * WHEEL_RADIUS * scale + [0, y, 0] for y, scale in shape])
        wheels.append(loft(rings, BLACK, Material.RUBBER, caps=False))
        if sides >= 6:
            wheels.append(_spokes(hub))
    return merge([limbs(rods, min(sides, 4)), *wheels])


def _spokes(hub: Array) -> Mesh:
    turn = 0.3 + np.arange(4) * np.pi / 4
    reach = np.stack([np.cos(turn), np.zeros(4), np.sin(turn)], 1) * WHEEL_RADIUS * 0.92
    thick = np.stack([-np.sin(turn), np.zeros(4), np.cos(turn)], 1) * 0.006
    corners = [[h - r - t, h + r - t, h + r + t, h - r + t] for h, r, t in zip([hub] * 4, reach, thick)]
    return merge([quad(np.array(spoke), STEEL, Material.METAL) for spoke in corners])


def cyclist_mesh(look: Look, phase: float, lean: float, sides: int = 7) -> Mesh:
    """Return a rider on a bicycle, one object as in the data sets.

    Args:
        look: build and clothes of the rider; ``bag_color`` paints the frame.
        phase: of the pedals, rad.
        lean: 0 upright .. 1 bent over the handlebar.
        sides: faces around a limb.

    Returns:
        About 1,100 faces with seven sides, metres, facing +x, tyres on z = 0.
    """
    size = look.height
    hip = SADDLE + np.array([0.0, 0, 0.09])
    back = np.array([0.45 + 0.35 * lean, 0, 1.0])
    neck = hip + back / np.linalg.norm(back) * (NECK - HIP) * size
    parts = _trunk(look, hip, neck) + _head(look, neck, np.array([0.25, 0, 0.97]))
    for side, turn in ((-1, phase), (1, phase + np.pi)):
        pedal = CRANK + np.array([0.165 * np.cos(turn), side * 0.11, 0.165 * np.sin(turn)])
        root = hip + np.array([0, side * 0.05 * size, -0.02])
        ankle = pedal + np.array([-0.07, 0, 0.07])
        knee = _joint(root, ankle, THIGH * size * 1.02, SHIN * size * 1.02, np.array([1.0, 0, 0.4]))
        parts += _leg(look, root, knee, ankle, pedal + np.array([0.09, 0, 0.01]))
        grip = BAR + np.array([-0.02, side * 0.25, 0.02])
        shoulder = neck + np.array([0.0, side * 0.10 * size * look.girth, -0.035 * size])
        elbow = _joint(shoulder, grip, UPPER_ARM * size, FOREARM * size, np.array([-0.3, side * 0.6, -0.8]))
        parts += _arm(
            look,
            shoulder,
            elbow,
            elbow + (grip - elbow) * min(1.0, FOREARM * size / float(np.linalg.norm(grip - elbow))),
        )
    return merge([limbs(parts, sides), _bicycle(look.bag_color, sides)])
