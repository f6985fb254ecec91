"""Street segments as Waymo files, one segment a unit of work; what is there is listed in a manifest per split.

Which records: `street.py`. Which bytes: `v1.py`, `v2.py`. Who works: `mwsis.data.workers`. The command is
`tools/convert.py to=waymo_v1`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mwsis.core.errors import ConfigError
from mwsis.core.files import write_json
from mwsis.data.conversion import Shard, at_work, remove_temporary, while_owned
from mwsis.data.manifest import MANIFEST, file_sha256
from mwsis.data.waymo import v1, v2
from mwsis.data.waymo.record import WaymoRecord
from mwsis.data.waymo.street import MAX_FRAMES, StreetSegment, StreetSensors
from mwsis.data.workers import Pool, one_thread, peak_memory

__all__ = ["FOLDERS", "StreetJob", "StreetSample", "StreetWorld", "sample_street", "street_jobs", "write_street"]

FOLDERS = {"train": "training", "val": "validation"}
FORMAT = 1
TEMPORARY = re.compile(r"street-\d+-\d{5}_[\d_]+\.(tfrecord|parquet)|manifest\.json")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StreetWorld:
    """What is written.

    Attributes:
        version: "waymo_v1" or "waymo_v2".
        sensors: of the recording car.
        seed: another seed, another world.
        segments, val_segments: of the training and of the validation split.
        frames: of each segment, at 10 Hz.

    Raises:
        ConfigError: a number is out of its range.
    """

    version: str
    sensors: StreetSensors
    seed: int = 0
    segments: int = 8
    val_segments: int = 2
    frames: int = 20

    def __post_init__(self) -> None:
        ranges = {"segments": (0, 10_000), "val_segments": (0, 10_000), "frames": (1, MAX_FRAMES)}
        for field, (least, most) in ranges.items():
            if not least <= (value := getattr(self, field)) <= most:
                raise ConfigError(f"{field}: expected {least} to {most}, got {value}")

    def settings(self) -> dict[str, Any]:
        """Return all that decides the bytes of a segment."""
        kept = {"version": self.version, "seed": self.seed, "frames": self.frames, **asdict(self.sensors)}
        plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **kept}))
        return plain


@dataclass(frozen=True)
class StreetJob:
    """One segment to write: number ``segment`` of a split, into ``folder``; ends with the process ``owner``."""

    world: StreetWorld
    split: str
    segment: int
    folder: Path
    owner: int | None = None


@dataclass(frozen=True)
class StreetSample:
    """Seconds and bytes of one frame, and the memory it took."""

    frame_s: float
    frame_bytes: int
    peak_bytes: int


def street_jobs(world: StreetWorld, out: Path, pool: Pool, shard: Shard) -> list[StreetJob]:
    """Return the segments of a shard that no manifest lists with files of their listed sizes.

    Raises:
        ConfigError: the folder holds segments of other settings.
    """
    counts = {"train": world.segments, "val": world.val_segments}
    jobs = [
        StreetJob(world, split, number, out / FOLDERS[split], pool.owner)
        for split, count in counts.items()
        for number in range(count)
    ]
    listed = {split: _listed(out / folder, world) for split, folder in FOLDERS.items()}
    return [job for job in jobs[shard.index :: shard.count] if not _is_there(job, listed[job.split])]


def sample_street(job: StreetJob) -> StreetSample:
    """Make one frame and encode it."""
    with one_thread():
        start = time.perf_counter()
        size = len(v1.encode_record(next(_records(job, _drive(job)))))
        return StreetSample(time.perf_counter() - start, size, peak_memory())


def write_street(jobs: Sequence[StreetJob], world: StreetWorld, out: Path, pool: Pool, on_progress: Progress) -> int:
    """Write segments and list them; return the most memory a worker has held, in bytes.

    Args:
        jobs: of `street_jobs`.
        world: which segments.
        out: gets the folders ``training`` and ``validation``.
        pool: who works.
        on_progress: called with segments done and segments in all.
    """
    peak_bytes = 0
    with at_work(out, lambda alone: _clean(out, alone)):
        for split in {job.split for job in jobs}:
            _list(out / FOLDERS[split], world, [])  # the settings come first, so that no others are mixed in
        on_progress(0, len(jobs))
        for done, (split, entry, peak) in enumerate(pool.run(write_segment, jobs), 1):
            peak_bytes = max(peak_bytes, peak)
            _list(out / FOLDERS[split], world, [entry])
            on_progress(done, len(jobs))
    return peak_bytes


def write_segment(job: StreetJob) -> tuple[str, dict[str, Any], int]:
    """Write one segment unless it is there; return its split, its entry for the manifest, and the memory it took."""
    with one_thread():
        drive = _drive(job)
        if not _files(job, drive.name):
            records = while_owned(_records(job, drive), job.owner)
            if job.world.version == "waymo_v1":
                v1.write_segment(job.folder / f"{drive.name}.tfrecord", records)
            else:
                v2.write_segment(job.folder, records)
    files = [
        {"file": str(path.relative_to(job.folder)), "num_bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in _files(job, drive.name)
    ]
    entry = {"segment": job.segment, "name": drive.name, "num_frames": job.world.frames, "status": "done"}
    return job.split, {**entry, "files": files}, peak_memory()


def _drive(job: StreetJob) -> StreetSegment:
    return StreetSegment(job.world.seed, job.split, job.segment, job.world.sensors)


def _records(job: StreetJob, drive: StreetSegment) -> Iterator[WaymoRecord]:
    return (drive.frame(number).record for number in range(job.world.frames))


def _files(job: StreetJob, name: str) -> list[Path]:
    """Return the files of a complete segment; none while it is not."""
    if job.world.version == "waymo_v1":
        return [path for path in [job.folder / f"{name}.tfrecord"] if path.is_file()]
    if not (job.folder / v2.INDEXING[0]).is_dir() or name not in v2.list_segments(job.folder):
        return []
    return sorted(job.folder.glob(f"*/{name}.parquet"))


def _is_there(job: StreetJob, listed: dict[int, dict[str, Any]]) -> bool:
    files = listed.get(job.segment, {}).get("files", [])
    paths = [(job.folder / file["file"], file["num_bytes"]) for file in files]
    return bool(paths) and all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _listed(folder: Path, world: StreetWorld) -> dict[int, dict[str, Any]]:
    """Return the entries of a split's manifest by number."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        settings, entries = manifest["settings"], {entry["segment"]: entry for entry in manifest["segments"]}
    except (ValueError, KeyError, TypeError):
        settings, entries = None, {}
    if settings != world.settings():
        raise ConfigError(f"{path}: lists segments of other settings; delete {folder}, or choose another folder")
    return entries


def _list(folder: Path, world: StreetWorld, entries: list[dict[str, Any]]) -> None:
    known = {**_listed(folder, world), **{entry["segment"]: entry for entry in entries}}
    write_json(
        folder / MANIFEST, {"settings": world.settings(), "segments": [known[number] for number in sorted(known)]}
    )


def _clean(out: Path, alone: bool) -> None:
    for folder in (out / name for name in FOLDERS.values()):
        remove_temporary(
            [*folder.glob(".*"), *folder.glob("*/.*")], lambda name: bool(TEMPORARY.fullmatch(name)), alone
        )
