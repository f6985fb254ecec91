"""Train every row of a ladder with several seeds and write what each part is worth, as a table.

    uv run tools/ablate.py experiment=street_bench_v1 ladder=lidar out=DIR
    uv run tools/ablate.py experiment=street_bench_v1 seeds=[0,1,2] out=DIR workers=2
    uv run tools/ablate.py experiment=kitti_mini data.root=FOLDER ladder=kitti_camera,kitti_lidar seeds=[0,1,2,3,4]
        'data.source.val_frames=${seed}/5' out=DIR

ladder=camera,lidar: files of configs/ladder, which say what the rows are, what each is compared with and what was
published. Further key=value settings hold in all rows. A run that two rows share is trained once.

Each run is one of tools/train.py in a folder of its own, DIR/runs/<configuration>-s<seed>, workers=N of them at a time
with the cores divided among them. What is finished is not repeated and what was interrupted continues, so the same
command may be given again after ctrl-C, a crash or a failed run; another version of the code needs another DIR.

After every run DIR/table.csv (a line per run and per row), table.md and table.html are written anew: mean and range of
the teacher's scores, gains and whether ranges overlap, published gains beside ours, labels, wall time, data and host.

Exit code: 0 done, 2 wrong input (one sentence says what), 3 some runs failed (the rest was trained), 130 interrupted.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwsis.core.errors import ConfigError, closest_name
from mwsis.training.commands import CONFIG_DIR, compose_run, run_command, split_arguments
from tools.convert import EXIT_SKIPPED, number_of_workers, quoted

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mwsis.report.ladder import Finished, Ladder
    from mwsis.report.ladder_page import LadderTable
    from mwsis.training.config import DataConfig, RunConfig

OWN = {"experiment": "", "ladder": "camera,lidar", "seeds": "[0,1,2]", "out": "", "workers": "1"}
TRAIN = Path(__file__).with_name("train.py")


@dataclass(frozen=True, eq=False)
class Kind:
    """What a row trains, whatever the seed.

    Attributes:
        arguments: of tools/train.py.
        run: the configuration they give.
        digest: of all in it that decides the result.
    """

    arguments: tuple[str, ...]
    run: RunConfig
    digest: str

    def with_seed(self, seed: int) -> RunConfig:
        """Return the configuration of a run; further settings may depend on its seed."""
        from mwsis.training.config import typed

        return typed(compose_run([*self.arguments, f"seed={seed}"]))


@dataclass(frozen=True, eq=False)
class Job:
    """One run: a kind with a seed, in its folder; ``name`` is for people, ``run`` its configuration."""

    name: str
    kind: Kind
    seed: int
    folder: Path
    run: RunConfig

    @property
    def logs(self) -> list[Path]:
        """What each attempt printed, the last one last."""
        return sorted(self.folder.glob("ablate-*.log"), key=lambda path: int(path.stem.removeprefix("ablate-")))


def main(arguments: list[str]) -> None:
    """Compose every row, prepare the data, train what is missing."""
    own, overrides = split_arguments(arguments, OWN)
    out, seeds, workers = Path(own["out"]), seeds_of(own["seeds"]), number_of_workers(own["workers"])
    ladders = [read_ladder(name) for name in ladder_names(own["ladder"])]
    kinds = compose_rows(ladders, own["experiment"], overrides)
    jobs = jobs_of(kinds, seeds, out)

    from mwsis.training.jobs import alone_in

    with alone_in(out) as lock:
        ablation = Ablation(ladders, kinds, jobs, workers, out, facts_of(own, overrides, jobs[0].kind.run, workers))
        ablation.prepare()
        try:
            ablation.train(lock)
        except KeyboardInterrupt:
            print("every run has saved; the same command continues", file=sys.stderr)
            raise
    if ablation.failed:
        print(f"{len(ablation.failed)} runs failed; the same command tries them again", file=sys.stderr)
        raise SystemExit(EXIT_SKIPPED)


# ---------------------------------------------------------------------------------------------------------------------
# What is to be run
# ---------------------------------------------------------------------------------------------------------------------


def seeds_of(text: str) -> list[int]:
    """Return the numbers of ``[0,1,2]``; ``0,1,2`` is the same."""
    parts = text.removeprefix("[").removesuffix("]").replace(" ", "").split(",")
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ConfigError(f"seeds={text}: expected different numbers, such as seeds=[0,1,2]")
    return list(map(int, parts))


def ladder_names(asked: str) -> list[str]:
    """Return the names of the ladders asked for."""
    known = sorted(path.stem for path in (CONFIG_DIR / "ladder").glob("*.yaml"))
    names = asked.split(",")
    for name in names:
        if name not in known:
            raise ConfigError(f"ladder={asked}: no such ladder{closest_name(name, known)}")
    return list(dict.fromkeys(names))


def read_ladder(name: str) -> Ladder:
    """Return a ladder of configs/ladder."""
    from omegaconf import OmegaConf

    from mwsis.report.ladder import Ladder

    return Ladder.parse(name, OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "ladder" / f"{name}.yaml")))


def compose_rows(ladders: Sequence[Ladder], experiment: str, overrides: Sequence[str]) -> dict[tuple[str, str], Kind]:
    """Return what each (ladder, row) trains.

    Raises:
        ConfigError: a setting that the ladder decides is given, a row cannot be composed or does not train the ladder's
            branch, or two rows of a ladder are equal.
    """
    from mwsis.training.config import typed

    for override in overrides:
        if (key := override.lstrip("+~").partition("=")[0]) in ("seed", "resume"):
            raise ConfigError(f"{override}: '{key}' differs from run to run; give seeds=[...] and out=DIR")
    kinds: dict[tuple[str, str], Kind] = {}
    for ladder in ladders:
        rows: dict[str, str] = {}
        for rung in ladder.rows:
            given = (f"experiment={experiment}", *ladder.overrides, *rung.overrides, *overrides)
            config = compose_run(list(given))
            kind = Kind(given, typed(config), digest_of(config))
            if ladder.branch not in kind.run.method.branches:
                raise ConfigError(
                    f"ladder {ladder.name}, row {rung.name}: expected method.branches with '{ladder.branch}', which is "
                    f"judged, got {kind.run.method.branches}"
                )
            if (other := rows.setdefault(kind.digest, rung.name)) != rung.name:
                raise ConfigError(
                    f"ladder {ladder.name}: rows {other} and {rung.name} are the same run with these settings"
                )
            kinds[ladder.name, rung.name] = kind
    return kinds


def digest_of(config: DictConfig) -> str:
    """Return what names a configuration; where things are kept, and the seed, do not count."""
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(config)
    for key in ("seed", "out", "resume"):
        del content[key]
    for key in ("cache", "cache_workers"):
        del content["data"][key]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def jobs_of(kinds: Mapping[tuple[str, str], Kind], seeds: Sequence[int], out: Path) -> list[Job]:
    """Return the runs: every kind once per seed, all with the first seed first, so that the table is soon whole."""
    rows: dict[str, list[str]] = {}
    for row, kind in kinds.items():
        rows.setdefault(kind.digest, []).append("/".join(row))
    unique = {kind.digest: kind for kind in kinds.values()}
    return [
        Job(
            f"{' = '.join(rows[digest])}, seed {seed}",
            kind,
            seed,
            out / "runs" / f"{digest}-s{seed}",
            kind.with_seed(seed),
        )
        for seed in seeds
        for digest, kind in unique.items()
    ]


# ---------------------------------------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------------------------------------


def finished(job: Job) -> Finished | None:
    """Return what a run has left, or None while it is not complete; its time is known when it was one attempt."""
    from mwsis.report.ladder import Finished

    try:
        metrics = json.loads((job.folder / "metrics.json").read_text(encoding="utf-8"))
        complete, wall_s = metrics["steps"] == job.run.trainer.max_steps, metrics["wall_s"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Finished(job.seed, metrics, wall_s if len(job.logs) <= 1 else None) if complete else None


def command_of(job: Job) -> list[str]:
    """Return the arguments of tools/train.py that start a run, or continue it."""
    if (job.folder / "config.yaml").is_file():
        return [f"resume={quoted(str(job.folder))}"]
    return [*job.kind.arguments, f"seed={job.seed}", f"out={quoted(str(job.folder))}"]


# ---------------------------------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ablation:
    """The runs of some ladders.

    Attributes:
        ladders: what the rows mean.
        kinds: what each (ladder, row) trains.
        jobs: all runs, finished or not.
        workers: runs at a time.
        out: folder of runs and tables.
        facts: for the table, by name.
        failed: why a run failed.
        seconds: that each run took which this command has finished.
    """

    ladders: Sequence[Ladder]
    kinds: dict[tuple[str, str], Kind]
    jobs: Sequence[Job]
    workers: int
    out: Path
    facts: dict[str, object]
    failed: dict[Job, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def prepare(self) -> None:
        """Read the data set for every kind, so that no run has to, and refuse what cannot be trained.

        A data set may change with the seed (cross-validation); it is read again then.
        """
        from mwsis.training.folder import RunFolder
        from tools.train import prepare_run

        read: list[tuple[Kind, DataConfig]] = []
        for job in self.jobs:
            if (job.kind, job.run.data) not in read:
                prepare_run(job.run, RunFolder(job.folder))
                read.append((job.kind, job.run.data))

    def train(self, lock: int) -> None:
        """Train what is not finished; the table is written before, and after each run."""
        from mwsis.training.jobs import run_jobs, start

        def begin(job: Job) -> subprocess.Popen[bytes]:
            job.folder.mkdir(parents=True, exist_ok=True)
            log = job.folder / f"ablate-{len(job.logs) + 1}.log"
            return start(TRAIN, command_of(job), log, threads_of(self.workers), lock)

        todo = [job for job in self.jobs if finished(job) is None]
        print(f"{len(self.jobs)} runs in {self.out / 'runs'}, {len(todo)} to do", flush=True)
        self.write_table()
        run_jobs(todo, self.workers, begin, self.ended)
        print(f"\n{(self.out / 'table.md').read_text(encoding='utf-8')}\ntable: {self.out / 'table.html'}")

    def ended(self, job: Job, code: int, seconds: float) -> None:
        """Note what became of a run, say how far all of it is, and write the table."""
        from mwsis.training.jobs import how_it_ended

        if code == 0 and finished(job):
            self.seconds.append(seconds)
            print(f"done: {job.name} in {span(seconds)}; {self.progress()}", flush=True)
        else:
            self.failed[job] = how_it_ended(code, job.logs[-1])
            print(f"failed: {job.name}: {self.failed[job]} (see {job.logs[-1]})", file=sys.stderr, flush=True)
        self.write_table()

    def progress(self) -> str:
        """Return how many runs and rows are done, and how long the rest takes if it is like what was run here."""
        done = [job for job in self.jobs if finished(job)]
        missing = {job.kind.digest for job in self.jobs if job not in done}
        rows = sum(kind.digest not in missing for kind in self.kinds.values())
        left = len(self.jobs) - len(done) - len(self.failed)
        seconds = sum(self.seconds) / len(self.seconds) * left / self.workers
        return f"{len(done)} of {len(self.jobs)} runs, {rows} of {len(self.kinds)} rows, about {span(seconds)} left"

    def write_table(self) -> None:
        """Write the table of what is finished."""
        from mwsis.report.content import frame_counts
        from mwsis.report.ladder import data_facts
        from mwsis.report.ladder_page import write_tables

        done = {job: found for job in self.jobs if (found := finished(job))}
        data = data_facts(list(done.values()), any(job.run.data != job.kind.run.data for job in self.jobs))
        found = {"Runs": f"{len(done)} of {len(self.jobs)} finished"}
        if data:
            found |= {"Frames": frame_counts(data), "Data fingerprint": data["fingerprint"]}
        write_tables([self.table(ladder, done) for ladder in self.ladders], {**found, **self.facts}, self.out)

    def table(self, ladder: Ladder, done: Mapping[Job, Finished]) -> LadderTable:
        """Return a ladder as far as it is finished."""
        from mwsis.report.ladder import aggregate
        from mwsis.report.ladder_page import LadderTable
        from mwsis.training.evaluate import trained_from

        kinds = {rung.name: self.kinds[ladder.name, rung.name] for rung in ladder.rows}
        jobs = {name: [job for job in self.jobs if job.kind.digest == kind.digest] for name, kind in kinds.items()}
        return LadderTable(
            ladder,
            aggregate(ladder, {name: [done[job] for job in own if job in done] for name, own in jobs.items()}),
            num_seeds=len({job.seed for job in self.jobs}),
            trained_from={name: trained_from(kind.run, ladder.branch) for name, kind in kinds.items()},
            failed={
                name: [f"seed {job.seed}: {self.failed[job]}" for job in own if job in self.failed]
                for name, own in jobs.items()
            },
        )


def facts_of(own: Mapping[str, str], overrides: Sequence[str], run: RunConfig, workers: int) -> dict[str, object]:
    """Return what all runs have in common, and the host."""
    from mwsis.report.html import provenance

    return {
        "Experiment": own["experiment"],
        "Settings": " ".join(overrides) or "as in the experiment",
        "Seeds": own["seeds"],
        "Steps": run.trainer.max_steps,
        "Data set": run.data.name,
        "Content of the frames": run.data.expected_content or "not pinned",
        "Host": f"{number_of_workers('auto')} cores, runs at a time: {workers}, threads of each: {threads_of(workers)}",
        **provenance(),
    }


def threads_of(workers: int) -> int:
    """Return how many threads each of several runs may use."""
    return max(number_of_workers("auto") // workers, 1)


def span(seconds: float) -> str:
    """Return a time as 1:02:03."""
    return str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    run_command(main, __doc__ or "")
