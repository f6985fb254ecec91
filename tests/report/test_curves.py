from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from mwsis.report.curves import grouped_bars, line_chart, loss_series, nice_ticks, number, smooth


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.037), (-3.0, 7.0), (100.0, 25000.0), (0.9991, 0.9992)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert low - 1e-9 <= ticks[0] < ticks[-1] <= high + 1e-9
    leading = f"{ticks[1] - ticks[0]:.2e}"[:3]
    assert leading in ("1.0", "2.0", "2.5", "5.0")


def test_ticks_of_a_single_value() -> None:
    assert nice_ticks(3.0, 3.0) == [3.0]


def test_smoothing_keeps_constants_and_straight_lines_and_does_not_lag() -> None:
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    line = np.arange(100.0)
    assert smooth(line.tolist())[10:90] == pytest.approx(line[10:90])
    assert smooth([1.0]) == pytest.approx([1.0])


def test_smoothing_lowers_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 1, 400)
    assert smooth(noise.tolist()).std() < 0.5


@pytest.mark.parametrize("value", [None, "", "abc", float("nan"), math.inf, True])
def test_what_is_no_number(value: object) -> None:
    assert number(value) is None


def test_losses_from_rows_per_step_and_rows_per_value_agree() -> None:
    wide = [
        {"epoch": 0, "step": 0, "a": "1.5", "b": ""},
        {"epoch": 0, "step": 10, "a": 1.0, "b": float("nan"), "loss": 3},
    ]
    long = [
        {"step": 0, "name": "a", "value": 1.5},
        {"step": 10, "name": "a", "value": 1.0},
        {"step": 10, "name": "loss", "value": 3},
    ]
    expected = {"loss": ([10.0], [3.0]), "a": ([0.0, 10.0], [1.5, 1.0])}
    assert loss_series(wide) == loss_series(long) == expected
    assert list(loss_series(long)) == ["loss", "a"]


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [3.0, 2.0, 1e-6], [-1.0, 1.0], list(np.linspace(9, 1, 5000))])
def test_line_chart_is_wellformed_titled_and_stays_inside(values: list[float]) -> None:
    svg = ElementTree.fromstring(line_chart(list(range(len(values))), values, "a<b & 'c'"))
    assert svg.find("title").text == "a<b & 'c'"
    assert svg.get("role") == "img"
    for line in svg.findall("polyline"):
        points = np.array([pair.split(",") for pair in line.get("points").split()], dtype=float)
        assert len(points) <= 400
        assert (points >= 0).all()
        assert (points <= [320, 176]).all()


def test_long_curves_keep_their_spikes() -> None:
    values = [1.0] * 10000
    values[7654] = 5.0
    raw = ElementTree.fromstring(line_chart(list(range(10000)), values, "x")).findall("polyline")[0]
    heights = [float(pair.split(",")[1]) for pair in raw.get("points").split()]
    assert min(heights) < max(heights) - 50


def test_charts_of_one_run_share_the_axis() -> None:
    late = ElementTree.fromstring(line_chart([50, 100], [1.0, 2.0], "x", (0, 100))).find("polyline")
    first = float(late.get("points").split()[0].split(",")[0])
    assert first == pytest.approx((44 + 310) / 2, abs=1)


def test_bars_say_their_values_and_mark_missing_ones() -> None:
    svg = grouped_bars(["Vehicle", "Cyc<list"], {"spg": [0.861, None], "frustum": [0.5, 1.2]}, "Quality")
    tree = ElementTree.fromstring(svg)
    assert len(tree.findall("rect")) == 3
    words = [element.text for element in tree.findall("text")]
    assert "0.86" in words
    assert "–" in words
    assert "Cyc<list" in words
    assert max(float(bar.get("height")) for bar in tree.findall("rect")) <= 162
