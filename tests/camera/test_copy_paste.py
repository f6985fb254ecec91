"""Pasting: exact masks, boxes of what is left, a memory equal to a plain list, and the same draws everywhere.

`test_sim_defect_NN` is named after the defect list of the camera specification, section 3.9; the others of it are in
`test_prototypes.py`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from camera.copy_paste import CopyPaste, PastedMask, Piece, visible_boxes
from camera.sources import DenseTarget, PositiveAggregation
from camera.terms import PseudoMask, box_bands
from fusion.correspondence import point_pixel_pairs
from fusion.step import Method, PretrainingStep, WeightedTerm
from mwsis.core.errors import ConfigError
from mwsis.core.instances import IGNORE, Boxes2D
from mwsis.core.schedule import Ramp
from mwsis.training.build import build_method, check_training
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from mwsis.training.launch import run_processes
from tests.camera.test_sources import scene
from tests.fusion.test_step import BATCH, batch_of, boxes_of, camera_student
from tests.reference import copy_paste as slow


def piece(height, width, top=0, left=0, label=0, score=0.9, seed=0, shape=None):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 4), generator=generator).byte()
    pixels[..., 3] = 1 if shape is None else shape
    return Piece(pixels, top, left, label, score)


def memory(**settings):
    return CopyPaste(**{"size": 4, "store": 600, "per_image": 3, "prob": 1.0, **settings})


def entries_of_step(step):
    return [(1000 - 7 * step - image, [piece(5, 6 + image, seed=10 * step + image)]) for image in range(4)]


def remembered(kept):
    """Return the pixels of every object by image, oldest first."""
    slots = [(slot - int(kept.place[0])) % len(kept.table) for slot in range(len(kept.table))]
    images = []
    for _, slot in sorted(zip(slots, range(len(slots)), strict=True)):
        rows = [row for row in kept.table[slot].tolist() if row[1]]
        if rows:
            images.append([kept._piece(row, 0.0).pixels.clone() for row in rows])
    return images


# --- memory


@pytest.mark.parametrize("seed", range(4))
def test_the_memory_equals_a_plain_list(seed):
    """Also sim defect 8: every image has its own entry, and a later one does not show through an earlier."""
    generator = torch.Generator().manual_seed(seed)
    kept, twin, written = memory(store=(200, 600)[seed % 2]), slow.Memory(4, (200, 600)[seed % 2]), {}
    number = 0
    for visit in range(40):
        sides = torch.randint(1, 10, (int(torch.randint(0, 4, (1,), generator=generator)), 2), generator=generator)
        pieces = [piece(*side, seed=100 * visit + index) for index, side in enumerate(sides.tolist())]
        kept._remember(pieces)
        if pieces:
            twin.remember([int(side.prod()) for side in sides], number)
            written[number] = pieces
            number += 1
        got, expected = remembered(kept), twin.images
        assert len(got) == len(expected), visit
        for pixels, (name, _, count) in zip(got, expected, strict=True):
            assert len(pixels) == count
            for one, other in zip(pixels, written[name], strict=False):
                assert torch.equal(one, other.pixels)
    assert number > 20


def test_what_is_too_large_is_not_remembered():
    kept = memory(store=50)
    kept._remember([piece(8, 8)])
    assert not remembered(kept)
    kept._remember([piece(5, 5), piece(8, 8)])
    assert [len(one) for one in remembered(kept)] == [1]


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_remember_what_one_remembers(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert run_processes([sys.executable, "-m", "tests.camera.two_memories", str(tmp_path)], 2) == 0
    alone = memory()
    for step in range(3):
        alone._cut = entries_of_step(step)
        alone.after_step()
    assert len(remembered(alone)) == 4
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            assert torch.equal(value, alone.state_dict()[name]), (rank, name)


# --- draws


def full_memory(**settings):
    kept = memory(**{"store": 10_000, "size": 6, "per_image": 8, **settings})
    for image in range(6):
        kept._remember(
            [piece(6, 7, 3 * index, 5 * index, index % 3, 0.75 + 0.03 * index, 8 * image + index) for index in range(8)]
        )
    return kept


def test_draws_depend_on_image_and_progress_only():
    """Sim defect 13: there is no counter that a resumed run could lose."""
    kept, state = full_memory(), torch.get_rng_state()
    again = memory(store=10_000, size=6, per_image=8)
    again.load_state_dict(kept.state_dict())
    drawn = [(key, step, kept._drawn(key, step / 50, (64, 96))) for key in (5, 77) for step in range(50)]
    for key, step, pieces in reversed(drawn):
        same = again._drawn(key, step / 50, (64, 96))
        assert [(one.top, one.left, one.score) for one in same] == [(one.top, one.left, one.score) for one in pieces]
        assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(same, pieces, strict=True))
    assert len({tuple(one.top for one in pieces) for _, _, pieces in drawn}) > 20
    assert torch.equal(torch.get_rng_state(), state)


def test_a_quarter_of_an_image_is_drawn_once_each_in_its_own_size():
    kept = full_memory()
    for step in range(60):
        pieces = kept._drawn(3, step / 60, (64, 96))
        assert len(pieces) == len({one.top for one in pieces}) == 2  # a quarter of 8
        assert all(one.pixels.shape == (6, 7, 4) for one in pieces)
        assert len(kept._drawn(3, step / 60, (64, 30))) == sum(
            one.left + 7 <= 30 for one in pieces
        )  # others do not fit
    assert {len(full_memory(share=1.0)._drawn(3, step / 60, (64, 96))) for step in range(9)} == {3}
    assert {len(full_memory(share=0.0)._drawn(3, step / 60, (64, 96))) for step in range(9)} == {1}
    drawn = [bool(full_memory(prob=0.5)._drawn(key, 0.5, (64, 96))) for key in range(0, 4000, 40)]
    assert 30 < sum(drawn) < 70
    assert not memory()._drawn(3, 0.5, (64, 96))


def test_better_masks_are_drawn_more_often():
    kept = memory(store=10_000, size=1)
    kept._remember([piece(4, 4, score=0.1, top=1), piece(4, 4, score=0.9, top=2)])
    drawn = [kept._drawn(key, 0.5, (64, 96))[0].top for key in range(300)]
    assert 240 < drawn.count(2) < 290


# --- what is left


@pytest.mark.parametrize("seed", range(20))
def test_boxes_of_what_is_left_equal_asking_every_pixel(seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(12, 2, generator=generator) * 44 - 6
    boxes = torch.cat([corner, corner + 0.5 + torch.rand(12, 2, generator=generator) * 20], 1)
    covered = torch.zeros(32, 40, dtype=torch.bool)
    for x, y in torch.randint(0, 30, (3, 2), generator=generator).tolist():
        covered[y : y + 14, x : x + 12] = True
    ignore = torch.arange(12) == 3
    kinds = torch.where(ignore, IGNORE, torch.arange(12) % 3)
    got = visible_boxes(Boxes2D(boxes, kinds, ignore), covered)
    expected = []
    for box, kind, ignored in zip(boxes.tolist(), kinds.tolist(), ignore.tolist(), strict=True):
        left, share = (box, 1.0) if ignored else slow.visible_box(box, covered.tolist())
        if left is not None:
            expected.append((left, IGNORE if share < 0.5 else kind, ignored or share < 0.5))
    assert len(got) == len(expected)
    for index, (left, kind, ignored) in enumerate(expected):
        torch.testing.assert_close(got.boxes[index], torch.tensor(left))
        assert (int(got.labels[index]), bool(got.ignore[index])) == (kind, ignored)


class Fixed(CopyPaste):
    """Pastes what it is told."""

    def __init__(self, *pieces):
        super().__init__(size=2, store=100_000)
        self.pieces = list(pieces)

    def _drawn(self, key, progress, size):
        return self.pieces


def test_pasted_objects_have_exact_masks_and_boxes():
    """The ring is laid over the first object, which loses a corner; the second image has none of its boxes touched."""
    ring = torch.ones(12, 16, dtype=torch.uint8)
    ring[4:8, 4:12] = 0
    first, second = piece(12, 16, 40, 70, 2, seed=1), piece(12, 16, 46, 76, 1, seed=2, shape=ring)
    strong = 255 - BATCH.images.images
    pasted = Fixed(first, second).compose(replace(BATCH.images, strong=strong), 0.5)
    seen = torch.zeros(2, 64, 96, dtype=torch.bool)
    seen[0, 40:52, 70:86] = seen[1, 46:58, 76:92] = True
    seen[1, 50:54, 80:88] = False
    seen[0] &= ~seen[1]
    for view, original in ((pasted.images.images, BATCH.images.images), (pasted.images.strong, strong)):
        for image in range(2):
            assert torch.equal(view[image][:, ~seen.any(0)], original[image][:, ~seen.any(0)])
            for index, one in enumerate((first, second)):
                whole = torch.zeros(64, 96, 3, dtype=torch.uint8)
                whole[one.top : one.top + 12, one.left : one.left + 16] = one.pixels[..., :3]
                assert torch.equal(view[image][:, seen[index]].T, whole[seen[index]])
    assert torch.equal(pasted.covered, seen.any(0).expand(2, -1, -1))
    assert torch.equal(BATCH.images.images, 255 - strong)  # the batch itself is as it was
    counts = [len(one.objects) for one in BATCH.images.labels]
    for labels, before in zip(pasted.images.labels, BATCH.images.labels, strict=True):
        assert labels.boxes[-2:].tolist() == [[70.0, 40.0, 86.0, 52.0], [76.0, 46.0, 92.0, 58.0]]
        assert labels.labels.tolist() == [*before.labels.tolist(), 2, 1]
    assert pasted.target.present.tolist() == [False] * counts[0] + [True] * 2 + [False] * counts[1] + [True] * 2
    for row in (counts[0], sum(counts) + 2):
        assert torch.equal(pasted.target.per_gt[row : row + 2] > 0, seen[:, 2::4, 2::4])


def test_sim_defect_11_a_pasted_object_that_is_hidden_is_not_taken_for_another():
    hidden, over = piece(4, 4, 10, 10, 2), piece(10, 10, 8, 8, 1, seed=3)
    pasted = Fixed(hidden, over).compose(BATCH.images, 0.5)
    assert pasted.images.labels[1].labels.tolist() == [*BATCH.images.labels[1].labels.tolist(), 1]
    assert pasted.target.present.tolist() == [False, False, True, False, True]
    assert pasted.target.per_gt[[0, 1, 3]].sum() == 0


def test_sim_defect_10_only_pasted_objects_count():
    wanted = (torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    logits = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(4), requires_grad=True)
    ctx, losses = scene(), []
    for chosen in ([1], [0, 1, 2]):
        exact = DenseTarget(wanted, torch.tensor([False, True, False]))
        positives = replace(ctx.positives, gt_index=torch.tensor(chosen))
        losses.append(PastedMask()(replace(ctx, positives=positives, mask_logits=logits[chosen], pasted=exact)))
    torch.testing.assert_close(*losses)
    right = replace(ctx, positives=positives, mask_logits=(wanted * 2 - 1) * 20, pasted=exact)
    assert float(PastedMask()(right)) < 1e-4
    losses[1].backward()
    assert not logits.grad[[0, 2]].any()
    none = PastedMask()(
        replace(right, mask_logits=logits, pasted=DenseTarget(wanted, torch.zeros(3, dtype=torch.bool)))
    )
    assert none == 0
    assert none.requires_grad


# --- in a step


class Sure:
    """The left half of every box."""

    needs = frozenset({"teacher"})

    def propose(self, ctx):
        on_row, on_col = box_bands(ctx.gt_boxes, *ctx.map_size)
        middle = (ctx.gt_boxes[:, 0] + ctx.gt_boxes[:, 2]) / 8
        on_col = on_col & (torch.arange(ctx.map_size[1]) < middle[:, None])
        return DenseTarget(0.9 * (on_row[:, :, None] & on_col[:, None]).float(), torch.ones(len(on_row)).bool())


def pasting_step(pasting=None, source=None):
    terms = {"m": WeightedTerm(PseudoMask(), Ramp(start=0.2)), "paste": WeightedTerm(PastedMask(), Ramp(start=0.2))}
    pasting = pasting or CopyPaste(size=4, store=50_000, prob=1.0)
    return PretrainingStep(camera_student(), Method(terms, source or Sure(), pasting), 3).train()


OTHER = batch_of([boxes_of([[30.0, 10.0, 80.0, 60.0]])])


def test_objects_come_from_earlier_steps():
    step = pasting_step()
    assert "camera/paste" not in step.losses(BATCH, 0.1)
    assert step.losses(BATCH, 0.3)["camera/paste"] == 0
    assert not step.copy_paste.table.any()  # not before the optimiser's step
    step.update_teacher(0.3)
    assert (step.copy_paste.table[:, :, 1] > 0).sum(1).tolist() == [2, 1, 0, 0] or (
        (step.copy_paste.table[:, :, 1] > 0).sum(1).tolist() == [1, 2, 0, 0]
    )
    pixels = BATCH.images.images
    for image in remembered(step.copy_paste):
        for one in image:
            shape = one[..., 3] > 0
            patches = pixels.unfold(2, shape.shape[0], 1).unfold(3, shape.shape[1], 1)
            same = (patches == one[..., :3].permute(2, 0, 1)[None, :, None, None]) | ~shape
            assert bool(same.all(-1).all(-1).all(1).any())
    losses = step.losses(OTHER, 0.4)
    assert losses["camera/paste"] > 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(one.grad).all() for one in step.student.parameters() if one.grad is not None)


def test_pasted_objects_are_not_cut_out_again_and_hide_what_they_cover():
    over = piece(30, 20, 20, 35, 1, seed=5)
    step, seen = pasting_step(Fixed(over)), []
    term = step.method.camera_terms["m"].term
    step.method.camera_terms["m"] = WeightedTerm(
        type("Watched", (), {"needs": term.needs, "__call__": lambda self, ctx: (seen.append(ctx), term(ctx))[1]})(),
        Ramp(),
    )
    step.losses(OTHER, 0.4)
    (ctx,) = seen
    assert ctx.target.present.tolist() == [True, False]
    assert ctx.pasted.present.tolist() == [False, True]
    covered = ctx.pasted.per_gt[1] > 0
    assert not ctx.target.per_gt[0][covered].any()
    assert ctx.target.per_gt[0][~covered].any()
    ((_, pieces),) = step.copy_paste._cut
    assert [one.label for one in pieces] == [0]
    cut = pieces[0]
    whole = torch.zeros(64, 96, dtype=torch.bool)
    whole[cut.top : cut.top + cut.pixels.shape[0], cut.left : cut.left + cut.pixels.shape[1]] = cut.pixels[..., 3] > 0
    assert whole.any()
    assert not whole[20:50, 35:55].any()
    assert not whole[:, 80:].any()


def test_points_under_pasted_objects_teach_nothing():
    pasted = Fixed(piece(10, 10, 20, 30)).compose(BATCH.images, 0.5)
    uv = torch.tensor([[30.2, 20.9], [39.9, 29.9], [40.0, 25.0], [29.9, 25.0], [35.0, 25.0], [200.0, 25.0]])
    uv = torch.stack([uv, uv.flip(0)], 1)
    image_index = torch.tensor([[0, -1], [1, 0], [0, 1], [1, -1], [-1, 1], [0, 0]])
    shown = pasted.shows(uv, image_index)
    for point in range(6):
        for slot in range(2):
            u, v = uv[point, slot].tolist()
            under = 30 <= u < 40 and 20 <= v < 30
            assert shown[point, slot] == (-1 if under else image_index[point, slot])
    assert len(point_pixel_pairs(uv, shown)) < len(point_pixel_pairs(uv, image_index))
    step = pasting_step(Fixed(piece(10, 10, 20, 30)))
    batch, pasted = step._pasted(replace(BATCH, pixel_uv=uv, image_index=image_index), 0.5)
    assert torch.equal(batch.image_index, shown)
    assert step._pasted(BATCH, 0.1) == (BATCH, None)


def test_a_resumed_step_continues_exactly_and_a_skipped_one_leaves_nothing():
    ends = []
    for spoilt in (False, True):
        step = pasting_step()
        step.losses(BATCH, 0.3)
        step.update_teacher(0.3)
        if spoilt:
            step.losses(OTHER, 0.35)  # not finite, say: no update follows
            state = {name: value.clone() for name, value in step.state_dict().items()}
            step = pasting_step()
            step.load_state_dict(state)
        losses = step.losses(OTHER, 0.4)
        step.update_teacher(0.4)
        ends.append({**step.state_dict(), **losses})
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_what_cannot_be_pasted_is_refused():
    with pytest.raises(ConfigError, match="CopyPaste: expected size, store"):
        CopyPaste(prob=2)
    run = typed(compose_run(["method=sim", "data.supervision=masks"]))
    with pytest.raises(ConfigError, match=r"method.copy_paste: pastes where only boxes are known"):
        build_method(run)
    run = typed(compose_run(["method=sim", "method.copy_paste=null"]))
    with pytest.raises(ConfigError, match=r"camera_terms.paste \(PastedMask\) needs pasted objects; give"):
        check_training(run)
    run = typed(compose_run(["method=sim", "method.copy_paste=null", "method.camera_terms.paste.enabled=false"]))
    check_training(run)
    assert isinstance(build_method(run).mask_source.inner, PositiveAggregation)
    run = typed(compose_run(["method=sim", "method.mask_source=null", "method.camera_terms.pseudo_mask.enabled=false"]))
    with pytest.raises(ConfigError, match=r"method.copy_paste \(CopyPaste\) needs pseudo masks; give"):
        check_training(run)
