"""Tables of scores and label quality, as HTML.

Each row says what its network was trained from; where a score is missing, words say why. What is deliberately not
here: the page around them (`html.py`) and the charts (`curves.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from mwsis.report.content import (
    Metrics,
    Report,
    data_name,
    grouped_digits,
    headline_network,
    network_scores,
    networks,
    trained_from,
    validation_words,
)
from mwsis.report.curves import Row, grouped_bars, number, series_colour, short_number

__all__ = ["bar_cell", "chip", "label_quality", "loss_terms", "scores", "text"]

SPOKEN_BRANCHES = {"camera": "Camera", "lidar": "LiDAR"}
CAMERA_COLUMNS = {
    "mask_ap": "Mask AP",
    "mask_ap50": "AP50",
    "mask_ap75": "AP75",
    "matched_mask_iou": "IoU of masks",
    "matched_box_iou": "IoU of filled boxes",
    "matched_point_iou": "Points in masks",
    "matched_box_point_iou": "Points in filled boxes",
}
LIDAR_COLUMNS = {
    "instance_ap": "Instance AP",
    "instance_ap50": "AP50",
    "instance_ap75": "AP75",
    "instance_ap25": "AP25",
    "miou": "Point mIoU",
}
CLASS_COLUMNS = {"mask_ap": "Mask AP", "instance_ap": "Instance AP", "iou": "Point IoU"}
METHODS = {
    "frustum": "Frustum",
    "clustering": "Clustering",
    "spg": "Spatial labels (SPG), published",
    "spg_default": "Spatial labels (SPG), default",
}
LEARNED_FROM = {
    **dict.fromkeys(("camera/classification", "camera/box", "camera/centerness"), "2D boxes"),
    **dict.fromkeys(("camera/objectness", "camera/proposal_box"), "2D boxes"),
    "camera/projection": "2D boxes: rows and columns of each",
    "camera/pairwise": "colours: neighbouring pixels that look alike",
    "camera/filled": "2D boxes, filled",
    "camera/ipg": "teacher's masks at the object's positives (IPG)",
    "camera/pseudo_mask": "teacher's masks, matched or corrected as the method says",
    "camera/mask_affinity": "teacher's masks: neighbouring pixels of like mask",
    "camera/paste": "masks of objects pasted from earlier images",
    "camera/masks": "given masks, or the teacher's where the method mixes them",
    "camera/mask": "given masks",
    "camera/depth_pairs": "depth: neighbouring cells that lie alike",
    "camera/depth_regression": "depth, predicted beside each mask",
    "camera/from_lidar": "LiDAR teacher's points (CSCS)",
    "lidar/semantic": "spatial labels from 2D boxes (SPG), corrected by votes (PVC) and ring segments (RSC) where on",
    "lidar/vote": "centres of these labels' objects",
    "lidar/from_camera": "camera teacher's masks (CSCS)",
}
"""What a loss learns from, in words."""
SPOKEN_METHODS = {
    "frustum": "every point inside a 2D box takes its class",
    "clustering": "the largest cluster of points inside each box",
    "spg": "box frustum, then the ring-segment test, then the largest cluster",
    "spg_default": "of the clusters in a box, the one that lies in it as a whole at the distance its height says",
}


def scores(report: Report) -> str:
    """Return teacher and student of each branch against ground truth, with what each row was trained from."""
    lead = (
        f"<p>Measured on {text(validation_words(report))}. No network was trained on the ground truth used here: "
        f"{chip('gt_ masks', 'gt')} and {chip('gt_ point labels', 'gt')} serve these tables only.</p>"
    )
    return (
        lead
        + _branch_scores(report, "camera", "Camera: instance masks", CAMERA_COLUMNS)
        + _branch_scores(report, "lidar", "LiDAR: instances and classes of points", LIDAR_COLUMNS)
        + _bin_scores(report)
    )


def _branch_scores(report: Report, branch: str, title: str, columns: Mapping[str, str]) -> str:
    heading = f"<h3>{title}</h3>"
    found = {network: network_scores(report, branch, network) for network in networks(report)}
    columns = {
        key: name
        for key, name in columns.items()
        if any(number(scores.get(key)) is not None for scores in found.values())
    }
    rows = [
        _score_row(report, branch, network, scores, columns)
        for network, scores in found.items()
        if any(number(scores.get(key)) is not None for key in columns)
    ]
    if not rows:
        return heading + f'<p class="missing">{_why_no_scores(report, branch)}</p>'
    titles = "".join(f'<th scope="col">{name}</th>' for name in columns.values())
    return (
        f'{heading}<div class="scroll"><table class="stack"><thead><tr><th scope="col">Network</th>{titles}'
        f'<th scope="col">Trained from</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f"{_scored_objects(report, branch)}{_class_scores(report, branch)}"
    )


def _score_row(report: Report, branch: str, network: str, scores: Metrics, columns: Mapping[str, str]) -> str:
    cells = "".join(bar_cell(number(scores.get(key)), name) for key, name in columns.items())
    learned = trained_from(report, branch)
    if network == "teacher":
        learned += "; running average of the student's weights"
    note = f'<td class="note" data-label="Trained from">{text(learned)}; ground truth used for this score only</td>'
    return f'<tr><th scope="row">{chip(network, "net")}</th>{cells}{note}</tr>'


def _class_scores(report: Report, branch: str) -> str:
    """Return a table of the scores that exist per class, e.g. ``mask_ap/Vehicle``."""
    by_network = {network: network_scores(report, branch, network) for network in networks(report)}
    keys = [key for found in by_network.values() for key in found]
    prefixes = [prefix for prefix in CLASS_COLUMNS if any(key.startswith(prefix + "/") for key in keys)]
    classes = list(
        dict.fromkeys(key.split("/", 1)[1] for key in keys if key.split("/", 1)[0] in prefixes and "/" in key)
    )
    if not classes:
        return ""
    columns = [(prefix, network) for prefix in prefixes for network in networks(report) if by_network[network]]
    titles = "".join(f'<th scope="col">{CLASS_COLUMNS[prefix]}, {network}</th>' for prefix, network in columns)
    rows = ""
    for name in classes:
        cells = "".join(
            bar_cell(number(by_network[network].get(f"{prefix}/{name}")), f"{CLASS_COLUMNS[prefix]}, {network}")
            for prefix, network in columns
        )
        rows += f'<tr><th scope="row">{text(name)}</th>{cells}</tr>'
    return (
        f'<div class="scroll"><table class="stack"><thead><tr><th scope="col">Class</th>{titles}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _bin_scores(report: Report) -> str:
    """Return a table of AP50 by distance and by number of points, of the network whose numbers lead."""
    network = headline_network(report)
    rows = (report.metrics.get("lidar_rows") or {}).get(network) or ()
    if not rows:
        return ""
    by_key = {(row["bin"], row["class"]): row for row in rows}
    bins, classes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("bin", "class"))
    classes.sort(key=lambda name: name == "mean")
    titles = "".join(f'<th scope="col">{text(name)}</th>' for name in (f"{network}, AP50", "Objects", *classes))
    lines = ""
    for name in bins:
        cells = "".join(bar_cell(number(by_key.get((name, one), {}).get("instance_ap50")), one) for one in classes)
        count = text(grouped_digits(by_key[name, "mean"]["objects"]))
        lines += f'<tr><th scope="row">{text(name)}</th><td class="num" data-label="Objects">{count}</td>{cells}</tr>'
    return (
        f'<div class="scroll"><table class="stack"><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'
        '<p class="soft">LiDAR instances by distance (of their median point) and by number of points. What lies outside'
        " a bin counts neither for nor against.</p>"
    )


def _scored_objects(report: Report, branch: str) -> str:
    """Return what the scores count, where the metrics say."""
    counted, matches, points = "", [], []
    for network in networks(report):
        found = network_scores(report, branch, network)
        objects, images, matched = (grouped_digits(found.get(f"num_{key}")) for key in ("objects", "images", "matched"))
        pointed, of_them = (grouped_digits(found.get(f"num_point_{key}")) for key in ("matched", "objects"))
        if objects is not None:
            counted = f"Scored on {objects} true objects" + (f" in {images} images." if images is not None else ".")
        if matched is not None:
            matches.append(f"{matched} by the {network}")
        if pointed is not None:
            points.append(f"{pointed} of {of_them} by the {network}")
    found_by = (
        f" The two IoU columns are over the objects whose box was found: {', '.join(matches)}." if matches else ""
    )
    if points:
        found_by += (
            " The columns of points are the IoU between the LiDAR points in a mask (in a filled box) and those of the "
            f"object, over the objects with LiDAR points whose box was found: {', '.join(points)}."
        )
    return f'<p class="soft">{counted}{found_by}</p>' if counted or found_by else ""


def _why_no_scores(report: Report, branch: str) -> str:
    name = {"camera": "camera", "lidar": "LiDAR"}[branch]
    truth = {"camera": "masks", "lidar": "point labels"}[branch]
    if branch not in report.branches:
        return f"The {name} branch was not trained in this run."
    return (
        f"Not scored: {text(data_name(report))} has no ground-truth {truth} on this split, so there is nothing to "
        f"measure the {name} branch against. It was trained from {text(trained_from(report, branch))}; its predictions "
        "are among the frames below."
    )


def label_quality(report: Report) -> str:
    """Return how well the labels made from 2D boxes agree with ground truth: a chart and its table."""
    labels = report.metrics.get("labels") or {}
    rows = report.label_rows if report.label_rows is not None else labels.get("rows") or ()
    where = f"{data_name(report)}, {labels.get('split', 'train')} split"
    if not rows:
        return (
            f'<p class="missing">Not measured: {text(data_name(report))} has no ground-truth point labels to compare '
            "the pseudo labels with.</p>"
        )
    methods = list(dict.fromkeys(str(row.get("method")) for row in rows))
    classes = list(dict.fromkeys(str(row.get("class")) for row in rows))
    by_key = {(str(row.get("method")), str(row.get("class"))): row for row in rows}
    series = {
        method: [number(by_key.get((method, name), {}).get("point_iou")) for name in classes] for method in methods
    }
    chart = grouped_bars(classes, series, "Point IoU of the pseudo labels by class and method")
    legend = "".join(
        f'<li><i style="background:{series_colour(index)}"></i>{text(METHODS.get(method, method))}'
        + (f' <span class="soft">– {SPOKEN_METHODS[method]}</span>' if method in SPOKEN_METHODS else "")
        + "</li>"
        for index, method in enumerate(methods)
    )
    return (
        f"<p>How well {chip('pseudo_ point labels', 'pseudo')} made from 2D boxes agree with "
        f"{chip('gt_ point labels', 'gt')} on {text(where)}; no network is involved. Bars: point IoU, the mean over "
        f'objects.</p>{chart}<ul class="legend">{legend}</ul>{_label_table(rows)}'
    )


def _label_table(rows: Sequence[Row]) -> str:
    columns = {
        **{"point_iou": "Point IoU", "tolerant_iou": "Tolerant IoU", "precision": "Precision", "recall": "Recall"},
        **{"pooled_iou": "Pooled IoU", "semantic_iou": "Semantic IoU"},
    }
    titles = "".join(f'<th scope="col">{name}</th>' for name in ("Method", "Class", "Objects", *columns.values()))
    lines = ""
    for row in rows:
        method = str(row.get("method"))
        cells = "".join(bar_cell(number(row.get(key)), name) for key, name in columns.items())
        lines += (
            f'<tr><th scope="row">{text(METHODS.get(method, method))}</th>'
            f"<td>{text(row.get('class'))}</td>"
            f'<td class="num count" data-label="Objects">{text(grouped_digits(row.get("objects")))}</td>{cells}</tr>'
        )
    head = f'<table class="stack labels"><thead><tr>{titles}</tr></thead>'
    return f'<div class="scroll">{head}<tbody>{lines}</tbody></table></div>'


def loss_terms(series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Return a table of what each loss learned from and its share of its branch's loss at the end of the run.

    Args:
        series: steps and values of each loss, see `mwsis.report.curves.loss_series`; names without a branch, such as
            that of the total, have no row.
    """
    terms = {name: curve for name, curve in series.items() if "/" in name}
    if not terms:
        return ""
    means, shares = _at_the_end(terms)
    lines = ""
    branches = list(dict.fromkeys(name.split("/", 1)[0] for name in terms))
    for name in sorted(terms, key=lambda name: branches.index(name.split("/", 1)[0])):
        branch, term = name.split("/", 1)
        mean = means[name]
        lines += (
            f'<tr><td>{text(SPOKEN_BRANCHES.get(branch, branch))}</td><th scope="row">{text(term)}</th>'
            f'<td data-label="Learns from">{text(LEARNED_FROM.get(name, term))}</td>'
            f'<td class="num" data-label="First step">{text(grouped_digits(terms[name][0][0]))}</td>'
            f'<td class="num" data-label="Mean at the end">{"–" if mean is None else short_number(mean)}</td>'
            f"{bar_cell(shares[name], 'Share of its branch', 'no loss of its branch there')}</tr>"
        )
    columns = ("Branch", "Loss", "Learns from", "First step", "Mean at the end", "Share of its branch")
    titles = "".join(f'<th scope="col">{name}</th>' for name in columns)
    return (
        f'<div class="scroll"><table class="stack"><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'
        '<p class="soft">The end is the last tenth of the run: the mean over the steps that logged the loss, weight '
        "included, and its share of the sum of its branch's losses. A share of the loss is not a share of the gain: a "
        "source that has taught all it knows has a small loss, one that contradicts the others a large one. What a "
        "source is worth, only a run without it tells (tools/ablate.py).</p>"
    )


def _at_the_end(
    terms: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Return the mean of each loss over the last tenth of the run, and its share of all losses of its branch there.

    A share is of sums, so a loss that some steps lack weighs as little as it did in training. None: nothing logged.
    """
    end = max(step for steps, _ in terms.values() for step in steps) + 1
    late = {
        name: [value for step, value in zip(*curve, strict=True) if step >= 0.9 * end] for name, curve in terms.items()
    }
    totals: dict[str, float] = {}
    for name, values in late.items():
        branch = name.split("/", 1)[0]
        totals[branch] = totals.get(branch, 0.0) + sum(values)
    means = {name: sum(values) / len(values) if values else None for name, values in late.items()}
    shares = {name: _share(sum(values), totals[name.split("/", 1)[0]]) for name, values in late.items()}
    return means, shares


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def text(value: object) -> str:
    """Return a value as HTML text, safe in attributes too."""
    return escape(str(value), quote=True)


def chip(words: str, kind: str) -> str:
    """Return a coloured tag; ``kind`` is ``gt``, ``pseudo`` or ``net`` (teacher, student)."""
    return f'<span class="chip {kind}">{text(words)}</span>'


def bar_cell(value: float | None, column: str, why_none: str = "no ground truth to score against") -> str:
    """Return a table cell with a fraction in [0, 1] and a bar of its length; for None a dash that says why."""
    label = f'class="num" data-label="{text(column)}"'
    if value is None:
        return f'<td {label}><span title="{text(why_none)}">–</span></td>'
    width = 100 * min(max(value, 0.0), 1.0)
    return f'<td {label}>{value:.3f}<span class="bar"><i style="width:{width:.1f}%"></i></span></td>'
