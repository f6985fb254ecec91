"""Images that say what they are labelled with: what is read of each kind, what is never looked at, what is refused."""

from __future__ import annotations

import pickle

import pytest
import torch

from camera.fcos import assign_objects, pyramid_locations
from camera.point_to_mask.points import read_points
from mwsis.core.errors import DataError
from mwsis.data.coco import CocoSource
from mwsis.data.coco_json import POINTS, read_instances
from mwsis.data.given_masks import MaskFile, MixedMasks, TrueMasks
from mwsis.data.source import LabelledImages
from mwsis.data.store import FrameStore, write_frames
from tests.data.frames_for_tests import assert_same
from tests.data.mixed_folder import (
    CLASSES,
    HEIGHT,
    MADE,
    NAMES,
    OBJECTS,
    SUPERVISION,
    WIDTH,
    entry,
    masks_filled,
    mixed_folder,
    point_masks,
)

WHOLE = [0.0, 0.0, float(WIDTH), float(HEIGHT)]


def source_of(folder, masks=None):
    files = {"train": "train.json", "val": "val.json"}
    return CocoSource(folder, files, {"train": "images", "val": "images"}, CLASSES, masks)


def corners(boxes):
    return [[x, y, x + width, y + height] for x, y, width, height in boxes]


def test_what_is_read_of_each_kind(tmp_path):
    source = source_of(mixed_folder(tmp_path / "world"), point_masks(tmp_path / "masks.json"))
    drawn = corners(box for _, box in OBJECTS)
    expected = dict.fromkeys((1, 2, 3, 4), drawn) | {
        5: corners(MADE[5]),
        6: [*corners(MADE[6]), WHOLE],
        7: [WHOLE],
    }
    for number, boxes in expected.items():
        frame = source.read(f"train/{number}")
        labels = frame.cameras[0].labels
        assert frame.cameras[0].supervision == SUPERVISION[number]
        assert labels.boxes.tolist() == boxes
        assert labels.ignore.tolist() == [box == WHOLE for box in boxes]
        assert labels.labels.tolist() == [-1 if box == WHOLE else place for place, box in enumerate(boxes)]
        assert (frame.truth is None) == (SUPERVISION[number] == POINTS)
    write_frames(tmp_path / "frames.arrow", [source.read(f"train/{number}") for number in SUPERVISION])
    stored = [frame.cameras[0].supervision for frame in FrameStore(tmp_path / "frames.arrow")]
    assert stored == list(SUPERVISION.values())
    assert isinstance(source, LabelledImages)
    assert source.labelled_images("train") == {"masks": 2, "boxes": 2, "points": 3, "unknown_extent": 2}
    assert source.labelled_images("val") == {}
    assert source.report("train")["degenerate_boxes_left_out"] == 0


def test_points_alone_teach_no_background(tmp_path):
    source = source_of(mixed_folder(tmp_path / "world"))
    assert source.labelled_images("train")["unknown_extent"] == 3
    locations = pyramid_locations([(8, 12), (4, 6)], [8, 16], torch.device("cpu"))
    labels = [source.read(f"train/{number}").cameras[0].labels for number in (5, 3)]
    positives = assign_objects(locations, labels, [64.0, torch.inf])
    assert positives.ignored[0].all()
    assert not positives.ignored[1].any()
    masked = source_of(tmp_path / "world", point_masks(tmp_path / "masks.json"))
    labels = [masked.read(f"train/{number}").cameras[0].labels for number in (5, 6)]
    positives = assign_objects(locations, labels, [64.0, torch.inf])
    assert not positives.ignored[0].any()  # every object has a box: the rest is background
    taught = torch.zeros(len(locations.xy), dtype=torch.bool)
    taught[positives.location_index[positives.image_index == 1]] = True
    assert taught.any()
    assert torch.equal(positives.ignored[1], ~taught)


def test_an_image_without_annotations_has_no_objects(tmp_path):
    def emptied(train):
        train["annotations"] = [one for one in train["annotations"] if one["image_id"] not in (1, 3, 7)]

    source = source_of(mixed_folder(tmp_path / "world", emptied))
    assert all(len(source.read(f"train/{number}").cameras[0].labels) == 0 for number in (1, 3, 7))
    assert source.labelled_images("train")["unknown_extent"] == 2


def test_masks_are_given_of_images_that_say_so(tmp_path):
    file = point_masks(tmp_path / "masks.json")
    source = source_of(mixed_folder(tmp_path / "world"), file)
    frames = [source.read(f"train/{number}") for number in SUPERVISION]
    given = MixedMasks(MaskFile(file, source.class_names, allow_truth=False))
    weights = [given.of(frame)[0].weight.tolist() for frame in frames]
    assert weights == [[1, 1], [1, 1], [0, 0], [0, 0], [0.5, 0.5], [0.5, 0], [0]]
    first = given.of(frames[0])[0].masks
    assert first.crop_boxes.tolist() == corners(box for _, box in OBJECTS)
    assert given.of(frames[4])[0].masks.crop_boxes.tolist() == corners(MADE[5])
    alone = [MixedMasks(None).of(frame)[0].weight.sum() for frame in frames]
    assert [float(one) for one in alone] == [2, 2, 0, 0, 0, 0, 0]
    everything = [float(TrueMasks().of(frame)[0].weight.sum()) for frame in frames]
    assert everything == [2, 2, 2, 2, 0, 0, 0]  # data.supervision=masks; of points there is no truth to give


def test_no_leak_of_boxes_and_masks_that_an_image_does_not_declare(tmp_path):
    file = point_masks(tmp_path / "masks.json")
    clean = source_of(mixed_folder(tmp_path / "clean"), file)
    given = MixedMasks(MaskFile(file, clean.class_names, allow_truth=False))
    for kind, seen in (("boxes", False), ("points", False), ("masks", True)):
        other = source_of(mixed_folder(tmp_path / kind, masks_filled(kind)), file)
        for number, said in SUPERVISION.items():
            frames = [source.read(f"train/{number}") for source in (clean, other)]
            assert_same(*(frame.without_truth() for frame in frames))
            areas = [int(given.of(frame)[0].masks.areas().sum()) for frame in frames]
            assert (areas[0] != areas[1]) == (seen and said == kind), (kind, number)


def test_points_are_read_of_images_that_say_so(tmp_path):
    folder = mixed_folder(tmp_path / "world", entry(0, bbox=[1, 2], point=None))
    names, images = read_points(folder / "train.json", CLASSES, "annotated")
    assert names == NAMES
    assert [image.id for image in images] == [5, 6, 7]
    assert [image.ids for image in images] == [(51, 52), (61, 62), (71, 72)]
    none = mixed_folder(tmp_path / "none", *(entry(place, "images", supervision="boxes") for place in (4, 5, 6)))
    with pytest.raises(DataError, match='expected at least one with "supervision": "points", got none'):
        read_points(none / "train.json", CLASSES, "annotated")
    assert len(read_points(folder / "val.json", CLASSES, "annotated")[1]) == 1  # nobody says anything: all


def test_fingerprints_follow_what_is_read(tmp_path):
    file = point_masks(tmp_path / "masks.json")
    folder = mixed_folder(tmp_path / "world")
    with_masks, without = source_of(folder, file), source_of(folder)
    assert with_masks.identity() != without.identity()
    assert with_masks.fingerprint() != without.fingerprint()
    travelled = pickle.loads(pickle.dumps(with_masks))
    assert (travelled.identity(), travelled.fingerprint()) == (with_masks.identity(), with_masks.fingerprint())
    first = with_masks.fingerprint()
    said = mixed_folder(tmp_path / "world2", entry(2, "images", supervision="masks"))
    state = (said / "train.json").read_text()
    (folder / "train.json").write_text(state)
    assert source_of(folder, file).fingerprint() != first

    def unsaid(train):
        for image in train["images"]:
            image.pop("supervision")

    plain = mixed_folder(tmp_path / "plain", unsaid)
    assert source_of(plain, file).identity() == source_of(plain).identity()  # nothing says points: nothing is read
    assert source_of(plain).labelled_images("train") == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            entry(3, "images", supervision="box"),
            r'train.json: images\[3\]: supervision: got "box"; did you mean \'boxes\'',
        ),
        (
            entry(1, segmentation=None),
            r"annotations\[1\]: segmentation: expected one, got none; image 1 says that it has m",
        ),
        (entry(9, point=None), r"annotations\[9\]: point: expected \[x, y\] inside the image, got null; image 5 says"),
        (entry(9, point=[96.0, 3]), r"annotations\[9\]: point: expected \[x, y\] inside the image, got \[96.0, 3\]"),
        (entry(9, point=["a", 3]), r"annotations\[9\]: point: expected"),
        (entry(9, id=None), r"annotations\[9\]: id: expected int or str, got null"),
        (entry(5, bbox=None), r"annotations\[5\]: bbox: expected list, got null"),
    ],
)
def test_what_an_image_says_and_does_not_have_is_refused(tmp_path, change, said):
    with pytest.raises(DataError, match=said):
        source_of(mixed_folder(tmp_path / "world", change))


def test_boxes_may_lack_masks_and_points_boxes(tmp_path):
    changes = [entry(place, segmentation=None) for place in (4, 5, 6, 7)]
    changes += [entry(place, bbox=None, segmentation=None) for place in range(8, 14)]
    source = source_of(mixed_folder(tmp_path / "world", *changes), point_masks(tmp_path / "masks.json"))
    assert [source.read(f"train/{number}").truth is None for number in SUPERVISION] == [False] * 2 + [True] * 5
    assert source.read("train/5").cameras[0].labels.boxes.tolist() == corners(MADE[5])


def test_the_data_set_itself_is_no_file_of_masks_made_elsewhere(tmp_path):
    path = mixed_folder(tmp_path / "world") / "train.json"
    with pytest.raises(DataError, match="expected masks made elsewhere, got a data set whose images say 'supervision'"):
        MaskFile(path, NAMES, allow_truth=True)
    state = path.stat()
    assert read_instances(path, state.st_size, state.st_mtime_ns).images[0].supervision == "masks"
