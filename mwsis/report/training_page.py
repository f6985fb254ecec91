"""How the training went: scores on the way, the curve of each loss, what each loss learns from.

Charts are drawn by `curves.py`; the tables of scores at the end are in `tables.py`.
"""

from __future__ import annotations

from mwsis.report.content import Report, data_name, labels_used
from mwsis.report.curves import NETWORK_COLOURS, line_chart, lines_chart, loss_series, number
from mwsis.report.tables import chip, loss_terms, text

__all__ = ["losses", "scores_on_the_way"]

SCORES = {
    ("camera", "mask_ap50"): "Camera: AP50 of masks",
    ("camera", "matched_mask_iou"): "Camera: IoU of masks",
    ("lidar", "instance_ap50"): "LiDAR: AP50 of instances",
    ("lidar", "miou"): "LiDAR: point mIoU",
}
"""What a score of a branch is called."""


def scores_on_the_way(report: Report) -> str:
    """Return a chart per score with the curves of teacher and student; nothing where none was measured."""
    curves: dict[tuple[str, str], dict[str, tuple[list[float], list[float]]]] = {}
    for row in report.scores_on_the_way:
        step, value, network = number(row.get("step")), number(row.get("value")), str(row.get("network"))
        if step is None or value is None or network not in NETWORK_COLOURS:
            continue
        series = curves.setdefault((str(row.get("branch")), str(row.get("name"))), {})
        steps, values = series.setdefault(network, ([], []))
        steps.append(step)
        values.append(value)
    if not curves:
        return ""
    ends = (0.0, max(step for series in curves.values() for steps, _ in series.values() for step in steps))
    charts = "".join(
        f"<div>{lines_chart(series, NETWORK_COLOURS, SCORES.get(key, ': '.join(key)), ends)}</div>"
        for key, series in curves.items()
    )
    shown = [network for network in NETWORK_COLOURS if any(network in series for series in curves.values())]
    legend = "".join(f'<li><i style="background:{NETWORK_COLOURS[name]}"></i>{name}</li>' for name in shown)
    return (
        f"<p>Scores of {' and '.join(chip(name, 'net') for name in shown)} during training, on a few frames of the "
        f"validation split of {text(data_name(report))}, against {chip('gt_ labels', 'gt')}: rougher than those of the "
        f'whole split above, and nothing was chosen by them.</p><ul class="legend">{legend}</ul>'
        f'<div class="curves">{charts}</div>'
    )


def losses(report: Report) -> str:
    """Return the curve of every loss, and a table of what each learned from."""
    series = loss_series(report.losses)
    if not series:
        return '<p class="missing">No losses were logged.</p>'
    every_step = [step for steps, _ in series.values() for step in steps]
    ends = (min(every_step), max(every_step))
    charts = "".join(f"<div>{line_chart(steps, values, name, ends)}</div>" for name, (steps, values) in series.items())
    return (
        f"<p>Losses of the {chip('student', 'net')} over optimiser steps on the training split of "
        f"{text(data_name(report))}, from {text(labels_used(report))}. Faint: as logged; bold: running average; the "
        "numbers beside each name are its start and end. A term appears from the step its schedule switches it on."
        f'</p><div class="curves">{charts}</div>{loss_terms(series)}'
    )
