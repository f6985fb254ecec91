"""A whole data set into frame stores and label caches: one segment is one unit of work, for any number of workers.

A file appears under its final name only when it is complete, so a run that is killed loses the segments it was writing
and nothing else, and the next one does what is missing. Commands: `tools/convert.py`; training starts here, too
(`mwsis.training.prepare`). Formats: `store.py`, `label_cache.py`; what was written: `manifest.py`; who works:
`workers.py`; beforehand and afterwards: `conversion_checks.py`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import Frame
from mwsis.data import label_cache, store
from mwsis.data.label_cache import Labeller, plan_labels, write_label_index, write_labels
from mwsis.data.manifest import MANIFEST, Manifest, file_sha256
from mwsis.data.source import Source
from mwsis.data.store import FilePlan, FrameStore, Segment, plan_store, write_frames, write_index
from mwsis.data.workers import Pool, one_thread, peak_memory

__all__ = [
    "Conversion",
    "Job",
    "Labelling",
    "Shard",
    "SplitPlan",
    "at_work",
    "convert",
    "jobs_of",
    "plan_split",
    "remove_temporary",
    "remove_unfinished",
    "while_owned",
    "write_segment",
]

ABANDONED_S = 3600.0
"""An unfinished file not written to for so long belongs to nobody, whoever else may be at work."""

Item = TypeVar("Item")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Labelling:
    """How points are labelled from 2D boxes.

    Attributes:
        labeller: makes the labels of one frame; picklable.
        settings: all that decides them besides the frame.
        folder: name of the folder for labels made so.
    """

    labeller: Labeller
    settings: str
    folder: str


@dataclass(frozen=True)
class SplitPlan:
    """The frame store and the label cache of a split, there or still to be written.

    Attributes:
        frames, labels: what they hold.
        unreadable: name and reason of segments that cannot be listed; while there are any, the store is not finished.
    """

    frames: FilePlan
    labels: FilePlan
    unreadable: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        return self.frames.split

    def is_complete(self) -> bool:
        """Return whether both can be opened."""
        return not self.unreadable and store.is_complete(self.frames) and label_cache.is_complete(self.labels)

    def only(self, segment: Segment) -> SplitPlan:
        """Return the plan of one segment."""
        return SplitPlan(self.frames.only(segment), self.labels.only(segment))


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th segment, from number ``index``; the default is all of them."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"shard={self.index}/{self.count}: expected 0/n to n-1/n")


@dataclass(frozen=True)
class Job:
    """One segment to write.

    Attributes:
        source: where its frames come from.
        plan: of this segment alone.
        labeller: makes its labels.
        owner: the process that waits for it; the job ends when that process does.
    """

    source: Source
    plan: SplitPlan
    labeller: Labeller
    owner: int | None = None

    @property
    def segment(self) -> Segment:
        return self.plan.frames.segments[0]


@dataclass(frozen=True)
class Written:
    """What became of a job.

    Attributes:
        split, segment: which one.
        files: bytes and checksum of the frames and of the labels; empty after an error.
        error: why the segment cannot be read; "" where it could.
        peak_bytes: most memory the worker has held so far.
    """

    split: str
    segment: str
    files: tuple[tuple[int, str], ...]
    error: str
    peak_bytes: int


@dataclass(frozen=True)
class Conversion:
    """What a run did.

    Attributes:
        skipped: split, segment and reason of what could not be read.
        missing: segments that are not there for another reason: other shards have to write them.
        peak_bytes: most memory a worker has held; 0 where nothing was to be done.
    """

    skipped: tuple[tuple[str, str, str], ...]
    missing: int
    peak_bytes: int


def plan_split(source: Source, split: str, home: Path, labelling: Labelling) -> SplitPlan:
    """Return what the folders ``<split>`` and ``<split>-labels`` of a home hold when they are complete.

    Raises:
        DataError: the split has no frames that can be read, or a file is where a folder should be.
    """
    unreadable = tuple(source.unreadable(split).items())
    if unreadable and not source.frame_ids(split):
        raise DataError(unreadable[0][1])
    frames = plan_store(source, split, home / split)
    folder = home / f"{split}-labels" / labelling.folder
    return SplitPlan(frames, plan_labels(frames, folder, labelling.settings), unreadable)


def jobs_of(
    source: Source, plans: Sequence[SplitPlan], labeller: Labeller, pool: Pool, shard: Shard | None = None
) -> list[Job]:
    """Return what is still to be done: the segments of a shard that the manifests do not list as done."""
    shard = shard or Shard()
    manifests = [(Manifest(plan.frames), Manifest(plan.labels)) for plan in plans]
    segments = [(number, segment) for number, plan in enumerate(plans) for segment in plan.frames.segments]
    return [
        Job(source, plans[number].only(segment), labeller, pool.owner)
        for number, segment in segments[shard.index :: shard.count]
        if not all(manifest.has(segment) for manifest in manifests[number])
    ]


def convert(
    jobs: Sequence[Job],
    plans: Sequence[SplitPlan],
    pool: Pool,
    on_progress: Progress | None = None,
    strict: bool = False,
) -> Conversion:
    """Write segments, list them in the manifests, and finish the stores of which all segments are there.

    The files are the same whatever the workers, the order and the interruptions were.

    Args:
        jobs: of `jobs_of`.
        plans: of the whole splits.
        pool: who works.
        on_progress: called with frames done and frames in all, of all splits.
        strict: stop at the first segment that cannot be read.

    Raises:
        DataError: a segment cannot be read, and ``strict``.
    """
    books = {plan.name: (Manifest(plan.frames), Manifest(plan.labels)) for plan in plans}
    segments = {(plan.name, segment.name): segment for plan in plans for segment in plan.frames.segments}
    total = sum(plan.frames.num_frames for plan in plans)
    counter = _Counter(on_progress, total - sum(len(job.segment.frame_ids) for job in jobs), total)
    work = partial(write_segment, on_frame=counter.frame if pool.in_process else None)
    unreadable = [(plan.name, segment, error) for plan in plans for segment, error in plan.unreadable]
    if strict and unreadable:
        raise DataError(unreadable[0][2])
    skipped: list[tuple[str, str, str]] = []
    peak_bytes = 0
    with at_work(plans[0].frames.root.parent, partial(remove_unfinished, plans)):
        try:
            for written in pool.run(work, jobs):
                peak_bytes = max(peak_bytes, written.peak_bytes)
                segment = segments[written.split, written.segment]
                _enter(books[written.split], segment, written)
                if written.error:
                    if strict:
                        raise DataError(written.error)
                    skipped.append((written.split, written.segment, written.error))
                counter.segment(len(segment.frame_ids))
        finally:
            for manifest in (manifest for pair in books.values() for manifest in pair):
                manifest.save()
        missing = sum(map(_finish, plans))
    return Conversion(tuple(sorted(unreadable + skipped)), missing - len(skipped), peak_bytes)


# ---------------------------------------------------------------------------------------------------------------------
# In a worker
# ---------------------------------------------------------------------------------------------------------------------


def write_segment(job: Job, on_frame: Callable[[], None] | None = None) -> Written:
    """Write what is missing of a segment, frames and labels.

    Args:
        job: which segment.
        on_frame: called after each frame that was read.
    """
    frames, labels, segment = job.plan.frames, job.plan.labels, job.segment
    try:
        with one_thread():
            if not frames.holds(segment):
                write_frames(frames.path(segment), _read_frames(job, on_frame), frames.file_fingerprint(segment))
            if not labels.holds(segment):
                stored = FrameStore(frames.path(segment))
                made_from = labels.file_fingerprint(segment)
                write_labels(labels.path(segment), while_owned(stored, job.owner), job.labeller, made_from)
    except DataError as error:
        return Written(frames.split, segment.name, (), str(error), peak_memory())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ConfigError(
            f"{frames.root.parent}: the disk is full; nothing finished is lost, so make room and run the same again"
        ) from None
    files = tuple((path.stat().st_size, file_sha256(path)) for path in (frames.path(segment), labels.path(segment)))
    return Written(frames.split, segment.name, files, "", peak_memory())


def _read_frames(job: Job, on_frame: Callable[[], None] | None) -> Iterator[Frame]:
    for frame_id in while_owned(job.segment.frame_ids, job.owner):
        try:
            frame = job.source.read(frame_id)
        except DataError as error:
            raise DataError(f"segment '{job.segment.name}', frame '{frame_id}': {error}") from None
        yield frame
        if on_frame is not None:
            on_frame()


def while_owned(items: Iterable[Item], owner: int | None) -> Iterator[Item]:
    """Yield the items; end the job once the process that waits for it, ``owner``, has been killed."""
    for item in items:
        if owner is not None and os.getppid() != owner:
            raise KeyboardInterrupt
        yield item


# ---------------------------------------------------------------------------------------------------------------------
# In the process that waits
# ---------------------------------------------------------------------------------------------------------------------


class _Counter:
    """Counts frames as they are read where that is in this process, and by segment where it is not."""

    def __init__(self, report: Progress | None, done: int, total: int) -> None:
        self._report = report or (lambda done, total: None)
        self._done = self._shown = done
        self._total = total
        self._report(done, total)

    def frame(self) -> None:
        self._shown += 1
        self._report(self._shown, self._total)

    def segment(self, num_frames: int) -> None:
        self._done += num_frames
        self._shown = self._done
        self._report(self._done, self._total)


def _enter(books: tuple[Manifest, Manifest], segment: Segment, written: Written) -> None:
    if written.error:
        books[0].skipped(segment, written.error)
    for manifest, (num_bytes, sha256) in zip(books, written.files, strict=False):
        manifest.done(segment, num_bytes, sha256)
    for manifest in books:
        manifest.save(soon=True)


def _finish(plan: SplitPlan) -> int:
    """Write the indices if every segment is there; return how many are not.

    What other processes wrote and have not listed, or listed at the same moment as this one, is listed here.
    """
    folders = (plan.frames, plan.labels)
    there = [all(folder.path(segment).is_file() for folder in folders) for segment in plan.frames.segments]
    if not all(there):
        return there.count(False)
    absent = set()
    for manifest in map(Manifest, folders):
        for segment in (segment for segment in plan.frames.segments if not manifest.has(segment)):
            path = manifest.plan.path(segment)
            if manifest.plan.holds(segment):
                manifest.done(segment, path.stat().st_size, file_sha256(path))
            else:
                absent.add(segment.name)
        manifest.save()
    if not absent and not plan.unreadable:
        write_index(plan.frames)
        write_label_index(plan.labels)
    return len(absent)


@contextmanager
def at_work(home: Path, clean: Callable[[bool], None]) -> Iterator[None]:
    """Tell other processes that files are being written under ``home``; before and after, remove what is left over.

    Args:
        home: a folder; made if needed.
        clean: removes the temporary files of killed processes; told whether nobody else is at work.
    """
    home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home, os.O_RDONLY)
    try:
        clean(_lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))
        _lock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        clean(_lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except OSError:  # another process holds it, or the file system has no locks
        return False
    return True


def remove_unfinished(plans: Sequence[SplitPlan], alone: bool) -> None:
    """Remove the temporary files of `mwsis.core.files.atomic_write` that no process will finish.

    Args:
        plans: what belongs into the folders; only files of these names are touched.
        alone: nobody else writes here; otherwise only what has not been written to for long is removed.
    """
    for plan in (plan for pair in plans for plan in (pair.frames, pair.labels)):
        ours = {segment.file for segment in plan.segments} | {store.INDEX, MANIFEST}
        remove_temporary(plan.root.glob(".*"), ours.__contains__, alone)


def remove_temporary(paths: Iterable[Path], is_ours: Callable[[str], bool], alone: bool) -> None:
    """Remove those files that are named as `atomic_write` names them, for final names that are ours."""
    for path in paths:
        name = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}(\.\w+)", path.name)
        if name and is_ours("".join(name.groups())) and (alone or _age(path) > ABANDONED_S):
            path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Return seconds since a file was written to; 0 where it has just been finished."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
