from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from camera.context import DenseTarget, MaskContext
from camera.fcos import Cells, Positives
from camera.matching import Greedy, match_greedily
from camera.refinement import ColorRefinement
from camera.sources import (
    BoxFill,
    Compose,
    FadedIn,
    MatchedDetections,
    OfflineMasks,
    PositiveAggregation,
    Refined,
)
from mwsis.core.batch import ImageBatch
from mwsis.core.errors import ConfigError
from mwsis.core.frame import BoxMasks
from mwsis.core.instances import Boxes2D, MaskSet
from tests.reference.camera_masks import greedy_match


def made_up(num_samples=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prob = torch.rand(num_samples, 4, 5, generator=generator)
    score, iou = torch.rand(2, num_samples, generator=generator)
    return prob, score, iou


def test_both_published_forms_come_from_one_function():
    prob, score, iou = made_up()
    gt_index = torch.tensor([0, 2, 2, 0, 4, 2, 4])
    for mu, use_cls in ((1.0, True), (5.0, False)):
        target = PositiveAggregation(mu=mu, use_cls=use_cls)(prob, score, iou, gt_index, 5)
        assert target.present.tolist() == [True, False, True, False, True]
        for gt in (0, 2, 4):
            mine = gt_index == gt
            weight = (mu * iou[mine]).exp() * (score[mine] if use_cls else 1)
            expected = (weight[:, None, None] * prob[mine]).sum(0) / weight.sum()
            torch.testing.assert_close(target.per_gt[gt], expected)
        assert not target.per_gt[[1, 3]].any()


def test_a_single_positive_is_its_own_pseudo_mask():
    prob, score, iou = made_up(1)
    for score_of_class in (score, torch.zeros(1)):  # even of a class the teacher does not see at all
        target = PositiveAggregation()(prob, score_of_class, iou, torch.tensor([0]), 1)
        torch.testing.assert_close(target.per_gt, prob)
        assert target.present.all()


def test_no_positives_and_no_gradient():
    empty = torch.zeros(0)
    target = PositiveAggregation()(torch.zeros(0, 4, 5), empty, empty, empty.long(), 3)
    assert target.per_gt.shape == (3, 4, 5)
    assert not target.present.any()
    prob, score, iou = made_up(2)
    assert not PositiveAggregation()(prob.requires_grad_(), score, iou, torch.tensor([0, 0]), 1).per_gt.requires_grad


def test_greedy_matching_equals_one_detection_after_the_other():
    generator = torch.Generator().manual_seed(0)
    for case in range(300):
        found, objects = (int(count) for count in torch.randint(0, 9, (2,), generator=generator))
        iou = (torch.rand(found, objects, generator=generator) * 6).round() / 6  # ties
        scores = (torch.rand(found, generator=generator) * 4).round() / 4
        got = match_greedily(iou, scores, 0.5)
        assert got.tolist() == greedy_match(iou, scores, 0.5), case


BOXES = [[4.0, 4.0, 28.0, 20.0], [30.0, 4.0, 60.0, 28.0], [8.0, 8.0, 40.0, 24.0]]


def scene(masks=(), ignore=(False, False, False)):
    """Two images of 32 by 64 pixels; the third box is on the second image."""
    ignored = torch.tensor(ignore)
    kinds = torch.where(ignored, -1, torch.tensor([0, 1, 0]))
    boxes = torch.tensor(BOXES)
    labels = (Boxes2D(boxes[:2], kinds[:2], ignored[:2]), Boxes2D(boxes[2:], kinds[2:], ignored[2:]))
    sizes = torch.tensor([[32, 64], [32, 64]])
    images = ImageBatch(torch.zeros(2, 3, 32, 64, dtype=torch.uint8), sizes, sizes, labels, masks)
    none = torch.zeros(0, dtype=torch.int64)
    objects = [one.objects for one in labels]
    positives = Positives(
        none, none, none, none, torch.zeros(0, 2), none,
        gt_boxes=torch.cat([one.boxes for one in objects]),
        gt_labels=torch.cat([one.labels for one in objects]),
        gt_image=torch.cat([torch.full((len(one),), image) for image, one in enumerate(objects)]),
        ignored=torch.zeros(2, 1, dtype=torch.bool),
    )  # fmt: skip
    return MaskContext(torch.zeros(0, 8, 16), positives, images)


def in_box(box):
    cells = torch.zeros(8, 16, dtype=torch.bool)
    rows = [row for row in range(8) if int(box[1]) <= 4 * row + 2 <= int(box[3])]
    cols = [col for col in range(16) if int(box[0]) <= 4 * col + 2 <= int(box[2])]
    cells[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] = True
    return cells


@pytest.mark.parametrize("class_aware", [True, False])
def test_matched_detections_by_hand(class_aware):
    """Detection 1 is the second object's but of another class, 2 hits the third, 3 is the third's box elsewhere."""
    found = SimpleNamespace(
        cells=Cells(torch.tensor([0, 0, 1, 0]), torch.tensor([5, 6, 7, 8])),
        boxes=torch.tensor([[4.0, 4.0, 28.0, 22.0], BOXES[1], [8.0, 8.0, 38.0, 24.0], BOXES[2]]),
        labels=torch.tensor([0, 2, 0, 0]),
        scores=torch.tensor([0.9, 0.8, 0.5, 0.99]),
    )
    maps = torch.rand(10, 8, 16, generator=torch.Generator().manual_seed(1))
    asked = []

    def decode(cells):
        asked.append(cells.image_index.tolist())
        return maps[cells.location_index]

    ctx = replace(scene(), teacher=SimpleNamespace(found=found, decode=decode))
    target = MatchedDetections(Greedy(class_aware=class_aware)).propose(ctx)
    assert target.present.tolist() == [True, not class_aware, True]
    assert asked == [[0, 1] if class_aware else [0, 0, 1]]
    for gt, location, score in ((0, 5, 0.9), (1, 6, 0.8), (2, 7, 0.5)):
        if not target.present[gt]:
            assert not target.per_gt[gt].any()
            assert target.weight[gt] == 0
            continue
        cut = maps[location] * in_box(BOXES[gt])
        torch.testing.assert_close(target.per_gt[gt], cut)
        torch.testing.assert_close(target.weight[gt], (score * cut[cut > 0.5].mean()).sqrt())


def given(seed, height=8, width=16, count=1, weight=None):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, count + 1, (height, width), generator=generator)
    masks = MaskSet.from_id_map(ids, torch.arange(1, count + 1))
    return BoxMasks(masks, torch.ones(count) if weight is None else torch.tensor(weight))


def test_offline_masks_are_drawn_where_they_lie():
    masks = (given(0, 7, 15, 2, [0.4, 1.0]), given(1, weight=[0.6]))  # the first image is smaller than the batch
    ctx = scene(masks, ignore=(True, False, False))
    target = OfflineMasks().propose(ctx)
    assert target.per_gt.shape == (2, 8, 16)
    assert torch.equal(target.per_gt[0, :7, :15] > 0, masks[0].masks.dense(1))
    assert not target.per_gt[0, 7:].any()
    assert torch.equal(target.per_gt[1] > 0, masks[1].masks.dense(0))
    torch.testing.assert_close(target.weight, torch.tensor([1.0, 0.6]))
    strict = OfflineMasks(min_weight=0.7).propose(ctx)
    assert strict.present.tolist() == [True, False]
    assert strict.weight.tolist() == [1.0, 0.0]
    with pytest.raises(ConfigError, match="min_weight"):
        OfflineMasks(2)


def test_a_box_without_a_given_mask_supervises_nothing():
    empty = MaskSet.from_crops(8, 16, torch.zeros(1, 4), [torch.zeros(0, 0)])
    ctx = scene((given(0, count=2, weight=[0.0, 1.0]), BoxMasks(empty, torch.zeros(1))))
    assert OfflineMasks().propose(ctx).present.tolist() == [False, True, False]


def test_filled_boxes():
    target = BoxFill().propose(scene())
    assert target.present.all()
    for got, box in zip(target.per_gt, BOXES, strict=True):
        assert torch.equal(got > 0, in_box(box))


class Fixed:
    def __init__(self, value, present, weight, needs):
        present = torch.tensor(present)
        per_gt = torch.full((3, 8, 16), value) * present[:, None, None]
        self.target, self.needs = DenseTarget(per_gt, present, torch.tensor(weight)), frozenset(needs)

    def propose(self, ctx):
        return self.target


def test_composed_sources():
    parts = [
        Fixed(0.2, [True, True, False], [0.5, 1.0, 0.0], {"given_masks"}),
        Fixed(0.8, [True, False, False], [1.0, 0.0, 0.0], {"ema_teacher"}),
    ]
    expected = {"first": (0.2, 0.5), "mean": (0.5, 0.75), "weighted": (0.6, 0.75)}
    for mode, (value, weight) in expected.items():
        source = Compose(parts, mode)
        target = source.propose(scene())
        assert source.needs == {"given_masks", "ema_teacher"}
        assert target.present.tolist() == [True, True, False]
        assert [float(one[0, 0]) for one in target.per_gt] == pytest.approx([value, 0.2, 0.0])
        assert target.weight.tolist() == pytest.approx([weight, 1.0, 0.0])
    with pytest.raises(ConfigError, match="no mode 'best'"):
        Compose(parts, "best")
    with pytest.raises(ConfigError, match="at least one source"):
        Compose([])


def test_a_source_that_fades_in():
    asked = []

    class Watched(Fixed):
        def propose(self, ctx):
            asked.append(ctx.progress)
            return super().propose(ctx)

    late = FadedIn(Watched(0.8, [True, True, False], [1.0, 0.5, 0.0], {"teacher"}), start=0.5, length=0.25)
    assert late.needs == {"teacher"}
    before = late.propose(replace(scene(), progress=0.49))
    assert (before.present.tolist(), before.weight.tolist()) == ([False] * 3, [0.0] * 3)
    assert before.per_gt.shape == (3, 8, 16)
    assert asked == []
    for progress, trust in ((0.6, 0.4), (0.75, 1.0), (0.9, 1.0)):
        target = late.propose(replace(scene(), progress=progress))
        assert target.weight.tolist() == pytest.approx([trust, 0.5 * trust, 0.0])
        assert [float(one[0, 0]) for one in target.per_gt] == pytest.approx([0.8, 0.8, 0.0])
    never = FadedIn(Watched(0.8, [True] * 3, [1.0] * 3, {"teacher"}), start=0.0, enabled=False)
    assert never.needs == frozenset()
    assert not never.propose(replace(scene(), progress=1.0)).present.any()
    assert len(asked) == 3
    first = Compose([Fixed(0.2, [True, False, False], [0.3, 0.0, 0.0], {"given_masks"}), late])
    assert first.propose(replace(scene(), progress=0.1)).present.tolist() == [True, False, False]
    assert first.propose(replace(scene(), progress=0.9)).weight.tolist() == pytest.approx([0.3, 0.5, 0.0])


def test_sources_without_objects():
    ctx = scene((given(0, count=2), given(1)), ignore=(True, True, True))
    nothing = SimpleNamespace(
        found=SimpleNamespace(
            cells=Cells(torch.zeros(0).long(), torch.zeros(0).long()),
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0).long(),
            scores=torch.zeros(0),
        ),
        decode=lambda cells: torch.zeros(len(cells), 8, 16),
    )
    for objects in (ctx, scene((given(0, count=2), given(1)))):
        context = replace(objects, teacher=nothing)
        for source in (MatchedDetections(), OfflineMasks(), BoxFill(), Compose([BoxFill(), OfflineMasks()])):
            target = source.propose(context)
            assert target.per_gt.shape == (len(context.gt_boxes), 8, 16)
            assert torch.isfinite(target.weight).all()


class Disc:
    """A blurred disc around the middle of each box, nothing of the last object."""

    needs = frozenset({"teacher"})

    def propose(self, ctx):
        rows = torch.arange(ctx.map_size[0])[:, None] * 4 + 2.0
        cols = torch.arange(ctx.map_size[1])[None] * 4 + 2.0
        x, y = ((ctx.gt_boxes[:, axis] + ctx.gt_boxes[:, axis + 2])[:, None, None] / 2 for axis in (0, 1))
        per_gt = (-((cols - x) ** 2 + (rows - y) ** 2) / 400).exp() * 0.9
        present = torch.arange(len(per_gt)) < len(per_gt) - 1
        return DenseTarget(per_gt * present[:, None, None], present, present * 0.5)


def test_refined_masks_follow_colours_and_stay_in_their_box():
    """A red square whose box is known: a disc becomes the square; the other image and absent masks are left alone."""
    image = torch.full((2, 3, 64, 64), 120, dtype=torch.uint8)
    image[0, :, 16:48, 16:48] = torch.tensor([200, 30, 30], dtype=torch.uint8)[:, None, None]
    boxes = torch.tensor([[16.0, 16.0, 48.0, 48.0], [8.0, 8.0, 40.0, 40.0]])
    labels = [Boxes2D(box[None], torch.tensor([0]), torch.tensor([False])) for box in boxes]
    sizes = torch.tensor([[64, 64]] * 2)
    objects = SimpleNamespace(gt_boxes=boxes, gt_labels=torch.tensor([0, 0]), gt_image=torch.tensor([0, 1]), num_gt=2)
    ctx = MaskContext(torch.zeros(0, 16, 16), objects, ImageBatch(image, sizes, sizes, tuple(labels)))
    source = Refined(Disc())
    assert source.needs == {"teacher", "images"}
    target = source.propose(ctx)
    square = torch.zeros(16, 16, dtype=torch.bool)
    square[4:12, 4:12] = True
    assert ((Disc().propose(ctx).per_gt[0] > 0.5) != square).sum() > 10
    assert torch.equal(target.per_gt[0] > 0.5, square)
    assert not target.per_gt[1].any()
    assert target.present.tolist() == [True, False]
    assert target.weight.tolist() == [0.5, 0.0]
    with pytest.raises(ConfigError, match="cell=4, got 1"):
        Refined(Disc(), ColorRefinement(cell=1))
