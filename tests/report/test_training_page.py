"""What the page says about the training: scores on the way, and what each loss learns from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from mwsis.report.curves import NETWORK_COLOURS, lines_chart
from mwsis.report.tables import LEARNED_FROM, loss_terms
from mwsis.report.training_page import scores_on_the_way
from tests.report.fake_run import fake_report
from tests.report.test_html import page_of, read

ROOT = Path(__file__).resolve().parents[2]


def score(step: int, network: str, value: object, branch: str = "lidar", name: str = "miou") -> dict[str, object]:
    return {"step": step, "network": network, "branch": branch, "name": name, "value": value}


ROWS = [
    *(score(184, "teacher", 0.2), score(184, "student", 0.3)),
    *(score(369, "teacher", 0.4), score(369, "student", 0.35)),
    score(369, "teacher", 0.1, "camera", "mask_ap50"),
]


def cells(table: str) -> list[list[str]]:
    """Return the text of each cell of each row of a table's body."""
    lines = re.findall("<tr>(.*?)</tr>", table[table.index("<tbody>") : table.index("</tbody>")])
    return [[re.sub("<.*?>", "", cell) for cell in re.findall("<t[dh].*?</t[dh]>", line)] for line in lines]


def test_each_score_has_a_chart_with_both_networks():
    page = scores_on_the_way(replace(fake_report(), scores_on_the_way=ROWS))
    charts = [ElementTree.fromstring(chart) for chart in re.findall("<svg.*?</svg>", page)]
    assert [chart.find("title").text for chart in charts] == ["LiDAR: point mIoU", "Camera: AP50 of masks"]
    assert [len(chart.findall("circle")) for chart in charts] == [4, 1]
    strokes = [line.get("style").removeprefix("stroke:") for line in charts[0].findall("polyline")]
    assert strokes == [NETWORK_COLOURS["teacher"], NETWORK_COLOURS["student"]]
    for colour in strokes:
        assert f'<i style="background:{colour}"></i>' in page
    assert "teacher 0.400, student 0.350" in charts[0].find("desc").text


def test_charts_of_scores_share_the_axis_and_place_their_dots():
    both = {"a": ([0.0, 100.0], [0.0, 1.0]), "b": ([50.0], [0.5])}
    chart = ElementTree.fromstring(lines_chart(both, {"a": "red", "b": '"<'}, "x<y", (0, 100)))
    (left, right, middle) = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in chart.findall("circle")]
    assert middle == pytest.approx(((left[0] + right[0]) / 2, (left[1] + right[1]) / 2), abs=0.1)
    assert left[1] > right[1]
    assert (left[0], right[0]) == (44, 310)


def test_without_scores_the_page_says_nothing_of_them(tmp_path):
    for rows in ([], [score(3, "teacher", "nan"), score(3, "somebody", 0.5), {"step": 1}]):
        page = page_of(replace(fake_report(), scores_on_the_way=rows, galleries=()), tmp_path)
        assert "on-the-way" not in page
        assert "on the way" not in page


def test_with_scores_the_page_has_a_section_of_its_own(tmp_path):
    page = page_of(replace(fake_report(), scores_on_the_way=ROWS, galleries=()), tmp_path)
    assert '<section id="on-the-way">' in page
    assert '<a href="#on-the-way">' in page
    assert "nothing was chosen by them" in read(page).text


CURVES = {
    "loss": ([0.0, 19.0], [9.0, 9.0]),
    "lidar/semantic": ([0.0, 16.0], [2.0, 1.0]),
    "camera/box": ([float(step) for step in range(20)], [9.0] * 18 + [1.0, 3.0]),
    "camera/from_lidar": ([12.0, 16.0, 19.0], [7.0, 7.0, 4.0]),
    "camera/other_term": ([0.0], [7.0]),
}


def test_a_loss_says_what_it_learns_from_since_when_and_how_much_it_was():
    """The last tenth of 20 steps are 18 and 19."""
    assert cells(loss_terms(CURVES)) == [
        ["LiDAR", "semantic", LEARNED_FROM["lidar/semantic"], "0", "–", "–"],
        ["Camera", "box", "2D boxes", "0", "2", "0.500"],
        ["Camera", "from_lidar", "LiDAR teacher's points (CSCS)".replace("'", "&#x27;"), "12", "4", "0.500"],
        ["Camera", "other_term", "other_term", "0", "–", "0.000"],
    ]


def test_the_shares_of_a_branch_add_up_to_one():
    page = loss_terms({name: (list(range(40)), [0.1 * index + 0.2] * 40) for index, name in enumerate(LEARNED_FROM)})
    for branch in ("Camera", "LiDAR"):
        shares = [float(row[-1]) for row in cells(page) if row[0] == branch]
        assert sum(shares) == pytest.approx(1, abs=0.01)


def test_the_page_says_that_a_share_of_the_loss_is_no_share_of_the_gain(tmp_path):
    text = read(page_of(replace(fake_report(), galleries=()), tmp_path)).text
    assert "A share of the loss is not a share of the gain" in text
    assert "teacher's masks at the object's positives (IPG)" in text


def test_losses_without_a_branch_make_no_table():
    assert loss_terms({"loss": ([0.0], [1.0])}) == ""


def test_every_camera_term_of_the_methods_is_explained():
    named = set()
    for path in (ROOT / "configs" / "method").glob("*.yaml"):
        method = yaml.safe_load(path.read_text())
        named |= set((method.get("method") or method).get("camera_terms") or {})
    assert {"projection", "ipg", "depth_pairs"} <= named
    assert {f"camera/{name}" for name in named} <= LEARNED_FROM.keys()
