"""A folder of one's own recordings: street frames written in each format and read back, and everything said at once."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import Frame
from mwsis.core.geometry import se3_from_yaw
from mwsis.core.instances import BACKGROUND, IGNORE
from mwsis.data.custom import CustomSource
from mwsis.data.source import Explained, Source
from mwsis.data.street import StreetSource
from tests.data.custom_folder import write_folder
from tests.data.frames_for_tests import assert_same

NAMES = ("Vehicle", "Pedestrian", "Cyclist")
FIRST = "train_000_00"


@pytest.fixture(scope="module")
def frames() -> dict[str, list[Frame]]:
    street = StreetSource(
        train_segments=2,
        train_frames_per_segment=1,
        val_segments=1,
        val_frames_per_segment=1,
        lidar_columns=90,
        image_width=96,
    )
    return {split: [street.read(frame_id) for frame_id in street.frame_ids(split)] for split in ("train", "val")}


@pytest.fixture
def folder(frames: dict[str, list[Frame]], tmp_path: Path) -> Path:
    return write_folder(tmp_path, frames, NAMES)


@pytest.mark.parametrize("suffix", [".bin", ".npy", ".pcd", ".ply", ".ascii.pcd", ".ascii.ply"])
def test_frames_come_back(frames: dict[str, list[Frame]], tmp_path: Path, suffix: str) -> None:
    mount = se3_from_yaw(0.3, (1.0, 0.5, 1.9))
    source = CustomSource(write_folder(tmp_path, frames, NAMES, suffix, mount))
    source.check()
    assert isinstance(source, Source)
    assert isinstance(source, Explained)
    assert source.problems().sentences() == []
    read, frame = source.read(FIRST), frames["train"][0]
    assert (read.points.xyz - frame.points.xyz).abs().max() < 1e-4
    assert (read.points.point_feats - frame.points.point_feats).abs().max() < 1e-6
    assert torch.equal(read.points.ring, frame.points.ring)
    assert torch.equal(read.points.return_index, frame.points.return_index)
    sensor = read.points.xyz.double() - mount[:3, 3]
    assert (read.points.ranges - sensor.norm(dim=1)).abs().max() < 1e-4
    changed = (read.pixels.camera_index != frame.pixels.camera_index).any(1)
    assert int(changed.sum()) <= 2, "only points at an image's very edge may fall elsewhere"
    assert (read.pixels.pixel_uv - frame.pixels.pixel_uv)[~changed].abs().max() < 0.01
    for view, other in zip(read.cameras, frame.cameras, strict=True):
        assert (view.name, view.image) == (other.name, other.image)
        assert torch.allclose(view.camera.intrinsics, other.camera.intrinsics)
        assert torch.allclose(view.labels.boxes, other.labels.boxes)
        assert torch.equal(view.labels.labels, other.labels.labels)
        assert torch.equal(view.labels.ignore, other.labels.ignore)
    truth, expected = read.truth, frame.truth
    assert truth is not None
    assert expected is not None
    for name in ("semantic_labels", "instance_ids", "boxes3d", "box3d_labels", "box3d_ids", "box_instance_ids"):
        assert_same(getattr(truth, name), getattr(expected, name), name)
    for image, wanted in zip(truth.images, expected.images, strict=True):
        assert image is not None
        assert wanted is not None
        assert torch.equal(image.instance_ids, wanted.instance_ids)
        assert all(torch.equal(image.masks.dense(i), wanted.masks.dense(i)) for i in range(len(wanted.masks)))


def test_beams_counted_from_below_are_turned_round(frames: dict[str, list[Frame]], folder: Path) -> None:
    path = folder / "sweeps" / f"{FIRST}.bin"
    rows = np.fromfile(path, "<f4").reshape(-1, 7)
    rows[:, 5] = 63 - rows[:, 5]
    rows.tofile(path)
    assert torch.equal(CustomSource(folder).read(FIRST).points.ring, frames["train"][0].points.ring)


def test_beams_that_are_not_stored(frames: dict[str, list[Frame]], folder: Path) -> None:
    path, calibration = folder / "sweeps" / f"{FIRST}.bin", folder / "calibration.json"
    rows = np.fromfile(path, "<f4").reshape(-1, 7)
    edit(calibration, lambda content: content["lidar"].update(fields=["x", "y", "z", "intensity", "_"]))
    rows[:, :5][::-1].tofile(path)
    with pytest.warns(UserWarning, match=r"no field 'ring', and the order of the points gives .* rings"):
        read = CustomSource(folder).read(FIRST)
    assert read.points.ring.unique().tolist() == [-1]
    for other in (folder / "sweeps").iterdir():
        if other != path:
            np.fromfile(other, "<f4").reshape(-1, 7)[:, :5].tofile(other)
    assert any("labels are made without ring segments" in said for said in CustomSource(folder).problems().sentences())


def test_truth_by_3d_boxes_alone(frames: dict[str, list[Frame]], folder: Path) -> None:
    (folder / "truth" / "points" / f"{FIRST}.label").unlink()
    edit(folder / "boxes.json", lambda content: [one.pop("segmentation") for one in content["annotations"]])
    truth, expected = CustomSource(folder).read(FIRST).truth, frames["train"][0].truth
    assert truth is not None
    assert expected is not None
    assert truth.images == (None,) * 5
    inside = truth.semantic_labels >= 0
    assert int(inside.sum()) > 50
    agree = (truth.semantic_labels == expected.semantic_labels)[inside & (expected.semantic_labels >= 0)]
    assert float(agree.float().mean()) > 0.95
    assert set(truth.semantic_labels[~inside].tolist()) == {BACKGROUND}
    (folder / "truth" / "boxes3d.json").unlink()
    assert CustomSource(folder).read(FIRST).truth is None


def test_masks_alone_say_nothing_about_points(folder: Path) -> None:
    (folder / "truth" / "points" / f"{FIRST}.label").unlink()
    (folder / "truth" / "boxes3d.json").unlink()
    edit(folder / "boxes.json", lambda content: [one.pop("object_id") for one in content["annotations"]])
    truth = CustomSource(folder).read(FIRST).truth
    assert truth is not None
    assert truth.semantic_labels.unique().tolist() == [IGNORE]
    numbers = torch.cat(truth.box_instance_ids)
    numbers = numbers[numbers >= 0]
    assert len(numbers) > 20
    assert len(numbers.unique()) == len(numbers), "boxes of different images are not taken for one object"
    assert truth.images[0] is not None
    assert torch.equal(truth.images[0].instance_ids, truth.box_instance_ids[0])


def test_classes(folder: Path) -> None:
    (folder / "truth" / "points" / f"{FIRST}.label").unlink()  # its codes go by the classes
    source = CustomSource(folder, [{"Anything": ["Vehicle", "Cyclist"]}])
    view = source.read(FIRST).cameras[0]
    assert source.class_names == ("Anything",)
    assert set(view.labels.objects.labels.tolist()) == {0}
    assert source.report("train")["boxes_of_other_categories"] > 0
    with pytest.raises(ConfigError, match="classes: expected each class"):
        CustomSource(folder, [])
    with pytest.raises(DataError, match="categories: no 'Vehicel'; did you mean 'Vehicle'"):
        CustomSource(folder, ["Vehicel"]).check()


def test_splits_drives_and_calibrations(frames: dict[str, list[Frame]], folder: Path) -> None:
    for name in ("a/1", "b/1", "a/2"):
        for path in [folder / "sweeps" / f"{FIRST}.bin", *folder.glob(f"images/*/{FIRST}.*")]:
            copy = path.parent / f"{name}{path.suffix}"
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    edit(folder / "boxes.json", list_images_again)
    (folder / "train.txt").write_text("a/1\nb/1\na/2\n\n")
    source = CustomSource(folder)
    source.check()
    assert source.frame_ids("train") == ["a/1", "a/2", "b/1"]
    assert [source.segment_of(name) for name in ("a/1", "b/1", "val_000_00")] == ["train/a", "train/b", "val/00000"]
    before = {name: source.segment_fingerprint(name) for name in ("train/a", "train/b", "val/00000")}
    whole = source.fingerprint()
    own = json.loads((folder / "calibration.json").read_text())
    own["cameras"] = {"FRONT": own["cameras"]["FRONT"]}
    (folder / "calibration" / "b").mkdir(parents=True)
    (folder / "calibration" / "b.json").write_text(json.dumps(own))
    changed = pickle.loads(pickle.dumps(CustomSource(folder)))
    assert [len(changed.read(name).cameras) for name in ("a/1", "b/1")] == [5, 1]
    now = {name: changed.segment_fingerprint(name) for name in before}
    assert {name for name in before if now[name] != before[name]} == {"train/b"}
    assert changed.identity() == source.identity()
    assert changed.fingerprint() != whole
    for call in (source.frame_ids, source.unreadable):
        with pytest.raises(DataError, match="no split 'vall'; did you mean 'val'"):
            call("vall")
    with pytest.raises(DataError, match="no frame 'a/3'"):
        source.read("a/3")


def list_images_again(content: dict[str, Any]) -> None:
    for name in ("a/1", "b/1", "a/2"):
        for image in [one for one in content["images"] if FIRST in one["file_name"]]:
            again = {**image, "id": len(content["images"]), "file_name": image["file_name"].replace(FIRST, name)}
            content["images"].append(again)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def calibration(change: Callable[[Any], object]) -> Callable[[Path], object]:
    return lambda root: edit(root / "calibration.json", change)


def camera(**keys: object) -> Callable[[Path], object]:
    return calibration(lambda content: content["cameras"]["FRONT"].update(keys))


def lidar(**keys: object) -> Callable[[Path], object]:
    return calibration(lambda content: content["lidar"].update(keys))


def boxes(change: Callable[[Any], object]) -> Callable[[Path], object]:
    return lambda root: edit(root / "boxes.json", change)


def annotation(**keys: object) -> Callable[[Path], object]:
    return boxes(lambda content: content["annotations"][3].update(keys))


def listed(line: str) -> Callable[[Path], object]:
    return lambda root: (root / "train.txt").write_text((root / "train.txt").read_text() + line + "\n")


def sweep(row: int, column: int, value: float) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        path = root / "sweeps" / f"{FIRST}.bin"
        rows = np.fromfile(path, "<f4").reshape(-1, 7)
        rows[row, column] = value
        rows.tofile(path)

    return spoil


def cut(path: str, size: int) -> Callable[[Path], object]:
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:size])


def box3d(**keys: object) -> Callable[[Path], object]:
    return lambda root: edit(root / "truth/boxes3d.json", lambda content: content["boxes3d"][1].update(keys))


IMAGE = f"images/FRONT/{FIRST}.jpg"
SKEWED = [[1, 0.5, 1], [0, 1, 1], [0, 0, 1]]
LEFT_HANDED = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]
UPWARD = [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
EARLY: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: (root / "calibration.json").unlink(), r"calibration\.json: no such file"),
    (cut("calibration.json", 50), r"calibration\.json: line 1, column \d+: no JSON"),
    (calibration(lambda content: content.pop("lidar")), r"calibration\.json: lidar: expected an object, got nothing"),
    (calibration(lambda content: content.update(cameras={})), "cameras: expected at least one, got none"),
    (calibration(lambda content: content.update(camera={})), "'camera' is no key; did you mean 'cameras'"),
    (lidar(rings=0), "lidar: rings: expected 1 to 1024, got 0"),
    (lidar(columns="many"), 'lidar: columns: expected a whole number, got "many"'),
    (lidar(fields=["x", "y", "z"]), "lidar: fields: no 'intensity' among x y z"),
    (lidar(intensity_scale=0), "lidar: intensity_scale: expected a number above 0, got 0"),
    (lidar(vehicle_SE3_lidar=LEFT_HANDED), "lidar: vehicle_SE3_lidar: expected a rotation"),
    (camera(K=SKEWED), r"cameras: FRONT: K: expected \[\[fx, 0, cx\]"),
    (camera(K=[[1, 0], [0, 1]]), "cameras: FRONT: K: expected 3 rows of 3 numbers"),
    (camera(distorsion=[0] * 5), "cameras: FRONT: 'distorsion' is no key; did you mean 'distortion'"),
    (camera(distortion=[0.1]), "cameras: FRONT: distortion: expected k1, k2, p1, p2"),
    (camera(pixel_centre=1), "cameras: FRONT: pixel_centre: expected 0"),
    (camera(camera_SE3_vehicle=[[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]), "expected a rotation .*off"),
    (camera(camera_SE3_vehicle=[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]), "expected 0, 0, 0, 1 as"),
    (camera(width=97), r"cameras: FRONT: width, height: expected 96 x \d+, as .*FRONT.* is, got 97 x"),
    (lambda root: (root / "boxes.json").unlink(), r"boxes\.json: no such file; expected the 2D boxes in COCO's format"),
    (boxes(lambda content: content["images"].pop(0)), r"annotations\[\d+\]: image_id: no image 0 in 'images'"),
    (boxes(lambda content: content["images"][0].update(file_name="x.jpg")), "no entry with file_name 'FRONT/train_000"),
    (boxes(lambda content: content["images"][0].update(width=7)), "boxes.json: image 0: width, height|size: expected"),
    (boxes(lambda content: content["images"][1].update(content["images"][0])), "expected different ids, got 0"),
    (annotation(bbox=[1, 2, 3]), r"annotations\[3\]: bbox: expected x, y, width, height, got \[1, 2, 3\]"),
    (annotation(bbox=[500, 2, 3, 4]), r"annotation 3: bbox: expected some of it inside image 'FRONT/\S+' of 96 x"),
    (annotation(bbox=[5, 2, 0, 4]), "annotation 3: bbox: expected some of it inside image"),
    (annotation(category_id=9), r"annotations\[3\]: category_id: no category 9"),
    (annotation(iscrowd=2), r"annotations\[3\]: iscrowd: expected 0 or 1"),
    (annotation(object_id=-2), r"annotations\[3\]: object_id: expected 0 or more, got -2"),
    (annotation(segmentation=[]), "1 (have no segmentation|annotations have none)"),
    (lambda root: (root / "val.txt").unlink(), "no split 'val'"),
    (lambda root: (root / "val.txt").write_text("\n"), r"val\.txt: expected one frame a line"),
    (lambda root: (root / "val.txt").write_bytes(b"\xff\n"), r"val\.txt: expected UTF-8 text, got byte 255 at 0"),
    (listed(FIRST), f"train\\.txt: line 4: frame '{FIRST}' again, as in line 2"),
    (listed("val_000_00"), r"val\.txt: frame 'val_000_00' is in .*train\.txt, too"),
    (listed("../secret"), r"train\.txt: line 4: expected a name such as drive_1/000042, got '\.\./secret'"),
    (listed("nowhere"), r"sweeps/nowhere: no such file with any of \.bin"),
    (lambda root: (root / IMAGE).unlink(), r"images/FRONT/train_000_00: no such file with any of \.jpg"),
    (lambda root: (root / f"sweeps/{FIRST}.ply").write_text(""), r"train_000_00\.ply is there, too; expected one file"),
    (lambda root: (root / IMAGE).write_bytes(b"nothing"), "expected a PNG or JPEG image, got 7 bytes that are none"),
    (box3d(category="Car"), r"boxes3d\[1\]: category: no 'Car'"),
    (box3d(size=[1, 2, 0]), r"boxes3d\[1\]: centre, size, yaw: expected"),
    (box3d(frame="elsewhere"), r"boxes3d\.json: frame: no sweep of frame 'elsewhere'"),
    (box3d(heading=1), r"boxes3d\[1\]: 'heading' is no key"),
]
LATE: list[tuple[Callable[[Path], object], str]] = [
    (sweep(5, 1, np.nan), r"train_000_00\.bin: y: point 5: expected a finite number, got nan \(1 such points\)"),
    (sweep(5, 5, 64), r"train_000_00\.bin: ring: point 5: expected a whole number from 0 to 63, got 64"),
    (sweep(5, 5, 1.5), "ring: point 5: expected a whole number from 0 to 63, got 1.5"),
    (cut(f"sweeps/{FIRST}.bin", 30), r"train_000_00\.bin: expected a multiple of 28 bytes"),
    (cut(IMAGE, 900), "the image cannot be decoded"),
    (
        cut(f"truth/points/{FIRST}.label", 40),
        r"train_000_00\.label: expected \d+ labels, one per point of the sweep, got 10",
    ),
]


@pytest.mark.parametrize(("spoil", "match"), EARLY)
def test_what_is_wrong_is_said_before_work_starts(folder: Path, spoil: Callable[[Path], object], match: str) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=match) as error:
        CustomSource(folder).check()
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)
    assert str(error.value) in CustomSource(folder).problems().sentences()


@pytest.mark.parametrize(("spoil", "match"), LATE)
def test_what_is_wrong_inside_files_is_said(folder: Path, spoil: Callable[[Path], object], match: str) -> None:
    spoil(folder)
    (said,) = CustomSource(folder).problems().sentences()
    assert re.search(match, said)
    assert said.startswith(str(folder))
    CustomSource(folder).check()
    if "decoded" not in match:  # images are kept as they were encoded
        with pytest.raises(DataError, match=re.escape(said)):
            CustomSource(folder).read(FIRST)


def test_everything_is_said_at_once(folder: Path) -> None:
    late = [spoil for spoil, _ in LATE[:1]]
    for spoil in (camera(K=SKEWED, camera_SE3_vehicle=LEFT_HANDED, distorsion=1), annotation(bbox=3, iscrowd=7), *late):
        spoil(folder)
    listed("nowhere")(folder)
    said = CustomSource(folder).problems().sentences()
    for words in (
        "K: expected",
        "camera_SE3_vehicle: expected",
        "'distorsion'",
        "bbox: expected",
        "iscrowd",
        "nowhere",
    ):
        assert sum(words in sentence for sentence in said) == 1, words


def test_a_camera_that_sees_nothing_and_many_problems_of_a_kind(folder: Path) -> None:
    camera(camera_SE3_vehicle=UPWARD)(folder)
    (said,) = CustomSource(folder).problems().sentences()
    assert "cameras: FRONT: camera_SE3_vehicle: none of" in said
    boxes(lambda content: [one.update(bbox=[0, 0, 0, 0]) for one in content["annotations"]])(folder)
    found = CustomSource(folder).problems()
    assert len(found) > 60
    assert len(found.sentences()) == 22
    assert found.sentences()[20].endswith("more boxes outside of their image")
