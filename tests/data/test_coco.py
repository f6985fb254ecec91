from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mwsis.core.errors import ConfigError, DataError
from mwsis.data.coco import CocoSource
from mwsis.data.coco_json import ListedImage, read_instances
from mwsis.data.source import Source
from mwsis.data.store import FrameStore, write_frames
from tests.data.coco_folder import CROWD_COLUMNS, HEIGHT, SETTINGS, WIDTH, annotation, coco_folder

SHARED = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "coco_mini"
DRIVING = [{"Vehicle": ["car", "truck"]}, "person"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return coco_folder(tmp_path / "coco")


def source_of(folder: Path, classes: Any = None) -> CocoSource:
    return CocoSource(folder, **SETTINGS, classes=classes)


def edited(folder: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> Path:
    path = folder / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


def test_a_small_frame(folder: Path) -> None:
    source = source_of(folder, DRIVING)
    source.check()
    assert isinstance(source, Source)
    assert source.class_names == ("Vehicle", "person")
    assert source.frame_ids("train") == ["train/11", "train/12", "train/13"]
    frame = source.read("train/11")
    assert len(frame.points) == len(frame.pixels) == 0
    (view,) = frame.cameras
    assert view.image == (folder / "train2017/000000000011.png").read_bytes()
    assert (view.camera.width, view.camera.height) == (WIDTH, HEIGHT)
    assert view.labels.boxes.tolist() == [[10, 5, 30, 25], [0, 30, 8, 48], [40, 0, 44, 48]]
    assert view.labels.labels.tolist() == [0, 1, -1]
    assert view.labels.ignore.tolist() == [False, False, True]


def test_truth_of_a_small_frame(folder: Path) -> None:
    truth = source_of(folder, DRIVING).read("train/11").truth
    assert truth is not None
    (image,) = truth.images
    assert image is not None
    assert image.labels.labels.tolist() == [0, 1, 1]  # COCO excuses a crowd's detections of its own class only
    assert image.labels.ignore.tolist() == [False, False, True]
    assert image.instance_ids.tolist() == truth.box_instance_ids[0].tolist() == [0, 1, -1]
    assert image.masks.areas().tolist() == [400, 8 * 18, 4 * HEIGHT]
    assert image.masks.crop_boxes.tolist() == [[10, 5, 30, 25], [0, 30, 8, 48], [40, 0, 44, 48]]
    columns = image.masks.dense(2).all(0).nonzero()[:, 0].tolist()
    assert columns == list(range(*CROWD_COLUMNS))


def test_an_image_without_boxes_and_a_file_without_masks(folder: Path) -> None:
    frame = source_of(folder).read("train/12")
    assert len(frame.cameras[0].labels) == 0
    assert frame.truth is not None
    assert frame.truth.images[0] is not None
    assert len(frame.truth.images[0].masks) == 0

    def without_masks(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry["segmentation"] = []

    frame = source_of(edited(folder, without_masks)).read("train/11")
    assert frame.truth is None
    assert len(frame.cameras[0].labels) == 3


def test_what_is_left_out_is_counted(folder: Path) -> None:
    assert source_of(folder, ["bicycle", "person"]).report("train") == {
        "images": 3,
        "boxes": 2,
        "crowds": 1,
        "degenerate_boxes_left_out": 1,
        "boxes_of_other_categories": 2,
    }


def test_classes_and_splits(folder: Path) -> None:
    everything = source_of(folder)
    assert everything.class_names == ("person", "bicycle", "car", "motorcycle", "bus", "train", "truck")
    assert everything.read("train/13").cameras[0].labels.labels.tolist() == [6]
    assert source_of(folder, ["truck", "car"]).read("train/13").cameras[0].labels.labels.tolist() == [0]
    with pytest.raises(DataError, match=r"categories: no 'lorry'; .* \(classes="):
        source_of(folder, [{"Vehicle": ["car", "lorry"]}])
    for wrong in (["car", "car"], [], ["car", {"Vehicle": ["car"]}]):
        with pytest.raises(ConfigError, match="classes: expected each class and each category once"):
            source_of(folder, wrong)
    with pytest.raises(DataError, match="no split 'vall'; did you mean 'val'"):
        everything.frame_ids("vall")
    with pytest.raises(DataError, match="images: no image with id 7"):
        everything.read("train/7")
    with pytest.raises(ConfigError, match="expected the same splits"):
        CocoSource(folder, {"train": "instances_train2017.json"}, {"val": "val2017"})
    with pytest.raises(DataError, match="nowhere: no such folder"):
        source_of(folder / "nowhere")


def test_annotations_may_lie_where_coco_unpacks_them(folder: Path) -> None:
    before = source_of(folder).read("val/21").cameras[0].labels.boxes
    (folder / "annotations").mkdir()
    for path in folder.glob("*.json"):
        path.rename(folder / "annotations" / path.name)
    assert torch.equal(source_of(folder).read("val/21").cameras[0].labels.boxes, before)


def test_segments_are_blocks_of_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mwsis.data.coco.IMAGES_PER_SEGMENT", 2)
    source = source_of(folder)
    segments = [source.segment_of(frame_id) for frame_id in source.frame_ids("train")]
    assert segments == ["train_00000", "train_00000", "train_00001"]
    first, last = (source.segment_fingerprint(segment) for segment in sorted(set(segments)))
    changed = source_of(edited(folder, lambda content: content["annotations"][-1].update(bbox=[1, 1, 5, 5])))
    assert changed.segment_fingerprint("train_00000") == first
    assert changed.segment_fingerprint("train_00001") != last


def test_fingerprint_follows_content_and_settings(folder: Path) -> None:
    source = source_of(folder, DRIVING)
    first = source.fingerprint()
    assert source_of(folder, DRIVING).fingerprint() == first
    assert source_of(folder).fingerprint() != first
    assert source_of(folder).identity() != source.identity()
    travelled = pickle.loads(pickle.dumps(source))
    assert (travelled.fingerprint(), travelled.identity()) == (first, source.identity())
    assert len(pickle.dumps(source)) < 1000  # the annotations stay behind
    moved = [1, 1, 5, 1, 5, 5]
    edited(folder, lambda content: content["annotations"][0].update(segmentation=[moved]))
    assert source_of(folder, DRIVING).fingerprint() != first


def test_frames_without_points_are_stored(folder: Path, tmp_path: Path) -> None:
    frame = source_of(folder).read("train/11")
    write_frames(tmp_path / "frames.arrow", [frame])
    stored = FrameStore(tmp_path / "frames.arrow")[0]
    assert stored.points.xyz.shape == (0, 3)
    assert torch.equal(stored.cameras[0].labels.boxes, frame.cameras[0].labels.boxes)
    assert stored.truth is not None
    assert frame.truth is not None
    assert torch.equal(stored.truth.images[0].masks.bits, frame.truth.images[0].masks.bits)


def image_entry(place: int, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["images"][place].update(changes)


def entry(place: int, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][place].update(changes)


def crowd_rle(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][2]["segmentation"].update(changes)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda content: content.pop("categories"), r"train2017\.json: categories: expected a list"),
        (lambda content: content.update(images=[]), "images: expected at least one"),
        (image_entry(1, id=11), "images: expected different ids, got 11 twice"),
        (image_entry(1, width="64"), r"images\[1\]: width: expected int, got \"64\""),
        (image_entry(1, height=0), r"images\[1\]: width, height: expected at least 1"),
        (image_entry(1, file_name=None), r"images\[1\]: file_name: expected str, got null"),
        (entry(3, image_id=99), r"annotations\[3\]: image_id: no image 99 in 'images'"),
        (entry(3, category_id=99), r"annotations\[3\]: category_id: no category 99"),
        (entry(3, bbox=[1, 2, 3]), r"annotations\[3\]: bbox: expected x, y, width, height"),
        (entry(3, bbox=[1, 2, 3, float("nan")]), r"annotations\[3\]: bbox: expected x, y, width, height"),
        (entry(3, iscrowd=2), r"annotations\[3\]: iscrowd: expected 0 or 1, got 2"),
        (entry(0, segmentation=[[1, 2, 3, 4]]), r"annotations\[0\]: segmentation: expected polygons of three"),
        (entry(0, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), r"segmentation: expected polygons .* got \[7\] numbers"),
        (
            entry(0, segmentation=[[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, float("nan")]]),
            r"segmentation: expected polygons of three or more x, y, got \[6, 6\] numbers",
        ),
        (entry(0, segmentation=[[1, 2, 3, 4, 5, 700]]), "expected pixels near the image, at most 640, got 700"),
        (entry(0, segmentation=[[1, 2, 3, 4, 5, "x"]]), r"annotations\[0\]: segmentation: expected polygons, or run"),
        (entry(0, segmentation="x"), r"annotations\[0\]: segmentation: expected polygons, or run"),
        (entry(0, segmentation=None), "annotation 1: segmentation: 1 annotations have none, 4 have one"),
        (crowd_rle(size=[64, 48]), r"annotations\[2\]: segmentation: size: expected height and width \[48, 64\]"),
        (crowd_rle(counts=[5, 6]), r"segmentation: counts: expected run lengths that add up to 3072"),
        (crowd_rle(counts=[-1, 3073]), "segmentation: counts: expected run lengths"),
        (crowd_rle(counts=""), "segmentation: counts: expected run lengths"),
        (crowd_rle(counts="\u00e9"), "segmentation: counts: expected run lengths"),
    ],
)
def test_errors_name_file_and_field(folder: Path, change: Callable[[dict[str, Any]], object], match: str) -> None:
    with pytest.raises(DataError, match=match):
        source_of(edited(folder, change))


@pytest.mark.parametrize(
    "text", ["", '{"images": [', "[1]", '"\ud83d'.encode("utf-8", "surrogatepass").decode("latin1")]
)
def test_a_broken_annotation_file(folder: Path, text: str) -> None:
    (folder / "instances_val2017.json").write_text(text, encoding="latin1")
    with pytest.raises(DataError, match=r"instances_val2017\.json: (no JSON|images: expected a list)"):
        source_of(folder)


def test_missing_and_wrong_files(folder: Path) -> None:
    path = folder / "train2017/000000000012.png"
    content = path.read_bytes()
    path.write_bytes(content[:10])
    with pytest.raises(DataError, match=r"000000000012\.png: expected a JPEG or PNG image"):
        source_of(folder).read("train/12")
    path.unlink()
    with pytest.raises(DataError, match=r"000000000012\.png: no such file, but .*train2017\.json lists it as image 12"):
        source_of(folder).check()
    wrong_size = source_of(edited(folder, image_entry(1, width=65, height=47), "val"))
    with pytest.raises(DataError, match=r"0022\.png: width, height: the annotations say 65 x 47, the file is 64 x 48"):
        wrong_size.read("val/22")
    (folder / "instances_val2017.json").unlink()
    with pytest.raises(DataError, match=r"instances_val2017\.json: no such file, nor .*annotations"):
        source_of(folder)


def with_only(folder: Path, segmentation: Any) -> torch.Tensor:
    """Return the dense mask of a car with this segmentation, the only object of image 13."""

    def change(content: dict[str, Any]) -> None:
        content["annotations"] = [annotation(13, "car", [1, 1, 30, 30], segmentation=segmentation, id=5)]

    truth = source_of(edited(folder, change)).read("train/13").truth
    assert truth is not None
    assert truth.images[0] is not None
    return truth.images[0].masks.dense(0)


@pytest.mark.parametrize("seed", range(8))
def test_masks_are_those_of_pycocotools(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    polygons = [(rng.random(2 * int(rng.integers(3, 9))) * 70 - 5).round(2).tolist() for _ in range(1 + seed % 3)]
    parts = coco_mask.frPyObjects(polygons, HEIGHT, WIDTH)
    assert np.array_equal(with_only(folder, polygons).numpy(), coco_mask.decode(coco_mask.merge(parts)))
    dense = np.asfortranarray(rng.random((HEIGHT, WIDTH)) < rng.choice([0.02, 0.5]), np.uint8)
    dense[:, : int(rng.integers(0, WIDTH))] = seed % 2
    encoded = coco_mask.encode(dense)["counts"].decode()
    assert np.array_equal(with_only(folder, {"size": [HEIGHT, WIDTH], "counts": encoded}).numpy(), dense)


def test_an_object_without_a_pixel_keeps_its_box(folder: Path) -> None:
    assert not with_only(folder, [[5, 5, 5.01, 5, 5, 5.01]]).any()


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="the shared COCO images are not in this checkout")
def test_real_images() -> None:
    source = source_of(REAL)
    source.check()
    assert (len(source.frame_ids("train")), len(source.frame_ids("val"))) == (84, 47)
    official = COCO()
    official.dataset = json.loads((REAL / "instances_val2017.json").read_text())
    official.createIndex()
    crowds = 0
    for frame_id in source.frame_ids("val"):
        frame = source.read(frame_id)
        view, truth = frame.cameras[0], frame.truth
        assert truth is not None
        assert truth.images[0] is not None
        annotations = official.imgToAnns[int(frame_id.removeprefix("val/"))]
        assert len(view.labels) == len(annotations)
        for index, one in enumerate(annotations):
            assert np.array_equal(truth.images[0].masks.dense(index).numpy(), official.annToMask(one))
            x, y, width, height = one["bbox"]
            assert view.labels.boxes[index].tolist() == pytest.approx([x, y, x + width, y + height], abs=1e-4)
            crowds += int(view.labels.ignore[index])
    assert crowds == 5


def test_an_annotation_file_is_read_once(folder: Path) -> None:
    path = folder / "instances_val2017.json"
    state = path.stat()
    first = read_instances(path, state.st_size, state.st_mtime_ns)
    assert read_instances(path, state.st_size, state.st_mtime_ns) is first
    assert first.images[0] == ListedImage("21", "000000000021.png", WIDTH, HEIGHT)
