"""A ladder of methods, row by row: what each part is worth, over several seeds, and whether the ranges say so.

`aggregate` is arithmetic on the content of finished runs' ``metrics.json`` and touches no file. What is deliberately
not here: running anything (`tools/ablate.py`). Next: `ladder_page.py`, which writes the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.report.content import Metrics
from mwsis.report.curves import number

__all__ = ["Finished", "Gain", "Ladder", "LadderRow", "Published", "Rung", "Spread", "aggregate", "data_facts"]

NETWORK = "teacher"
"""The network a row is judged by; it is what gets exported."""
APART, OVERLAP, ONE_SEED = "ranges apart", "ranges overlap", "no range: one seed"


@dataclass(frozen=True)
class Published:
    """What others report.

    Attributes:
        over: the row that stands for their baseline.
        gain: difference of the judged score, in its own unit: .1275 where a paper says 12.75 points.
        source: where it is written, and on which data.
    """

    over: str
    gain: float
    source: str


@dataclass(frozen=True)
class Rung:
    """One row, as `configs/ladder` says it.

    Attributes:
        name: short, unique in the ladder.
        meaning: what is done here, in a line.
        overrides: of the experiment, on top of the ladder's.
        over: the earlier row it is compared with; None for the first.
        published: None where nobody reports a gain.
    """

    name: str
    meaning: str
    overrides: tuple[str, ...]
    over: str | None = None
    published: Published | None = None


@dataclass(frozen=True)
class Ladder:
    """Rows of one branch, from top to bottom.

    Attributes:
        name: of its file.
        branch: ``camera`` or ``lidar``.
        metric: the score it is judged by, as in ``metrics.json``.
        beside: more scores to show.
        overrides: of the experiment, in all rows.
        rows: each compared with an earlier one.
    """

    name: str
    branch: str
    metric: str
    beside: tuple[str, ...]
    overrides: tuple[str, ...]
    rows: tuple[Rung, ...]

    @classmethod
    def parse(cls, name: str, content: object) -> Ladder:
        """Return the ladder that a file holds.

        Args:
            name: of the file.
            content: what YAML makes of it.

        Raises:
            ConfigError: a key is missing, unknown or there twice, or a row is compared with none before it.
        """
        try:
            fields = dict(content)  # type: ignore[call-overload]
            rows = tuple(_rung(**row) for row in fields.pop("rows"))
            beside, overrides = _texts(fields.pop("beside", ())), _texts(fields.pop("overrides", ()))
            ladder = cls(name=name, beside=beside, overrides=overrides, rows=rows, **fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"ladder {name}: {error}; follow the example of configs/ladder/camera.yaml") from None
        _check_names(ladder)
        return ladder


def _rung(published: Mapping[str, object] | None = None, overrides: Sequence[str] = (), **fields: str) -> Rung:
    found = None if published is None else Published(**published)  # type: ignore[arg-type]
    return Rung(overrides=_texts(overrides), published=found, **fields)


def _texts(values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise TypeError(f"expected a list, got '{values}'")
    return tuple(values)


def _check_names(ladder: Ladder) -> None:
    known: list[str] = []
    for rung in ladder.rows:
        others = [rung.over, rung.published.over if rung.published else None]
        for other in others:
            if other is not None and other not in known:
                hint = closest_name(other, known) if known else ""
                raise ConfigError(f"ladder {ladder.name}, row {rung.name}: over={other} is no earlier row{hint}")
        known.append(rung.name)
    if not known or len(set(known)) < len(known):
        raise ConfigError(f"ladder {ladder.name}: expected rows, each with a name of its own, got {known}")


@dataclass(frozen=True)
class Finished:
    """A run that is over.

    Attributes:
        seed: of the run.
        metrics: the content of its ``metrics.json``.
        wall_s: seconds it took, None where it was interrupted in between and nobody knows.
    """

    seed: int
    metrics: Metrics
    wall_s: float | None = None


@dataclass(frozen=True)
class Spread:
    """One score over the seeds; there is at least one value."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @classmethod
    def of(cls, values: Sequence[object]) -> Spread | None:
        """Return the spread of the finite numbers among some values; None where there is none."""
        found = [value for value in map(number, values) if value is not None]
        return cls(tuple(found)) if found else None


@dataclass(frozen=True)
class Gain:
    """Difference of two rows' means.

    Attributes:
        over: the other row.
        value: mean minus the other row's mean.
        verdict: whether the ranges over the seeds lie apart.
    """

    over: str
    value: float
    verdict: str


@dataclass(frozen=True)
class LadderRow:
    """What became of a row.

    Attributes:
        rung: which row.
        runs: the finished ones, by seed.
        scores: of the teacher, by name; None where there is no value.
        student: the judged score of the student.
        gain: over the row it is compared with; None where one of the two has no score.
        published_gain: ours over the row that stands for the published baseline.
        wall_s: seconds per run.
    """

    rung: Rung
    runs: tuple[Finished, ...]
    scores: Mapping[str, Spread | None]
    student: Spread | None
    gain: Gain | None
    published_gain: Gain | None
    wall_s: Spread | None


def aggregate(ladder: Ladder, finished: Mapping[str, Sequence[Finished]]) -> tuple[LadderRow, ...]:
    """Return all rows of a ladder with mean, range and gain of what is finished so far.

    Args:
        ladder: what was to be run.
        finished: by name of the row; rows without any may be missing.

    A gain is the difference of two means; ranges that overlap decide nothing, and with one seed there is no range.
    """
    judged = {
        rung.name: Spread.of([_score(run, ladder, ladder.metric) for run in finished.get(rung.name, ())])
        for rung in ladder.rows
    }
    return tuple(_row(ladder, rung, tuple(finished.get(rung.name, ())), judged) for rung in ladder.rows)


def _row(ladder: Ladder, rung: Rung, runs: tuple[Finished, ...], judged: Mapping[str, Spread | None]) -> LadderRow:
    names = (ladder.metric, *ladder.beside)
    return LadderRow(
        rung=rung,
        runs=tuple(sorted(runs, key=lambda run: run.seed)),
        scores={name: Spread.of([_score(run, ladder, name) for run in runs]) for name in names},
        student=Spread.of([_score(run, ladder, ladder.metric, "student") for run in runs]),
        gain=_gain(judged, rung.name, rung.over),
        published_gain=_gain(judged, rung.name, rung.published.over if rung.published else None),
        wall_s=Spread.of([run.wall_s for run in runs]),
    )


def _score(run: Finished, ladder: Ladder, metric: str, network: str = NETWORK) -> object:
    return ((run.metrics.get(ladder.branch) or {}).get(network) or {}).get(metric)


def _gain(judged: Mapping[str, Spread | None], name: str, over: str | None) -> Gain | None:
    own, other = judged[name], judged[over] if over is not None else None
    if own is None or other is None or over is None:
        return None
    overlap = own.low <= other.high and other.low <= own.high
    verdict = ONE_SEED if min(len(own.values), len(other.values)) == 1 else OVERLAP if overlap else APART
    return Gain(over, own.mean - other.mean, verdict)


def data_facts(runs: Sequence[Finished], split_of_seed: bool = False) -> Mapping[str, object]:
    """Return ``metrics["data"]``, which all runs must share.

    Args:
        runs: what is finished.
        split_of_seed: only runs of one seed must share it (cross-validation); then the fingerprint is not told.

    Raises:
        DataError: runs were trained or scored on different data.
    """
    shared: dict[int, Mapping[str, object]] = {}
    for run in runs:
        found = run.metrics.get("data") or {}
        if (first := shared.setdefault(run.seed if split_of_seed else 0, found)) != found:
            raise DataError(
                f"expected runs on the same data, got {dict(first)} and {dict(found)}; give another out=, or remove "
                "the runs of one of them"
            )
    facts = next(iter(shared.values()), {})
    return {**facts, "fingerprint": "another split for each seed"} if facts and split_of_seed else facts
