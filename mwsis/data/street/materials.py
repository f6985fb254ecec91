"""What surfaces are made of, for the camera (gloss) and for the LiDAR (reflectivity, glass).

Colours belong to faces (`shapes.Mesh.colors`), patterns to `textures.py`. Next: `render.py`, `sweep.py`.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from mwsis.data.street.shapes import Array

__all__ = ["GLOSS", "REFLECTIVITY", "Material"]


class Material(IntEnum):
    """Surface kinds; the number is stored per face."""

    ASPHALT = 0
    PAVING = 1
    KERB = 2
    GRASS = 3
    FACADE = 4
    ROOF = 5
    PAINT = 6
    GLASS = 7
    RUBBER = 8
    METAL = 9
    PLASTIC = 10
    LAMP = 11
    PLATE = 12
    CLOTH = 13
    SKIN = 14
    BARK = 15
    LEAF = 16
    CARGO = 17


_GLOSS = {
    Material.PAINT: 0.30,
    Material.GLASS: 0.75,
    Material.METAL: 0.30,
    Material.LAMP: 0.25,
    Material.PLASTIC: 0.08,
    Material.CARGO: 0.10,
    Material.SKIN: 0.03,
    Material.LEAF: 0.03,
}
_REFLECTIVITY = {
    Material.ASPHALT: 0.12,
    Material.PAVING: 0.30,
    Material.KERB: 0.35,
    Material.GRASS: 0.40,
    Material.FACADE: 0.45,
    Material.ROOF: 0.30,
    Material.PAINT: 0.50,
    Material.GLASS: 0.06,
    Material.RUBBER: 0.06,
    Material.METAL: 0.55,
    Material.PLASTIC: 0.18,
    Material.LAMP: 0.90,
    Material.PLATE: 2.50,
    Material.CLOTH: 0.35,
    Material.SKIN: 0.45,
    Material.BARK: 0.25,
    Material.LEAF: 0.45,
    Material.CARGO: 0.60,
}

GLOSS: Array = np.array([_GLOSS.get(material, 0.0) for material in Material], np.float32)
"""Share of mirror-like reflection at normal incidence, by `Material`. Chosen by eye."""
REFLECTIVITY: Array = np.array([_REFLECTIVITY[material] for material in Material], np.float32)
"""LiDAR return strength at normal incidence, by `Material`; above 1 = retro-reflective. Chosen by eye."""
