"""Convert a data set into the frame store that training reads: once, with as many workers as there are.

    uv run tools/convert.py source=kitti root=FOLDER out=DIR
    uv run tools/convert.py source=nuscenes root=FOLDER out=DIR data.source.version=v1.0-mini
    uv run tools/convert.py source=coco root=FOLDER out=DIR                   # images only, method=boxinst
    uv run tools/convert.py source=waymo_v1 root=FOLDER out=DIR workers=16
    uv run tools/convert.py source=waymo_v1 root=FOLDER out=DIR shard=0/40    # one of 40 jobs of an array
    uv run tools/convert.py source=waymo_v1 root=FOLDER out=DIR verify=true   # read everything again
    uv run tools/convert.py source=custom root=FOLDER validate=true           # say all that is wrong, write nothing

Afterwards `tools/train.py data=kitti data.root=FOLDER data.cache=DIR` opens what is there and reads no frame of the
data set again. Settings that decide frames or labels (data.source.*, data.radii, method=...) are given alike to both.

workers=N (default: one per core), parallel=processes|dask|ray (a cluster at DASK_SCHEDULER_ADDRESS or RAY_ADDRESS),
shard=i/n (every n-th segment; the run that completes the last one finishes the store), verify=true. validate=true reads
every file of one's own recordings (docs/guides/own_data.md) and lists its problems with file and line or field, at most
20 of a kind; other data sets are checked whenever they are opened, up to the first problem.

The street world as Waymo files, of any size:

    uv run tools/convert.py source=street to=waymo_v1|waymo_v2 out=DIR segments=8 val_segments=2 frames=20

with keys seed segments val_segments frames top=64x2650 side=200x600 (rows and columns of the LiDARs) image_width
label_every.

Segments are written one by one and only when they are complete: after ctrl-C, kill -9 or a full disk, the same command
does what is missing. Exit code: 0 done, 2 wrong input (one sentence says what), 3 segments that cannot be read were
skipped or files are damaged (a list says which), 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.training.commands import compose_run, progress_line, run_command, split_arguments

if TYPE_CHECKING:
    from mwsis.data.conversion import Conversion, SplitPlan
    from mwsis.data.conversion_checks import Estimate, Verification
    from mwsis.data.workers import Pool
    from mwsis.training.config import RunConfig

STREET = {
    "seed": "0",
    "segments": "8",
    "val_segments": "2",
    "frames": "20",
    "top": "64x2650",
    "side": "200x600",
    "image_width": "1920",
    "label_every": "5",
}
OWN = {
    "source": "",
    "out": "",
    "root": "null",
    "to": "store",
    "workers": "auto",
    "parallel": "processes",
    "shard": "0/1",
    "verify": "false",
    "validate": "false",
}
TARGETS = ("store", "waymo_v1", "waymo_v2")
EXIT_SKIPPED = 3
LICENCE_NOTE = (
    "note: these files are derived from the Waymo Open Dataset; "
    "its licence agreement for non-commercial use applies to them"
)


def main(arguments: list[str]) -> None:
    """Say what it will take, convert, say what was left out."""
    own, overrides = split_arguments(arguments, {**OWN, "out": "null"} if "validate=true" in arguments else OWN)
    if own["to"] not in TARGETS:
        raise ConfigError(f"to={own['to']}: no such target{closest_name(own['to'], TARGETS)}")
    workers, shard = number_of_workers(own["workers"]), shard_of(own["shard"])
    check, validate = truth_of("verify", own["verify"]), truth_of("validate", own["validate"])
    if own["to"] != "store":
        write_waymo(own, overrides, workers, shard)
        return
    given = [f"data={own['source']}", f"data.cache={quoted(own['out'])}"]
    given += [f"data.root={quoted(own['root'])}"] if own["root"] != "null" else []
    config = compose_run([*given, *overrides])

    from mwsis.data.workers import worker_pool
    from mwsis.training.config import typed
    from mwsis.training.prepare import build_source, plan_run

    run = typed(config)
    if validate:
        explain_all(run)
        return
    source = build_source(run)
    plans = plan_run(run, source)
    with worker_pool(workers, own["parallel"]) as pool:
        if check:
            verify_all(plans, pool)
        else:
            convert_all(run, source, plans, pool, shard)
    if source.name.startswith("waymo"):
        print(LICENCE_NOTE)


def explain_all(run: RunConfig) -> None:
    """List everything that is wrong with a data set, or say what it holds."""
    from mwsis.data.source import Explained
    from mwsis.training.config import instantiated

    source = instantiated(run.data.source, "data.source")
    if not isinstance(source, Explained):
        raise ConfigError("validate=true: only source=custom lists all of its problems; the others name the first")
    problems = source.problems(lambda done, total: progress_line("look", done, total))
    for sentence in problems.sentences():
        print(f"problem: {sentence}", file=sys.stderr)
    if len(problems):
        raise DataError(f"{run.data.root}: problems: {len(problems):,}; mend them and run the same command again")
    for split in (run.data.train_split, run.data.val_split):
        print(f"{split}: {len(source.frame_ids(split))} frames")
        print_counts(source, split)
    print(f"valid: {run.data.root}")


def convert_all(run: RunConfig, source: Any, plans: list[SplitPlan], pool: Pool, shard: tuple[int, int]) -> None:
    """Convert what is missing of a shard."""
    from mwsis.data.conversion import Shard, convert, jobs_of
    from mwsis.data.conversion_checks import estimate, require_space
    from mwsis.training.prepare import labelling_of

    home = plans[0].frames.root.parent
    jobs = jobs_of(source, plans, labelling_of(run, source.class_names).labeller, pool, Shard(*shard))
    expected = estimate(jobs, pool)
    print_plan(source, plans, len(jobs), expected, pool)
    if expected:
        require_space(expected.num_bytes, home)
    done = convert(jobs, plans, pool, lambda done, total: progress_line("frames", done, total))
    print_result(plans, done, home)
    if done.skipped:
        raise SystemExit(EXIT_SKIPPED)


def print_plan(source: Any, plans: list[SplitPlan], todo: int, expected: Estimate | None, pool: Pool) -> None:
    """Print how much there is and what it will take."""
    from mwsis.core.files import free_bytes

    labels = f" labelled with {', '.join(expected.labels)}" if expected and expected.labels else ""
    for plan in plans:
        print(f"{plan.name}: {len(plan.frames.segments)} segments, {plan.frames.num_frames} frames{labels}")
        print_counts(source, plan.name)
    print(f"to do: {todo} segments on {pool.count} {pool.kind}")
    if expected:
        free = free_bytes(plans[0].frames.root)
        print(
            f"to write: {expected.frames} frames, about {expected.hours:.3g} hours, {expected.num_bytes / 1e9:.3g} GB "
            f"of {free / 1e9:.3g} GB free, {expected.worker_bytes / 1e9:.3g} GB memory per worker "
            f"(measured on the first frames of {expected.sampled})"
        )


def print_counts(source: Any, split: str) -> None:
    """Print what a data set counts in a split, where it does."""
    counts = getattr(source, "report", None)
    if counts:
        said = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts(split).items())
        print(f"  {source.root}: {said}")


def print_result(plans: list[SplitPlan], done: Conversion, home: Path) -> None:
    """Print where the store is, what it took, and what is not in it."""
    for split, segment, error in done.skipped:
        print(f"skipped: {split}/{segment}: {error}", file=sys.stderr)
    if done.skipped:
        advice = "mend them or move them away, and run the same command again"
        print(f"{len(done.skipped)} segments skipped; {advice}", file=sys.stderr)
    if done.missing:
        print(f"store: {home} lacks {done.missing} segments of other shards")
    elif not done.skipped:
        print(f"store: {home} ({sum(plan.frames.num_frames for plan in plans)} frames, complete)")
    if done.peak_bytes:
        print(f"peak memory per worker: {done.peak_bytes / 1e9:.3g} GB")


def verify_all(plans: list[SplitPlan], pool: Pool) -> None:
    """Read everything again and list what is damaged."""
    from mwsis.data.conversion_checks import verify

    found: Verification = verify(plans, pool)
    for sentence in found.damaged:
        print(f"damaged: {sentence}", file=sys.stderr)
    print(f"verified: {found.frames} frames and their labels, {len(found.damaged)} damaged files")
    if found.missing:
        print(f"not there yet: {found.missing} segments")
    if found.damaged:
        raise SystemExit(EXIT_SKIPPED)


def write_waymo(own: dict[str, str], sizes: list[str], workers: int, shard: tuple[int, int]) -> None:
    """Write the street world as Waymo segments."""
    world_keys = street_keys(sizes)
    if own["source"] != "street" or own["verify"] == "true":
        raise ConfigError(f"to={own['to']}: only source=street can be written so, and verify=true is for to=store")

    from mwsis.core.files import free_bytes
    from mwsis.data.conversion import Shard
    from mwsis.data.conversion_checks import require_space
    from mwsis.data.waymo.street import StreetSensors
    from mwsis.data.waymo.street_files import StreetWorld, sample_street, street_jobs, write_street
    from mwsis.data.workers import worker_pool

    sensor_keys = ("top", "side", "image_width", "label_every")
    sensors = StreetSensors(**{key: world_keys.pop(key) for key in sensor_keys})
    world, out = StreetWorld(own["to"], sensors, **world_keys), Path(own["out"])
    with worker_pool(workers, own["parallel"]) as pool:
        jobs = street_jobs(world, out, pool, Shard(*shard))
        print(f"to do: {len(jobs)} segments of {world.frames} frames on {pool.count} {pool.kind}")
        if jobs:
            (sample,) = pool.run(sample_street, jobs[:1])
            frames = len(jobs) * world.frames
            hours, size = frames * sample.frame_s / min(pool.count, len(jobs)) / 3600, frames * sample.frame_bytes
            print(
                f"to write: about {hours:.3g} hours, {size / 1e9:.3g} GB of {free_bytes(out) / 1e9:.3g} GB free, "
                f"{sample.peak_bytes / 1e9:.3g} GB memory per worker (measured on one frame)"
            )
            require_space(size, out)
            peak = write_street(jobs, world, out, pool, lambda done, total: progress_line("segments", done, total))
            print(f"peak memory per worker: {peak / 1e9:.3g} GB")
    print(f"segments: {out}")


def street_keys(sizes: list[str]) -> dict[str, Any]:
    """Return the sizes of a street world, given or by default."""
    given, unknown = split_arguments(sizes, STREET)
    if unknown:
        key = unknown[0].partition("=")[0]
        raise ConfigError(f"'{key}' is no size of a street world{closest_name(key, STREET)}")
    for key, text in given.items():
        parts = text.split("x")
        if len(parts) != len(STREET[key].split("x")) or not all(part.isdecimal() for part in parts):
            raise ConfigError(f"{key}={text}: expected something like {key}={STREET[key]}")
    numbers = {key: tuple(map(int, text.split("x"))) for key, text in given.items()}
    return {key: value if key in ("top", "side") else value[0] for key, value in numbers.items()}


def number_of_workers(text: str) -> int:
    """Return the number of workers asked for; "auto" is one for each core this process may use."""
    if text == "auto":
        from joblib import cpu_count

        return int(cpu_count())
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"workers={text}: expected a number of at least 1, or auto")
    return int(text)


def shard_of(text: str) -> tuple[int, int]:
    """Return (i, n) of ``i/n``."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"shard={text}: expected 0/n to n-1/n, such as shard=0/4")
    return int(index), int(count)


def truth_of(key: str, text: str) -> bool:
    """Return what ``true`` or ``false`` says."""
    if text not in ("true", "false"):
        raise ConfigError(f"{key}={text}: expected true or false")
    return text == "true"


def quoted(text: str) -> str:
    """Return a value as hydra reads it unchanged, whatever characters a path has."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


if __name__ == "__main__":
    run_command(main, __doc__ or "")
