"""Masks written image by image: read back by training, continued after an interrupt, one maker to a file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mwsis.core.errors import DataError
from mwsis.core.instances import Boxes2D
from mwsis.data.given_masks import MaskFile
from mwsis.data.mask_writer import MaskWriter
from tests.data.frames_for_tests import random_frame

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")
MAKER = {"model": "sam2", "sha256": {"model.safetensors": "ab"}}


def rows(view, weight=0.7, source="sam2"):
    """The left half of the image, once for each object."""
    height, width = view.camera.height, view.camera.width
    counts = [0, height * width // 2, height * width // 2]
    mask = {"segmentation": {"size": [height, width], "counts": counts}, "mask_weight": weight, "mask_source": source}
    return [mask] * len(view.labels.objects)


def write_all(path, frames, made_by=MAKER):
    writer = MaskWriter(path, CLASSES, made_by)
    made = 0
    for frame in frames:
        for view in frame.cameras:
            if not writer.has(frame.frame_id, view):
                writer.add(frame.frame_id, view, rows(view))
                made += 1
    return writer.finish(), made


def test_training_finds_the_masks_of_its_boxes(tmp_path):
    frames = [random_frame(0), random_frame(1)]
    written, made = write_all(tmp_path / "new" / "masks.json", frames)
    assert (len(written), made) == (2, 4)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["masks.json"]
    file = MaskFile(tmp_path / "new" / "masks.json", CLASSES, allow_truth=False)
    for frame in frames:
        first, second = file.of(frame)
        assert first.weight.tolist() == pytest.approx([0.7, 0.0])  # an ignore region has none
        assert torch.equal(first.masks.dense(0), torch.arange(48).expand(30, 48) < 24)
        assert len(second.weight) == 0
    content = json.loads((tmp_path / "new" / "masks.json").read_text())
    assert content["made_by"] == MAKER
    assert [row["id"] for row in content["annotations"]] == [1, 2]


def test_what_was_made_before_is_kept_and_a_torn_line_is_not(tmp_path):
    frames, path = [random_frame(seed) for seed in range(3)], tmp_path / "masks.json"
    writer = MaskWriter(path, CLASSES, MAKER)
    for view in frames[0].cameras:
        writer.add(frames[0].frame_id, view, rows(view))
    assert not path.exists()
    whole = writer.unfinished.read_bytes()
    writer.unfinished.write_bytes(whole + b'{"image": {"frame_id": "drive-1", "cam')
    again = MaskWriter(path, CLASSES, MAKER)
    assert again.has(frames[0].frame_id, frames[0].cameras[0])
    assert not again.has(frames[1].frame_id, frames[1].cameras[0])
    assert writer.unfinished.read_bytes() == whole
    written, made = write_all(path, frames)
    assert (len(written), made) == (3, 4)
    before = path.read_bytes()
    assert write_all(path, frames)[1] == 0
    assert path.read_bytes() == before
    assert write_all(path, [*frames, random_frame(3)])[1] == 2
    assert len(write_all(path, frames[:1])[0]) == 1


def test_a_torn_first_line_is_nothing(tmp_path):
    (tmp_path / ".masks.json.unfinished").write_bytes(b'{"made_by"')
    assert len(write_all(tmp_path / "masks.json", [random_frame(0)])[0]) == 1


def test_boxes_that_have_changed_are_asked_again(tmp_path):
    frame = random_frame(0)
    write_all(tmp_path / "masks.json", [frame])
    view = frame.cameras[0]
    moved = Boxes2D(view.labels.boxes + 1, view.labels.labels, view.labels.ignore)
    other = Boxes2D(view.labels.boxes, torch.tensor([2, -1]), view.labels.ignore)
    writer = MaskWriter(tmp_path / "masks.json", CLASSES, MAKER)
    assert writer.has(frame.frame_id, view)
    assert not writer.has(frame.frame_id, replace(view, labels=moved))
    assert not writer.has(frame.frame_id, replace(view, labels=other))


def test_a_file_holds_the_masks_of_one_maker(tmp_path):
    path = tmp_path / "masks.json"
    write_all(path, [random_frame(0)])
    with pytest.raises(DataError, match=r"masks.json: holds masks of other classes or made by .*'sam2'.*another out="):
        MaskWriter(path, CLASSES, {**MAKER, "model": "sam"})
    with pytest.raises(DataError, match="holds masks of other classes"):
        MaskWriter(path, CLASSES[:2], MAKER)
    path.unlink()
    writer = MaskWriter(path, CLASSES, MAKER)
    writer.add("frame", random_frame(0).cameras[1], [])
    with pytest.raises(DataError, match=r"remove it and .masks.json.unfinished beside it"):
        MaskWriter(path, CLASSES, {})


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"no JSON", b"\xff\xfe", b'{"made_by": 1, "categories": [3]}'])
def test_other_files_are_left_alone(tmp_path, content):
    path = tmp_path / "masks.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is there and not a file of this command; give another out="):
        MaskWriter(path, CLASSES, MAKER)
    assert path.read_bytes() == content
    path.rename(tmp_path / ".other.json.unfinished")
    if content[:1] != b"{":
        (tmp_path / ".other.json.unfinished").write_bytes(content + b"\n")
        with pytest.raises(DataError, match=r"is not what this command leaves there; remove it|holds masks of other"):
            MaskWriter(tmp_path / "other.json", CLASSES, MAKER)


def test_a_full_disk_is_a_sentence_and_leaves_no_file(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    writer = MaskWriter(tmp_path / "masks.json", CLASSES, MAKER)
    view = random_frame(0).cameras[0]
    writer.add("frame", view, rows(view))
    monkeypatch.setattr("mwsis.data.mask_writer.write_json", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); make room"):
        writer.finish()
    assert not (tmp_path / "masks.json").exists()
    assert MaskWriter(tmp_path / "masks.json", CLASSES, MAKER).has("frame", view)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        MaskWriter(tmp_path / "file" / "masks.json", CLASSES, MAKER).add("frame", view, rows(view))
