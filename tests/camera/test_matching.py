"""Detections matched to objects all at once: weights over the run, the best assignment, agreement with depth."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from camera.affinity import Depth
from camera.fcos import Cells
from camera.matching import Hungarian, assign
from camera.sources import MatchedDetections
from mwsis.core.errors import ConfigError
from tests.camera.depth_scene import depth_maps, scene
from tests.camera.test_terms import BOXES, MAP, box_cells
from tests.reference.depth import agreement_one_by_one, best_assignment


def test_weights_over_the_run():
    table = {0.1: (0.27, 0.63), 0.5: (0.15, 0.75), 0.9: (0.03, 0.87), 1.0: (0.0, 0.9)}
    for progress, expected in table.items():
        assert Hungarian().weights(progress) == pytest.approx((0.1, *expected))


@pytest.mark.parametrize("seed", range(40))
def test_the_assignment_is_the_best_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, cols = (int(count) for count in torch.randint(1, 7, (2,), generator=generator))
    utility = torch.rand(rows, cols, generator=generator) * (torch.rand(rows, cols, generator=generator) > 0.4)
    row, col = assign(utility, 0.0)
    assert len(set(row.tolist())) == len(row) == len(set(col.tolist()))
    assert float(utility[row, col].sum()) == pytest.approx(best_assignment(utility), abs=1e-6)
    some, others = assign(utility, 0.5)
    good = utility[row, col] > 0.5
    assert torch.equal(some, row[good])
    assert torch.equal(others, col[good])


def test_the_best_first_is_not_the_best_for_all():
    utility = torch.tensor([[0.9, 0.8], [0.85, 0.2]])
    assert assign(utility, 0.5)[1].tolist() == [1, 0]


def test_utility_is_a_share_and_needs_overlap():
    """IoU in place of the published GIoU, of which far boxes have -1."""
    matcher = Hungarian()
    overlap = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    agreement, known = torch.tensor([[1.0, 1.0], [0.4, 0.0]]), torch.tensor([[True, True], [True, False]])
    got = matcher.utility(overlap, agreement, known, torch.tensor([1.0, 0.6]), 0.5)
    expected = [[1.0, 0.0], [0.05 + 0.15 * 0.4 + 0.75 * 0.6, 0.05 + 0.9 * 0.6]]
    torch.testing.assert_close(got, torch.tensor(expected))


def teacher(boxes, image, labels, scores, prob):
    """Return a teacher with these detections, whose masks are ``prob`` (D, h, w)."""
    found = SimpleNamespace(
        cells=Cells(torch.tensor(image), torch.arange(len(image))),
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.tensor(labels),
        scores=torch.tensor(scores),
    )
    return SimpleNamespace(found=found, decode=lambda cells: prob[cells.location_index])


@pytest.mark.parametrize("metric", [True, False])
def test_agreement_with_depth_equals_loops_over_cells(metric):
    depth = depth_maps(metric=metric, missing=0.1)
    prob = torch.rand(5, *MAP, generator=torch.Generator().manual_seed(3))
    prob[4] *= 0.1
    own = Depth(2, metres=3.0, grey_levels=20.0)
    matcher = Hungarian(depth=own)
    ctx = replace(scene(depth), teacher=teacher([BOXES[0]] * 5, [1] * 5, [0] * 5, [0.5] * 5, prob))
    clear, known = (part[1] for part in matcher._clear(ctx))
    objects = (ctx.gt_image == 1).nonzero()[:, 0]
    agreement, enough = matcher._agreement(ctx, torch.arange(5), objects, clear, known)
    similar, both = (part[1] for part in own.similarity(depth, 0, 2))
    assert 0 < int(clear.sum()) < int(known.sum())
    for detection in range(5):
        for column, gt in enumerate(objects.tolist()):
            expected, count = agreement_one_by_one(prob[detection], box_cells(ctx.gt_boxes)[gt], similar, both)
            assert float(agreement[detection, column]) == pytest.approx(expected, abs=1e-5)
            assert bool(enough[detection, column]) == (count >= 20)
    assert enough.any()
    assert not enough.all()


def test_agreement_prefers_even_surfaces_with_clear_edges():
    """A mask of a wall before a far background agrees wholly; one of a slope, neither even nor an edge, does not."""
    value = torch.full((2, *MAP), 10.0)
    value[:, :, 12:] = 30.0
    value[1] = 10 + torch.arange(MAP[1]) * 0.2  # .4 m between cells that are two apart
    known = torch.ones_like(value).bool()
    ctx = scene(replace(depth_maps(), value=value, valid=known, ground=~known))
    clear = Hungarian()._clear(ctx)[0]
    assert bool(clear[0, :, :-2].all())
    assert not clear[1].any()


def matched(class_aware, progress=0.0, minimum=0.5, depth=None, num_found=4):
    """Objects 0 and 1 on the first image, 2 and 3 on the second; what the detections show is said in the lists."""
    boxes = [BOXES[0], BOXES[0], BOXES[1], BOXES[3]][:num_found]
    prob = torch.full((num_found, *MAP), 0.9)
    taught = teacher(boxes, [0, 0, 0, 1][:num_found], [0, 0, 2, 0][:num_found], [0.9, 0.8, 0.7, 0.6][:num_found], prob)
    ctx = replace(scene(depth or depth_maps()), teacher=taught, progress=progress)
    return Hungarian(minimum=minimum, class_aware=class_aware).match(ctx).tolist(), ctx


def test_each_object_has_a_detection_of_its_own_image_and_class():
    match, _ = matched(class_aware=False)
    assert match == [0, 2, -1, 3]  # the third object is one cell, which the last detection overlaps less
    aware = matched(class_aware=True)[0]  # the third detection is of a class that no object has
    assert (sorted(aware[:2]), aware[2:]) == ([0, 1], [-1, 3])
    assert matched(class_aware=False, minimum=0.95)[0] == [-1] * 4


def test_no_detection_shows_two_objects():
    """With fewer detections than objects, published code gives some out twice."""
    match, _ = matched(class_aware=False, num_found=1)
    assert sorted(match) == [-1, -1, -1, 0]
    assert matched(class_aware=False, num_found=0)[0] == [-1] * 4


def test_with_little_depth_the_score_decides():
    depth = depth_maps()
    nothing = depth.without(torch.ones_like(depth.valid))
    match, _ = matched(class_aware=False, depth=nothing)
    assert match == [0, 2, -1, 3]


def test_matched_masks_weigh_alike_on_request():
    _, ctx = matched(class_aware=False)
    source = MatchedDetections(Hungarian(class_aware=False), weighted=False)
    assert source.needs == {"ema_teacher", "depth"}
    target = source.propose(ctx)
    assert target.present.tolist() == [True, True, False, True]
    assert target.weight.tolist() == [1, 1, 0, 1]
    cells = box_cells(ctx.gt_boxes)
    for gt in (0, 1, 3):
        assert torch.equal(target.per_gt[gt] > 0.5, cells[gt])
    assert not target.per_gt[2].any()
    unsure = replace(ctx, teacher=SimpleNamespace(found=ctx.teaching.found, decode=lambda c: torch.zeros(len(c), *MAP)))
    assert not source.propose(unsure).present.any()


def test_settings_are_checked():
    for wrong in ({"alpha": -0.1}, {"alpha": 0.8, "beta": 0.3}, {"minimum": -1.0}):
        with pytest.raises(ConfigError, match="Hungarian: expected alpha, beta"):
            Hungarian(**wrong)
