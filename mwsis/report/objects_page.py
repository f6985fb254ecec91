"""True objects one by one on the page: how well they are found by distance and by occlusion, and the worst of them.

Counting is `mwsis.evaluation.objects`, drawing `label_pictures.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from mwsis.report.content import (
    ObjectPicture,
    Report,
    data_name,
    grouped_digits,
    networks,
    validation_words,
)
from mwsis.report.curves import Row, number
from mwsis.report.figures import figure
from mwsis.report.label_pictures import LEGEND
from mwsis.report.tables import bar_cell, chip, text

__all__ = ["frame_anchor", "links_to_objects", "object_bins", "worst_objects"]

BINS = {
    "range": {"0-15": "0-15 m", "15-30": "15-30 m", "30-45": "30-45 m", ">45": ">45 m"},
    "hidden": {"0-0.1": "hidden less than 10 %", "0.1-0.4": "hidden 10-40 %", ">0.4": "hidden 40 % or more"},
}
"""Bins of `LabelQuality.rows` in words, in order."""


def object_bins(report: Report) -> str:
    """Return a table of the point IoU of objects, the network's and that of its labels, by distance and occlusion."""
    found = report.metrics.get("objects") or {}
    network = networks(report)[0]
    columns = {"teacher": f"{network}, point IoU", "labels": "its labels, point IoU"}
    lines = ""
    for by, names in BINS.items():
        for bin_name, spoken in names.items():
            rows = [row for row in found.get(by) or () if row.get("bin") == bin_name]
            means = {method: _mean(rows, method) for method in columns}
            count, _ = means["teacher"]
            if not count:
                continue
            cells = "".join(bar_cell(means[method][1], title) for method, title in columns.items())
            lines += (
                f'<tr><th scope="row">{spoken}</th><td class="num" data-label="Objects">'
                f"{text(grouped_digits(count))}</td>{cells}</tr>"
            )
    if not lines:
        return ""
    titles = "".join(f'<th scope="col">{text(name)}</th>' for name in ("True objects", "Objects", *columns.values()))
    return (
        "<h3>LiDAR: true objects one by one</h3>"
        f'<div class="scroll"><table class="stack"><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'
        '<p class="soft">An object is a 2D box with at least 5 true points in its image. Of what the '
        f"{network} found it gets the best instance of its class; {chip('pseudo_ labels', 'pseudo')} are made as for "
        "training, here on the validation split. Means are over objects, so a class weighs as much as it has objects. "
        "Hidden: the share of the object's 2D box that the box of one nearer object covers. Finding something where "
        "nothing is costs nothing here; the AP above counts it.</p>"
    )


def _mean(rows: Sequence[Row], method: str) -> tuple[int, float | None]:
    """Return the objects of a method in some rows and the mean of their point IoU."""
    pairs = [(number(row.get("objects")), number(row.get("point_iou"))) for row in rows if row.get("method") == method]
    known = [(count, value) for count, value in pairs if count and value is not None]
    total = sum(count for count, _ in known)
    return round(total), sum(count * value for count, value in known) / total if total else None


def worst_objects(report: Report) -> str:
    """Return the pictures of the worst objects, each with a link to its frame where that is shown."""
    if not report.worst:
        return ""
    legend = "".join(
        f'<li><i style="background:rgb({red},{green},{blue})"></i>{text(words)}</li>'
        for (red, green, blue), words in LEGEND
    )
    figures = "".join(_object_figure(report, index, one) for index, one in enumerate(report.worst))
    return (
        f"<p>The true objects of {text(validation_words(report))} whose LiDAR points the "
        f"{chip(networks(report)[0], 'net')} found worst against {chip('gt_ points', 'gt')}: by point IoU, of equals "
        f'the one with more points first. White: the true 3D box.</p><ul class="legend">{legend}</ul>'
        f'<div class="pictures wide">{figures}</div>'
    )


def _object_figure(report: Report, index: int, one: ObjectPicture) -> str:
    score = one.score
    anchor = frame_anchor(report, score.frame_id)
    frame = text(score.frame_id)
    where = f'<a href="#{anchor}">frame {frame}</a>' if anchor else f"frame {frame}"
    caption = (
        f"<b>{index + 1}. {text(score.class_name)}</b>, IoU {score.point_iou:.2f}: recall {score.recall:.2f} of "
        f"{grouped_digits(score.points)} true points, precision {score.precision:.2f} of "
        f"{grouped_digits(score.labelled)} found ones; {score.range:.1f} m away, {100 * score.hidden:.0f} % of its box "
        f"hidden; {where}, camera {text(score.camera)}, {text(data_name(report))}"
    )
    words = f"{score.class_name}, frame {score.frame_id}, camera {score.camera}: points in the image and from above"
    return figure(one.picture, words, caption, "", anchor=object_anchor(index))


def links_to_objects(report: Report, frame_id: str) -> str:
    """Return links to the worst objects of a frame; nothing where it has none."""
    links = [
        f'<a href="#{object_anchor(index)}">{index + 1}. {text(one.score.class_name)}</a>'
        for index, one in enumerate(report.worst)
        if one.score.frame_id == frame_id
    ]
    return f'<p class="soft">Among the worst objects: {", ".join(links)}</p>' if links else ""


def object_anchor(index: int) -> str:
    """Return the id of the figure of a worst object, counted from 0."""
    return f"object-{index + 1}"


def frame_anchor(report: Report, frame_id: str) -> str:
    """Return the id of a frame's section; empty where the frame is not shown."""
    shown = [gallery.frame_id for gallery in report.galleries]
    return f"frame-{shown.index(frame_id) + 1}" if frame_id in shown else ""
