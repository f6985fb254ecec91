"""Means, ranges and gains of a ladder against numbers worked out by hand, and the table made of them."""

from __future__ import annotations

import csv
import re

import pytest

from mwsis.core.errors import ConfigError, DataError
from mwsis.report.ladder import Finished, Gain, Ladder, Spread, aggregate, data_facts
from mwsis.report.ladder_page import LadderTable, markdown, write_tables

CONTENT = {
    "branch": "lidar",
    "metric": "instance_ap",
    "beside": ["miou"],
    "overrides": ["trainer.lidar_every=1"],
    "rows": [
        {"name": "base", "meaning": "every point", "overrides": ["method=frustum"]},
        {"name": "more", "meaning": "clusters | <b>", "over": "base", "overrides": ["method=mwsis_lidar"]},
        {
            "name": "all",
            "meaning": "votes",
            "over": "more",
            "overrides": ["method=mwsis"],
            "published": {"over": "base", "gain": 0.1275, "source": "a paper"},
        },
    ],
}
LADDER = Ladder.parse("lidar", CONTENT)


def run(seed, teacher, student=0.5, miou=0.25, wall_s=60.0):
    scores = {"teacher": {"instance_ap": teacher, "miou": miou}, "student": {"instance_ap": student}}
    return Finished(seed, {"lidar": scores, "data": {"name": "street", "fingerprint": "f00"}}, wall_s)


RUNS = {
    "base": [run(0, 0.125), run(1, 0.25), run(2, 0.375)],
    "more": [run(0, 0.5, 0.25, 0.5, 100.0), run(1, 0.375, 0.75, 1.0, 300.0)],
    "all": [run(2, 1.0, wall_s=None)],
}


def test_means_ranges_and_gains_by_hand():
    base, more, whole = aggregate(LADDER, RUNS)
    assert base.scores["instance_ap"] == Spread((0.125, 0.25, 0.375))
    assert (base.scores["instance_ap"].mean, base.scores["instance_ap"].low) == (0.25, 0.125)
    assert base.scores["instance_ap"].high == 0.375
    assert base.gain is base.published_gain is None
    assert more.scores["miou"].mean == 0.75
    assert more.student.mean == 0.5
    assert more.wall_s.mean == 200.0
    # .4375 - .25; .375 is in both ranges
    assert more.gain == Gain("base", 0.1875, "ranges overlap")
    assert whole.gain == Gain("more", 0.5625, "no range: one seed")
    assert whole.published_gain == Gain("base", 0.75, "no range: one seed")
    assert whole.wall_s is None


@pytest.mark.parametrize(
    ("values", "verdict"),
    [((0.4, 0.5), "ranges apart"), ((0.01, 0.02), "ranges apart"), ((0.0, 1.0), "ranges overlap"),
     ((0.2, 0.3), "ranges overlap")],
)  # fmt: skip
def test_ranges_apart_and_overlapping(values, verdict):
    more = aggregate(LADDER, {**RUNS, "more": [run(seed, value) for seed, value in enumerate(values)]})[1]
    assert more.gain.verdict == verdict


def test_what_is_not_there_yet_or_has_no_score():
    base, more, whole = aggregate(LADDER, {"base": [run(0, None), run(1, 0.5)], "all": [Finished(0, {})]})
    assert base.scores["instance_ap"].values == (0.5,)
    assert len(base.runs) == 2
    assert more.scores == {"instance_ap": None, "miou": None}
    assert more.runs == ()
    assert whole.scores["instance_ap"] is None
    assert more.gain is whole.gain is whole.published_gain is more.wall_s is None


def test_runs_of_other_data_are_not_mixed():
    other = Finished(1, {"data": {"name": "street", "fingerprint": "bad"}})
    assert data_facts([run(0, 0.5), run(1, 0.25)])["fingerprint"] == "f00"
    assert data_facts([]) == {}
    with pytest.raises(DataError, match=r"expected runs on the same data, got .*f00.* and .*bad"):
        data_facts([run(0, 0.5), other])
    assert data_facts([run(0, 0.5), other], split_of_seed=True)["fingerprint"] == "another split for each seed"
    with pytest.raises(DataError, match="expected runs on the same data"):
        data_facts([run(1, 0.5), other], split_of_seed=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": None}, "ladder x: "),
        ({"overrides": "method=boxinst"}, "expected a list, got 'method=boxinst'"),
        ({"metrik": "miou"}, "metrik"),
        ({"rows": [{"name": "a", "meaning": "b", "ovr": "c"}]}, "ovr"),
        ({"rows": [{"name": "a", "meaning": "b", "over": "a"}]}, "row a: over=a is no earlier row"),
        ({"rows": [{"name": "a", "meaning": "b"}, {"name": "a", "meaning": "c"}]}, "each with a name of its own"),
        ({"rows": []}, "expected rows"),
        ({"rows": [CONTENT["rows"][0], {**CONTENT["rows"][1], "over": "bas"}]}, "did you mean 'base'"),
        ({"rows": [CONTENT["rows"][2] | {"over": None}]}, "over=base is no earlier row"),
    ],
)
def test_a_ladder_that_is_none(change, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        Ladder.parse("x", {**CONTENT, **change})
    with pytest.raises(ConfigError, match="rows"):
        Ladder.parse("x", {"branch": "lidar"})


@pytest.fixture
def table():
    names = [rung.name for rung in LADDER.rows]
    failed = {"all": ["seed 0: exit code 1: out of memory"]}
    return LadderTable(LADDER, aggregate(LADDER, RUNS), 3, dict.fromkeys(names, "2D boxes only"), failed)


def test_csv_has_a_line_per_run_and_per_row(table, tmp_path):
    write_tables([table], {}, tmp_path)
    with open(tmp_path / "table.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["kind"], line["seeds"]) for line in lines] == [
        ("base", "run", "0"), ("base", "run", "1"), ("base", "run", "2"), ("base", "row", "0 1 2"),
        ("more", "run", "0"), ("more", "run", "1"), ("more", "row", "0 1"), ("all", "run", "2"), ("all", "row", "2"),
    ]  # fmt: skip
    more = lines[6]
    numbers = {key: float(more[key]) for key in ("mean", "min", "max", "n", "miou", "student", "gain", "wall_s")}
    assert numbers == {
        "mean": 0.4375, "min": 0.375, "max": 0.5, "n": 2, "miou": 0.75, "student": 0.5, "gain": 0.1875, "wall_s": 200,
    }  # fmt: skip
    assert (more["over"], more["ranges"], more["published_gain"]) == ("base", "ranges overlap", "")
    assert {line["network"] for line in lines} == {"teacher"}
    assert {line["trained_from"] for line in lines} == {"2D boxes only"}
    assert (lines[8]["published_over"], lines[8]["published_gain"], lines[8]["our_gain"]) == ("base", "0.1275", "0.75")
    assert (lines[8]["wall_s"], lines[8]["failed"]) == ("", "seed 0: exit code 1: out of memory")
    assert (lines[0]["mean"], lines[0]["n"], lines[0]["wall_s"]) == ("0.125", "1", "60.0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.html", "table.md"]


def test_markdown_says_what_can_be_said(table):
    lines = markdown([table], {"Host": "2 cores"}).splitlines()
    cells = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert "| .250 (.125 to .375) | .250 (.250 to .250) | - |" in cells["base"]
    assert "`more` clusters \\| <b>" in cells["more"]
    assert "| .438 (.375 to .500) |" in cells["more"]
    assert "| +.188 over base, ranges overlap |" in cells["more"]
    assert "2 of 3" in cells["more"]
    assert "0:03:20" in cells["more"]
    assert "+.1275 over base (a paper); ours +.750, no range: one seed" in cells["all"]
    assert "1 of 3, failed: seed 0: exit code 1: out of memory" in cells["all"]
    assert "- Host: 2 cores" in lines
    assert {line.count(" | ") for line in lines if line.startswith("| `b")} == {8}


def test_page_is_self_contained_and_escaped(table, tmp_path):
    write_tables([table], {"Settings": "a=<script>"}, tmp_path)
    page = (tmp_path / "table.html").read_text()
    assert not re.search(r"(src|href)=|<script", page)
    assert "clusters | &lt;b&gt;" in page
    assert "a=&lt;script&gt;" in page
    assert "+.188 over base, ranges overlap" in page
    assert "0.375 to 0.500" in page
    assert page.count("<tr>") == 4


def test_a_table_of_nothing_finished(tmp_path):
    rows = aggregate(LADDER, {})
    names = [rung.name for rung in LADDER.rows]
    write_tables([LadderTable(LADDER, rows, 3, dict.fromkeys(names, "x"))], {}, tmp_path)
    assert (tmp_path / "table.md").read_text().count("0 of 3") == 3
    assert (tmp_path / "table.csv").read_text().count("\n") == 4
