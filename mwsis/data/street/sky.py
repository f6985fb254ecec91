"""The sky seen along a direction: gradient, sun, clouds, a skyline far away; and the light it throws on surfaces.

Sunlight and shadows are worked out in `render.py`, which also mirrors this sky in paint and glass. What weather there
is belongs to the segment (`scene.Weather`).
"""

from __future__ import annotations

import numpy as np

from mwsis.data.street.scene import Weather
from mwsis.data.street.shapes import Array
from mwsis.data.street.textures import noise

__all__ = ["ambient", "sky"]


def sky(weather: Weather, direction: Array, *, detailed: bool = True) -> Array:
    """Return the sky's colour.

    Args:
        weather: the light.
        direction: (N, 3) float32 unit vectors, world frame; below the horizon the skyline goes on.
        detailed: with clouds and skyline; reflections do without.

    Returns:
        (N, 3) float32 linear radiance.
    """
    up = np.clip(direction[:, 2], 0.0, 1.0)
    blend = np.sqrt(up)[:, None]
    color = weather.horizon * (1 - blend) + weather.zenith * blend
    towards = np.clip(direction @ weather.sun, 0.0, 1.0)
    glow = 0.25 * towards**12 + 0.9 * towards**240
    if not detailed:
        return np.asarray(color + glow[:, None] * weather.sun_color * 0.5, np.float32)
    plane = direction[:, :2] / np.maximum(direction[:, 2:3] + 0.06, 0.04)
    cover = noise(plane[:, 0], plane[:, 1], 0.012) * 0.5 + noise(plane[:, 1], plane[:, 0], 0.05) * 0.5
    cloud = np.clip((cover + weather.clouds * 1.4 - 0.75) * 2.2, 0, 1) * np.clip(up * 9, 0, 1)
    white = 0.55 * weather.horizon + 0.22 * weather.sun_color + 0.12
    color = color + cloud[:, None] * 0.75 * (white - color) + glow[:, None] * weather.sun_color * 0.6
    azimuth = np.arctan2(direction[:, 1], direction[:, 0])
    block = noise(np.floor(azimuth * 34), np.zeros_like(azimuth), 1.0)
    ridge = 0.035 + 0.022 * block + 0.02 * noise(azimuth * 40, azimuth * 0, 1.0)
    far = (weather.horizon * 0.72 + weather.zenith * 0.12) * 0.85
    return np.asarray(np.where((direction[:, 2] < ridge)[:, None], far, color), np.float32)


def ambient(weather: Weather, normal: Array) -> Array:
    """Return the light of the whole sky and the ground's reflection on surfaces facing ``normal``, (N, 3) float32."""
    upward = (0.5 + 0.5 * normal[:, 2:3]).astype(np.float32)
    above = 0.45 * weather.horizon + 0.55 * weather.zenith + 0.06 * weather.sun_color
    below = 0.10 * (weather.sun_color * max(float(weather.sun[2]), 0.2) + above)
    return np.asarray(above * upward + below * (1 - upward), np.float32)
