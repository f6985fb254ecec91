"""KITTI's AP of 3D boxes: by hand, against a slow twin, and a real folder against itself."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mwsis.core.errors import DataError
from mwsis.evaluation.kitti_detection import KittiBoxes, KittiEvaluator, read_kitti_boxes
from tests.reference import boxes3d as boxes_reference
from tests.reference import kitti_detection as reference

SHARED = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[3] / "shared"))
LABELS = SHARED / "data" / "kitti_mini" / "training" / "label_2"
TYPES = ("Car", "Van", "Pedestrian", "Person_sitting", "DontCare")


def boxes(rows, frame_id="000000"):
    """Rows of (type, x, height in px, occluded, truncated, score, yaw): 4 x 2 x 1.5 m boxes along a line."""
    return KittiBoxes(
        frame_id=frame_id,
        types=tuple(row[0] for row in rows),
        boxes3d=torch.tensor([[row[1], 0, 0, 4, 2, 1.5, row[6]] for row in rows], dtype=torch.float64).reshape(-1, 7),
        heights=torch.tensor([row[2] for row in rows], dtype=torch.float64),
        occluded=torch.tensor([row[3] for row in rows], dtype=torch.int64),
        truncated=torch.tensor([row[4] for row in rows], dtype=torch.float64),
        scores=torch.tensor([row[5] for row in rows], dtype=torch.float64),
    )


def car(x, score=1.0, kind="Car", height=100.0, occluded=0, truncated=0.0, yaw=0.0):
    return (kind, x, height, occluded, truncated, score, yaw)


def aps(found, objects, view="ap_3d"):
    evaluator = KittiEvaluator(("Car",))
    evaluator.add(boxes(found), boxes(objects))
    return {row["difficulty"]: row[view] for row in evaluator.rows()}


def test_one_of_two_found_is_precision_1_up_to_half_the_recall():
    """Recalls 0 and 1/40 are the only cutoffs that one hit gives; so KITTI's AP of few objects is low by design."""
    assert aps([car(10)], [car(10), car(30)]) == pytest.approx(dict.fromkeys(("easy", "moderate", "hard"), 0))
    both = aps([car(10, 0.9), car(30, 0.8)], [car(10), car(30)])
    assert both["easy"] == pytest.approx(1 / 40)


def test_many_found_of_many():
    objects = [car(10.0 * k) for k in range(80)]
    found = [car(10.0 * k, 1 - k / 100) for k in range(80)]
    assert aps(found, objects)["easy"] == pytest.approx(1)
    assert aps(found[:40], objects)["easy"] == pytest.approx(0.5, abs=0.03)
    doubled = [*found, *(car(10.0 * k + 5, 1 - k / 100) for k in range(80))]  # each with a false alarm of equal score
    assert aps(doubled, objects)["easy"] == pytest.approx(0.5, abs=0.01)


def test_neighbours_hard_objects_and_low_detections_neither_gain_nor_cost():
    objects = [car(10.0 * k) for k in range(80)]
    found = [car(10.0 * k, 1 - k / 100) for k in range(80)]
    van, hidden = car(-10, kind="Van"), car(-20, occluded=1)
    excused = [*found, car(-10, 2), car(-20, 2), car(-30, 2, height=20.0)]
    scores = aps(excused, [*objects, van, hidden])
    assert scores["easy"] == pytest.approx(1)
    assert scores["moderate"] == pytest.approx(1)
    assert aps(excused, objects)["easy"] < 0.99  # without van and hidden car the two are false alarms
    area = ("DontCare", -10, 100.0, 0, 0.0, 1.0, 0.0)
    assert aps(excused, [*objects, hidden, area])["easy"] < 1  # a region without a 3D box excuses nothing


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_equals_the_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    frames = [random_frame(generator, str(number)) for number in range(3)]
    evaluator = KittiEvaluator(("Car", "Pedestrian"))
    for found, objects in frames:
        evaluator.add(found, objects)
    plain = {view: [as_dicts(*frame, overlap) for frame in frames] for view, overlap in VIEWS.items()}
    for row in evaluator.rows():
        for view in VIEWS:
            ap, count = reference.average_precision(plain[view], row["class"], row["difficulty"])
            assert row["objects"] == count
            if count:
                assert row[f"ap_{view}"] == pytest.approx(ap, abs=1e-9)
            else:
                assert math.isnan(row[f"ap_{view}"])


VIEWS = {"bev": boxes_reference.bev_iou, "3d": boxes_reference.iou_3d}


def random_frame(generator, frame_id):
    def draw(values):
        return values[int(torch.randint(0, len(values), (), generator=generator))]

    def rows(count):
        return [
            (
                *(draw(TYPES[:4]), draw((0.0, 0.3, 0.7, 10.0, 10.4)), draw((20.0, 30.0, 60.0)), draw((0, 1, 2, 3))),
                *(draw((0.0, 0.2, 0.4, 0.9)), draw((0.1, 0.4, 0.4, 0.8, 0.9)), draw((0.0, 0.05, 3.1))),
            )
            for _ in range(count)
        ]

    return boxes(rows(draw((0, 3, 6))), frame_id), boxes(rows(draw((0, 2, 5))), frame_id)


def as_dicts(found, gt, overlap):
    names = ("type", "height", "occluded", "truncated", "score")
    columns = {"found": found, "objects": gt}
    frame = {
        key: [
            dict(zip(names, row, strict=True))
            for row in zip(
                *(rows.types, rows.heights.tolist(), rows.occluded.tolist()),
                *(rows.truncated.tolist(), rows.scores.tolist()),
                strict=True,
            )
        ]
        for key, rows in columns.items()
    }
    table = [[overlap(one, other) for other in found.boxes3d.tolist()] for one in gt.boxes3d.tolist()]
    return {**frame, "overlap": table}


@pytest.mark.real_data
def test_real_labels_found_as_they_are_and_shifted():
    if not LABELS.is_dir():
        pytest.skip(f"no KITTI labels at {LABELS}; set MWSIS_SHARED")
    exact, shifted = KittiEvaluator(), KittiEvaluator()
    for path in sorted(LABELS.glob("*.txt")):
        gt = read_kitti_boxes(path, scored=False)
        exact.add(gt, gt)
        moved = gt.boxes3d + torch.tensor([0, 0, 5.0, 0, 0, 0, 0])
        shifted.add(replace(gt, boxes3d=moved), gt)
    rows = exact.rows()
    counts = {(row["class"], row["difficulty"]): row["objects"] for row in rows}
    assert counts["Car", "hard"] > counts["Car", "easy"] > 0
    for row, off in zip(rows, shifted.rows(), strict=True):
        if row["objects"]:
            reached = min(row["objects"] - 1, 40) / 40  # one cutoff per hit
            assert (row["ap_bev"], row["ap_3d"]) == pytest.approx((reached, reached))
            assert (off["ap_bev"], off["ap_3d"]) == pytest.approx((reached, 0))


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected a KITTI label file, got none"):
        read_kitti_boxes(tmp_path / "no.txt", scored=False)
    line = "Car 0.00 0 -1.57 100 100 200 180 1.5 1.6 4.0 1.0 1.7 20.0 -1.57"
    (tmp_path / "1.txt").write_text(line)
    assert read_kitti_boxes(tmp_path / "1.txt", scored=False).boxes3d.tolist() == [
        pytest.approx([20.0, -1.0, -0.95, 4.0, 1.6, 1.5, 1.57 - math.pi / 2])
    ]
    with pytest.raises(DataError, match="line 1: expected 16 columns, got 15"):
        read_kitti_boxes(tmp_path / "1.txt", scored=True)
    (tmp_path / "2.txt").write_text(line.replace("4.0", "four"))
    with pytest.raises(DataError, match="expected numbers after the type"):
        read_kitti_boxes(tmp_path / "2.txt", scored=False)
