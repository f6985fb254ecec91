"""Projection while the vehicle moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mwsis.core.geometry import CameraModel, RollingShutter, ShutterDirection, box_corners, points_in_boxes3d
from tests.reference import waymo as slow

DIRECTIONS = [direction for direction in ShutterDirection if direction != ShutterDirection.UNKNOWN]
ROLLING = [direction for direction in DIRECTIONS if direction != ShutterDirection.GLOBAL]


def rotation(axis: list[float], angle: float) -> torch.Tensor:
    return torch.from_numpy(slow.rotation_about(np.array(axis) / np.linalg.norm(axis), angle))


def make_camera(direction: int = 2, offset: float = 0.0, speed: float = 1.0) -> CameraModel:
    """A camera that looks along +x of a vehicle at 13 m/s, turning; 200 x 120 px."""
    frame, vehicle = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    frame[:3, :3] = rotation([0.1, -0.05, 1.0], 0.8)
    frame[:3, 3] = torch.tensor([offset, -2 * offset, 30.0], dtype=torch.float64)
    vehicle[:3, :3] = frame[:3, :3] @ rotation([0.0, 0.2, 1.0], 0.02)
    vehicle[:3, 3] = frame[:3, 3] + torch.tensor([0.4, 0.3, 0.01], dtype=torch.float64)
    shutter = RollingShutter(
        direction=direction,
        start=-0.018,
        duration=0.044,
        world_SE3_vehicle=vehicle,
        velocity=torch.tensor([9.0, 9.5, 0.1, 0.02, -0.03, 0.5], dtype=torch.float64) * speed,
        world_SE3_frame=frame,
    )
    optical = torch.tensor([[0, -1.0, 0, 0.1], [0, 0, -1.0, 1.5], [1.0, 0, 0, -1.2], [0, 0, 0, 1]], dtype=torch.float64)
    intrinsics = torch.tensor([210.0, 208.0, 101.0, 59.0], dtype=torch.float64)
    distortion = torch.tensor([0.04, -0.3, 0.001, -0.0005, 0.0], dtype=torch.float64)
    return CameraModel(200, 120, intrinsics, distortion, optical, shutter)


def some_points(count: int = 60) -> torch.Tensor:
    spread = torch.rand(count, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return spread * torch.tensor([40.0, 12.0, 3.0]) + torch.tensor([5.0, -6.0, 0.0])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equals_trying_every_line(direction: int) -> None:
    camera = make_camera(direction)
    xyz = some_points()
    pixel_uv, _, visible = camera.project(xyz)
    shown = visible.nonzero()[:10, 0].tolist()
    assert len(shown) == 10
    expected = np.array([slow.project(camera, xyz[index].numpy()) for index in shown])
    np.testing.assert_allclose(pixel_uv[shown].numpy(), expected, atol=1e-3)


def test_motion_matters_and_direction_matters() -> None:
    """The slow twin would not notice if both ignored the shutter."""
    xyz = some_points()
    pixels = {direction: make_camera(direction).project(xyz) for direction in DIRECTIONS}
    both = torch.stack([visible for _, _, visible in pixels.values()]).all(0)
    still = make_camera(speed=0.0).project(xyz)[0]
    for direction in DIRECTIONS:
        assert float((pixels[direction][0] - still)[both].abs().max()) > 1
    for one, other in ((1, 3), (2, 4), (1, 2)):
        moved = (pixels[one][0] - pixels[other][0])[both].abs().max()
        assert float(moved) > 0.5, (one, other)


def test_a_vehicle_that_stands_where_the_frame_is_has_no_shutter() -> None:
    moving = make_camera(speed=0.0)
    assert moving.shutter is not None
    camera = replace(moving, shutter=replace(moving.shutter, world_SE3_vehicle=moving.shutter.world_SE3_frame))
    xyz = some_points()
    for got, wanted in zip(camera.project(xyz), replace(camera, shutter=None).project(xyz), strict=True):
        torch.testing.assert_close(got, wanted)


def test_25_km_from_the_origin_costs_nothing() -> None:
    xyz = some_points()
    near, far = (make_camera(offset=offset).project_unbounded(xyz)[0] for offset in (0.0, 25_000.0))
    assert float((near - far).abs().max()) < 1e-6


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rays_pass_through_what_is_projected(direction: int) -> None:
    camera = make_camera(direction, offset=25_000.0)
    xyz = some_points()
    pixel_uv, _, _ = camera.project_unbounded(xyz)
    visible = camera.project(xyz)[2]
    origin, ray = camera.rays(pixel_uv[visible])
    along = ((xyz[visible] - origin) * ray).sum(1, keepdim=True)
    assert float((origin + along * ray - xyz[visible]).norm(dim=1).max()) < 1e-4
    torch.testing.assert_close(ray.norm(dim=1), torch.ones(len(ray), dtype=torch.float64))


@pytest.mark.parametrize(("direction", "count"), [(1, 120), (2, 200), (3, 120), (4, 200)])
def test_line_times_run_with_the_shutter(direction: int, count: int) -> None:
    times = make_camera(direction).line_times()
    assert len(times) == count
    ordered = times if direction in (1, 2) else times.flip(0)
    half_line = 0.044 / count / 2
    assert float(ordered[0]) == pytest.approx(-0.018 + half_line)
    assert float(ordered[-1]) == pytest.approx(-0.018 + 0.044 - half_line)
    assert bool((ordered.diff() > 0).all())


def test_line_times_need_a_shutter() -> None:
    with pytest.raises(ValueError, match="rolling shutter"):
        replace(make_camera(), shutter=None).line_times()


def test_poses_are_those_of_the_slow_twin() -> None:
    camera = make_camera()
    assert camera.shutter is not None
    times = camera.line_times()[::40]
    poses = camera.shutter.pose_at(times)
    assert poses.shape == (5, 4, 4)
    for time, pose in zip(times.tolist(), poses, strict=True):
        np.testing.assert_allclose(pose.numpy(), slow.vehicle_pose(camera.shutter, time), atol=1e-12)


def test_to_vehicle_is_the_inverse_pose_and_from_vehicle_undoes_it() -> None:
    shutter = make_camera().shutter
    assert shutter is not None
    xyz, time = some_points(), torch.linspace(-0.05, 0.05, 60, dtype=torch.float64)
    moved = shutter.to_vehicle(xyz, time)
    ones = torch.ones(60, 1, dtype=torch.float64)
    world = torch.cat([xyz, ones], 1) @ shutter.world_SE3_frame.T
    expected = torch.linalg.solve(shutter.pose_at(time), world[..., None])[:, :3, 0]
    torch.testing.assert_close(moved, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(shutter.from_vehicle(moved, time), xyz, atol=1e-9, rtol=0)


def test_what_distortion_does_not_reach_lies_outside_in_its_direction() -> None:
    camera = replace(make_camera(), shutter=None, distortion=torch.tensor([0.0, -0.5, 0, 0, 0], dtype=torch.float64))
    xyz = torch.tensor([[3.0, -6.0, 1.5], [3.0, 6.0, 1.5], [-5.0, 0.0, 1.0]], dtype=torch.float64)
    pixel_uv, _, trusted = camera.project_unbounded(xyz)
    assert not bool(trusted.any())
    assert float(pixel_uv[0, 0]) > 200  # to the right
    assert float(pixel_uv[1, 0]) < 0
    assert not bool(camera.project(xyz)[2].any())


def test_no_points() -> None:
    pixel_uv, depth, visible = make_camera().project(torch.zeros(0, 3))
    assert (len(pixel_uv), len(depth), len(visible)) == (0, 0, 0)


def test_box_corners_lie_on_the_box() -> None:
    boxes = torch.tensor([[10.0, 2.0, 1.0, 4.0, 2.0, 1.5, 0.7], [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, -2.0]]).double()
    corners = box_corners(boxes)
    assert corners.shape == (2, 8, 3)
    larger = boxes + torch.tensor([0, 0, 0, 1e-9, 1e-9, 1e-9, 0]).double()
    smaller = boxes - torch.tensor([0, 0, 0, 1e-9, 1e-9, 1e-9, 0]).double()
    for box in range(2):
        assert bool(points_in_boxes3d(corners[box], larger[box : box + 1]).all())
        assert not bool(points_in_boxes3d(corners[box], smaller[box : box + 1]).any())
    assert len(corners[0].unique(dim=0)) == 8
