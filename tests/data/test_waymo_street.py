"""Street segments as Waymo records: the geometry of what is recorded is that of what was there."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import torch

from mwsis.data.street.rays import PairCaster, RayCaster
from mwsis.data.street.scene import make_scene
from mwsis.data.waymo.camera import camera_model
from mwsis.data.waymo.record import CameraName, LidarName
from mwsis.data.waymo.street_motion import SPIN_SECONDS, column_times
from tests.data.waymo_street_frames import decoded, lidar_of

LIDARS = [name for name in LidarName if name != LidarName.UNKNOWN]
ROAD = 18


def test_range_images_decode_to_what_was_hit(near, frame, far):
    for (segment, each), limit in (((near, frame), 1e-4), (far, 1e-2)):
        for index, least in ((0, 100), (1, 0)):
            for name in LIDARS:
                points, hits, *_ = decoded(segment, each, name, index)
                assert len(points) >= least, name
                assert len(points) == 0 or np.abs(points - hits).max() < limit
            top, hits, *_ = decoded(segment, each, LidarName.TOP, index)
            assert len(top) > 100


def test_without_pixel_poses_moving_top_is_far_off(near, frame):
    assert not near.scene.plan.crossing
    assert near.scene.plan.ego_speed >= 5
    points, hits, *_ = decoded(near, frame, LidarName.TOP, 0, use_pose=False)
    off = np.linalg.norm(points - hits, axis=1)
    assert off.max() > 0.2
    assert off.mean() > 0.1


def to_street(segment, frame, points):
    pose = segment.motion.street_SE3_vehicle(np.array([frame.stage.middle]))[0]
    return points @ pose[:3, :3].T + pose[:3, 3]


def test_points_lie_on_the_surfaces_of_their_time(near, frame):
    """A short ray along the beam, from half a metre before the point, ends at the point."""
    points, _, _, columns = decoded(near, frame, LidarName.TOP, 0)
    points, slices = to_street(near, frame, points), frame.stage.slice_of(column_times(256))[columns]
    mounted = lidar_of(frame.record, LidarName.TOP).vehicle_SE3_lidar
    times = frame.stage.start + column_times(256)
    sensors = (near.motion.street_SE3_vehicle(times) @ mounted)[:, :3, 3][columns]
    ahead = (points - sensors) / np.linalg.norm(points - sensors, axis=1, keepdims=True)
    off = np.full(len(points), np.inf)
    for index in range(8):
        own = slices == index
        caster = frame.stage.world(frame.stage.slice_time(index)).caster
        hits = caster.cast(points[own] - 0.5 * ahead[own], ahead[own])
        off[own] = np.where(hits.face >= 0, np.abs(hits.distance - 0.5), np.inf)
    assert np.median(off) < 1e-4
    assert (off < 3e-3).mean() > 0.93  # the others were met by the edge of the beam, or lie behind a pane


def test_points_of_an_object_lie_in_its_box_at_their_time(near, frame):
    pose = near.motion.street_SE3_vehicle(np.array([frame.stage.middle]))[0]
    moving = 0
    for name, index in product((LidarName.TOP, LidarName.FRONT, LidarName.SIDE_LEFT), (0, 1)):
        points, _, rows, columns = decoded(near, frame, name, index)
        entity = frame.sweeps[name].entity[index][rows, columns] - frame.stage.num_props
        delays = column_times(256)[columns] if name == LidarName.TOP else np.full(len(points), SPIN_SECONDS / 2)
        for point, actor, delay in zip(points[entity >= 0], entity[entity >= 0], delays[entity >= 0], strict=True):
            box = frame.stage.box(actor, frame.stage.start + delay, pose)
            cos, sin = np.cos(box[6]), np.sin(box[6])
            x, y, z = point - box[:3]
            local = np.abs([x * cos + y * sin, y * cos - x * sin, z])
            assert (local < box[3:6] / 2 + 0.12 + 0.003 * np.linalg.norm(point)).all()
            moving += frame.stage.actors[actor].path.speed > 3
    assert moving > 20


def test_road_points_lie_on_the_road(near, frame):
    street = near.scene.street
    points, _, rows, columns = decoded(near, frame, LidarName.TOP, 0)
    labels = lidar_of(frame.record, LidarName.TOP).returns[0].segmentation[rows, columns]
    x, y, z = to_street(near, frame, points)[labels[:, 1] == ROAD].T
    assert len(x) > 200
    height = z - street.relief(x, y - street.centre(x))
    assert np.median(np.abs(height)) < 2e-3
    assert np.quantile(np.abs(height), 0.95) < 0.02  # the others were met by the edge of the beam


def test_projections_are_those_of_the_camera_models(near, frame):
    record = frame.record
    cameras = {camera.name: camera_model(camera, record.world_SE3_vehicle) for camera in record.cameras}
    total = 0
    for name, index in product((LidarName.TOP, LidarName.SIDE_LEFT), (0, 1)):
        points, _, rows, columns = decoded(near, frame, name, index)
        recorded = lidar_of(record, name).returns[index].projection[rows, columns].reshape(-1, 2, 3)
        filled = np.zeros(len(points), np.int64)
        for number in sorted(cameras):
            uv, _, visible = cameras[number].project(torch.from_numpy(points))
            here = np.flatnonzero(visible.numpy() & (filled < 2))
            slot = recorded[here, filled[here]]
            sure = (np.abs(uv.numpy()[here] % 1 - 0.5) < 0.49).all(1)
            assert np.array_equal(slot[sure, 0], np.full(sure.sum(), number))
            assert np.array_equal(slot[sure, 1:], np.floor(uv.numpy()[here][sure]))
            filled[here] += 1
        assert not recorded[np.arange(2) >= filled[:, None]].any()
        total += (filled > 0).sum()
    assert total > 500


def test_images_show_what_the_rolling_shutter_projects(near, frame):
    """Random pixels: what their ray hits at their column's time projects back onto them, and is what they show."""
    rng, record = np.random.default_rng(0), frame.record
    street_SE3_vehicle = near.motion.street_SE3_vehicle(np.array([frame.stage.middle]))[0]
    for name in (CameraName.FRONT, CameraName.SIDE_RIGHT):
        exposure = frame.exposures[name]
        camera = next(each for each in record.cameras if each.name == name)
        delays, lens = exposure.lens.clock.column_times(camera.width), exposure.lens
        for column in rng.integers(0, camera.width, 12):
            time = frame.stage.start + delays[column]
            pose = near.motion.street_SE3_vehicle(np.array([time]))[0]
            world = frame.stage.world(frame.stage.slice_time(frame.stage.slice_of(delays[[column]])[0]))
            rays = lens.rays.columns(column, column + 1)
            origin, ahead = pose[:3, :3] @ rays.origin + pose[:3, 3], rays.directions[0] @ pose[:3, :3].T
            hits = world.caster.cast(origin, ahead)
            met = np.flatnonzero((hits.face >= 0) & (hits.distance < 60))
            same = exposure.entity[met, column] == world.entity[hits.face[met]]
            assert same.mean() > 0.95
            there = (origin + ahead[met] * hits.distance[met, None] - street_SE3_vehicle[:3, 3]) @ street_SE3_vehicle[
                :3, :3
            ]
            uv, _, _ = camera_model(camera, record.world_SE3_vehicle).project_unbounded(torch.from_numpy(there))
            still = replace(camera_model(camera, record.world_SE3_vehicle), shutter=None)
            assert np.abs(uv.numpy() - np.stack([np.full(len(met), column), met], 1) - 0.5).max() < 0.06
            if name == CameraName.SIDE_RIGHT:
                off = still.project_unbounded(torch.from_numpy(there))[0][:, 0].numpy() - column - 0.5
                assert np.abs(off).max() > 0.5


def test_missing_pixels_and_second_returns(frame, far):
    for record in (frame.record, far[1].record):
        for lidar in record.lidars:
            first, second = (image.values for image in lidar.returns)
            for values in (first, second):
                assert values.dtype == np.float32
                assert (values[values[..., 0] <= 0] == -1).all()
                assert set(np.unique(values[..., 3])) <= {-1.0, 1.0}
            both = second[..., 0] > 0
            assert (second[both, 0] > first[both, 0]).all()
            assert (first[both, 0] > 0).all()
        top = lidar_of(record, LidarName.TOP)
        assert 0.01 < (top.returns[1].values[..., 0] > 0).mean() < 0.3
        assert top.pixel_pose.shape == (16, 256, 6)
        assert [each.pixel_pose is None for each in record.lidars] == [each is not top for each in record.lidars]
        assert (np.diff(top.inclinations) > 0).all()
        assert np.ptp(np.diff(top.inclinations)) > 1e-3


def test_velocities_lead_from_pose_to_pose(near, frame):
    for camera in frame.record.cameras:
        middle = frame.stage.start + camera.pose_timestamp - frame.record.timestamp_micros / 1e6
        before, now, after = near.motion.world_SE3_vehicle(np.array([middle - 0.02, middle, middle + 0.02]))
        assert np.allclose(now, camera.world_SE3_vehicle, atol=1e-5)
        assert np.allclose(after[:3, 3] - before[:3, 3], 0.04 * camera.velocity[:3], atol=2e-3)
        turned = 0.04 * camera.velocity[3:]
        skew = np.array([[0, -turned[2], turned[1]], [turned[2], 0, -turned[0]], [-turned[1], turned[0], 0]])
        assert np.allclose(before[:3, :3].T @ after[:3, :3], np.eye(3) + skew, atol=2e-4)
        assert np.abs(turned).max() > 1e-4


def test_two_sets_of_triangles_are_hit_like_one():
    triangles = make_scene((5, 0, 2), 2).world(1).mesh.triangles
    count = len(triangles) // 3
    both = PairCaster(RayCaster(triangles[:count]), count, RayCaster(triangles[count:]))
    ahead = np.random.default_rng(0).normal(size=(2000, 3))
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    origin = np.array([0.0, -1.6, 1.5])
    one, two = RayCaster(triangles).cast(origin, ahead), both.cast(origin, ahead)
    assert np.mean(one.face == two.face) > 0.995
    assert np.allclose(one.distance[one.face >= 0], two.distance[one.face >= 0], atol=1e-3)
    blocked = both.blocked(np.broadcast_to(origin, ahead.shape), ahead, 20.0)
    assert np.array_equal(blocked, RayCaster(triangles).blocked(np.broadcast_to(origin, ahead.shape), ahead, 20.0))
