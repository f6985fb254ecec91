"""Instance scores by distance and size in the page."""

from __future__ import annotations

import re
from dataclasses import replace

from mwsis.report.tables import scores
from tests.report.fake_run import fake_report


def row(bin_name: str, class_name: str, objects: int, ap50: float) -> dict[str, object]:
    return {"bin": bin_name, "class": class_name, "objects": objects, "instance_ap": 0.1, "instance_ap50": ap50}


ROWS = [
    row("0-15 m", "Vehicle", 1200, 0.5), row("0-15 m", "mean", 1200, 0.5),
    row("<20 points", "Vehicle", 3, 0.25), row("<20 points", "Cyclist", 4, 0.75), row("<20 points", "mean", 7, 0.375),
]  # fmt: skip


def test_rows_by_distance_and_size_are_shown_for_the_leading_network():
    report = fake_report()
    student = [row("0-15 m", "Vehicle", 1, 0.999), row("0-15 m", "mean", 1, 0.999)]
    page = scores(replace(report, metrics={**report.metrics, "lidar_rows": {"teacher": ROWS, "student": student}}))
    shown = page[page.index('<th scope="col">teacher, AP50') :]
    assert re.findall(r'<th scope="col">(.*?)</th>', shown) == [
        "teacher, AP50",
        "Objects",
        "Vehicle",
        "Cyclist",
        "mean",
    ]
    lines = [re.sub("<.*?>", " ", line).split() for line in re.findall("<tr>(.*?)</tr>", shown)]
    assert lines == [
        ["0-15", "m", "1", "200", "0.500", "–", "0.500"],  # no cyclist nearer than 15 m
        ["&lt;20", "points", "7", "0.250", "0.750", "0.375"],
    ]
    assert "0.999" not in shown


def test_without_rows_there_is_no_such_table():
    report = fake_report()
    for rows in ({}, {"lidar_rows": {"teacher": None, "student": None}}):
        assert 'AP50</th><th scope="col">Objects' not in scores(replace(report, metrics={**report.metrics, **rows}))
