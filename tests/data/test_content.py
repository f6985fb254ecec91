"""The digest of frames: blind to the last bit and to who made them, not to what they hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mwsis.core.instances import Boxes2D
from mwsis.data.content import content_digest
from mwsis.data.store import FrameStore, write_frames
from mwsis.data.street import StreetSource
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from mwsis.training.prepare import build_source, prepare

SIZE = {"train_segments": 2, "train_frames_per_segment": 1, "val_segments": 0, "lidar_columns": 64, "image_width": 96}


@pytest.fixture(scope="module")
def frames():
    source = StreetSource(**SIZE)
    return [source.read(frame_id) for frame_id in source.frame_ids("train")]


def test_frames_read_back_and_made_again_have_the_same_digest(frames, tmp_path):
    write_frames(tmp_path / "frames.arrow", frames)
    digest = content_digest([frames])
    assert len(digest) == 16
    assert content_digest([FrameStore(tmp_path / "frames.arrow")]) == digest
    again = StreetSource(**SIZE)
    assert content_digest([[again.read(name) for name in reversed(again.frame_ids("train"))][::-1]]) == digest


def test_the_last_bit_of_points_does_not_count(frames):
    generator = torch.Generator().manual_seed(0)
    moved = []
    for frame in frames:
        up = torch.rand(frame.points.xyz.shape, generator=generator) < 0.5
        xyz = torch.nextafter(frame.points.xyz, torch.where(up, torch.inf, -torch.inf))
        moved.append(replace(frame, points=replace(frame.points, xyz=xyz)))
        assert not torch.equal(xyz, frame.points.xyz)
        # why coordinates are not hashed one by one
        assert len(frame.points) * 3 > int(((100 * xyz).round() == (100 * frame.points.xyz).round()).sum())
    assert content_digest([moved]) == content_digest([frames])


def first_view(frame, **changes):
    return replace(frame, cameras=(replace(frame.cameras[0], **changes), *frame.cameras[1:]))


def other_box(frame):
    labels = frame.cameras[0].labels
    boxes = labels.boxes.clone()
    boxes[0, 2] += 1
    return first_view(frame, labels=Boxes2D(boxes, labels.labels, labels.ignore))


def other_class(frame):
    labels = frame.cameras[0].labels
    return first_view(frame, labels=Boxes2D(labels.boxes, (labels.labels + 1) % 3, labels.ignore))


def other_truth(frame):
    semantic = frame.truth.semantic_labels.clone()
    semantic[0] = 2 - semantic[0].clamp(min=0)
    return replace(frame, truth=replace(frame.truth, semantic_labels=semantic))


def further_away(frame):
    return replace(frame, points=replace(frame.points, xyz=frame.points.xyz + 0.02))


CHANGES = {
    "a box one pixel wider": other_box,
    "other classes": other_class,
    "one point of another class": other_truth,
    "all points 2 cm further": further_away,
    "no truth": lambda frame: frame.without_truth(),
    "another name": lambda frame: replace(frame, frame_id="x"),
    "other image": lambda frame: first_view(frame, image=frame.cameras[1].image),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_counts(frames, change):
    assert len(frames[0].cameras[0].labels) > 0
    assert content_digest([[CHANGES[change](frames[0]), frames[1]]]) != content_digest([frames])


def test_order_and_splits_count(frames):
    digests = {content_digest(splits) for splits in ([frames], [frames[::-1]], [frames[:1], frames[1:]], [frames, []])}
    assert len(digests) == 4


TINY = ("experiment=smoke", "data.source.train_frames_per_segment=1", "data.source.lidar_columns=64")


def tiny(cache, *overrides):
    run = typed(compose_run([*TINY, f"data.cache={cache}", *overrides]))
    return prepare(run, build_source(run), lambda *progress: None)


def test_other_frames_than_expected_are_refused(tmp_path):
    prepared = tiny(tmp_path)
    digest = content_digest([prepared.train.frames, prepared.val.frames])
    assert len(tiny(tmp_path, f"data.expected_content='{digest}'").train.frames) == 1
    said = (
        rf"expected frames with content 0123, as made by mwsis 9 \(street 9\), got {digest}; use that version .* or "
        "set data.expected_content=null"
    )
    with pytest.raises(ValueError, match=said):
        tiny(tmp_path, "data.expected_content='0123'", "data.expected_made_by='mwsis 9 (street 9)'")


def test_the_world_of_street_bench_v1_is_what_it_was(tmp_path):
    """Fails when the street world has changed: raise its version, and make a street_bench_v2 with a digest of its own.

    A street does not depend on how many others there are, so the first of each split speaks for all.
    """
    first = ["data.source.train_segments=1", "data.source.val_segments=1", "data.expected_content='14d805bd46571c90'"]
    where = [f"data.cache={tmp_path}", "data.cache_workers=1"]
    run = typed(compose_run(["experiment=street_bench_v1", *where, *first]))
    prepared = prepare(run, build_source(run), lambda *progress: None)
    assert prepared.train.frames.frame_ids + prepared.val.frames.frame_ids == ["train_000_00", "val_000_00"]
