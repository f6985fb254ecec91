"""Labels of plain arrays: the same as those of a data set's frame, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusion.label_arrays import BoxedCamera, label_points
from fusion.label_methods import LABEL_METHODS
from fusion.spatial_labels import CLASS_RADII
from mwsis.core.errors import ConfigError, DataError

BEAMS, COLUMNS = 32, 720
CAMERA_SE3_LIDAR = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
K = np.array([[300, 0, 200], [0, 300, 100], [0, 0, 1]])


def scene():
    """A vehicle 10 m ahead on flat ground, in front of a wall at 30 m: points, beams, what each point is on."""
    elevation, azimuth = np.meshgrid(
        np.deg2rad(np.linspace(4, -20, BEAMS)), 2 * np.pi * np.arange(COLUMNS) / COLUMNS - np.pi, indexing="ij"
    )
    ray = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)
    with np.errstate(divide="ignore"):
        ground = np.where(ray[..., 2] < 0, -1.8 / ray[..., 2], np.inf)
        wall = np.where(ray[..., 0] > 0, 30 / ray[..., 0], np.inf)
        front = np.where(ray[..., 0] > 0, 10 / ray[..., 0], np.inf)
    hit = front[..., None] * ray
    on_vehicle = np.isfinite(front) & (np.abs(hit[..., 1]) < 1) & (hit[..., 2] > -1.8) & (hit[..., 2] < -0.2)
    distance = np.where(on_vehicle, front, np.minimum(ground, wall))
    seen = distance < 60
    ring = np.broadcast_to(np.arange(BEAMS)[:, None], seen.shape)
    return (distance[..., None] * ray)[seen], ring[seen], on_vehicle[seen]


def vehicle_camera(**given):
    values = {
        "intrinsics": K,
        "camera_SE3_lidar": CAMERA_SE3_LIDAR,
        "size": (400, 220),
        "boxes": [[169.0, 105.0, 231.0, 155.0]],
        "labels": [0],
    }
    return BoxedCamera(**{**values, **given})


def test_a_vehicle_is_told_from_the_ground_and_the_wall_in_its_box():
    xyz, ring, on_vehicle = scene()
    labels = label_points(xyz, [vehicle_camera()], beams=BEAMS, columns=COLUMNS, ring=ring)
    assert on_vehicle.sum() > 100
    found = (labels.semantic_labels == 0).numpy()
    assert (found & ~on_vehicle).sum() == 0
    assert (found & on_vehicle).sum() > 0.9 * on_vehicle.sum()  # all but the beam that grazes the ground
    assert labels.instance_ids[found].unique().tolist() == [0]
    frustum = label_points(xyz, [vehicle_camera()], beams=BEAMS, columns=COLUMNS, ring=ring, method="frustum")
    assert (frustum.semantic_labels == 0).sum() > found.sum()


def test_forms_of_the_same_arrays_give_the_same():
    xyz, ring, _ = scene()
    first = label_points(xyz, [vehicle_camera()], beams=BEAMS, columns=COLUMNS, ring=ring)
    wide = torch.from_numpy(np.concatenate([xyz, np.zeros((len(xyz), 2))], 1)).float()
    K_half = K + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    other = vehicle_camera(
        intrinsics=np.pad(K_half, (0, 1)), pixel_centre=0.5, boxes=np.float64([[169, 105, 231, 155]])
    )
    second = label_points(wide, [other], beams=BEAMS, columns=COLUMNS, ring=torch.from_numpy(ring.copy()))
    assert torch.equal(first.semantic_labels, second.semantic_labels)
    assert torch.equal(first.instance_ids, second.instance_ids)


def test_without_beams_and_without_boxes():
    xyz, _, on_vehicle = scene()
    labels = label_points(xyz, [vehicle_camera()], beams=BEAMS, columns=COLUMNS)
    assert ((labels.semantic_labels == 0).numpy() & on_vehicle).sum() > 0.9 * on_vehicle.sum()
    nothing = label_points(xyz, [vehicle_camera(boxes=[], labels=[])], beams=BEAMS, columns=COLUMNS)
    assert not bool((nothing.semantic_labels >= 0).any())
    assert len(label_points(xyz[:0], [vehicle_camera()], beams=BEAMS, columns=COLUMNS)) == 0


@pytest.mark.parametrize(
    ("given", "camera", "says"),
    [
        ({"xyz": np.zeros((4, 2))}, {}, "xyz: expected at least 3 columns, got 2"),
        ({"xyz": np.full((4, 3), np.nan)}, {}, "xyz: expected finite"),
        ({"ring": np.full(4, BEAMS)}, {}, "ring: expected -1 to 31, got 32"),
        ({"ring": np.zeros(5)}, {}, r"ring: expected shape \(4,\), got \(5,\)"),
        ({"ring": np.full(4, 0.5)}, {}, "ring: expected whole numbers, got 0.5"),
        ({}, {"labels": [0.5]}, r"cameras\[0\].labels: expected whole numbers, got 0.5"),
        ({}, {"labels": [3]}, r"cameras\[0\].labels: expected -1 to 2, a place in kinds, got 3 to 3"),
        ({"kinds": ["vehicle"]}, {"labels": [1]}, r"cameras\[0\].labels: expected -1 to 0, a place in kinds, got 1"),
        ({}, {"boxes": [[1.0, 2.0, 3.0]]}, r"cameras\[0\].boxes: expected shape \('any', 4\), got \(1, 3\)"),
        ({}, {"labels": [0, 1]}, r"cameras\[0\].labels: expected shape \(1,\), got \(2,\)"),
        ({}, {"boxes": [[5.0, 2.0, 3.0, 4.0]]}, "x1 < x2"),
        ({}, {"camera_SE3_lidar": np.eye(3)}, r"camera_SE3_lidar: expected shape \(4, 4\)"),
        ({}, {"intrinsics": np.eye(2)}, r"intrinsics: expected at least \(3, 3\), got \(2, 2\)"),
    ],
)
def test_wrong_arrays_are_named(given, camera, says):
    values = {"xyz": np.ones((4, 3)), "beams": BEAMS, "columns": COLUMNS, **given}
    with pytest.raises(DataError, match=says):
        label_points(cameras=[vehicle_camera(**camera)], **values)


@pytest.mark.parametrize("method", LABEL_METHODS)
def test_what_a_class_is_like_decides_not_its_number(method):
    xyz, ring, _ = scene()
    common = {"beams": BEAMS, "columns": COLUMNS, "ring": ring, "method": method}
    first = label_points(xyz, [vehicle_camera()], **common)
    second = label_points(xyz, [vehicle_camera(labels=[2])], kinds=["pedestrian", "cyclist", "vehicle"], **common)
    assert int((first.semantic_labels == 0).sum()) > 0
    assert torch.equal(first.semantic_labels == 0, second.semantic_labels == 2)
    assert torch.equal(first.instance_ids, second.instance_ids)


def test_no_such_labels_or_kinds():
    with pytest.raises(ConfigError, match="kinds: no 'car'"):
        label_points(np.ones((4, 3)), [vehicle_camera()], beams=BEAMS, columns=COLUMNS, kinds=["car"])
    with pytest.raises(ConfigError, match="method=spq: no such labels"):
        label_points(np.ones((4, 3)), [vehicle_camera()], beams=BEAMS, columns=COLUMNS, method="spq")


@pytest.mark.parametrize("method", LABEL_METHODS)
def test_a_real_frame_as_arrays_has_the_labels_of_the_frame(method):
    from mwsis.data.kitti import KittiSource
    from tests.fusion.test_published_labels import KITTI_MINI

    if not KITTI_MINI.is_dir():
        pytest.skip(f"no real frames at {KITTI_MINI}; set MWSIS_SHARED")
    source = KittiSource(str(KITTI_MINI))
    frame = source.read(source.frame_ids("val")[0])
    camera = frame.cameras[0].camera
    fx, fy, cx, cy = camera.intrinsics.tolist()
    boxed = BoxedCamera(
        np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
        camera.camera_SE3_vehicle,
        (camera.width, camera.height),
        frame.cameras[0].labels.boxes,
        frame.cameras[0].labels.labels,
        pixel_centre=0.5,
    )
    chosen = LABEL_METHODS[method]
    expected = chosen.recipe(frame, chosen.segments(frame), CLASS_RADII)
    got = label_points(
        frame.points.xyz,
        [boxed],
        beams=frame.lidar.num_rings,
        columns=frame.lidar.num_columns,
        ring=frame.points.ring,
        method=method,
    )
    assert torch.equal(got.semantic_labels, expected.semantic_labels)
    assert torch.equal(got.instance_ids, expected.instance_ids)
