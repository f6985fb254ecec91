"""Whole data sets: the same bytes whatever happened on the way, and nothing written twice."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections import namedtuple
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import Frame
from mwsis.core.instances import PointLabels
from mwsis.data import conversion
from mwsis.data.conversion import Conversion, Labelling, Shard, SplitPlan, convert, jobs_of, plan_split, write_segment
from mwsis.data.conversion_checks import estimate, require_space, verify
from mwsis.data.label_cache import FrameLabels, LabelCache
from mwsis.data.store import FrameStore
from mwsis.data.workers import Pool, worker_pool
from tests.data.frames_for_tests import assert_same, random_frame

ALONE = Pool("processes", 1)


@dataclass
class SmallSource:
    """Two splits of small segments; a file named in ``damage`` makes one of its frames unreadable.

    ``lost`` are segments that cannot even be listed, ``versions`` those that are no longer what they were.
    """

    damage: Path | None = None
    delay: float = 0.0
    segments: int = 3
    reads: list[str] = field(default_factory=list)
    lost: tuple[str, ...] = ()
    versions: dict[str, int] = field(default_factory=dict)
    name = "small"
    class_names = ("Vehicle", "Pedestrian", "Cyclist")

    def check(self) -> None:
        pass

    def identity(self) -> str:
        return "small"

    def fingerprint(self) -> str:
        return f"small {self.segments} {self.lost} {self.versions}"

    def segment_fingerprint(self, segment: str) -> str:
        return f"version {self.versions.get(segment, 0)}"

    def frame_ids(self, split: str) -> list[str]:
        names = [f"{split}/{segment}" for segment in range(self.segments)]
        return [f"{name}-{frame}" for name in names if name not in self.lost for frame in range(2)]

    def unreadable(self, split: str) -> dict[str, str]:
        return {name: f"{name}: expected a list, got noise" for name in self.lost if name.startswith(split)}

    def segment_of(self, frame_id: str) -> str:
        return frame_id.rsplit("-", 1)[0]

    def read(self, frame_id: str) -> Frame:
        self.reads.append(frame_id)
        time.sleep(self.delay)
        if self.damage and self.damage.exists() and self.damage.read_text() == frame_id:
            raise DataError("wheel.bin: expected a wheel, got none")
        seed = sum(map(ord, frame_id))
        return replace(random_frame(seed, 5), frame_id=frame_id, segment=self.segment_of(frame_id))


def label(frame: Frame) -> FrameLabels:
    assert frame.truth is None
    ring = frame.points.ring.long()
    return FrameLabels(PointLabels(ring % 3 - 1, ring, (ring % 2).float()), ring - 1)


def plans_of(source: SmallSource, home: Path) -> list[SplitPlan]:
    return [plan_split(source, split, home, Labelling(label, "v1", "key")) for split in ("train", "val")]


def run(source: SmallSource, home: Path, pool: Pool = ALONE, shard: Shard | None = None, **how: Any) -> Conversion:
    plans = plans_of(source, home)
    return convert(jobs_of(source, plans, label, pool, shard), plans, pool, **how)


def content(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run in one process writes."""
    home = tmp_path_factory.mktemp("whole")
    done = run(SmallSource(), home)
    assert (done.skipped, done.missing) == ((), 0)
    assert done.peak_bytes > 1e6
    return content(home)


def test_frames_and_labels_come_back(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = SmallSource()
    run(source, tmp_path, on_progress=lambda *progress: seen.append(progress))
    assert sorted(set(seen)) == [(done, 12) for done in range(13)]
    assert seen == sorted(seen)
    plan = plans_of(source, tmp_path)[0]
    assert plan.is_complete()
    frames, labels = FrameStore(plan.frames.root), LabelCache(plan.labels.root)
    assert frames.frame_ids == source.frame_ids("train")
    assert_same(frames[3], source.read("train/1-1"))
    assert_same(labels[3], label(frames[3].without_truth()))
    listed = json.loads((plan.frames.root / "manifest.json").read_text())["segments"]
    assert [entry["name"] for entry in listed] == ["train/0", "train/1", "train/2"]
    assert {entry["status"] for entry in listed} == {"done"}
    assert all((plan.frames.root / entry["file"]).stat().st_size == entry["num_bytes"] for entry in listed)


@pytest.mark.slow
def test_workers_write_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with worker_pool(2) as pool:
        run(SmallSource(), tmp_path, pool)
        assert content(tmp_path) == whole
        run(source := SmallSource(), tmp_path, pool)
        damaged = SmallSource(tmp_path / "damage")
        (tmp_path / "damage").write_text("val/2-1")
        (segment,) = run(damaged, tmp_path / "other", pool).skipped
    assert source.reads == []
    assert segment[:2] == ("val", "val/2")


def test_job_ends_with_the_process_that_waits(tmp_path: Path) -> None:
    (job, *_) = jobs_of(source := SmallSource(), plans_of(SmallSource(), tmp_path), label, ALONE)
    with pytest.raises(KeyboardInterrupt):
        write_segment(replace(job, source=source, owner=1 << 30))
    assert source.reads == []
    assert content(tmp_path) == {}


def test_unreadable_segment_is_skipped_until_mended(tmp_path: Path, whole: dict[str, bytes]) -> None:
    home, damage = tmp_path / "home", tmp_path / "damage"
    damage.write_text("train/1-1")
    done = run(SmallSource(damage), home)
    sentence = "segment 'train/1', frame 'train/1-1': wheel.bin: expected a wheel, got none"
    assert done.skipped == (("train", "train/1", sentence),)
    assert done.missing == 0
    listed = json.loads((home / "train/manifest.json").read_text())["segments"]
    assert [entry["status"] for entry in listed] == ["done", "skipped", "done"]
    assert listed[1]["error"] == sentence
    assert not (home / "train/index.json").exists()
    assert (home / "val/index.json").exists()
    damage.unlink()
    source = SmallSource(damage)
    assert run(source, home).skipped == ()
    assert source.reads == ["train/1-0", "train/1-1"]
    assert content(home) == whole


def test_only_segments_that_changed_are_read_again(tmp_path: Path) -> None:
    run(SmallSource(), tmp_path)
    run(source := SmallSource(segments=4, versions={"train/1": 2}), tmp_path)
    assert source.reads == ["train/1-0", "train/1-1", "train/3-0", "train/3-1", "val/3-0", "val/3-1"]
    run(source := SmallSource(segments=2, versions={"train/1": 2}), tmp_path)
    assert source.reads == []
    plan = plans_of(source, tmp_path)[0]
    assert (plan.is_complete(), len(FrameStore(plan.frames.root)), len(LabelCache(plan.labels.root))) == (True, 4, 4)


def test_segments_that_cannot_be_listed_are_skipped(tmp_path: Path, whole: dict[str, bytes]) -> None:
    source = SmallSource(lost=("train/1",))
    done = run(source, tmp_path)
    assert (done.skipped, done.missing) == ((("train", "train/1", "train/1: expected a list, got noise"),), 0)
    assert len(source.reads) == 10
    assert [plan.is_complete() for plan in plans_of(source, tmp_path)] == [False, True]
    with pytest.raises(DataError, match="train/1: expected a list"):
        run(source, tmp_path, strict=True)
    run(source := SmallSource(), tmp_path)
    assert source.reads == ["train/1-0", "train/1-1"]
    assert content(tmp_path) == whole
    with pytest.raises(DataError, match="val/0: expected a list"):  # nothing is left of the split
        plans_of(SmallSource(segments=1, lost=("val/0",)), tmp_path)


def test_strict_stops_at_the_first(tmp_path: Path) -> None:
    (tmp_path / "damage").write_text("train/0-0")
    with pytest.raises(DataError, match=r"train/0-0.*wheel"):
        run(source := SmallSource(tmp_path / "damage"), tmp_path / "home", strict=True)
    assert source.reads == ["train/0-0"]


def test_shards_make_the_whole(tmp_path: Path, whole: dict[str, bytes]) -> None:
    sources = [SmallSource(), SmallSource()]
    first, second = (run(source, tmp_path, shard=Shard(index, 2)) for index, source in enumerate(sources))
    assert (first.missing, second.missing) == (3, 0)
    assert [len(source.reads) for source in sources] == [6, 6]
    assert content(tmp_path) == whole


def test_files_that_are_not_listed_are_not_made_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    run(SmallSource(), tmp_path)
    for path in [*tmp_path.rglob("manifest.json"), *tmp_path.rglob("index.json")]:
        path.unlink()
    (tmp_path / "val-labels/key/val_0-d4dd9b0d.arrow").unlink(missing_ok=True)
    run(source := SmallSource(), tmp_path)
    assert source.reads == []
    assert content(tmp_path) == whole


def test_verify_reads_every_byte(tmp_path: Path) -> None:
    plans = plans_of(SmallSource(), tmp_path)
    with pytest.raises(DataError, match=r"manifest\.json"):
        verify(plans, ALONE)
    run(SmallSource(), tmp_path)
    assert verify(plans, ALONE) == verify(plans, ALONE)
    assert verify(plans, ALONE).frames == 12
    assert verify(plans, ALONE).damaged == ()
    frames, labels = (plan.path(plan.segments[2]) for plan in (plans[0].frames, plans[1].labels))
    for path in (frames, labels):
        flipped = bytearray(path.read_bytes())
        flipped[len(flipped) // 2] ^= 1
        path.write_bytes(flipped)
    damaged = verify(plans, ALONE).damaged
    assert [str(path) in " ".join(damaged) for path in (frames, labels)] == [True, True]
    assert len(damaged) == 2
    frames.unlink()
    labels.unlink()
    run(SmallSource(), tmp_path)
    assert verify(plans, ALONE).damaged == ()


def test_estimate_is_measured_and_too_small_a_disk_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "damage").write_text("train/0-0")
    source = SmallSource(tmp_path / "damage", delay=0.05)
    jobs = jobs_of(source, plans_of(source, tmp_path / "home"), label, ALONE)
    expected = estimate(jobs, ALONE)
    assert expected is not None
    assert (expected.segments, expected.frames, expected.sampled) == (6, 12, "train/train/1")
    assert 0.05 <= expected.hours * 3600 / 12 < 0.5
    assert not (tmp_path / "home").exists()
    run(SmallSource(), tmp_path / "home")
    written = sum(len(blob) for name, blob in content(tmp_path / "home").items() if name.endswith(".arrow"))
    assert 0.4 * written < expected.num_bytes < written  # these frames are so small that headers count
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 0, expected.num_bytes - 1))
    with pytest.raises(ConfigError, match=r"home: about .* GB are needed, the disk has .* GB free"):
        require_space(expected.num_bytes, tmp_path / "home")


def test_a_disk_that_fills_up_is_one_sentence(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = conversion.write_frames

    def full(path: Path, frames: Any, fingerprint: str) -> None:
        if "train_1" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, frames, fingerprint)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_frames", full)
        with pytest.raises(ConfigError, match="the disk is full; nothing finished is lost"):
            run(SmallSource(), tmp_path)
    run(source := SmallSource(), tmp_path)
    assert "train/0-0" not in source.reads
    assert content(tmp_path) == whole


def test_only_what_nobody_will_finish_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = plans_of(SmallSource(), tmp_path)
    left = plans[0].frames.path(plans[0].frames.segments[0])
    left = left.with_name(f".{left.stem}.0123abcd.arrow")
    foreign = left.with_name(".notes.0123abcd.arrow")
    left.parent.mkdir(parents=True)
    for path in (left, foreign):
        path.write_bytes(b"")
    with conversion.at_work(tmp_path, lambda alone: None):  # another process would be told likewise
        left.write_bytes(b"")
        run(SmallSource(), tmp_path)
        assert left.exists()
        monkeypatch.setattr(conversion, "ABANDONED_S", -1.0)
        run(SmallSource(), tmp_path)
        assert not left.exists()
    assert foreign.exists()


def test_foreign_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/manifest.json").write_text("[]")
    with pytest.raises(DataError, match=r"manifest\.json: not the manifest"):
        run(SmallSource(), tmp_path)


@pytest.mark.parametrize(
    ("count", "kind", "words"), [(0, "processes", "at least 1"), (1, "dsk", "did you mean 'dask'")]
)
def test_wrong_workers(count: int, kind: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words), worker_pool(count, kind):
        pass
