"""Both Waymo versions as data sets: splits, choice of frames, the same frames from either, errors."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from mwsis.core.errors import ConfigError, DataError
from mwsis.data.source import Source
from mwsis.data.store import FrameStore
from mwsis.data.waymo import v1_write, v2
from mwsis.data.waymo.record import WaymoRecord
from mwsis.data.waymo.source import WaymoV1Source, WaymoV2Source
from mwsis.training.config import instantiated
from tests.data.frames_for_tests import assert_same, converted
from tests.data.waymo_drive import SEGMENT, TIME, make_drive, without_labels

OTHER = "2002_0_20_0_20"
KINDS = {"v1": WaymoV1Source, "v2": WaymoV2Source}
CONFIGS = Path(__file__).parents[2] / "configs" / "data"


def segment(name: str, count: int, labelled: tuple[int, ...]) -> Iterator[WaymoRecord]:
    for number in range(count):
        record = make_drive(number)
        yield replace(record if number in labelled else without_labels(record), segment=name)


def write(kind: str, folder: Path, name: str, records: Iterator[WaymoRecord]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "v1":
        v1_write.write_segment(folder / f"segment-{name}_with_camera_labels.tfrecord", records)
    else:
        v2.write_segment(folder, records)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Training: five frames of which 1, 3, 4 are labelled, and two of which none is; validation: one, labelled."""
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp(kind)
        write(kind, made[kind] / "training", SEGMENT, segment(SEGMENT, 5, (1, 3, 4)))
        write(kind, made[kind] / "training", OTHER, segment(OTHER, 2, ()))
        write(kind, made[kind] / "validation", "3003", segment("3003", 1, (0,)))
    return made


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def numbers(frame_ids: list[str], name: str = SEGMENT) -> list[int]:
    prefix = f"{name}/"
    return [(int(item.removeprefix(prefix)) - TIME) // 100_000 for item in frame_ids if item.startswith(prefix)]


def test_both_versions_yield_the_same_frames(roots: dict[str, Path]) -> None:
    one, two = (KINDS[kind](roots[kind], lidars=("TOP", "FRONT"), frames="all") for kind in KINDS)
    for split in ("train", "val"):
        assert one.frame_ids(split) == two.frame_ids(split)
        for frame_id in one.frame_ids(split):
            first, second = one.read(frame_id), two.read(frame_id)
            assert len(first.points) > 400
            assert_same(first, second)


def test_splits_and_choice_of_frames(kind: str, roots: dict[str, Path]) -> None:
    source = KINDS[kind](roots[kind])
    assert isinstance(source, Source)
    source.check()
    assert source.frame_ids("train") == source.frame_ids("training")
    assert numbers(source.frame_ids("train")) == [1, 3, 4]
    assert numbers(source.frame_ids("train"), OTHER) == []
    assert source.frame_ids("val") == [f"3003/{TIME}"]
    for frames, expected in (("panoptic", [1, 3, 4]), ("both", [1, 3, 4]), ("all", [0, 1, 2, 3, 4])):
        assert numbers(KINDS[kind](roots[kind], frames=frames).frame_ids("train")) == expected
    assert numbers(KINDS[kind](roots[kind], every=2).frame_ids("train")) == [1, 4]
    assert source.report("train") == {
        "segments": 2,
        "unreadable": 0,
        "frames": 7,
        "without_lidar_segmentation": 4,
        "without_panoptic": 4,
        "chosen": 3,
    }


def test_a_frame_is_found_by_its_name_alone(kind: str, roots: dict[str, Path]) -> None:
    source = KINDS[kind](roots[kind])
    frame_id = f"{SEGMENT}/{TIME + 200_000}"  # not chosen, and the index was never asked for
    frame = source.read(frame_id)
    assert (frame.frame_id, frame.segment, source.segment_of(frame_id)) == (frame_id, SEGMENT, SEGMENT)
    assert frame.truth is None
    for wrong in (f"{SEGMENT}/1", "nowhere/1", "", SEGMENT):
        with pytest.raises(DataError, match="expected <segment>/<timestamp in microseconds>"):
            source.read(wrong)


def test_a_copy_for_another_process_is_small_and_reads_the_same(kind: str, roots: dict[str, Path]) -> None:
    source = KINDS[kind](roots[kind])
    before = len(pickle.dumps(source))
    frame_id = source.frame_ids("train")[0]
    content = pickle.dumps(source)
    assert len(content) < before + 1000
    assert_same(pickle.loads(content).read(frame_id), source.read(frame_id))


def test_the_fingerprint_follows_files_and_settings(kind: str, roots: dict[str, Path], tmp_path: Path) -> None:
    source = KINDS[kind](roots[kind])
    prints = {source.fingerprint(), KINDS[kind](roots[kind]).fingerprint()}
    assert len(prints) == 1
    for changed in (
        {"frames": "all"}, {"every": 2}, {"returns": 1}, {"class_map": "published"}, {"lidars": ("FRONT",)},
        {"min_mask_px": 9},
    ):  # fmt: skip
        prints.add(KINDS[kind](roots[kind], **changed).fingerprint())
    assert len(prints) == 7
    write(kind, tmp_path / "training", SEGMENT, segment(SEGMENT, 1, (0,)))
    before = KINDS[kind](tmp_path).fingerprint()
    write(kind, tmp_path / "training", OTHER, segment(OTHER, 1, (0,)))
    assert KINDS[kind](tmp_path).fingerprint() != before


def test_a_segment_that_cannot_be_listed_does_not_stop_the_others(kind: str, tmp_path: Path) -> None:
    for name in (OTHER, SEGMENT):
        write(kind, tmp_path / "training", name, segment(name, 2, (0, 1)))
    whole = KINDS[kind](tmp_path)
    of_segments = {name: whole.segment_fingerprint(name) for name in (OTHER, SEGMENT)}
    for path in tmp_path.rglob(f"*{OTHER}*"):
        path.write_bytes(path.read_bytes()[:-20])
    source = KINDS[kind](tmp_path)
    source.check()
    assert source.frame_ids("train") == [f"{SEGMENT}/{TIME}", f"{SEGMENT}/{TIME + 100_000}"]
    ((unit, sentence),) = source.unreadable("train").items()
    assert OTHER in unit
    assert str(tmp_path / "training") in sentence
    assert (source.report("train")["segments"], source.report("train")["unreadable"]) == (1, 1)
    assert source.segment_fingerprint(SEGMENT) == of_segments[SEGMENT]
    assert source.identity() == whole.identity()
    with pytest.raises(DataError, match=OTHER):
        source.read(f"{OTHER}/{TIME}")


def test_frames_go_through_the_store(kind: str, roots: dict[str, Path], tmp_path: Path) -> None:
    source = KINDS[kind](roots[kind])
    store = FrameStore(converted(source, tmp_path).frames.root)
    assert store.frame_ids == source.frame_ids("train")
    assert_same(store[1], source.read(store.frame_ids[1]))


def test_settings_and_folders_are_checked(kind: str, roots: dict[str, Path], tmp_path: Path) -> None:
    make = KINDS[kind]
    with pytest.raises(DataError, match="nowhere: no such folder"):
        make(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="frames: no 'panoptc'; did you mean 'panoptic'"):
        make(tmp_path, frames="panoptc")
    with pytest.raises(ConfigError, match="every: expected 1 or more, got 0"):
        make(tmp_path, every=0)
    with pytest.raises(ConfigError, match="did you mean 'SIDE_LEFT'"):
        make(tmp_path, lidars=("SIDE_LEF",))
    (tmp_path / "training").mkdir()
    with pytest.raises(DataError, match="no segments in any of its folders; expected 'training' or"):
        make(tmp_path).check()
    with pytest.raises(DataError, match="training: no segments; expected"):
        make(tmp_path).frame_ids("train")
    with pytest.raises(DataError, match="no split 'test'"):
        make(roots[kind]).frame_ids("test")
    with pytest.raises(DataError, match="no split"):
        make(roots[kind] / "training").frame_ids("..")


def test_check_names_the_file_of_a_frame_that_cannot_be_used(kind: str, tmp_path: Path) -> None:
    record = make_drive()
    blind = replace(record, cameras=tuple(replace(camera, width=5) for camera in record.cameras))
    write(kind, tmp_path / "val", SEGMENT, iter([blind]))
    with pytest.raises(
        DataError, match=rf"val.*{SEGMENT}.*frame {SEGMENT}/{TIME}: .*image: expected \(width, height\)"
    ):
        KINDS[kind](tmp_path).check()


def test_one_segment_in_two_splits_is_refused(tmp_path: Path) -> None:
    for folder in ("training", "validation"):
        write("v1", tmp_path / folder, SEGMENT, segment(SEGMENT, 1, (0,)))
    source = WaymoV1Source(tmp_path)
    assert len(source.frame_ids("train")) == 1
    assert source.frame_ids("val") == []
    (sentence,) = source.unreadable("val").values()
    assert re.search(r"is also in .*training.*; keep one of them", sentence)


def test_the_configurations_name_the_sources(kind: str, roots: dict[str, Path]) -> None:
    config = yaml.safe_load((CONFIGS / f"waymo_{kind}.yaml").read_text())
    source = instantiated({**config["source"], "root": str(roots[kind])}, "data.source")
    assert (type(source), source.name) == (KINDS[kind], config["name"])
    assert len(source.frame_ids("train")) == 3


def test_only_the_chosen_lidars_are_decoded(kind: str, roots: dict[str, Path]) -> None:
    """Points, not just speed: TOP's rings must not depend on who else is read."""
    frame_id = f"3003/{TIME}"
    top, both, front = (
        KINDS[kind](roots[kind], lidars=names).read(frame_id) for names in (("TOP",), ("FRONT", "TOP"), ("FRONT",))
    )
    assert torch.equal(torch.cat([front.points.xyz, top.points.xyz]), both.points.xyz)
    assert len(front.points) == 10
