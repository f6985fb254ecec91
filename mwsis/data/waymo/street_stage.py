"""The street during one turn of the LiDAR: what is near the recording car, at a few moments of the turn.

All sensors of a frame look at the same things; only their places change from moment to moment. Things that move keep
the shape (gait, pedals) they have in the middle of the turn, so that one 3D box fits them all through it.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from mwsis.data.street.actors import Actor
from mwsis.data.street.rays import PairCaster, RayCaster
from mwsis.data.street.scene import FRAME_SECONDS, Scene, Thing, World, still_thing
from mwsis.data.street.shapes import Array, Mesh, merge
from mwsis.data.waymo.street_motion import POSE_DELAY, SPIN_SECONDS

__all__ = ["Stage"]

DERIVATIVE_STEP = 0.05


class Stage:
    """What the sensors of one frame can see.

    Rows of `World.entities` are the same in all its worlds: first ``num_props`` things that are no objects, then
    ``actors``.

    Args:
        scene: the segment.
        start: the frame's timestamp, seconds.
        num_slices: moments into which the turn is cut; within one nobody but the recording car moves.
    """

    def __init__(self, scene: Scene, start: float, num_slices: int) -> None:
        self.scene, self.start, self.num_slices = scene, start, num_slices
        props, near = scene.near(self.middle / FRAME_SECONDS)
        near.sort(key=lambda pair: pair[0].path.speed > 0)
        self.num_props = len(props)
        self.actors: tuple[Actor, ...] = tuple(actor for actor, _ in near)
        self._own: list[Mesh] = [own for _, own in near]
        self._num_standing = sum(actor.path.speed <= 0 for actor in self.actors)
        standing = zip(self.actors[: self._num_standing], self._own)
        self._still: list[Thing] = [still_thing(prop) for prop in props]
        self._still += [scene.placed(actor, own, self.middle) for actor, own in standing]

    @property
    def middle(self) -> float:
        """The time of ``Frame.pose`` and of the labels."""
        return self.start + POSE_DELAY

    @cached_property
    def _still_mesh(self) -> Mesh:
        return merge([thing.mesh for thing in self._still])

    @cached_property
    def _still_caster(self) -> RayCaster:
        return RayCaster(self._still_mesh.triangles)

    def slice_of(self, delays: Array) -> Array:
        """Return which slice of the turn (N,) times after its start fall into, (N,) int64."""
        return np.clip(np.floor(delays / SPIN_SECONDS * self.num_slices).astype(np.int64), 0, self.num_slices - 1)

    def slice_time(self, index: int) -> float:
        """Return the moment that stands for a slice."""
        return self.start + (index + 0.5) / self.num_slices * SPIN_SECONDS

    def world(self, time: float) -> World:
        """Return everything at one moment; its ego pose is the street's own, level one, and unused here."""
        moving = [
            self.scene.placed(actor, own, time)
            for actor, own in zip(self.actors[self._num_standing :], self._own[self._num_standing :])
        ]
        yaw, position = self.scene.ego(time / FRAME_SECONDS)
        if not moving:
            return self.scene.world_of(self._still, self._still_mesh, self._still_caster, yaw, position)
        mesh = merge([thing.mesh for thing in moving])
        caster = PairCaster(self._still_caster, len(self._still_mesh), RayCaster(mesh.triangles))
        return self.scene.world_of([*self._still, *moving], merge([self._still_mesh, mesh]), caster, yaw, position)

    def box(self, row: int, time: float, street_SE3_vehicle: Array) -> Array:
        """Return the 3D box of ``actors[row]`` at a time, (7,) float64, in a vehicle frame."""
        actor, (low, high) = self.actors[row], self._own[row].bounds()
        heading, place = self.scene.street.place(*actor.path.at(time))
        cos, sin = np.cos(heading), np.sin(heading)
        middle = (low.astype(np.float64) + high) / 2
        centre = place + np.array([cos * middle[0] - sin * middle[1], sin * middle[0] + cos * middle[1], middle[2]])
        rotation = street_SE3_vehicle[:3, :3]
        ahead = np.array([cos, sin, 0.0]) @ rotation
        centre = (centre - street_SE3_vehicle[:3, 3]) @ rotation
        return np.array([*centre, *(high - low), np.arctan2(ahead[1], ahead[0])], np.float64)

    def motion(self, row: int, time: float) -> tuple[Array, Array]:
        """Return speed (m/s) and acceleration (m/s2) of ``actors[row]``, (3,) float64 each, in the street."""
        path, step = self.actors[row].path, DERIVATIVE_STEP
        times = (time - step, time, time + step)
        before, now, after = (np.array(self.scene.street.place(*path.at(each))[1]) for each in times)
        return (after - before) / (2 * step), (after - 2 * now + before) / step**2
