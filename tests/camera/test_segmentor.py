import copy
import math

import pytest
import torch

from camera.segmentor import build_condinst
from camera.sources import PositiveAggregation
from camera.terms import MaskContext, Pairwise, Projection, PseudoMask
from mwsis.core.batch import ImageBatch
from mwsis.core.errors import ConfigError
from mwsis.core.instances import Boxes2D

RANGES = (16.0, 32.0, 64.0, 128.0, math.inf)


def small_model(**settings):
    torch.manual_seed(0)
    return build_condinst(
        3, channels=32, num_convs=1, mask_branch_convs=1, norm="group", size_ranges=RANGES, **settings
    )


def scenes(num_images=2, empty=False, seed=0):
    """Bright squares on grey noise: class 0 red, 1 green, 2 blue."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(90, 120, (num_images, 3, 64, 96), generator=generator).byte()
    labels = []
    for image in images:
        if empty:
            labels.append(Boxes2D.empty())
            continue
        boxes = []
        for kind in range(2):
            x = int(torch.randint(2, 12, (1,), generator=generator)) + 45 * kind
            y, side = (int(value) for value in torch.randint(8, 25, (2,), generator=generator))
            image[:, y : y + side + 10, x : x + side + 8] = 30
            image[kind, y : y + side + 10, x : x + side + 8] = 220
            boxes.append([x, y, x + side + 8, y + side + 10])
        labels.append(Boxes2D(torch.tensor(boxes).float(), torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool)))
    sizes = torch.tensor([[64, 96]] * num_images)
    return ImageBatch(images, sizes, sizes * 2, tuple(labels))


def all_losses(model, images):
    dense = model.dense(images)
    positives = model.assign(dense, images.labels)
    sampled = model.sample(dense, positives)
    ctx = MaskContext(model.decode_masks(dense, sampled), sampled, images)
    return {**model.detection_loss(dense, positives), "projection": Projection()(ctx), "pairwise": Pairwise()(ctx)}


def test_learns_squares_and_predicts_them_on_the_recorded_image():
    model = small_model(box_bias=2.0).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    images = scenes()
    for step in range(20):
        losses = all_losses(model, images)
        loss = sum(losses.values()) - losses["pairwise"] * (step < 10)  # boxes first, look-alikes later
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    for found, labels in zip(model.eval().predict(images), images.labels, strict=True):
        assert len(found) >= 2
        assert (found.scores.diff() <= 0).all()
        assert (found.masks.height, found.masks.width) == (128, 192)
        for label in (0, 1):
            best = int((found.labels == label).nonzero()[0])
            wanted = labels.boxes[label] * 2
            assert (found.boxes[best] - wanted).abs().max() < 24
            true = torch.zeros(128, 192, dtype=torch.bool)
            x1, y1, x2, y2 = wanted.int().tolist()
            true[y1:y2, x1:x2] = True
            mask = found.masks.dense(best)
            assert (mask & true).sum() / (mask | true).sum() > 0.5


def test_no_objects_give_finite_losses_to_every_parameter_group():
    model = small_model()
    losses = all_losses(model, scenes(empty=True))
    assert all(losses[name] == 0 for name in ("box", "centerness", "projection", "pairwise"))
    sum(losses.values()).backward()
    without = [name for name, value in model.named_parameters() if value.grad is None]
    assert without == []  # distributed training waits for every gradient


def test_sampling_keeps_the_best_of_each_object():
    model = small_model()
    images = scenes()
    dense = model.dense(images)
    positives = model.assign(dense, images.labels)
    few = model.sample(dense, positives, max_per_image=4)
    assert few.gt_index.bincount().tolist() == [2, 2, 2, 2]
    picked = (positives.image_index, positives.location_index)
    score = dense.head.class_logits[picked].sigmoid().amax(1) * dense.head.centerness_logits[picked].sigmoid()
    for gt in range(4):
        mine = positives.gt_index == gt
        best = positives.location_index[mine][score[mine].topk(2).indices]
        assert set(few.location_index[few.gt_index == gt].tolist()) == set(best.tolist())
    assert len(model.sample(dense, positives, max_per_image=1)) == 4  # at least one each
    assert len(model.sample(dense, positives, max_per_image=10**6)) == len(positives)


def test_bug3_a_teacher_decodes_the_students_positives():
    student = small_model()
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        teacher.head.centerness.weight.add_(torch.randn_like(teacher.head.centerness.weight))
    images = scenes()
    dense, teacher_dense = student.dense(images), teacher.dense(images)
    sampled = student.sample(dense, student.assign(dense, images.labels), max_per_image=2)
    torch.testing.assert_close(teacher.decode_masks(teacher_dense, sampled), student.decode_masks(dense, sampled))
    score, iou = teacher.evidence(teacher_dense, sampled)
    assert score.shape == iou.shape == (len(sampled),)
    assert not score.requires_grad
    target = PositiveAggregation()(
        teacher.decode_masks(teacher_dense, sampled).sigmoid(), score, iou, sampled.gt_index, sampled.num_gt
    )
    ctx = MaskContext(student.decode_masks(dense, sampled), sampled, images, target)
    assert torch.isfinite(PseudoMask(high=0.5, low=0.5)(ctx))


def test_evidence_of_perfect_boxes():
    model = small_model()
    images = scenes()
    dense = model.dense(images)
    positives = model.assign(dense, images.labels)
    boxes, stride = positives.gt_boxes[positives.gt_index], dense.locations.stride[positives.location_index]
    sides = torch.cat([positives.location - boxes[:, :2], boxes[:, 2:] - positives.location], 1) / stride[:, None]
    dense.head.ltrb.data[positives.image_index, positives.location_index] = sides
    score, iou = model.evidence(dense, positives)
    torch.testing.assert_close(iou, torch.ones_like(iou))
    logits = dense.head.class_logits[positives.image_index, positives.location_index]
    torch.testing.assert_close(score, logits.gather(1, positives.class_index[:, None])[:, 0].sigmoid())


def test_prediction_limits_and_empty_results():
    images = scenes()
    quiet = small_model(score_threshold=0.99).eval().predict(images)
    assert [len(one) for one in quiet] == [0, 0]
    assert [len(one.masks) for one in quiet] == [0, 0]
    loud = small_model(score_threshold=0.0, max_per_image=5, candidates_per_level=9, box_bias=1.0).eval()
    for found in loud.predict(images):
        assert len(found) == 5
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor([192, 128, 192, 128])).all()


def test_wrong_size_ranges():
    with pytest.raises(ConfigError, match=r"camera\.size_ranges: expected 3"):
        build_condinst(3, num_levels=3)
