"""The pieces the street world is made of: rays, solids, sensors, paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mwsis.data.street.actors import Path
from mwsis.data.street.layout import plan_actors
from mwsis.data.street.materials import GLOSS, REFLECTIVITY, Material
from mwsis.data.street.people import cyclist_mesh, pedestrian_mesh, random_look
from mwsis.data.street.rays import RayCaster
from mwsis.data.street.render import CameraRays, render
from mwsis.data.street.rig import LidarRig, camera_rig
from mwsis.data.street.scene import make_scene
from mwsis.data.street.shapes import Limb, blob, box, limbs, merge
from mwsis.data.street.sweep import scan
from mwsis.data.street.vehicles import VEHICLES, vehicle_mesh
from tests.reference.raycast import first_hits


@pytest.fixture(scope="module")
def world():
    return make_scene((5, 0, 2), 2).world(1)


def test_rays_hit_what_the_slow_twin_hits():
    rng = np.random.default_rng(0)
    ball = blob((1.0, 0.7, 0.5), (4, 0, 0), (1, 1, 1), 0, rng, roughness=0.2)
    mesh = merge([ball, box((1, 1, 1), (6, 0.4, 0.1), (1, 1, 1), 0)])
    origins = rng.normal(0, 0.3, (60, 3))
    directions = np.array([1.0, 0, 0]) + rng.normal(0, 0.12, (60, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    hits = RayCaster(mesh.triangles).cast(origins, directions)
    faces, distances = first_hits(origins, directions, mesh.triangles.astype(np.float64))
    assert (hits.face >= 0).sum() > 20
    assert np.array_equal(hits.face >= 0, faces >= 0)
    hit = faces >= 0
    assert np.allclose(hits.distance[hit], distances[hit], atol=1e-4)
    corners = mesh.triangles[hits.face[hit]]
    assert np.allclose(
        (corners * hits.weights[hit][:, :, None]).sum(1),
        origins[hit] + directions[hit] * distances[hit, None],
        atol=1e-3,
    )


def test_shadow_rays_end_at_their_reach():
    caster = RayCaster(box((2, 2, 2), (5, 0, 0), (1, 1, 1), 0).triangles)
    origins, ahead = np.zeros((2, 3)), np.array([[1.0, 0, 0], [-1.0, 0, 0]])
    assert caster.blocked(origins, ahead).tolist() == [True, False]
    assert caster.blocked(origins, ahead, 3.5).tolist() == [False, False]
    assert caster.blocked(origins, ahead, 4.5).tolist() == [True, False]


def test_normals_are_unit_and_limbs_face_outward():
    rod = limbs([Limb(np.zeros(3), np.array([0, 0, 1.0]), 0.2, 0.1, (1, 1, 1), 0, 0.6)])
    assert np.allclose(np.linalg.norm(rod.normals, axis=2), 1, atol=1e-5)
    middle = np.array([0, 0, 0.5])
    assert ((rod.triangles - middle) * rod.normals).sum(-1).min() > -1e-5
    for kind in VEHICLES:
        assert np.allclose(np.linalg.norm(vehicle_mesh(kind).normals, axis=2), 1, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(VEHICLES))
def test_vehicles_have_wheels_glass_and_their_plan_s_size(kind):
    mesh, plan = vehicle_mesh(kind), VEHICLES[kind]
    low, high = mesh.bounds()
    assert np.allclose((high - low)[0], plan.length, atol=0.1)
    assert low[2] == pytest.approx(0, abs=0.01)
    assert (high - low)[1] < plan.width + 0.45
    for material in (Material.PAINT, Material.GLASS, Material.RUBBER, Material.LAMP):
        assert (mesh.materials == material).any()
    assert len(vehicle_mesh(kind, False)) < len(mesh) < 2000


def test_people_stand_on_the_ground_and_are_as_tall_as_they_look():
    rng = np.random.default_rng(1)
    for phase in np.linspace(0, 6, 8):
        look = random_look(rng, rider=False)
        low, high = pedestrian_mesh(look, phase, 1.0, 0.5).bounds()
        assert low[2] == pytest.approx(0, abs=1e-6)
        assert 0.9 * look.height < high[2] < 1.12 * look.height
        low, high = cyclist_mesh(random_look(rng, rider=True), phase, 0.5).bounds()
        assert -0.02 < low[2] < 0.02
        assert 1.4 < high[2] < 2.1
        assert 1.6 < (high - low)[0] < 2.0


def test_every_material_is_known_to_both_sensors():
    assert len(GLOSS) == len(REFLECTIVITY) == len(Material)


def test_who_crosses_turns_back_at_the_shore():
    for turn in (np.pi / 2, -np.pi / 2):
        path = Path(1.0, 3.0, turn, 1.2, 8.0)
        assert path.at(0.0) == pytest.approx((1.0, 3.0, turn))
        places = np.array([path.at(time) for time in np.arange(0, 60, 0.1)])
        assert np.abs(places[:, 1]).max() <= 8.0
        steps = np.diff(places[:, 1])
        assert np.abs(steps).max() == pytest.approx(0.12)
        assert (np.sign(steps) == np.sign(places[:-1, 2])).mean() > 0.97


def test_beams_are_dense_near_the_horizon():
    rig = LidarRig.build(64, 512)
    gaps = -np.diff(rig.inclinations)
    assert rig.inclinations[[0, -1]] == pytest.approx([0.0437, -0.3062])
    assert gaps[0] == pytest.approx(0.0028, abs=2e-4)
    assert gaps[-1] == pytest.approx(0.011, abs=5e-4)
    assert (np.diff(gaps) > 0).all()
    assert LidarRig.build(16, 32).directions().shape == (16 * 32, 3)


def test_cameras_cover_the_front_without_gaps():
    angles = torch.linspace(-112, 112, 225).deg2rad()
    xyz = torch.stack([angles.cos() * 30, angles.sin() * 30, torch.full_like(angles, 1.5)], 1)
    seen = torch.stack([camera.project(xyz)[2] for camera in camera_rig(384)])
    assert bool(seen.any(0).all())
    assert int(seen.sum(0).max()) == 2


def test_pixels_look_where_the_camera_model_says(world):
    camera = camera_rig(96)[0]
    rays = CameraRays.build(camera)
    assert np.allclose(np.linalg.norm(rays.directions, axis=2), 1, atol=1e-5)
    far = rays.origin + rays.directions[0].astype(np.float64) * 20
    pixel_uv, _, visible = camera.project(torch.from_numpy(far))
    row, column = np.divmod(np.arange(camera.width * camera.height), camera.width)
    inside = visible.numpy()
    assert inside.mean() > 0.99
    assert np.allclose(pixel_uv.numpy()[inside], np.stack([column, row], 1)[inside] + 0.5, atol=0.02)
    picture = render(world, rays, np.random.default_rng(0))
    assert picture.rgb.shape == (camera.height, camera.width, 3)
    assert (picture.entity >= -1).all()
    assert (picture.entity == -1).any()


def test_the_lidar_sees_through_car_windows(world):
    rig = LidarRig.build(64, 512)
    points = scan(world, rig, np.random.default_rng(0)).points
    turn = world.vehicle_to_world()
    origin = world.ego_position + turn @ rig.origin
    ahead = (points.xyz.numpy() - rig.origin) @ turn.T
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    hits = world.caster.cast(origin, ahead)
    pane_first = (hits.face >= 0) & (world.mesh.materials[hits.face] == Material.GLASS)
    beyond = pane_first & (points.ranges.numpy() > hits.distance + 0.3)
    glint = pane_first & (np.abs(points.ranges.numpy() - hits.distance) < 0.1)
    assert beyond.sum() > 50
    assert 0 < glint.sum() < 0.5 * beyond.sum()


def test_sensors_draw_their_noise_from_the_generator_alone(world):
    rig = LidarRig.build(16, 64)
    one, same, other = (scan(world, rig, np.random.default_rng(seed)).points.ranges for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert len(one) != len(other) or not torch.equal(one, other)


def test_instance_ids_are_unique_and_streets_of_both_kinds_occur():
    scenes = [make_scene((0, 0, segment), 2) for segment in range(6)]
    assert {scene.plan.crossing for scene in scenes} == {True, False}
    for scene in scenes:
        ids = [actor.instance_id for actor in scene.actors]
        assert ids == list(range(1, len(ids) + 1))
    again = plan_actors(scenes[0].plan, np.random.default_rng(7))
    assert [actor.path for actor in again] == [
        actor.path for actor in plan_actors(scenes[0].plan, np.random.default_rng(7))
    ]
