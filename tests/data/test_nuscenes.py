"""nuScenes' tables: a made-up drive whose numbers can be told by hand, and the real key frame against its infos."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mwsis.core.errors import ConfigError, DataError
from mwsis.core.geometry import box_corners, se3_from_yaw, transform_points
from mwsis.core.instances import BACKGROUND, IGNORE
from mwsis.data.kitti import KittiSource
from mwsis.data.nuscenes import NuscenesSource
from mwsis.data.nuscenes.boxes2d import projected_box
from mwsis.data.source import Source
from tests.data import nuscenes_keyframe
from tests.data.frames_for_tests import png
from tests.data.nuscenes_folder import Writer, nearest_rotation

WIDTH, HEIGHT = 100, 60
INTRINSICS = [[50.0, 0, 49.5], [0, 50.0, 29.5], [0, 0, 1]]
FORWARD = torch.tensor([[0, 0, 1, 1], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], dtype=torch.float64)
"""ego_SE3_camera of a camera that looks forward from (1, 0, 1.5)."""
MOUNT = se3_from_yaw(-math.pi / 2, (0.9, 0.0, 1.8))
SPEED, LATE = 10.0, 0.05
POINTS = np.array([[0, 11.1, -1, 255, 31], [0, 11.1, -1, 51, 0], [-4, 11.1, -1, 0, 3], [0, -5, 0, 0, 8]], "<f4")
"""Sensor frame, which looks to the right of its y axis: x forward is its y."""


def ego(sample: int, after: float = 0.0) -> torch.Tensor:
    """Return the vehicle's pose: it drives along its own heading far from the origin."""
    start = se3_from_yaw(0.7, (600.0, 1600.0, 0.0))
    return start @ se3_from_yaw(0.0, (SPEED * (0.5 * sample + after), 0.0, 0.0))


def make_folder(root: Path) -> Writer:
    writer = Writer(root)
    for scene, samples in (("scene-0061", (0, 1)), ("scene-0103", (2,)), ("scene-0916", ())):
        writer.row("scene", token=scene, name=scene)
        for number in samples[::-1]:  # tables are in no order of time
            sample = writer.row("sample", token=f"sample-{number}", timestamp=1000 + number, scene_token=scene)
            writer.recording(sample, "LIDAR_TOP", POINTS.tobytes(), ego(number), MOUNT)
            for channel, after in (("CAM_FRONT", LATE), ("CAM_ZOOM", 0.0)):
                image = png(WIDTH, HEIGHT, number)
                writer.recording(sample, channel, image, ego(number, after), FORWARD, INTRINSICS, (WIDTH, HEIGHT))
            car = ego(number) @ se3_from_yaw(0.1, (12.0, 0.0, 0.8))
            writer.annotation(sample, "vehicle.car", car, (4.0, 2.0, 1.6))
            person = ego(number) @ se3_from_yaw(0.0, (12.0, 4.0, 0.8))
            writer.annotation(sample, "human.pedestrian.adult", person, (0.6, 0.6, 1.7), visibility="1")
            bike = ego(number) @ se3_from_yaw(0.0, (9.0, -3.0, 0.8))
            writer.annotation(sample, "vehicle.bicycle", bike, (1.7, 0.6, 1.2), attributes=("cycle.without_rider",))
            cone = ego(number) @ se3_from_yaw(0.0, (9.0, 1.0, 0.4))
            writer.annotation(sample, "movable_object.trafficcone", cone, (0.4, 0.4, 0.8))
    return writer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path).save()


def test_a_small_frame(folder: Path) -> None:
    source = NuscenesSource(folder, "v1.0-mini")
    source.check()
    assert isinstance(source, Source)
    assert source.frame_ids("train") == ["sample-0", "sample-1"]
    assert source.frame_ids("val") == ["sample-2"]
    frame = source.read("sample-1")
    assert frame.segment == "scene-0061"
    assert frame.points.ring.tolist() == [0, 31, 28, 23]
    assert frame.points.point_feats[:, 0].tolist() == pytest.approx([math.tanh(1), math.tanh(0.2), 0, 0])
    wanted = torch.tensor([[12.0, 0.0, 0.8], [12.0, 0.0, 0.8], [12.0, 4.0, 0.8], [-4.1, 0.0, 1.8]])
    assert torch.allclose(frame.points.xyz, wanted, atol=1e-5)
    assert frame.points.azimuth_column[3] != frame.points.azimuth_column[0]
    truth = frame.truth
    assert truth is not None
    assert truth.semantic_labels.tolist() == [0, 0, 1, BACKGROUND]
    assert truth.instance_ids.tolist() == [0, 0, 1, -1]
    assert truth.boxes3d[0].tolist() == pytest.approx([12.0, 0.0, 0.8, 4.0, 2.0, 1.6, 0.1], abs=1e-5)
    assert truth.box3d_labels.tolist() == [0, 1]
    front = frame.cameras[0]
    assert front.name == "CAM_FRONT"
    assert front.labels.labels.tolist() == [0, IGNORE, IGNORE]
    assert front.labels.ignore.tolist() == [False, True, True]
    assert truth.box_instance_ids[0].tolist() == [0, 1, 2]


def test_each_camera_at_its_own_time(folder: Path) -> None:
    frame = NuscenesSource(folder, "v1.0-mini").read("sample-0")
    late, prompt = (view.camera for view in frame.cameras)
    for camera, moved in ((late, SPEED * LATE), (prompt, 0.0)):
        uv, depth, visible = camera.project(frame.points.xyz[:1])
        assert bool(visible)
        assert float(depth) == pytest.approx(11.0 - moved, abs=1e-5)
        assert uv[0].tolist() == pytest.approx([50.0, 30 + 50 * 0.7 / (11.0 - moved)], abs=1e-4)
    widths = [float(view.labels.boxes[0, 2] - view.labels.boxes[0, 0]) for view in frame.cameras]
    assert widths[0] > widths[1] + 0.5, "the car is nearer in the later image"


def test_settings(folder: Path) -> None:
    everything = NuscenesSource(folder, "v1.0-mini", min_visibility=1).read("sample-0")
    assert everything.cameras[0].labels.labels.tolist() == [0, 1, IGNORE]
    assert NuscenesSource(folder, "v1.0-mini", ["scene-0061"]).frame_ids("train") == ["sample-2"]
    (folder / "val.txt").write_text("scene-0061\n")
    listed = pickle.loads(pickle.dumps(NuscenesSource(folder, "v1.0-mini", "val.txt")))
    assert listed.frame_ids("val") == ["sample-0", "sample-1"]
    for settings, match in (
        ({"min_visibility": 5}, "min_visibility: expected 1, 2, 3 or 4"),
        ({"val_scenes": ["scene-0062"]}, "no scene 'scene-0062'; did you mean 'scene-0061'"),
        ({"val_scenes": "nowhere.txt"}, "val_scenes: no such file"),
    ):
        with pytest.raises(ConfigError, match=match):
            NuscenesSource(folder, "v1.0-mini", **settings).check()  # type: ignore[arg-type]
    (folder / "v1.0-mini").rename(folder / "v1.0-trainval")
    with pytest.raises(ConfigError, match="val_scenes: expected names of scenes or a file of them"):
        NuscenesSource(folder).check()
    with pytest.raises(DataError, match="no split 'vall'; did you mean 'val'"):
        NuscenesSource(folder).frame_ids("vall")
    with pytest.raises(DataError, match="token: no 'sample-9'"):
        NuscenesSource(folder).read("sample-9")


def test_fingerprints_follow_the_scene(folder: Path) -> None:
    before = {
        name: NuscenesSource(folder, "v1.0-mini").segment_fingerprint(name) for name in ("scene-0061", "scene-0103")
    }
    edit("sample_annotation", 0, size=[2.0, 4.0, 1.7])(folder)  # of sample-1
    now = {name: NuscenesSource(folder, "v1.0-mini").segment_fingerprint(name) for name in before}
    assert {name for name in before if before[name] != now[name]} == {"scene-0061"}


def edit(table: str, number: int, **fields: Any) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        path = root / "v1.0-mini" / f"{table}.json"
        rows = json.loads(path.read_text())
        rows[number].update(fields)
        path.write_text(json.dumps(rows))

    return change


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda root: (root / "v1.0-mini/scene.json").unlink(), r"scene\.json: no such file"),
        (lambda root: (root / "v1.0-mini/scene.json").write_text("["), r"scene\.json: no JSON"),
        (lambda root: (root / "v1.0-mini/scene.json").write_text("{}"), r"scene\.json: expected a list of rows"),
        (edit("sample", 0, scene_token="x"), r"sample\.json: sample-1: scene_token: no 'x' in .*scene\.json"),
        (edit("sample", 0, timestamp="x"), 'sample-1: timestamp: expected int, got "x"'),
        (edit("sample_data", 0, ego_pose_token="x"), r"sample_data-0: ego_pose_token: no 'x' in .*ego_pose\.json"),
        (edit("sample_data", 0, filename="../x"), "sample_data-0: filename: expected a path within the data set"),
        (edit("sample_data", 0, is_key_frame=False), "sample-1: no key frame of LIDAR_TOP"),
        (edit("sample_data", 1, filename="samples/x.jpg"), r"samples/x\.jpg: no such file, but .*sample_data\.json"),
        (edit("ego_pose", 0, rotation=[1, 1, 0, 0]), "ego_pose-0: rotation: expected a quaternion of length 1, got"),
        (edit("ego_pose", 0, translation=[1, 1]), "ego_pose-0: translation: expected 3 numbers"),
        (edit("calibrated_sensor", 1, camera_intrinsic=[]), "camera_intrinsic: expected 3 rows of 3 numbers"),
        (edit("sample_annotation", 0, size=[1, 0, 1]), "sample_annotation-0: size: expected width, length, height"),
        (edit("sample_annotation", 0, visibility_token="7"), "visibility_token: expected 1 to 4, got '7'"),
        (
            edit("category", 0, name="vehicle.cart"),
            "'vehicle.cart' is no category of nuScenes; did you mean 'vehicle.car'",
        ),
    ],
)
def test_what_is_wrong_is_said(folder: Path, spoil: Callable[[Path], object], match: str) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=match):
        NuscenesSource(folder, "v1.0-mini").check()


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("LIDAR_TOP/sample-0.pcd.bin", POINTS.tobytes()[:-4], "expected a positive multiple of 20 bytes"),
        (
            "LIDAR_TOP/sample-0.pcd.bin",
            (POINTS + np.float32(0.5)).astype("<f4").tobytes(),
            "point 0: .* a ring 0 to 31",
        ),
        ("CAM_FRONT/sample-0.png", png(10, 10), "expected 100 x 60 pixels, as sample_data.json says, got 10 x 10"),
        ("CAM_FRONT/sample-0.png", b"?", "expected a PNG or JPEG image"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(folder: Path, file: str, content: bytes, match: str) -> None:
    (folder / "samples" / file).write_bytes(content)
    with pytest.raises(DataError, match=match):
        NuscenesSource(folder, "v1.0-mini").read("sample-0")


def test_a_box_around_the_camera_and_one_at_the_border(folder: Path) -> None:
    camera = NuscenesSource(folder, "v1.0-mini").read("sample-0").cameras[1].camera
    around = box_corners(torch.tensor([[1.0, 0, 1.5, 8, 4, 3, 0]]))[0]
    assert projected_box(around, camera) == pytest.approx([0, 0, WIDTH, HEIGHT])
    behind = box_corners(torch.tensor([[-9.0, 0, 1.5, 4, 2, 2, 0]]))[0]
    assert projected_box(behind, camera) is None
    beside = box_corners(torch.tensor([[9.0, 20, 1.5, 4, 2, 2, 0]]))[0]
    assert projected_box(beside, camera) is None
    # A square seen from a corner reaches over the left border: only what is inside counts, also for its height.
    reach = [(4, 0), (-4, 0), (0, 4), (0, -4)] * 2
    diamond = torch.tensor([[11.0, 10 + y, 1.5 + z] for y, z in reach], dtype=torch.float64)
    x1, y1, x2, y2 = projected_box(diamond, camera) or []
    assert (x1, x2) == pytest.approx((0, 50 - 50 * 6 / 10))
    assert (y1, y2) == pytest.approx((10, 50)), "the corners of the whole lie at rows 10 and 50, on column 0"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The real key frame as tables; poses of the vehicle at each camera's time follow from its infos."""
    if not (nuscenes_keyframe.FOLDER / "info.json").is_file():
        pytest.skip(f"needs the real key frame in {nuscenes_keyframe.FOLDER}")
    info = json.loads((nuscenes_keyframe.FOLDER / "info.json").read_text())["data_list"][0]
    as_tensor = lambda rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731
    global_SE3_ego = nearest_rotation(as_tensor(info["ego2global"]))
    ego_SE3_lidar = nearest_rotation(as_tensor(info["lidar_points"]["lidar2ego"]))
    writer = Writer(tmp_path_factory.mktemp("nuscenes"))
    scene = writer.row("scene", name="scene-0061")
    sample = writer.row("sample", token=info["token"], timestamp=1532402927647951, scene_token=scene)
    sweep = (nuscenes_keyframe.FOLDER / "LIDAR_TOP.pcd.bin").read_bytes()
    writer.recording(sample, "LIDAR_TOP", sweep, global_SE3_ego, ego_SE3_lidar)
    for name, image in info["images"].items():
        ego_SE3_camera = nearest_rotation(as_tensor(image["cam2ego"]))
        camera_SE3_lidar = nearest_rotation(as_tensor(image["lidar2cam"]))
        global_SE3_camera = global_SE3_ego @ ego_SE3_lidar @ torch.linalg.inv(camera_SE3_lidar)
        writer.recording(
            sample, name, (nuscenes_keyframe.FOLDER / f"{name}.jpg").read_bytes(),
            nearest_rotation(global_SE3_camera @ torch.linalg.inv(ego_SE3_camera)), ego_SE3_camera,
            image["cam2img"], (1600, 900),
        )  # fmt: skip
    categories = {
        "car": "vehicle.car", "truck": "vehicle.truck", "bus": "vehicle.bus.rigid", "trailer": "vehicle.trailer",
        "construction_vehicle": "vehicle.construction", "motorcycle": "vehicle.motorcycle",
        "bicycle": "vehicle.bicycle", "pedestrian": "human.pedestrian.adult", "barrier": "movable_object.barrier",
        "traffic_cone": "movable_object.trafficcone",
    }  # fmt: skip
    metainfo = json.loads((nuscenes_keyframe.FOLDER / "info.json").read_text())["metainfo"]["categories"]
    name_of = {number: name for name, number in metainfo.items()}
    name_of[-1] = "barrier"  # what the infos leave without a class
    for item in info["instances"]:
        x, y, z, length, width, height, yaw = item["bbox_3d"]
        pose = upright(global_SE3_ego @ ego_SE3_lidar, yaw, (x, y, z))
        category = categories[name_of[item["bbox_label_3d"]]]
        writer.annotation(sample, category, pose, (length, width, height), max(item["num_lidar_pts"], 1))
    return writer.save(), info


def upright(global_SE3_lidar: torch.Tensor, yaw: float, centre: tuple[float, float, float]) -> torch.Tensor:
    """Return the pose of a box, upright in the world, of which the infos kept centre and yaw in the LiDAR's frame."""
    rotation = global_SE3_lidar[:3, :3]
    flat = torch.tensor([math.cos(yaw), math.sin(yaw), 0.0], dtype=torch.float64)
    flat[2] = -float(rotation[2, :2] @ flat[:2]) / float(rotation[2, 2])  # the heading is level in the world
    heading = rotation @ flat
    place = rotation @ torch.tensor(centre, dtype=torch.float64) + global_SE3_lidar[:3, 3]
    x, y, z = place.tolist()
    return se3_from_yaw(math.atan2(float(heading[1]), float(heading[0])), (x, y, z))


@pytest.mark.real_data
def test_the_real_key_frame(real: tuple[Path, dict[str, Any]]) -> None:
    folder, info = real
    frame = NuscenesSource(folder, "v1.0-mini", [], min_visibility=1).read(info["token"])
    expected = nuscenes_keyframe.keyframe()
    views = {view.name: view for view in expected.cameras}
    assert torch.allclose(frame.points.xyz, expected.points.xyz, atol=1e-3)
    assert torch.equal(frame.points.ring, expected.points.ring)
    assert torch.equal(frame.points.azimuth_column, expected.points.azimuth_column)
    sensor = transform_points(torch.tensor(info["lidar_points"]["lidar2ego"]).inverse(), frame.points.xyz)
    elevation = torch.atan2(sensor[:, 2], sensor[:, :2].norm(dim=1))
    medians = [float(elevation[frame.points.ring == ring].median()) for ring in range(32)]
    assert medians == sorted(medians, reverse=True), "ring 0 is the highest beam"
    far = expected.points.ranges > 3
    for view in frame.cameras:
        ours, theirs = view.camera.project(frame.points.xyz), views[view.name].camera.project(expected.points.xyz)
        both = ours[2] & theirs[2] & far
        assert int(both.sum()) > 1500
        assert (ours[0] - theirs[0])[both].abs().max() < 0.3
    mounts = {name: torch.tensor(image["cam2ego"]).double() for name, image in info["images"].items()}
    moved = [float((view.camera.camera_SE3_vehicle @ mounts[view.name])[:3, 3].norm()) for view in frame.cameras]
    assert max(moved) > 0.1, "the vehicle drives on between sweep and images"


@pytest.mark.real_data
def test_projected_boxes_of_the_real_key_frame(real: tuple[Path, dict[str, Any]]) -> None:
    folder, info = real
    frame = NuscenesSource(folder, "v1.0-mini", [], min_visibility=1).read(info["token"])
    compared = 0
    for view in frame.cameras:
        known = nuscenes_keyframe.CLASS_OF_LABEL
        items = [one for one in info["cam_instances"][view.name] if one["bbox_label_3d"] in known]
        theirs = torch.tensor([one["bbox"] for one in items]).reshape(-1, 4) + 0.5
        ours = view.labels.boxes
        for box, item in zip(theirs, items, strict=True):
            off = (ours - box).abs().amax(1)
            assert float(off.min()) < 0.6, (view.name, item["bbox"], float(off.min()))
            assert int(view.labels.labels[off.argmin()]) == known[item["bbox_label_3d"]]
            compared += 1
    assert compared > 50
    truth = frame.truth
    assert truth is not None
    count = {number: int((truth.instance_ids == number).sum()) for number in truth.box3d_ids.tolist()}
    for number, item in enumerate(info["instances"]):
        if number in count and item["num_lidar_pts"] >= 10:
            assert count[number] == pytest.approx(item["num_lidar_pts"], rel=0.15, abs=3)


def test_kitti_and_nuscenes_name_the_same_classes() -> None:
    assert NuscenesSource.class_names == KittiSource.class_names
