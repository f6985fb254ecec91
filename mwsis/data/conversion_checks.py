"""Before a conversion: what it will take, measured on the first frames. After it: whether every byte is still there.

The conversion itself is `conversion.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mwsis.core.errors import ConfigError, DataError
from mwsis.core.files import free_bytes
from mwsis.core.frame import Frame
from mwsis.core.instances import IGNORE
from mwsis.data.conversion import Job, SplitPlan
from mwsis.data.label_cache import label_record
from mwsis.data.manifest import DONE, MANIFEST, Manifest, file_sha256
from mwsis.data.store import FRAMES, FilePlan, FrameStore, RecordFile, Segment, frame_record, num_bytes
from mwsis.data.workers import Pool, one_thread, peak_memory

__all__ = ["Estimate", "Verification", "estimate", "labelled_with", "require_space", "verify"]

SAMPLED_FRAMES = 3


@dataclass(frozen=True)
class Sample:
    """The first frames of a segment, read and labelled as the conversion does it.

    Attributes:
        first_s, next_s: seconds for the first frame and for each after it; equal where there is only one.
        frame_bytes: a frame and its labels, on average.
        peak_bytes: most memory the worker held.
        labels: what the frames are labelled with.
        error: why they cannot be read; "" where they can.
    """

    first_s: float = 0.0
    next_s: float = 0.0
    frame_bytes: float = 0.0
    peak_bytes: int = 0
    labels: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Estimate:
    """What a list of jobs will take.

    Attributes:
        segments, frames: still to be written.
        hours: on all workers.
        num_bytes: on disk.
        worker_bytes: memory of one worker.
        labels: what the first frames are labelled with.
        sampled: the segment all this was measured on.
    """

    segments: int
    frames: int
    hours: float
    num_bytes: int
    worker_bytes: int
    labels: tuple[str, ...]
    sampled: str


@dataclass(frozen=True)
class Verification:
    """What reading everything again found.

    Attributes:
        frames: read, with their labels.
        missing: segments that are not there yet.
        damaged: one sentence per file that is not what was written.
    """

    frames: int
    missing: int
    damaged: tuple[str, ...]


def estimate(jobs: Sequence[Job], pool: Pool) -> Estimate | None:
    """Measure the first frames of the first segment that can be read, in a worker; None where there is none."""
    jobs = [job for job in jobs if not all(path.is_file() for path in _paths(job))]
    for job in jobs:
        (sample,) = pool.run(sample_segment, [job])
        if not sample.error:
            frames = sum(len(job.segment.frame_ids) for job in jobs)
            busy_s = frames * sample.next_s + len(jobs) * max(sample.first_s - sample.next_s, 0.0)
            hours = busy_s / min(pool.count, len(jobs)) / 3600
            size = round(frames * sample.frame_bytes)
            return Estimate(
                len(jobs), frames, hours, size, sample.peak_bytes, sample.labels, f"{job.plan.name}/{job.segment.name}"
            )
    return None


def sample_segment(job: Job) -> Sample:
    """Read and label the first frames of a segment."""
    labels: set[str] = set()
    sizes, seconds = [], []
    try:
        with one_thread():
            for frame_id in job.segment.frame_ids[:SAMPLED_FRAMES]:
                start = time.perf_counter()
                frame = job.source.read(frame_id)
                sizes.append(num_bytes(frame_record(frame)) + num_bytes(label_record(frame, job.labeller)))
                seconds.append(time.perf_counter() - start)
                labels.update(labelled_with(frame))
    except DataError as error:
        return Sample(error=str(error))
    later = seconds[1:] or seconds
    return Sample(
        first_s=seconds[0],
        next_s=sum(later) / len(later),
        frame_bytes=sum(sizes) / len(sizes),
        peak_bytes=peak_memory(),
        labels=tuple(sorted(labels)),
    )


def labelled_with(frame: Frame) -> tuple[str, ...]:
    """Return in words what a frame is labelled with."""
    truth = frame.truth
    present = {
        "2D boxes": any(len(view.labels) for view in frame.cameras),
        "3D boxes": truth is not None and len(truth.boxes3d) > 0,
        "image masks": truth is not None and any(image is not None for image in truth.images),
        "point classes": truth is not None and bool((truth.semantic_labels != IGNORE).any()),
    }
    return tuple(name for name, there in present.items() if there)


def require_space(needed: int, folder: Path) -> None:
    """Refuse to begin what cannot be finished.

    Raises:
        ConfigError: the disk has less room than needed.
    """
    if needed > (free := free_bytes(folder)):
        raise ConfigError(f"{folder}: about {needed / 1e9:.3g} GB are needed, the disk has {free / 1e9:.3g} GB free")


def verify(plans: Sequence[SplitPlan], pool: Pool) -> Verification:
    """Compare every file with its checksum and decode every frame and label again; nothing is changed.

    Raises:
        DataError: nothing was converted.
    """
    checks, missing = [], 0
    for plan in plans:
        books = (Manifest(plan.frames), Manifest(plan.labels))
        for segment in plan.frames.segments:
            entries = [manifest.entry(segment) for manifest in books]
            if all(entry is not None and entry["status"] == DONE for entry in entries):
                checks.append((plan.only(segment), tuple(entry["sha256"] for entry in entries if entry)))
            else:
                missing += 1
    if not checks:
        raise DataError(f"{plans[0].frames.root}: no {MANIFEST} that lists a finished segment; convert first")
    damaged = sorted(sentence for found in pool.run(_check_segment, checks) for sentence in found)
    return Verification(sum(plan.frames.num_frames for plan, _ in checks), missing, tuple(damaged))


def _check_segment(check: tuple[SplitPlan, tuple[str, ...]]) -> list[str]:
    plan, sums = check
    folders = (plan.frames, plan.labels)
    return [found for folder, sha256 in zip(folders, sums, strict=True) if (found := _damage(folder, sha256))]


def _damage(plan: FilePlan, sha256: str) -> str:
    """Return what is wrong with the one file of a plan; "" where nothing is."""
    segment: Segment = plan.segments[0]
    path = plan.path(segment)
    again = f"delete it and run the conversion again: {path}"
    if not path.is_file():
        return f"no such file, run the conversion again: {path}"
    if file_sha256(path) != sha256:
        return f"other bytes than were written, {again}"
    if not plan.holds(segment):
        return f"other frames than the data set has, {again}"
    try:
        store = FrameStore(path) if plan.kind == FRAMES else RecordFile(path, plan.kind)
        for row in range(len(store)):
            _ = store[row] if isinstance(store, FrameStore) else store.read(row, (plan.kind,))
    except (DataError, ValueError) as error:
        return f"cannot be decoded ({error}), {again}"
    return ""


def _paths(job: Job) -> tuple[Path, Path]:
    return job.plan.frames.path(job.segment), job.plan.labels.path(job.segment)
