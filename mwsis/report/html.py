"""The report of a run: one HTML page that needs no network, no script and no other file.

`write_report` puts numbers, curves and pictures on the page and says beside each on what data, from which labels
(``gt_`` or ``pseudo_``) and by which network (teacher or student). What is deliberately not here: drawing
(`pictures.py`, `curves.py`), the look (`style.css`) and reading a run folder.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mwsis.core.files import atomic_write
from mwsis.report.content import (
    CameraRow,
    FrameGallery,
    Metrics,
    Report,
    data_name,
    frame_counts,
    grouped_digits,
    headline_network,
    labels_used,
    network_scores,
    networks,
    validation_words,
)
from mwsis.report.curves import number
from mwsis.report.figures import figure
from mwsis.report.objects_page import frame_anchor, links_to_objects, object_bins, worst_objects
from mwsis.report.pictures import BACKGROUND_COLOUR, IGNORE_COLOUR, WIDE_ASPECT, Colour, class_colour
from mwsis.report.tables import chip, label_quality, scores, text
from mwsis.report.training_page import losses, scores_on_the_way

__all__ = ["CameraRow", "FrameGallery", "Report", "html_page", "provenance", "write_report"]

GLOSSARY = {
    "Teacher, student": "The student is trained. The teacher is a running average of its weights; it makes the pseudo "
    "masks and votes the student learns from, and it is what gets exported.",
    "gt_ (ground truth)": "Given by the data set. Training sees the labels that each table names, 2D boxes as a rule; "
    "masks, point labels and 3D boxes that carry this mark were otherwise opened for scoring and for the pictures here "
    "only.",
    "pseudo_ (pseudo labels)": "Made by the method itself from the 2D boxes, without a person.",
    "IoU": "Overlap of two sets of pixels or points: their intersection divided by their union. 1 is a perfect match.",
    "Mask AP, Instance AP": "Average precision: the area under the precision–recall curve, averaged over IoU "
    "thresholds from 0.50 to 0.95 and over classes. AP50, AP75 and AP25 use the single threshold of their name.",
    "IoU of masks, IoU of filled boxes": "Over the true objects whose box was found: the mean IoU of the predicted "
    "mask with the true mask, and what filling the labelled box of the same objects gives. What the first has over the "
    "second is shape that no label ever showed.",
    "Point IoU, Point mIoU": "IoU over all LiDAR points of a class, and its mean over the classes.",
    "Label quality": "The pseudo labels compared with ground truth before any training: IoU per object averaged "
    "(point IoU), precision, recall, and IoU over all points at once (pooled IoU).",
}


def write_report(report: Report, path: Path | str) -> None:
    """Write the page, atomically.

    Args:
        report: what to show; every text in it is escaped.
        path: the HTML file to write or replace; images are inside it.
    """
    page = _page(report)
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def provenance() -> dict[str, str]:
    """Return versions of what made the run, and the commit of the source tree when it is a git checkout."""
    facts = {}
    for package in ("mwsis", "torch", "lightning", "numpy"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    facts["Python"] = platform.python_version()
    facts["System"] = f"{platform.system()} {platform.machine()}"
    tree = Path(__file__).resolve().parents[2]
    if (tree / ".git").exists():
        commit, changed = _git(tree, "rev-parse", "--short=12", "HEAD"), _git(tree, "status", "--porcelain")
        if commit:
            facts["Git commit"] = commit + (" with local changes" if changed else "")
    return facts


def _git(tree: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(["git", "-C", tree, *arguments], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def _page(report: Report) -> str:
    sections = {
        "scores": ("Scores", scores(report) + object_bins(report)),
        "labels": ("Label quality", label_quality(report)),
        "on-the-way": ("Scores on the way", scores_on_the_way(report)),
        "losses": ("Loss curves", losses(report)),
        "worst": ("Worst objects", worst_objects(report)),
        "frames": ("Frames", _frames(report)),
        "configuration": ("Configuration", _configuration(report)),
        "glossary": ("What the numbers mean", _definitions(GLOSSARY)),
        "provenance": ("Provenance", _provenance(report)),
    }
    shown = {name: section for name, section in sections.items() if section[1]}
    links = "".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in shown.items())
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, (title, content) in shown.items()
    )
    header = f'{_headline(report)}<nav aria-label="Sections">{links}</nav>'
    return html_page("Training report", report.title, header, body)


def html_page(kind: str, title: str, header: str, body: str) -> str:
    """Return a page that loads nothing.

    Args:
        kind: what sort of page it is, above the title.
        title: of page and window; escaped here.
        header: HTML below the title.
        body: HTML of the rest.
    """
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        'style-src \'unsafe-inline\'"><meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title><style>\n{style}</style></head>\n<body><header>"
        f'<p class="eyebrow">{text(kind)}</p><h1>{text(title)}</h1>{header}</header>\n<main>{body}</main>'
        '<footer class="soft">This page is complete in itself: it loads nothing from the network.</footer>'
        "</body></html>\n"
    )


# The headline


def _headline(report: Report) -> str:
    metrics = report.metrics
    facts = {
        "Method": metrics.get("method"),
        "Labels used": labels_used(report),
        "Data set": data_name(report),
        "Frames": frame_counts(metrics.get("data") or {}),
        "Steps": grouped_digits(metrics.get("steps")),
        "Wall time": _duration(number(metrics.get("wall_s"))),
        "Seed": metrics.get("seed"),
    }
    known = {name: value for name, value in facts.items() if value not in (None, "")}
    listed = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in known.items())
    return f'<p class="lead">{_result_sentence(report)}</p>{_cards(report)}<dl class="facts">{listed}</dl>'


def _result_sentence(report: Report) -> str:
    start = f"Trained on {text(data_name(report))} from {text(labels_used(report))}"
    network = headline_network(report)
    if network is None:
        return f"{start}. There is no ground truth to score the networks with, so the pictures below have to speak."
    clauses = _camera_clauses(network_scores(report, "camera", network))
    clauses += _lidar_clauses(network_scores(report, "lidar", network))
    return f"{start}, the {network} was measured on {text(validation_words(report))}: {'; '.join(clauses)}."


def _camera_clauses(found: Metrics) -> list[str]:
    mask_iou, box_iou = number(found.get("matched_mask_iou")), number(found.get("matched_box_iou"))
    if mask_iou is not None and box_iou is not None:
        return [
            f"its camera masks overlap the true ones by <b>{mask_iou:.3f}</b> (IoU), where filling the labelled "
            f"boxes of the same objects gives <b>{box_iou:.3f}</b>"
        ]
    point_iou, box_point_iou = number(found.get("matched_point_iou")), number(found.get("matched_box_point_iou"))
    if point_iou is not None and box_point_iou is not None:
        return [
            f"the LiDAR points in its camera masks overlap those of the objects by <b>{point_iou:.3f}</b> (IoU), where "
            f"filling the labelled boxes gives <b>{box_point_iou:.3f}</b>"
        ]
    mask_ap = number(found.get("mask_ap"))
    return [] if mask_ap is None else [f"its camera masks reach an AP of <b>{mask_ap:.3f}</b>"]


def _lidar_clauses(found: Metrics) -> list[str]:
    words = {"instance_ap": "an instance AP of", "miou": "a point mIoU of"}
    values = {key: number(found.get(key)) for key in words}
    reached = [f"{words[key]} <b>{value:.3f}</b>" for key, value in values.items() if value is not None]
    return [f"its LiDAR instances reach {' and '.join(reached)}"] if reached else []


def _cards(report: Report) -> str:
    wanted = (
        ("camera", "mask_ap", "Camera mask AP"),
        ("camera", "matched_mask_iou", "IoU of camera masks"),
        ("lidar", "instance_ap", "LiDAR instance AP"),
        ("lidar", "miou", "LiDAR point mIoU"),
    )
    cards = []
    for branch, key, name in wanted:
        values = {network: number(network_scores(report, branch, network).get(key)) for network in networks(report)}
        known = {network: value for network, value in values.items() if value is not None}
        if not known:
            continue
        first, *others = known.items()
        note = first[0] + "".join(f" · {network} {value:.3f}" for network, value in others)
        box_iou = number(network_scores(report, branch, first[0]).get("matched_box_iou"))
        if key == "matched_mask_iou" and box_iou is not None:
            note = f"{first[0]} · filled boxes {box_iou:.3f}"
        cards.append(f'<div class="card"><span>{name}</span><b>{first[1]:.3f}</b><span>{note}</span></div>')
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


# Frames


def _frames(report: Report) -> str:
    if not report.galleries:
        return ""
    swatches: list[tuple[str, Colour]] = [(name, class_colour(label)) for label, name in enumerate(report.class_names)]
    swatches += [("Background", BACKGROUND_COLOUR), ("Ignored: neither trained on nor scored", IGNORE_COLOUR)]
    legend = "".join(
        f'<li><i style="background:rgb{colour}"></i>{text(name)}</li>' for name, colour in swatches
    ).replace(", ", ",")
    return (
        "<p>In camera pictures a colour is a class. In bird's-eye views a colour is one object, the same in all views "
        f'of a frame where they agree; the letter is its class.</p><ul class="legend">{legend}</ul>'
        + "".join(_gallery(report, gallery) for gallery in report.galleries)
    )


def _gallery(report: Report, gallery: FrameGallery) -> str:
    where = f"{data_name(report)}, {gallery.split} split"
    cameras = "".join(_camera(gallery, row, where) for row in gallery.cameras)
    anchor = frame_anchor(report, gallery.frame_id)
    return (
        f'<details class="frame" id="{anchor}" open><summary><b>{text(gallery.frame_id)}</b> '
        f'<span class="soft">{text(where)}</span></summary>{links_to_objects(report, gallery.frame_id)}'
        f"{_birds_eye(gallery, where)}{cameras}</details>"
    )


def _camera(gallery: FrameGallery, row: CameraRow, where: str) -> str:
    name = f"Camera {row.camera}, {gallery.frame_id}"
    figures = [
        figure(
            row.boxes,
            f"{name}: 2D boxes",
            f"{chip('gt_ 2D boxes', 'gt')} The only kind of label training is given. Dashed: ignored.",
            "",
        ),
        figure(
            row.prediction,
            f"{name}: predicted masks",
            f"{chip(gallery.predicted_by, 'net')} <b>Predicted masks</b>, score at least {gallery.min_score:g}.",
            "No camera predictions in this run.",
        ),
        figure(
            row.truth,
            f"{name}: ground-truth masks",
            f"{chip('gt_ masks', 'gt')} For comparison and scoring; never trained on.",
            "This data set has no ground-truth masks.",
        ),
        figure(
            row.points,
            f"{name}: projected LiDAR points",
            f"{chip('pseudo_ point labels', 'pseudo')} LiDAR points seen by this camera, labelled from the 2D boxes.",
            "No LiDAR points fall on this image.",
        ),
    ]
    heading = f'<h3>Camera {text(row.camera)} <span class="soft">{text(where)}</span></h3>'
    shown = next((picture for picture in (row.boxes, row.prediction, row.points) if picture is not None), None)
    wide = " wide" if shown is not None and shown.shape[2] > WIDE_ASPECT * shown.shape[1] else ""
    return f'{heading}<div class="pictures{wide}">{"".join(figures)}</div>'


def _birds_eye(gallery: FrameGallery, where: str) -> str:
    pictures = (gallery.gt_birds_eye, gallery.pseudo_birds_eye, gallery.predicted_birds_eye)
    if all(picture is None for picture in pictures):
        return ""
    name = f"Bird's-eye view, {gallery.frame_id}"
    figures = [
        figure(
            gallery.gt_birds_eye,
            f"{name}: ground truth",
            f"{chip('gt_ instances', 'gt')} For scoring only; never trained on. White: 3D boxes.",
            "This data set has no ground-truth point labels.",
            exact=True,
        ),
        figure(
            gallery.pseudo_birds_eye,
            f"{name}: pseudo labels",
            f"{chip('pseudo_ instances', 'pseudo')} Made from the 2D boxes; the kind of label training learns from.",
            "No pseudo labels in this run.",
            exact=True,
        ),
        figure(
            gallery.predicted_birds_eye,
            f"{name}: prediction",
            f"{chip(gallery.predicted_by, 'net')} <b>Predicted instances</b> from the LiDAR sweep alone.",
            "No LiDAR predictions in this run.",
            exact=True,
        ),
    ]
    heading = f'<h3>From above <span class="soft">{text(where)}</span></h3>'
    return f'{heading}<div class="pictures three">{"".join(figures)}</div>'


# The rest


def _configuration(report: Report) -> str:
    if not report.config_yaml:
        return ""
    lead = "<p>The complete configuration; with the same data it repeats the run.</p>"
    return f"{lead}<pre>{text(report.config_yaml)}</pre>"


def _provenance(report: Report) -> str:
    found = report.metrics.get("data") or {}
    facts: dict[str, object] = {"Data fingerprint": found.get("fingerprint"), **report.facts}
    licence = facts.pop("licence", None)
    listed = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    note = f"<h3>Licence of the data</h3><p>{text(licence)}</p>" if licence else ""
    return f'<dl class="facts">{listed}</dl>{note}' if listed or note else ""


def _definitions(words: Mapping[str, str]) -> str:
    listed = "".join(f"<dt>{text(word)}</dt><dd>{text(meaning)}</dd>" for word, meaning in words.items())
    return f'<dl class="words">{listed}</dl>'


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
