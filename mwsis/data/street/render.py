"""What a camera records: shaded, textured, noisy JPEG images, and which thing each pixel shows.

One ray through each pixel's middle decides what the pixel shows; where the picture has edges, two more rays soften
its colour. Light: sun with shadows, sky, near occlusion, gloss, glass, haze; then lens and sensor. Next: `truth.py`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mwsis.core.geometry import CameraModel
from mwsis.data.street.materials import GLOSS, Material
from mwsis.data.street.rays import STEP_PAST, Hits
from mwsis.data.street.scene import World
from mwsis.data.street.shapes import Array
from mwsis.data.street.sky import ambient, sky
from mwsis.data.street.textures import Spots, albedo

__all__ = ["JPEG_QUALITY", "Aim", "CameraRays", "Picture", "encode_jpeg", "render", "render_aimed"]

JPEG_QUALITY = 92
EDGE_CONTRAST = 0.15
"""Pixels that differ from a neighbour by more than this (display range 0..1) get two more rays."""
SUBPIXELS = ((-0.30, -0.24), (0.30, 0.24))
NEAR_SHADE, NEAR_REACH = 0.55, 1.1
"""How much of the sky's light is lost where a ray of this length (m) finds something close by."""
NEAR_LIMIT = 45.0
"""Beyond this distance nearness no longer shows, metres."""
INSIDE_OPENNESS = np.float32(0.6)
"""The same loss for what is seen through a car's windows."""


@dataclass(frozen=True, eq=False)
class CameraRays:
    """The rays of one camera, worked out once: undistorting a lens costs more than casting the rays.

    Attributes:
        width, height: pixels.
        origin: (3,) float64, vehicle frame.
        directions: (1 + 2, H * W, 3) float32, vehicle frame; first through pixel centres, then `SUBPIXELS`.
        vignette: (H, W) float32, brightness towards the corners.
    """

    width: int
    height: int
    origin: Array
    directions: Array
    vignette: Array

    @classmethod
    def build(cls, camera: CameraModel) -> CameraRays:
        """Return the rays of a camera."""
        row, column = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
        centres = torch.stack([column, row], -1).reshape(-1, 2).double() + 0.5
        sets = [camera.rays(centres + torch.tensor(offset, dtype=torch.float64)) for offset in ((0.0, 0.0), *SUBPIXELS)]
        directions = np.stack([direction.numpy() for _, direction in sets]).astype(np.float32)
        off_axis = ((centres - torch.tensor([camera.width, camera.height]) / 2) / camera.width).norm(dim=1)
        vignette = (1 - 0.55 * off_axis**2).reshape(camera.height, camera.width).numpy().astype(np.float32)
        return cls(camera.width, camera.height, sets[0][0].numpy(), directions, vignette)

    def columns(self, start: int, stop: int) -> CameraRays:
        """Return the rays of some columns, as of a narrower camera."""
        directions = self.directions.reshape(-1, self.height, self.width, 3)[:, :, start:stop].reshape(
            len(self.directions), -1, 3
        )
        return CameraRays(stop - start, self.height, self.origin, directions, self.vignette[:, start:stop])


@dataclass(frozen=True, eq=False)
class Aim:
    """Where the rays of a camera start and which way they go in the world: one pose for all, or one per pixel.

    Attributes:
        origin: (3,) or (N, 3) float32, metres.
        turn: (3, 3) or (N, 3, 3) float32, vehicle frame to world.
    """

    origin: Array
    turn: Array

    def turned(self, directions: Array, pixels: Array | None = None) -> Array:
        """Return (..., N, 3) directions of the vehicle frame in the world; they belong to ``pixels``, or to all."""
        if self.turn.ndim == 2:
            return np.asarray(directions @ self.turn.T)
        turn = self.turn if pixels is None else self.turn[pixels]
        return np.einsum("nij,...nj->...ni", turn, directions)


@dataclass(frozen=True, eq=False)
class Picture:
    """One image with what it shows.

    Attributes:
        rgb: (H, W, 3) uint8.
        entity: (H, W) int32, row of `World.entities` seen through the middle of each pixel, -1 sky.
        material: (H, W) uint8, `Material` of that; meaningless where there is sky.
    """

    rgb: Array
    entity: Array
    material: Array


def render(world: World, rays: CameraRays, rng: np.random.Generator) -> Picture:
    """Return the image a camera records; ``rng`` draws the sensor's noise."""
    turn = world.vehicle_to_world()
    origin = (world.ego_position + turn @ rays.origin).astype(np.float32)
    return render_aimed(world, rays, Aim(origin, turn.astype(np.float32)), rng)


def render_aimed(world: World, rays: CameraRays, aim: Aim, rng: np.random.Generator) -> Picture:
    """Return the image of a camera on a vehicle in any pose, or whose pose changes from pixel to pixel."""
    color, face, openness = _look(world, aim.origin, aim.turned(rays.directions[0]), (rays.height, rays.width))
    shown = _expose(color, world.weather.exposure)
    edge = _edges(shown.reshape(rays.height, rays.width, 3)).reshape(-1)
    if len(edge):
        origin = aim.origin if aim.origin.ndim == 1 else np.tile(aim.origin[edge], (len(SUBPIXELS), 1))
        beside = aim.turned(rays.directions[1:, edge], edge).reshape(-1, 3)
        more, _, _ = _look(world, origin, beside, np.tile(openness[edge], len(SUBPIXELS)))
        soft = _expose(more, world.weather.exposure).reshape(len(SUBPIXELS), -1, 3)
        shown[edge] = (shown[edge] + soft.sum(0)) / (1 + len(SUBPIXELS))
    image = shown.reshape(rays.height, rays.width, 3) * rays.vignette[..., None]
    noisy = image + rng.standard_normal(image.shape, np.float32) * (0.005 + 0.011 * np.sqrt(image))
    rgb = (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)
    entity = np.where(face >= 0, world.entity[face], -1).astype(np.int32)
    shape = (rays.height, rays.width)
    return Picture(rgb, entity.reshape(shape), world.mesh.materials[face].reshape(shape))


def encode_jpeg(rgb: Array) -> bytes:
    """Return an (H, W, 3) uint8 image as JPEG bytes."""
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _expose(color: Array, gain: float) -> Array:
    """Turn linear radiance into display values in 0..1 with a film-like curve, (N, 3) float32."""
    x = np.maximum(color * np.float32(gain * 0.68), 0)
    film = (
        x
        * (x * np.float32(2.51) + np.float32(0.03))
        / (x * (x * np.float32(2.43) + np.float32(0.59)) + np.float32(0.14))
    )
    return np.asarray(np.sqrt(np.minimum(film, 1.0)), np.float32)


def _edges(image: Array) -> Array:
    """Return the flat indices of pixels that differ much from the pixel to the right or below, or the other way."""
    edge = np.zeros(image.shape[:2], bool)
    across, down = edge[:, 1:].copy(), edge[1:].copy()
    for channel in np.moveaxis(image, 2, 0):
        across |= np.abs(np.diff(channel, axis=1)) > EDGE_CONTRAST
        down |= np.abs(np.diff(channel, axis=0)) > EDGE_CONTRAST
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return np.flatnonzero(edge)


def _look(
    world: World, origin: Array, directions: Array, openness: Array | tuple[int, int]
) -> tuple[Array, Array, Array]:
    """Return colour (N, 3), face (N,) and openness (N,) seen along rays; through car windows, what is behind them.

    ``openness`` is known, or is worked out for rays through an image of the given height and width.
    """
    hits = world.caster.cast(origin, directions)
    color, open_air = np.empty((len(directions), 3), np.float32), hits.face < 0
    color[open_air] = sky(world.weather, directions[open_air])
    on = np.flatnonzero(~open_air)
    if isinstance(openness, tuple):
        openness = _openness(world, origin, directions, hits, openness)
    color[on] = _shade(world, _of(origin, on), directions[on], hits, on, openness[on])
    glass = on[world.mesh.materials[hits.face[on]] == Material.GLASS]
    if len(glass):
        start = _of(origin, glass) + directions[glass] * (hits.distance[glass, None] + np.float32(STEP_PAST))
        beyond = world.caster.cast(start, directions[glass])
        seen, solid = np.empty((len(glass), 3), np.float32), np.flatnonzero(beyond.face >= 0)
        seen[beyond.face < 0] = sky(world.weather, directions[glass[beyond.face < 0]], detailed=False)
        dim = np.full(len(solid), INSIDE_OPENNESS, np.float32)
        seen[solid] = _shade(world, start[solid], directions[glass[solid]], beyond, solid, dim)
        color[glass] += seen * (np.float32(0.5) * np.array([0.82, 0.92, 0.90], np.float32))
    return color, hits.face, openness


def _of(origin: Array, chosen: Array) -> Array:
    """Return the origins of some rays: the one they share, or theirs."""
    return origin if origin.ndim == 1 else origin[chosen]


def _dot(left: Array, right: Array) -> Array:
    return np.asarray(np.einsum("nd,nd->n", left, right))


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.sqrt(_dot(vectors, vectors)), 1e-6)[:, None])


def _normals(world: World, directions: Array, hits: Hits, on: Array) -> Array:
    """Return smooth unit normals turned towards the viewer, (N, 3) float32."""
    normal = _unit(np.einsum("ncd,nc->nd", world.mesh.normals[hits.face[on]], hits.weights[on]))
    flat = hits.flat[on]
    turned = (_dot(flat, directions) > 0) != (_dot(flat, normal) < 0)
    return np.where(turned[:, None], -normal, normal)


def _shade(world: World, origin: Array, directions: Array, hits: Hits, on: Array, openness: Array) -> Array:
    """Return the colour of the hits numbered ``on``, (len(on), 3) float32; directions and openness are theirs."""
    weather, face, distance = world.weather, hits.face[on], hits.distance[on]
    position = origin + directions * distance[:, None]
    normal = _normals(world, directions, hits, on)
    material = world.mesh.materials[face]
    things = world.entities
    spots = Spots(
        material,
        world.mesh.colors[face],
        position,
        normal,
        world.entity[face],
        things.yaw,
        things.position,
        things.styles,
    )
    color, pane = albedo(spots, world.street, world.zebra)
    lit = _sunlight(world, position, normal)
    out = color * (ambient(weather, normal) * openness[:, None] + weather.sun_color * lit[:, None])
    gloss = np.where(pane, np.float32(0.55), GLOSS[material])
    shiny = np.flatnonzero(gloss > 0)
    if len(shiny):
        out[shiny] += _reflection(world, directions[shiny], normal[shiny], lit[shiny], gloss[shiny])
    clear = np.exp(-distance / np.float32(weather.haze))[:, None]
    return np.asarray(out * clear + (weather.horizon * np.float32(0.75)) * (1 - clear), np.float32)


def _sunlight(world: World, position: Array, normal: Array) -> Array:
    """Return the cosine of the sun's incidence where it shines, 0 in shadow, (N,) float32."""
    facing = np.maximum(normal @ world.weather.sun, 0).astype(np.float32)
    lit = np.flatnonzero(facing > 0)
    start = position[lit] + normal[lit] * np.float32(0.012)
    facing[lit[world.caster.blocked(start, world.weather.sun)]] = 0
    return facing


_NEAR_RAYS = np.array(
    [[0.82, 0.10, 0.56], [-0.44, 0.72, 0.54], [-0.38, -0.76, 0.53], [0.2, -0.3, 0.93]], np.float32
)  # fmt: skip


def _openness(world: World, origin: Array, directions: Array, hits: Hits, shape: tuple[int, int]) -> Array:
    """Return how little the sky is hidden by things close by, (N,) float32 in (1 - NEAR_SHADE)..1.

    Worked out for every other row and column of an image of this shape and repeated.
    """
    coarse = np.arange(shape[0] * shape[1]).reshape(shape)[::2, ::2]
    sample = coarse.reshape(-1)
    near = np.flatnonzero((hits.face[sample] >= 0) & (hits.distance[sample] < NEAR_LIMIT))
    sample = sample[near]
    normal = _normals(world, directions[sample], hits, sample)
    start = _of(origin, sample) + directions[sample] * hits.distance[sample, None] + normal * np.float32(0.015)
    hidden = np.zeros(coarse.size, np.float32)
    for ray in _NEAR_RAYS:
        hidden[near] += world.caster.blocked(start, _unit(ray + normal), NEAR_REACH)
    hidden = hidden.reshape(coarse.shape).repeat(2, 0).repeat(2, 1)[: shape[0], : shape[1]].reshape(-1)
    return 1 - np.float32(NEAR_SHADE / len(_NEAR_RAYS)) * hidden


def _reflection(world: World, directions: Array, normal: Array, lit: Array, gloss: Array) -> Array:
    """Return what shiny surfaces mirror: sky or street, stronger at grazing angles, and the sun's highlight."""
    along = _dot(directions, normal)[:, None]
    mirrored = directions - 2 * along * normal
    grazing = np.clip(1 + along[:, 0], 0, 1) ** 4
    strength = gloss * (0.25 + 0.75 * grazing)
    above = sky(world.weather, mirrored, detailed=False)
    street = world.weather.horizon * np.float32(0.22)
    image = np.where((mirrored[:, 2] > 0.12)[:, None], above, street)
    highlight = np.maximum(mirrored @ world.weather.sun, 0) ** 90 * (lit > 0) * gloss * 2.0
    return np.asarray(image * strength[:, None] + world.weather.sun_color * highlight[:, None], np.float32)
