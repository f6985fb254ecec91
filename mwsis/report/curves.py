"""Small charts as inline SVG: one line chart per loss term or score, and grouped bars for label quality.

Drawn with plain strings, so a report needs no plotting library and no script. Colours are CSS variables with a
fallback, so the page decides how they look in light, dark and print. What is deliberately not here: reading CSV files
and the page around the charts. Next: `html.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "NETWORK_COLOURS",
    "SERIES_COLOURS",
    "Row",
    "grouped_bars",
    "line_chart",
    "lines_chart",
    "loss_series",
    "nice_ticks",
    "number",
    "series_colour",
    "smooth",
]

Row = Mapping[str, object]
"""One row of a CSV file or table: column name to number, text or nothing."""

SERIES_COLOURS = ("#9aa3b2", "#e69f00", "#2f7fd1", "#b0588f", "#009e73")
"""Colours of chart series, dark enough for white paper and light enough for a dark page."""
NETWORK_COLOURS = {"teacher": SERIES_COLOURS[1], "student": SERIES_COLOURS[2]}
NOT_A_CURVE = frozenset({"step", "epoch"})
MAX_DRAWN_POINTS = 320
"""Points of a drawn raw curve; a longer run is thinned to the extremes of each stretch."""


def number(value: object) -> float | None:
    """Return ``value`` as a finite float, or ``None`` for nothing, text, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | np.number):
        return None
    try:
        converted = float(value)
    except ValueError:
        return None
    return converted if math.isfinite(converted) else None


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers (1, 2, 2.5 or 5 times a power of ten) inside ``[low, high]``, about ``about`` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """Return the running average of a curve, same length.

    Weighted by a triangle that reaches 1/20 of the curve to either side and is cut off at the ends, so that the average
    neither lags behind the curve nor is pulled to zero.

    Args:
        values: the curve, finite.

    Returns:
        (len(values),) float64.
    """
    reach = len(values) // 20 + 1
    triangle = np.concatenate([np.arange(1, reach + 1), np.arange(reach - 1, 0, -1)]).astype(np.float64)
    inside = slice(reach - 1, reach - 1 + len(values))
    weighted = np.convolve(np.asarray(values, dtype=np.float64), triangle)[inside]
    averaged: NDArray[np.float64] = weighted / np.convolve(np.ones(len(values)), triangle)[inside]
    return averaged


def loss_series(rows: Sequence[Row]) -> dict[str, tuple[list[float], list[float]]]:
    """Return the curve of every loss in a training log.

    Args:
        rows: either one row per step with a column per loss, or one row per value with ``name`` and ``value``; in
            both, ``step`` counts optimiser steps (the row number stands in where it is missing). Empty cells, text
            and NaN are left out of the curve of their column.

    Returns:
        Loss name to (steps, values), names in order of appearance, the total loss first.
    """
    series: dict[str, tuple[list[float], list[float]]] = {}
    for position, row in enumerate(rows):
        step = number(row.get("step"))
        cells = [(str(row["name"]), row["value"])] if {"name", "value"} <= row.keys() else list(row.items())
        for name, value in cells:
            found = number(value)
            if name in NOT_A_CURVE or found is None:
                continue
            steps, values = series.setdefault(name, ([], []))
            steps.append(float(position) if step is None else step)
            values.append(found)
    return dict(sorted(series.items(), key=lambda item: item[0].split("/")[-1] not in ("loss", "total")))


def line_chart(
    steps: Sequence[float], values: Sequence[float], title: str, step_range: tuple[float, float] | None = None
) -> str:
    """Return one curve over training steps as SVG: raw values faint, running average bold.

    Args:
        steps: ascending optimiser steps.
        values: as many finite numbers.
        title: the name of the curve; escaped here.
        step_range: first and last step of the axis, so that charts of one run line up; by default those of the curve.

    Returns:
        An ``<svg>`` element 320 by 176 units that scales with its container, with a title for screen readers.
    """
    assert len(steps) == len(values) > 0
    averaged = smooth(values)
    axes = _Axes(step_range or (min(steps), max(steps)), _value_range(values))
    parts = [axes.begin(title, f"{title}: {values[0]:.4g} at first, {averaged[-1]:.4g} at the end.")]
    parts.append(
        f'<text x="{axes.width - axes.right}" y="13" text-anchor="end" class="chart-value">'
        f"{short_number(float(averaged[0]))} → {short_number(float(averaged[-1]))}</text>"
    )
    if len(values) == 1:
        parts.append(f'<circle {axes.dot(steps[0], values[0])} class="chart-dot"/>')
    parts.append(f'<polyline points="{axes.place(steps, values)}" class="chart-raw"/>')
    parts.append(f'<polyline points="{axes.place(steps, averaged)}" class="chart-smooth"/></svg>')
    return "".join(parts)


def lines_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    colours: Mapping[str, str],
    title: str,
    step_range: tuple[float, float],
) -> str:
    """Return a few curves of one quantity over training steps as SVG, a dot at each value.

    Args:
        series: name to ascending optimiser steps and as many finite numbers, at least one.
        colours: of each name, as CSS has them.
        title: of the quantity; escaped here.
        step_range: first and last step of the axis, so that charts of one run line up.

    Returns:
        An ``<svg>`` element of the size of `line_chart`, with its last values for screen readers.
    """
    every_value = [value for _, values in series.values() for value in values]
    axes = _Axes(step_range, _value_range(every_value))
    spoken = ", ".join(f"{name} {values[-1]:.3f}" for name, (_, values) in series.items())
    parts = [axes.begin(title, f"{title}, at the end: {spoken}.")]
    for name, (steps, values) in series.items():
        assert len(steps) == len(values) > 0
        colour = escape(colours[name], quote=True)
        parts.append(
            f'<polyline points="{axes.place(steps, values)}" class="chart-line" style="stroke:{colour}"/>'
            + "".join(
                f'<circle {axes.dot(step, value)} style="fill:{colour}"/>'
                for step, value in zip(steps, values, strict=True)
            )
        )
    return "".join([*parts, "</svg>"])


def grouped_bars(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], title: str) -> str:
    """Return a bar chart of fractions as SVG: one group per class, one bar per method.

    Args:
        groups: names under the groups; escaped here.
        series: name of each method to one value in [0, 1] per group; ``None`` draws no bar and writes a dash.
        title: for screen readers; escaped here.

    Returns:
        An ``<svg>`` element that scales with its container.
    """
    bar, gap, left, top, height = 30, 34, 40, 14, 176
    group_width = bar * len(series) + gap
    width = left + group_width * len(groups) + 6
    spoken = "; ".join(f"{name}: " + ", ".join(spell(value) for value in row) for name, row in series.items())
    parts = [_open_svg(width, height + 38, title, f"{title}. {', '.join(groups)}. {spoken}.")]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + (1 - tick) * (height - top)
        parts.append(f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" class="chart-grid"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.2f}</text>')
    for group, name in enumerate(groups):
        start = left + gap / 2 + group * group_width
        for index, row in enumerate(series.values()):
            parts.append(_bar(row[group], start + index * bar, bar - 4, top, height, series_colour(index)))
        middle = start + bar * len(series) / 2 - 2
        parts.append(f'<text x="{middle:.1f}" y="{height + 20}" text-anchor="middle" class="chart-title">')
        parts.append(f"{escape(name)}</text>")
    return "".join([*parts, "</svg>"])


def series_colour(index: int) -> str:
    """Return the colour of chart series ``index``."""
    return SERIES_COLOURS[index % len(SERIES_COLOURS)]


def spell(value: float | None) -> str:
    """Return a fraction with three decimals, or a dash for nothing."""
    return "–" if value is None else f"{value:.3f}"


def short_number(value: float) -> str:
    """Return a number in at most about five characters (12k, 0.35, 2.1e-05)."""
    if abs(value) >= 10000:
        return f"{value / 1000:.4g}k"
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


class _Axes:
    """Where steps and values lie in a line chart.

    Args:
        steps: first and last step of the axis.
        values: lowest and highest value, the first below the second.
    """

    width, height, left, right, top, bottom = 320, 176, 44, 10, 30, 24

    def __init__(self, steps: tuple[float, float], values: tuple[float, float]) -> None:
        self.steps, self.values = steps, values

    def begin(self, title: str, description: str) -> str:
        """Return the opening tag, the title and the axes."""
        parts = [_open_svg(self.width, self.height, title, description)]
        parts.append(f'<text x="0" y="13" class="chart-title">{escape(title)}</text>')
        for tick in nice_ticks(*self.values):
            y, end = self.down(tick), self.width - self.right
            parts.append(f'<line x1="{self.left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}" class="chart-grid"/>')
            parts.append(f'<text x="{self.left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{short_number(tick)}</text>')
        below = self.height - 8
        for tick in nice_ticks(*self.steps):
            x = self.across(tick)
            parts.append(f'<text x="{x:.1f}" y="{below}" text-anchor="middle">{short_number(tick)}</text>')
        parts.append(f'<text x="{self.left - 10}" y="{below}" text-anchor="end">step</text>')
        return "".join(parts)

    def across(self, step: float) -> float:
        """Return where a step lies."""
        first, last = self.steps
        return self.left + (step - first) / ((last - first) or 1.0) * (self.width - self.left - self.right)

    def down(self, value: float) -> float:
        """Return where a value lies."""
        low, high = self.values
        return self.top + (high - value) / (high - low) * (self.height - self.top - self.bottom)

    def place(self, steps: Sequence[float], curve: Sequence[float] | NDArray[np.float64]) -> str:
        """Return the points of a curve for a polyline; a long one is thinned."""
        return " ".join(f"{self.across(steps[i]):.1f},{self.down(curve[i]):.1f}" for i in _extremes(curve))

    def dot(self, step: float, value: float) -> str:
        """Return the attributes of a circle at a value."""
        return f'cx="{self.across(step):.1f}" cy="{self.down(value):.1f}" r="3"'


def _bar(value: float | None, x: float, width: float, top: float, base: float, colour: str) -> str:
    label_x = x + width / 2
    if value is None:
        return f'<text x="{label_x:.1f}" y="{base - 4:.1f}" text-anchor="middle">–</text>'
    tall = min(max(value, 0.0), 1.0) * (base - top)
    return (
        f'<rect x="{x:.1f}" y="{base - tall:.1f}" width="{width}" height="{tall:.1f}" rx="2" fill="{colour}"/>'
        f'<text x="{label_x:.1f}" y="{base - tall - 4:.1f}" text-anchor="middle" class="chart-value">{value:.2f}</text>'
    )


def _open_svg(width: float, height: float, title: str, description: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" class="chart" style="max-width:{width * 1.25:.0f}px">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    )


def _value_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the axis limits: from zero where the curve is near it, so that a wiggle does not look like a fall."""
    low, high = min(values), max(values)
    if 0 <= low < 0.6 * high:
        low = 0.0
    pad = (high - low) * 0.05 or max(abs(high), 1e-6) * 0.5
    return (low if low == 0 else low - pad), high + pad


def _extremes(curve: Sequence[float] | NDArray[np.float64]) -> list[int]:
    """Return the indices to draw: all, or the lowest and highest of each stretch of a long curve."""
    if len(curve) <= MAX_DRAWN_POINTS:
        return list(range(len(curve)))
    kept = {0, len(curve) - 1}
    for stretch in np.array_split(np.arange(len(curve)), MAX_DRAWN_POINTS // 2):
        part = np.asarray(curve)[stretch]
        kept |= {int(stretch[part.argmin()]), int(stretch[part.argmax()])}
    return sorted(kept)
