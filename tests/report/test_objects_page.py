"""True objects one by one on the page: a table by distance and occlusion, and the worst, linked to their frames."""

from __future__ import annotations

import re
from dataclasses import asdict, replace

import pytest
import torch

from mwsis.evaluation.label_quality import EDGES, LabelQuality, ObjectScore
from mwsis.evaluation.objects import WorstObject
from mwsis.report.content import ObjectPicture, Report
from mwsis.report.gallery import draw_worst
from mwsis.report.label_pictures import draw_object
from mwsis.report.objects_page import BINS, object_bins
from tests.report.fake_run import fake_report
from tests.report.test_html import page_of, read
from tests.report.test_label_pictures import claimed, make_frame, score_of
from tests.report.test_training_page import cells


def row(method: str, name: str, bin_name: str, objects: int, point_iou: float) -> dict[str, object]:
    return {"method": method, "class": name, "bin": bin_name, "objects": objects, "point_iou": point_iou}


OBJECTS = {
    "range": [
        row("teacher", "Vehicle", "30-45", 1, 0.1),
        row("teacher", "Pedestrian", "0-15", 3, 0.2), row("teacher", "Pedestrian", "30-45", 3, 0.5),
        row("labels", "Vehicle", "30-45", 1, 0.9), row("labels", "Pedestrian", "0-15", 3, 0.6),
    ],
    "hidden": [row("teacher", "Vehicle", ">0.4", 1200, 0.25)],
}  # fmt: skip


def with_objects(objects: object, **settings: object) -> Report:
    report = fake_report()
    return replace(report, metrics={**report.metrics, "objects": objects}, **settings)


def test_bins_come_in_order_and_means_are_over_objects():
    assert cells(object_bins(with_objects(OBJECTS))) == [
        ["0-15 m", "3", "0.200", "0.600"],
        ["30-45 m", "4", "0.400", "0.900"],
        ["hidden 40 % or more", "1\u202f200", "0.250", "–"],
    ]


def test_the_table_names_the_network_that_was_scored():
    assert "student, point IoU" in object_bins(with_objects(OBJECTS, has_teacher=False))
    assert "teacher, point IoU" in object_bins(with_objects(OBJECTS))


@pytest.mark.parametrize("objects", [None, {}, {"range": [], "hidden": []}])
def test_without_objects_there_is_no_table(objects):
    assert object_bins(with_objects(objects)) == ""


def test_every_bin_has_words():
    for by, names in BINS.items():
        assert len(names) == len(EDGES[by])
        quality, frame = LabelQuality(("Vehicle",)), make_frame()
        quality.add("teacher", frame, claimed(1))
        (found,) = quality.rows(by)
        assert found["bin"] in names


def score(frame_id: str, class_name: str = "Vehicle", box: int = 0) -> ObjectScore:
    return ObjectScore(frame_id, "FRONT", box, class_name, 27.06, 0.349, 340, 90, 0.0321, 0.5, 0.125, None)


def pictured(frame_id: str, class_name: str = "Vehicle") -> ObjectPicture:
    picture = torch.zeros(3, 40, 60, dtype=torch.uint8)
    return ObjectPicture(score(frame_id, class_name), picture)


def test_worst_objects_and_frames_are_linked_both_ways(tmp_path):
    worst = [pictured("segment-1/0001"), pictured("elsewhere"), pictured("segment-1/0001", "Cyclist")]
    page = page_of(replace(fake_report(num_frames=2), worst=worst), tmp_path)
    attributes = read(page).attributes
    targets = [value for name, value in attributes if name == "id"]
    assert len(set(targets)) == len(targets)
    assert {value[1:] for name, value in attributes if name == "href"} <= set(targets)
    figures = re.findall('<figure id="(object-.)">.*?<figcaption>(.*?)</figcaption>', page)
    assert [name for name, _ in figures] == ["object-1", "object-2", "object-3"]
    assert ['href="#frame-2"' in caption for _, caption in figures] == [True, False, True]
    first, second = re.findall('<details class="frame".*?</details>', page)
    assert 'id="frame-1"' in first
    assert 'href="#object-' not in first
    assert re.findall('href="#(object-.)">(.*?)<', second) == [("object-1", "1. Vehicle"), ("object-3", "3. Cyclist")]


def test_a_caption_says_which_object_how_good_and_how_hard(tmp_path):
    text = read(page_of(replace(fake_report(), worst=[pictured("elsewhere")]), tmp_path)).text
    for words in (
        "1. Vehicle, IoU 0.03: recall 0.12 of 340 true points, precision 0.50 of 90 found ones",
        "27.1 m away, 35 % of its box hidden",
        "frame elsewhere, camera FRONT, street",
        "missed: of the object only",
    ):
        assert words in text


def test_without_worst_objects_there_is_no_such_section(tmp_path):
    page = page_of(fake_report(), tmp_path)
    assert 'id="worst"' not in page
    assert 'id="frame-1"' in page


def test_words_of_objects_are_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"&"
    one = ObjectPicture(replace(score(evil, evil), camera=evil), torch.zeros(3, 4, 6, dtype=torch.uint8))
    objects = {"range": [row("teacher", evil, "0-15", 1, 0.5), row(evil, evil, evil, 1, 0.5)], "hidden": [{}]}
    report = with_objects(objects, worst=[one], galleries=[replace(fake_report().galleries[0], frame_id=evil)])
    rows = [{"step": 1, "network": "teacher", "branch": evil, "name": evil, "value": 0.5}]
    losses = [{"step": 0, "name": f"{evil}/{evil}", "value": 1.0}]
    page = page_of(replace(report, scores_on_the_way=rows, losses=losses), tmp_path)
    assert "<script" not in page
    assert 'href="#frame-1"' in page
    assert read(page).text.count(evil) >= 6


def test_pictures_are_those_of_the_objects():
    frame, pairs = make_frame(), claimed(*range(20))
    (made,) = draw_worst([WorstObject(frame, pairs, score_of(frame, pairs))])
    assert asdict(made.score) == asdict(score_of(frame, pairs))
    drawn = draw_object(frame, pairs, made.score)
    assert made.picture.dtype == torch.uint8
    assert made.picture.permute(1, 2, 0).numpy().tobytes() == drawn.tobytes()
