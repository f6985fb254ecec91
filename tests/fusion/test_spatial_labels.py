"""Labels from 2D boxes: equal to the slow twin, and the published quality on real frames."""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusion.label_methods import LABEL_METHODS
from fusion.spatial_labels import (
    CLASS_RADII,
    box_point_pairs,
    claimed_pairs,
    largest_components,
    last_box_wins,
    spatial_labels,
)
from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import PixelMap
from mwsis.core.instances import BACKGROUND, IGNORE, Boxes2D
from tests.fusion.scenes import frame_of, random_scene
from tests.reference import spatial_labels as reference

SWITCHES = list(itertools.product([False, True], repeat=2))


@pytest.mark.parametrize(("rings", "clustering"), SWITCHES)
def test_equals_slow_twin(rings, clustering):
    seen: set[int] = set()
    for seed in range(8):
        frame, segments = random_scene(seed)
        labels = spatial_labels(frame, segments, rings=rings, clustering=clustering)
        semantic, instance = reference.spatial_labels(frame, segments.numpy(), rings, clustering, CLASS_RADII)
        assert labels.semantic_labels.tolist() == semantic.tolist()
        assert labels.instance_ids.tolist() == instance.tolist()
        seen |= set(semantic.tolist())
    assert {BACKGROUND, IGNORE, 0, 1, 2} <= seen


def one_camera(xyz, uv, boxes, labels, ignore=None):
    """A frame whose points have one slot in camera 0."""
    ignored = torch.tensor(ignore or [False] * len(labels))
    view = Boxes2D(torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), ignored)
    pixels = PixelMap(torch.tensor(uv, dtype=torch.float32)[:, None], torch.zeros(len(uv), 1, dtype=torch.int8))
    return frame_of(torch.tensor(xyz, dtype=torch.float32), pixels, [view])


def test_largest_cluster_wins_and_the_first_of_equals():
    xyz = [[0, 0, 0], [5, 0, 0], [5.3, 0, 0], [9, 0, 0], [9.3, 0, 0]]
    frame = one_camera(xyz, [[5, 5]] * 5, [[0, 0, 10, 10]], [0])
    labels = spatial_labels(frame, torch.zeros(5, dtype=torch.int64))
    assert labels.instance_ids.tolist() == [-1, 0, 0, -1, -1]


def test_radius_is_exclusive():
    pairs = torch.tensor([[0, 0], [1, 0], [2, 0]])
    xy = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.75, 0.0]])
    assert largest_components(xy, pairs, torch.full((3,), 0.5)).tolist() == [False, True, True]


def test_last_box_wins():
    frame = one_camera([[0, 0, 0]], [[5, 5]], [[0, 0, 10, 10], [0, 0, 20, 20]], [0, 2])
    labels = spatial_labels(frame, torch.zeros(1, dtype=torch.int64))
    assert (labels.semantic_labels.tolist(), labels.instance_ids.tolist()) == ([2], [1])
    assert last_box_wins(torch.tensor([[0, 3], [2, 1], [0, 1]]), 3).tolist() == [3, -1, 1]


@pytest.mark.parametrize(("outside", "expected"), [(1, 0), (4, IGNORE), (30, BACKGROUND)])
def test_ring_segment_that_leaves_the_boxes(outside, expected):
    """30 points inside: shares outside of 1/31 (kept), 4/34 (unsure), 30/60 (background)."""
    uv = [[5, 5]] * 30 + [[50, 50]] * outside
    frame = one_camera([[0, 0, 0]] * len(uv), uv, [[0, 0, 10, 10]], [0])
    labels = spatial_labels(frame, torch.zeros(len(uv), dtype=torch.int64))
    assert set(labels.semantic_labels[:30].tolist()) == {expected}
    assert set(labels.semantic_labels[30:].tolist()) == {BACKGROUND}


def test_ignore_region_hides_background_but_counts_as_outside_for_the_rings():
    uv = [[5, 5]] * 2 + [[25, 25]] * 4
    frame = one_camera([[0, 0, 0]] * 6, uv, [[20, 20, 30, 30], [0, 0, 10, 10]], [-1, 0], [True, False])
    split = spatial_labels(frame, torch.tensor([0, 0, 1, 1, 1, 1]))
    assert split.semantic_labels.tolist() == [0, 0, IGNORE, IGNORE, IGNORE, IGNORE]
    assert split.instance_ids.tolist() == [1, 1, -1, -1, -1, -1]
    joined = spatial_labels(frame, torch.zeros(6, dtype=torch.int64))
    assert joined.semantic_labels.tolist() == [BACKGROUND, BACKGROUND, IGNORE, IGNORE, IGNORE, IGNORE]


def test_point_no_image_shows_is_ignored():
    frame, segments = random_scene(1)
    unseen = ~frame.pixels.in_any_image
    assert set(spatial_labels(frame, segments).semantic_labels[unseen].tolist()) == {IGNORE}


def test_pairs_for_label_quality():
    frame, segments = random_scene(2)
    members, classes = reference.points_in_boxes2d(frame)
    every = {(point, box) for box, points in members.items() if classes[box] >= 0 for point in points}
    assert {tuple(pair) for pair in box_point_pairs(frame).tolist()} == every
    instance_ids = spatial_labels(frame, segments).instance_ids
    won = {(point, box) for point, box in enumerate(instance_ids.tolist()) if box >= 0}
    assert {tuple(pair) for pair in claimed_pairs(spatial_labels(frame, segments)).tolist()} == won


def test_users_are_told_what_to_change():
    frame, segments = random_scene(3)
    with pytest.raises(DataError, match=r"scene: ring: .*rings switched off"):
        spatial_labels(frame, torch.full_like(segments, -1))
    with pytest.raises(ConfigError, match=r"radii: .*at least 3.*got 2"):
        spatial_labels(frame, segments, radii=(0.6, 0.1))


def test_frame_without_points_or_boxes():
    nothing = PixelMap(torch.zeros(0, 1, 2), torch.zeros(0, 1, dtype=torch.int8))
    empty = frame_of(torch.zeros(0, 3), nothing, [Boxes2D.empty()])
    assert len(spatial_labels(empty, torch.zeros(0, dtype=torch.int64))) == 0
    one = PixelMap(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.int8))
    bare = frame_of(torch.zeros(1, 3), one, [Boxes2D.empty()])
    assert spatial_labels(bare, torch.zeros(1, dtype=torch.int64)).semantic_labels.tolist() == [BACKGROUND]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_on_gpu():
    frame, segments = random_scene(4)
    on_cpu = spatial_labels(frame, segments)
    pixels = PixelMap(frame.pixels.pixel_uv.cuda(), frame.pixels.camera_index.cuda())
    points = type(frame.points)(*(getattr(frame.points, name).cuda() for name in frame.points.__dataclass_fields__))
    moved = type(frame)(frame.frame_id, frame.segment, frame.lidar, points, pixels, frame.cameras)
    on_gpu = spatial_labels(moved, segments.cuda())
    assert torch.equal(on_gpu.instance_ids.cpu(), on_cpu.instance_ids)
    assert torch.equal(on_gpu.semantic_labels.cpu(), on_cpu.semantic_labels)


def kitti_mini() -> Path:
    shared = os.environ.get("MWSIS_SHARED")
    return (Path(shared) / "data" if shared else Path(__file__).parents[3] / "shared" / "data") / "kitti_mini"


STUDY = {
    "frustum": (0.630, 0.342, 0.505),
    "clustering": (0.802, 0.845, 0.981),
    "spg": (0.825, 0.872, 0.981),
}
"""Mean point IoU of Vehicle, Pedestrian, Cyclist of an independent implementation on the same ten frames."""
STUDY_SEAM_DEG = -10.0
"""Where that study most likely ends the rows of frame 000000: its procedure takes the direction of least elevation
variance, and with 36 or 72 candidates that is here. The file itself starts every row at 0. Inferred, not documented."""


@pytest.fixture(scope="module")
def real_frames():
    from mwsis.data.kitti import KittiSource

    if not kitti_mini().is_dir():
        pytest.skip(f"no real frames at {kitti_mini()}; set MWSIS_SHARED")
    source = KittiSource(str(kitti_mini()))
    return [source.read(frame_id) for frame_id in source.frame_ids("all")]


def mean_object_ious(frames, method):
    scores: list[list[float]] = [[], [], []]
    for frame in frames:
        add_object_ious(scores, frame, LABEL_METHODS[method].pairs(frame, CLASS_RADII))
    assert [len(of_class) for of_class in scores] == [20, 2, 2]
    return [sum(of_class) / len(of_class) for of_class in scores]


def with_row_seam(frame, seam_deg):
    """The frame with the returns between ``seam_deg`` (negative) and straight ahead put one row too low."""
    azimuth = torch.rad2deg(torch.atan2(frame.points.xyz[:, 1], frame.points.xyz[:, 0]))
    ring = frame.points.ring + ((azimuth >= seam_deg) & (azimuth < 0)).to(torch.int16)
    return replace(frame, points=replace(frame.points, ring=ring))


@pytest.mark.real_data
def test_label_quality_on_real_frames(real_frames):
    """All nine figures of the study, with the rows of frame 000000 cut where the study cut them."""
    frames = [with_row_seam(f, STUDY_SEAM_DEG) if f.frame_id == "000000" else f for f in real_frames]
    for method, expected in STUDY.items():
        assert mean_object_ious(frames, method) == pytest.approx(expected, abs=0.005)


@pytest.mark.real_data
def test_rows_cut_at_the_true_seam_help_the_pedestrian_of_frame_0(real_frames):
    """There our rows leave 22 ground points between the legs to the ground: .893 instead of the study's .872."""
    assert mean_object_ious(real_frames, "spg") == pytest.approx((0.827, 0.893, 0.981), abs=0.005)


@pytest.mark.real_data
def test_our_recipe_on_real_frames(real_frames):
    assert mean_object_ious(real_frames, "spg_default") == pytest.approx((0.883, 0.929, 0.981), abs=0.005)


def add_object_ious(scores, frame, pairs):
    labels, seen = frame.cameras[0].labels, frame.pixels.in_any_image
    for box, instance in enumerate(frame.truth.box_instance_ids[0].tolist()):
        gt = (frame.truth.instance_ids == instance) & seen
        if instance < 0 or bool(labels.ignore[box]) or int(gt.sum()) < 5:
            continue
        claimed = torch.zeros_like(gt)
        claimed[pairs[pairs[:, 1] == box, 0]] = True
        scores[int(labels.labels[box])].append(float((claimed & gt).sum() / (claimed | gt).sum()))
