from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mwsis.report.content import FrameGallery, Report
from mwsis.report.html import provenance, write_report
from tests.report.fake_run import fake_report

VOID = {"meta", "img", "br", "line", "rect", "polyline", "circle"}


class PlainText(HTMLParser):
    """Collects the text, the attributes and whether tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def read(page: str) -> PlainText:
    parser = PlainText()
    parser.feed(page)
    assert parser.open == []
    return parser


def page_of(report: Report, folder: Path) -> str:
    write_report(report, folder / "report.html")
    assert [entry.name for entry in folder.iterdir()] == ["report.html"]
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report() -> Report:
    return fake_report()


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(report, tmp_path_factory.mktemp("report"))


def test_the_page_needs_nothing_else(page: str) -> None:
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page
    for name, value in read(page).attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:image/webp;base64,", "#"))


def test_images_can_be_decoded_and_are_described(page: str) -> None:
    found = re.findall(r'<img src="data:image/webp;base64,([^"]+)" width="(\d+)" height="(\d+)" alt="([^"]+)"', page)
    assert len(found) == page.count("<img") == 7
    for encoded, width, height, alternative in found:
        image = Image.open(io.BytesIO(base64.b64decode(encoded)))
        assert image.size == (int(width), int(height))
        assert "segment-0/0000" in alternative


def test_links_inside_the_page_lead_somewhere(page: str) -> None:
    attributes = read(page).attributes
    targets = {value for name, value in attributes if name == "id"}
    assert {value[1:] for name, value in attributes if name == "href"} <= targets


def test_every_number_of_the_metrics_is_there(page: str, report: Report) -> None:
    text = read(page).text
    for branch in ("camera", "lidar"):
        for scores in report.metrics[branch].values():
            for value in scores.values():
                if isinstance(value, float) and value == value:
                    assert f"{value:.3f}" in text
    for row in report.metrics["labels"]["rows"]:
        assert f"{row['point_iou']:.3f}" in text


def test_the_headline_says_what_where_from_and_how_good(page: str) -> None:
    headline = read(page[: page.index("<nav")] + "</header></body></html>").text
    for words in (
        "2D boxes only",
        "street",
        "5 min",
        "Seed7",
        "mwsis",
        "train 48 · val 8",
        "0.724",
        "0.613",
        "teacher",
    ):
        assert words in headline


def test_rows_say_what_they_were_trained_from(page: str) -> None:
    assert page.count("ground truth used for this score only") == 4
    assert page.count("pseudo_ labels: spatial labels (SPG)") >= 2


def test_figures_say_data_labels_and_network(page: str) -> None:
    text = read(page).text
    for words in ("gt_ 2D boxes", "gt_ masks", "gt_ instances", "pseudo_ instances", "pseudo_ point labels"):
        assert words in text
    assert text.count("street, val split") == 3
    assert "Losses of the student" in text
    assert "on street, train split" in text


def test_missing_mask_truth_is_said_in_words(tmp_path: Path) -> None:
    text = read(page_of(fake_report(mask_truth=False), tmp_path)).text
    assert "Not scored: street has no ground-truth masks" in text
    assert "This data set has no ground-truth masks." in text
    assert "its LiDAR instances reach" in text
    assert "camera masks overlap" not in text


def test_a_branch_that_was_not_trained_is_said_in_words(report: Report, tmp_path: Path) -> None:
    metrics = {name: value for name, value in report.metrics.items() if name != "lidar"}
    text = read(page_of(replace(report, metrics=metrics, branches=("camera",)), tmp_path)).text
    assert "The LiDAR branch was not trained in this run." in text


def test_a_method_without_a_teacher_shows_only_the_student(report: Report, tmp_path: Path) -> None:
    page = page_of(replace(report, has_teacher=False, galleries=()), tmp_path)
    text = read(page).text
    assert page.count("ground truth used for this score only") == 2
    assert "the student was measured on" in text
    assert "Mask AP, teacher" not in text


def test_nothing_but_a_title_gives_a_page_in_words(tmp_path: Path) -> None:
    empty = FrameGallery("7", ())
    text = read(page_of(Report("Run", {}, galleries=[empty]), tmp_path)).text
    assert "There is no ground truth to score the networks with" in text
    assert "No losses were logged." in text
    assert "Not measured" in text
    assert "None" not in text
    assert "nan" not in text


def test_all_text_is_escaped(report: Report, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"&"
    camera = replace(report.galleries[0].cameras[0], camera=evil)
    gallery = replace(report.galleries[0], frame_id=evil, cameras=(camera,), split=evil, predicted_by=evil)
    metrics = {
        **report.metrics,
        "method": evil,
        "labels_used": evil,
        "data": {"name": evil, "fingerprint": evil},
        "labels": {"split": evil, "trained_on": evil, "rows": [{"method": evil, "class": evil, "point_iou": 0.5}]},
    }
    hostile = Report(
        evil,
        metrics,
        galleries=[gallery],
        losses=[{"step": 0, evil: 1.0}, {"step": 1, evil: 2.0}],
        facts={evil: evil, "licence": evil},
        config_yaml=evil,
        class_names=(evil,),
        trained_from={"camera": evil},
    )
    page = page_of(hostile, tmp_path)
    assert "<script" not in page
    assert evil in read(page).text


def test_a_failed_write_leaves_the_old_page(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def broken(*arguments: object, **settings: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(OSError, match="disk full"):
        write_report(replace(report, galleries=()), path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_same_report_gives_the_same_bytes(report: Report, page: str, tmp_path: Path) -> None:
    assert page_of(report, tmp_path) == page


def test_provenance_names_versions() -> None:
    facts = provenance()
    assert {"torch", "numpy", "Python"} <= facts.keys()
    assert all(isinstance(value, str) and value for value in facts.values())
