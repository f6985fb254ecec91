"""The table of a ladder, three times: for spreadsheets (csv), for a README (md) and as a page (html).

Every score is the teacher's on the validation split, against ``gt_`` labels, and says over how many seeds; every gain
says whether the ranges overlap. Arithmetic is `ladder.py`; the look is the report's.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from mwsis.core.files import atomic_write
from mwsis.report.html import html_page
from mwsis.report.ladder import NETWORK, Gain, Ladder, LadderRow, Spread
from mwsis.report.tables import bar_cell, chip, text

__all__ = ["LadderTable", "markdown", "write_tables"]

READING = (
    "Mean (smallest to largest) over the seeds; a gain is a difference of means. Where ranges overlap, the gain may be "
    "chance. Published gains are from Waymo and another size of network: compare the sign, not the digits."
)


@dataclass(frozen=True)
class LadderTable:
    """A ladder as far as it is finished.

    Attributes:
        ladder: what was to be run.
        rows: one per row of it.
        num_seeds: runs that each row shall have.
        trained_from: by name of the row, from which labels, in words.
        failed: by name of the row, why runs of it failed.
    """

    ladder: Ladder
    rows: tuple[LadderRow, ...]
    num_seeds: int
    trained_from: Mapping[str, str]
    failed: Mapping[str, Sequence[str]] = field(default_factory=dict)


def write_tables(tables: Sequence[LadderTable], facts: Mapping[str, object], folder: Path) -> None:
    """Write ``table.csv``, ``table.md`` and ``table.html``, each atomically.

    Args:
        tables: at least one.
        facts: what all of it was made with, by name: data, host, versions.
        folder: made if needed.
    """
    pages = {"csv": _csv(tables), "md": markdown(tables, facts), "html": _html(tables, facts)}
    for suffix, content in pages.items():
        with atomic_write(folder / f"table.{suffix}") as unfinished:
            unfinished.write_text(content, encoding="utf-8")


# One line per run and one per row


def _csv(tables: Sequence[LadderTable]) -> str:
    lines = [
        line for table in tables for row in table.rows for line in (*_run_lines(table, row), _row_line(table, row))
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _run_lines(table: LadderTable, row: LadderRow) -> list[dict[str, object]]:
    found = []
    for run in row.runs:
        scores = (run.metrics.get(table.ladder.branch) or {}).get(NETWORK) or {}
        value = scores.get(table.ladder.metric)
        line = _start(table, row, "run") | {"seeds": run.seed, "mean": value, "min": value, "max": value}
        line |= {"n": int(value is not None), "wall_s": run.wall_s}
        found.append(line | {name: scores.get(name) for name in table.ladder.beside})
    return found


def _row_line(table: LadderTable, row: LadderRow) -> dict[str, object]:
    spread, gain, ours, published = row.scores[table.ladder.metric], row.gain, row.published_gain, row.rung.published
    line = _start(table, row, "row") | {"seeds": " ".join(str(run.seed) for run in row.runs)}
    line |= {"mean": None, "min": None, "max": None, "n": 0, "wall_s": row.wall_s and row.wall_s.mean}
    if spread:
        line |= {"mean": spread.mean, "min": spread.low, "max": spread.high, "n": len(spread.values)}
    line |= {name: (found := row.scores[name]) and found.mean for name in table.ladder.beside}
    line |= {"student": row.student and row.student.mean, "over": row.rung.over}
    line |= {"gain": gain and gain.value, "ranges": gain and gain.verdict}
    line |= {"published_over": published and published.over, "published_gain": published and published.gain}
    line |= {"our_gain": ours and ours.value, "our_ranges": ours and ours.verdict}
    return line | {"failed": " | ".join(table.failed.get(row.rung.name, ()))}


def _start(table: LadderTable, row: LadderRow, kind: str) -> dict[str, object]:
    names = {"ladder": table.ladder.name, "row": row.rung.name, "kind": kind}
    judged = {"metric": table.ladder.metric, "network": NETWORK}
    return {**names, "trained_from": table.trained_from[row.rung.name], **judged}


# Words that both tables share


def _decimal(value: float, how: str = ".3f") -> str:
    return f"{value:{how}}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:{how}}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if len(spread.values) == 1:
        return _decimal(spread.mean)
    return f"{_decimal(spread.mean)} ({_decimal(spread.low)} to {_decimal(spread.high)})"


def _gain(gain: Gain | None) -> str:
    return "-" if gain is None else f"{_decimal(gain.value, '+.3f')} over {gain.over}, {gain.verdict}"


def _published(row: LadderRow) -> str:
    if row.rung.published is None:
        return "-"
    published = row.rung.published
    ours = (
        f"ours {_decimal(row.published_gain.value, '+.3f')}, {row.published_gain.verdict}" if row.published_gain else ""
    )
    return f"{_decimal(published.gain, '+.4f')} over {published.over} ({published.source})" + (
        f"; {ours}" if ours else ""
    )


def _count(table: LadderTable, row: LadderRow) -> str:
    failed = table.failed.get(row.rung.name, ())
    return f"{len(row.runs)} of {table.num_seeds}" + (f", failed: {'; '.join(failed)}" if failed else "")


def _wall(row: LadderRow) -> str:
    return "-" if row.wall_s is None else str(timedelta(seconds=round(row.wall_s.mean)))


def _cells(table: LadderTable, row: LadderRow) -> dict[str, str]:
    """Return the columns that are words, by their head."""
    return {
        "Gain": _gain(row.gain),
        "Published": _published(row),
        "Student": _spread(row.student),
        "Seeds": _count(table, row),
        "Wall time": _wall(row),
        "Trained from": table.trained_from[row.rung.name],
    }


def _heading(ladder: Ladder) -> str:
    return f"{ladder.branch}: {ladder.metric} of the {NETWORK}, against gt_ labels"


# The page for people


def markdown(tables: Sequence[LadderTable], facts: Mapping[str, object]) -> str:
    """Return the tables and facts as Markdown."""
    parts = [f"## {_heading(table.ladder)}\n\n{_markdown_table(table)}" for table in tables]
    listed = "\n".join(f"- {name}: {_cell(value)}" for name, value in facts.items())
    return "\n\n".join([*parts, READING, listed]) + "\n"


def _markdown_table(table: LadderTable) -> str:
    lines: list[list[str]] = []
    for row in table.rows:
        scores = {name: _spread(spread) for name, spread in row.scores.items()}
        cells = {"Row": f"`{row.rung.name}` {row.rung.meaning}", **scores, **_cells(table, row)}
        lines = lines or [list(cells), ["---"] * len(cells)]
        lines.append([_cell(value) for value in cells.values()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _html(tables: Sequence[LadderTable], facts: Mapping[str, object]) -> str:
    sections = "".join(
        f"<section><h2>{text(_heading(table.ladder))}</h2>{_html_table(table)}</section>" for table in tables
    )
    listed = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items())
    chips = f"{chip(NETWORK, 'net')} {chip('gt_ labels', 'gt')}"
    header = (
        f'<p class="lead">{text(READING)}</p>'
        f"<p>Scores are of the {chips}, which were opened for scoring alone where a row does not say otherwise.</p>"
        f'<dl class="facts">{listed}</dl>'
    )
    return html_page("Ladder", "What each part is worth", header, sections)


def _html_table(table: LadderTable) -> str:
    lines = "".join(_html_row(table, row) for row in table.rows)
    heads = ["Row", "Meaning", *table.rows[0].scores, *_cells(table, table.rows[0])]
    titles = "".join(f'<th scope="col">{text(head)}</th>' for head in heads)
    return (
        f'<div class="scroll"><table class="stack"><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _html_row(table: LadderTable, row: LadderRow) -> str:
    meaning = _note("Meaning", row.rung.meaning)
    scores = "".join(_score_cell(spread, name) for name, spread in row.scores.items())
    notes = "".join(_note(head, value) for head, value in _cells(table, row).items())
    return f'<tr><th scope="row">{text(row.rung.name)}</th>{meaning}{scores}{notes}</tr>'


def _note(head: str, value: str) -> str:
    return f'<td class="note" data-label="{text(head)}">{text(value)}</td>'


def _score_cell(spread: Spread | None, name: str) -> str:
    if spread is None:
        return f'<td class="num" data-label="{text(name)}">-</td>'
    cell = bar_cell(spread.mean, name)
    if len(spread.values) == 1:
        return cell
    between = f'<span class="soft">{spread.low:.3f} to {spread.high:.3f}</span>'
    return cell.removesuffix("</td>") + between + "</td>"
