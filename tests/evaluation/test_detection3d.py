"""Waymo's AP and APH: by hand, against a slow twin, and what the official tool prints for its own files."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from waymo_open_dataset.protos import metrics_pb2

from mwsis.core.boxes3d import bev_iou
from mwsis.core.errors import DataError
from mwsis.evaluation.detection3d import DetectionEvaluator3D, Detections3D, Objects3D, point_levels
from mwsis.evaluation.waymo_detection import detection_rows
from tests.reference import boxes3d as boxes_reference
from tests.reference import detection3d as reference

SHARED = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[3] / "shared"))
OFFICIAL = SHARED / "data" / "waymo_metrics"
RANGES = {"all": (0, math.inf), "0-30 m": (0, 30), "30-50 m": (30, 50), ">50 m": (50, math.inf)}
NAMES = ("Vehicle", "Pedestrian")
MIN_IOUS = (0.7, 0.5)
# What compute_detection_metrics_main prints for its own two files, level 1 and level 2: (AP, APH), from its source.
PRINTED = {
    ("VEHICLE", "all"): ((0.208277, 0.162823), (0.20542, 0.160523)),
    ("PEDESTRIAN", "all"): ((0.129258, 0.0984962), (0.125136, 0.0953438)),
    ("SIGN", "all"): ((0.0926278, 0.0635938), (0.067927, 0.0466355)),
    ("VEHICLE", "0-30 m"): ((0.154727, 0.129927), (0.154727, 0.129927)),
    ("VEHICLE", "30-50 m"): ((0.27302, 0.230956), (0.270492, 0.228818)),
    ("VEHICLE", ">50 m"): ((0.218596, 0.155501), (0.212188, 0.150963)),
    ("PEDESTRIAN", "0-30 m"): ((0.19352, 0.155428), (0.19352, 0.155428)),
    ("PEDESTRIAN", "30-50 m"): ((0.144201, 0.103131), (0.134931, 0.0966024)),
    ("PEDESTRIAN", ">50 m"): ((0.0985548, 0.0779858), (0.0960544, 0.075891)),
    ("SIGN", "0-30 m"): ((0.106175, 0.0716929), (0.0651952, 0.0439717)),
    ("SIGN", "30-50 m"): ((0.15528, 0.117763), (0.13587, 0.103042)),
    ("SIGN", ">50 m"): ((0.075276, 0.0507518), (0.0596342, 0.040206)),
}
LOST_BY_THE_TOOL = ("16345319168590318167_1420_000_1440_000", 1553525894405757)
TOUCHED = (("VEHICLE", "all"), ("VEHICLE", "30-50 m"))


def files():
    if not OFFICIAL.is_dir():
        pytest.skip(f"no files of the official tool at {OFFICIAL}; set MWSIS_SHARED")
    return OFFICIAL / "fake_predictions.bin", OFFICIAL / "fake_ground_truths.bin"


def printed_rows(rows):
    """Cyclists have no objects in the files: the tool prints 0, here they have no row."""
    return {
        (row["class"], row["range"], row["level"]): pytest.approx((row["ap"], row["aph"]), abs=1e-6) for row in rows
    }


def expected(keys):
    return {(*key, level): PRINTED[key][level - 1] for key in keys for level in (1, 2)}


@pytest.mark.real_data
def test_the_official_files_score_what_the_official_tool_prints():
    """All but four values, which one pair decides; the next test shows which, and that nothing else differs."""
    predictions, ground_truth = files()
    ours = printed_rows(detection_rows(predictions, ground_truth))
    assert {key: value for key, value in ours.items() if key[:2] not in TOUCHED} == expected(PRINTED.keys() - TOUCHED)


@pytest.mark.real_data
def test_the_pair_that_the_official_tool_loses_is_the_whole_difference(tmp_path):
    """A detection on an object's very box, turned by half a circle, overlaps it wholly but is no match to the tool.

    The tool walks along both outlines (O'Rourke et al. 1982), which are the same here but for rounding, and does not
    come back to where it began, which it takes for no overlap. Its walk followed by hand on all 2,372 overlapping pairs
    of the files gives 0 for this pair and the exact area for all others. Moved away, it is no match here, too.
    """
    predictions, ground_truth = files()
    claims = metrics_pb2.Objects.FromString(predictions.read_bytes())
    objects = metrics_pb2.Objects.FromString(ground_truth.read_bytes())
    claim = next(item for item in claims.objects if in_lost_frame(item) and 30 < item.object.box.center_x < 40)
    one = next(item for item in objects.objects if in_lost_frame(item) and same_place(item, claim))
    assert boxes_reference.iou_3d(box_of(claim), box_of(one)) == pytest.approx(1, abs=1e-9)
    turn = claim.object.box.heading - one.object.box.heading
    assert math.cos(turn) == pytest.approx(-1, abs=1e-6)
    claim.object.box.center_z += 5  # no longer a match; its range stays
    (tmp_path / "predictions.bin").write_bytes(claims.SerializeToString())
    ours = printed_rows(detection_rows(tmp_path / "predictions.bin", ground_truth))
    assert ours == expected(PRINTED)


def in_lost_frame(item):
    return (item.context_name, item.frame_timestamp_micros) == LOST_BY_THE_TOOL and item.object.type == 1


def box_of(item):
    box = item.object.box
    return (box.center_x, box.center_y, box.center_z, box.length, box.width, box.height, box.heading)


def same_place(item, other):
    return math.dist(box_of(item)[:3], box_of(other)[:3]) < 1e-6


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected an Objects file, got none"):
        detection_rows(tmp_path / "no.bin", tmp_path / "no.bin")
    (tmp_path / "bad.bin").write_bytes(b"\xff\xff\xff")
    with pytest.raises(DataError, match="got other bytes"):
        detection_rows(tmp_path / "bad.bin", tmp_path / "bad.bin")


# ---------------------------------------------------------------------------------------------------------------------
# Against the slow twin
# ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), flat=st.booleans())
def test_equals_trying_all_assignments(seed, flat):
    generator = torch.Generator().manual_seed(seed)
    frames = [random_frame(generator) for _ in range(2)]
    overlap = boxes_reference.bev_iou if flat else boxes_reference.iou_3d
    evaluator = DetectionEvaluator3D(NAMES, MIN_IOUS, bev_iou) if flat else DetectionEvaluator3D(NAMES, MIN_IOUS)
    for number, frame in enumerate(frames):
        evaluator.add(detections(str(number), frame["found"]), objects_of(str(number), frame["objects"]))
    rows = {(row["class"], row["range"], row["level"]): (row["ap"], row["aph"]) for row in evaluator.rows()}
    for label, name in enumerate(NAMES):
        for title, (near, far) in RANGES.items():
            for level in (1, 2):
                slow = reference.scores(frames, label, MIN_IOUS[label], level, near, far, overlap)
                if any(matters(item, label, level, near, far) for frame in frames for item in frame["objects"]):
                    assert rows.pop((name, title, level)) == pytest.approx(slow, abs=1e-6)
    assert rows == {}


def random_frame(generator):
    """Objects in clumps and detections that are shifted, turned, doubled or made up."""
    objects, found = [], []
    for _ in range(int(torch.randint(0, 4, (), generator=generator))):
        place = float(torch.randint(1, 4, (), generator=generator)) * 20
        box = [place, *torch.randn(2, generator=generator).tolist(), 4.0, 2.0, 1.5, 0.3]
        label, level = torch.randint(0, 2, (), generator=generator), torch.randint(0, 3, (), generator=generator)
        objects.append((box, int(label), int(level)))
    for _ in range(int(torch.randint(0, 4, (), generator=generator))):
        draw = torch.rand(6, generator=generator).tolist()
        base = objects[int(draw[0] * len(objects))] if objects and draw[0] < 0.9 else ([25.0, 0, 0, 4, 2, 1.5, 0], 0, 1)
        shifted = [base[0][0] + draw[1] - 0.5, base[0][1] + draw[2] / 4, *base[0][2:6], base[0][6] + 0.1 * draw[3]]
        score = round(draw[4], 1) + 0.005  # away from the cutoffs
        found.append(([float(value) for value in torch.tensor(shifted)], base[1], score, draw[5] < 0.2))
    return {"found": found, "objects": [([float(v) for v in torch.tensor(b)], la, le) for b, la, le in objects]}


def matters(item, label, level, near, far):
    return item[1] == label and 0 < item[2] <= level and near <= reference.far_off(item[0]) < far


def detections(name, found):
    boxes = torch.tensor([item[0] for item in found]).reshape(-1, 7)
    labels = torch.tensor([item[1] for item in found], dtype=torch.int64)
    scores = torch.tensor([item[2] for item in found], dtype=torch.float32)
    return Detections3D(name, boxes, labels, scores, torch.tensor([item[3] for item in found], dtype=torch.bool))


def objects_of(name, objects):
    boxes = torch.tensor([item[0] for item in objects]).reshape(-1, 7)
    labels, levels = (torch.tensor([item[column] for item in objects], dtype=torch.int64) for column in (1, 2))
    return Objects3D(name, boxes, labels, levels)


# ---------------------------------------------------------------------------------------------------------------------
# By hand
# ---------------------------------------------------------------------------------------------------------------------


CAR = [10.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0]
FAR_CAR = [40.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0]


def score(found, objects):
    evaluator = DetectionEvaluator3D(("Vehicle",))
    evaluator.add(detections("0", found), objects_of("0", objects))
    return evaluator.compute()


def test_one_of_two_found_is_half():
    scores = score([(CAR, 0, 0.9, False)], [(CAR, 0, 1), (FAR_CAR, 0, 1)])
    assert scores["ap_l1"] == pytest.approx(0.5)
    assert scores["aph_l1/Vehicle"] == pytest.approx(0.5)
    assert scores["num_objects"] == 2


def test_a_turned_detection_is_right_but_weighs_nothing():
    scores = score([([*CAR[:6], math.pi], 0, 0.9, False)], [(CAR, 0, 1)])
    assert scores["ap_l1"] == pytest.approx(1)
    assert scores["aph_l1"] == pytest.approx(0, abs=1e-6)


def test_a_wrong_one_with_a_lower_score_costs_nothing_and_with_a_higher_score_half():
    assert score([(CAR, 0, 0.9, False), (FAR_CAR, 0, 0.5, False)], [(CAR, 0, 1)])["ap_l1"] == pytest.approx(1)
    assert score([(CAR, 0, 0.5, False), (FAR_CAR, 0, 0.9, False)], [(CAR, 0, 1)])["ap_l1"] == pytest.approx(0.5)


def test_a_detection_in_a_zone_that_nobody_labelled_is_not_wrong():
    assert score([(CAR, 0, 0.5, False), (FAR_CAR, 0, 0.9, True)], [(CAR, 0, 1)])["ap_l1"] == pytest.approx(1)


def test_hard_objects_cost_at_level_2_only_and_count_at_both_when_found():
    missed = score([(CAR, 0, 0.9, False)], [(CAR, 0, 1), (FAR_CAR, 0, 2)])
    assert (missed["ap_l1"], missed["ap_l2"]) == pytest.approx((1, 0.5))
    found = score([(FAR_CAR, 0, 0.9, False)], [(CAR, 0, 1), (FAR_CAR, 0, 2)])
    assert (found["ap_l1"], found["ap_l2"]) == pytest.approx((0.5, 0.5))


def test_what_has_no_level_is_no_object_and_classes_without_objects_have_no_score():
    scores = score([(CAR, 0, 0.9, False)], [(CAR, 0, 0)])
    assert math.isnan(scores["ap_l1"])
    assert scores["num_objects"] == 0


def test_levels_follow_points_and_marks():
    num_points = torch.tensor([0, 1, 5, 6, 100, 3])
    assert point_levels(num_points).tolist() == [0, 2, 2, 1, 1, 2]
    assert point_levels(num_points, torch.tensor([2, 0, 0, 0, 2, 1])).tolist() == [0, 2, 2, 1, 2, 1]
