import inspect
import math
import tempfile

import pytest
import torch

from camera.fcos import (
    FCOSHead,
    HeadOutput,
    assign_objects,
    box_iou_aligned,
    detection_losses,
    ltrb_to_boxes,
    pyramid_locations,
    rank_within,
    target_ltrb,
)
from mwsis.core.errors import ConfigError
from mwsis.core.instances import Boxes2D
from tests.reference.fcos_targets import assign_one_by_one

SHAPES, STRIDES = [(16, 20), (8, 10), (4, 5)], (8, 16, 32)
RANGES = (32.0, 64.0, math.inf)


def make_boxes(boxes, labels=None, ignore=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore)
    return Boxes2D(boxes, labels, ignore)


def random_boxes(generator, num_boxes):
    corner = torch.rand(num_boxes, 2, generator=generator) * torch.tensor([120.0, 90.0])
    size = torch.rand(num_boxes, 2, generator=generator) * 70 + 3
    return torch.cat([corner, corner + size], 1)


def cells():
    return pyramid_locations(SHAPES, STRIDES, torch.device("cpu"))


def random_output(generator, num_images, num_classes=3):
    num_locations = len(cells().xy)
    return HeadOutput(
        torch.randn(num_images, num_locations, num_classes, generator=generator),
        torch.rand(num_images, num_locations, 4, generator=generator) * 4,
        torch.randn(num_images, num_locations, generator=generator),
        torch.zeros(num_images, num_locations, 1),
    )


def test_locations_and_neighbours():
    locations = cells()
    assert len(locations.xy) == 16 * 20 + 8 * 10 + 4 * 5
    assert locations.xy[0].tolist() == [4, 4]
    assert locations.xy[21].tolist() == [12, 12]
    assert locations.xy[320].tolist() == [8, 8]
    outside = len(locations.xy)
    assert locations.neighbours(torch.tensor([0]))[0].tolist() == [outside] * 4 + [0, 1, outside, 20, 21]
    assert locations.neighbours(torch.tensor([331]))[0].tolist() == [320, 321, 322, 330, 331, 332, 340, 341, 342]


def test_targets_equal_the_slow_reference():
    generator = torch.Generator().manual_seed(0)
    boxes = [random_boxes(generator, count) for count in (7, 0, 12, 1)]
    positives = assign_objects(cells(), [make_boxes(one.tolist()) for one in boxes], RANGES)
    start = 0
    for image, one in enumerate(boxes):
        mine = positives.image_index == image
        got = dict(
            zip(positives.location_index[mine].tolist(), (positives.gt_index[mine] - start).tolist(), strict=True)
        )
        assert got == assign_one_by_one(SHAPES, STRIDES, one.tolist(), RANGES)
        start += len(one)
    assert positives.image_index.diff().min() >= 0
    assert (positives.gt_image[positives.gt_index] == positives.image_index).all()


def test_bug3_centre_region_is_the_box_centre_never_a_mask_centroid():
    box = [[16.0, 16.0, 80.0, 64.0]]
    positives = assign_objects(cells(), [make_boxes(box)], (1e3, 2e3, math.inf))
    fine = positives.location[positives.level == 0]
    assert fine.mean(0).tolist() == [48, 40]  # the box centre
    assert "mask" not in " ".join(inspect.signature(assign_objects).parameters)


def test_ignore_regions_leave_the_classification_loss():
    labels = make_boxes([[20.0, 20.0, 60.0, 60.0], [0.0, 0.0, 100.0, 100.0]], [1, -1], [False, True])
    locations = cells()
    positives = assign_objects(locations, [labels], RANGES)
    assert positives.num_gt == 1
    inside = ((locations.xy >= 0) & (locations.xy < 100)).all(1)
    expected = inside.clone()
    expected[positives.location_index] = False
    assert torch.equal(positives.ignored[0], expected)
    output = random_output(torch.Generator().manual_seed(1), 1)
    quiet = detection_losses(output, locations, positives)["classification"]
    output.class_logits[0, expected] = 30.0  # sure and wrong, but ignored
    assert detection_losses(output, locations, positives)["classification"] == quiet


def test_perfect_boxes_cost_nothing_and_overlap_fully():
    locations = cells()
    positives = assign_objects(locations, [make_boxes([[20.0, 20.0, 61.0, 55.0]])], RANGES)
    ltrb = target_ltrb(positives, locations)
    stride = locations.stride[positives.location_index]
    torch.testing.assert_close(ltrb_to_boxes(ltrb, positives.location, stride), positives.gt_boxes[positives.gt_index])
    torch.testing.assert_close(box_iou_aligned(ltrb, ltrb), torch.ones(len(positives)))
    output = random_output(torch.Generator().manual_seed(2), 1)
    output.ltrb[0, positives.location_index] = ltrb
    assert detection_losses(output, locations, positives)["box"].item() == pytest.approx(0, abs=1e-6)


def test_losses_by_hand():
    locations = cells()
    labels = [make_boxes([[20.0, 20.0, 60.0, 60.0]], [2]), make_boxes([])]
    positives = assign_objects(locations, labels, RANGES)
    output = random_output(torch.Generator().manual_seed(3), 2)
    losses = detection_losses(output, locations, positives)
    target = torch.zeros_like(output.class_logits)
    target[0, positives.location_index, 2] = 1
    prob = output.class_logits.sigmoid()
    hit = torch.where(target > 0, prob, 1 - prob)
    focal = -torch.where(target > 0, 0.25, 0.75) * (1 - hit) ** 2 * hit.log()
    assert losses["classification"].item() == pytest.approx((focal.sum() / len(positives)).item(), rel=1e-5)
    left, top, right, bottom = target_ltrb(positives, locations).unbind(1)
    centre = (
        torch.minimum(left, right)
        / torch.maximum(left, right)
        * torch.minimum(top, bottom)
        / torch.maximum(top, bottom)
    ).sqrt()
    guess = output.centerness_logits[0, positives.location_index].sigmoid()
    entropy = -(centre * guess.log() + (1 - centre) * (1 - guess).log()).mean()
    assert losses["centerness"].item() == pytest.approx(entropy.item(), rel=1e-5)


def test_no_objects_give_zero_losses_with_a_graph():
    output = random_output(torch.Generator().manual_seed(4), 2)
    for name in ("class_logits", "ltrb", "centerness_logits"):
        getattr(output, name).requires_grad_()
    losses = detection_losses(output, cells(), assign_objects(cells(), [make_boxes([]), make_boxes([])], RANGES))
    assert losses["box"] == 0
    assert losses["centerness"] == 0
    sum(losses.values()).backward()
    assert output.ltrb.grad is not None
    assert output.class_logits.grad.abs().sum() > 0


def test_rank_within_groups():
    groups = torch.tensor([1, 0, 1, 0, 1])
    scores = torch.tensor([0.2, 0.5, 0.9, 0.5, 0.4])
    assert rank_within(groups, scores).tolist() == [2, 0, 0, 1, 1]
    assert rank_within(groups[:0], scores[:0]).tolist() == []


def test_head_starts_with_the_prior_and_flattens_levels():
    head = FCOSHead(32, 3, 3, num_convs=1, prior=0.02, box_bias=2.0)
    output = head([torch.randn(2, 32, *shape) * 0.01 for shape in SHAPES])
    assert output.class_logits.shape == (2, len(cells().xy), 3)
    assert output.class_logits.sigmoid().mean().item() == pytest.approx(0.02, rel=0.3)
    assert output.ltrb.mean().item() == pytest.approx(2, rel=0.3)
    first = head.box_tower(torch.zeros(1, 32, 4, 4))
    assert first.shape == (1, 32, 4, 4)


@pytest.mark.parametrize(("tower", "name"), [("box", "box_tower"), ("class", "class_tower")])
def test_centerness_is_read_from_the_chosen_tower(tower, name):
    head = FCOSHead(32, 3, 3, num_convs=1, centerness_tower=tower)
    torch.nn.init.normal_(head.centerness.weight)
    maps = [torch.randn(1, 32, *shape) for shape in SHAPES]
    expected = torch.cat([head.centerness(getattr(head, name)(one)).flatten(1) for one in maps], 1)
    torch.testing.assert_close(head(maps).centerness_logits, expected)


def test_wrong_centerness_tower():
    with pytest.raises(ConfigError, match=r"camera\.centerness_tower: got 'boxes'; did you mean 'box'"):
        FCOSHead(32, 3, 3, centerness_tower="boxes")


def losses_and_gradient(output, locations, labels):
    logits = output.class_logits.clone().requires_grad_()
    ltrb = output.ltrb.clone().requires_grad_()
    output = HeadOutput(logits, ltrb, output.centerness_logits, output.tower_feats)
    losses = detection_losses(output, locations, assign_objects(locations, labels, RANGES))
    sum(losses.values()).backward()
    return torch.stack(list(losses.values())).detach(), torch.cat([logits.grad, ltrb.grad], -1)


def split_batch():
    generator = torch.Generator().manual_seed(5)
    labels = [make_boxes(random_boxes(generator, count).tolist()) for count in (6, 0)]
    return random_output(generator, 2), labels


def one_process(rank, address, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    output, labels = split_batch()
    mine = HeadOutput(*(getattr(output, name)[rank : rank + 1] for name in output.__dataclass_fields__))
    torch.save(losses_and_gradient(mine, cells(), labels[rank : rank + 1]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.ddp
def test_two_processes_equal_one_even_when_one_has_no_object():
    output, labels = split_batch()
    losses, gradient = losses_and_gradient(output, cells(), labels)
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.get_context("spawn")
        ranks = [context.Process(target=one_process, args=(rank, f"file://{folder}/join", folder)) for rank in (0, 1)]
        for one in ranks:
            one.start()
        for one in ranks:
            one.join(300)
        parts = [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, losses)
    torch.testing.assert_close(torch.cat([parts[0][1], parts[1][1]]) / 2, gradient)
