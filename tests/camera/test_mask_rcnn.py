"""Mask R-CNN on small scenes: it learns, and what must not teach it does not."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from camera.backbone import ImageBackbone
from camera.mask_rcnn import STRIDES, MaskRCNN, draw_samples
from camera.refinement import ColorRefinement
from mwsis.core.batch import ImageBatch
from mwsis.core.errors import ConfigError
from mwsis.core.frame import BoxMasks
from mwsis.core.instances import IGNORE, Boxes2D, MaskSet
from tests.camera.test_segmentor import scenes

NAMES = {"objectness", "proposal_box", "classification", "box", "mask"}
SMALL = {
    "channels": 32,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "anchors_per_image": 64,
    "proposals_train": 100,
    "proposals_test": 50,
    "boxes_per_image": 64,
    "box_channels": 64,
    "mask_channels": 32,
}


def small_model(**settings):
    torch.manual_seed(0)
    body = ImageBackbone("test_resnet", norm="group", strides=STRIDES)
    return MaskRCNN(body, 3, **{**SMALL, **settings}).train()


def filled(images, weight=1.0):
    """The batch with its boxes, filled, as masks."""
    given = []
    for labels in images.labels:
        boxes = labels.boxes.long()
        crops = [torch.ones(y2 - y1, x2 - x1).bool() for x1, y1, x2, y2 in boxes.tolist()]
        height, width = images.images.shape[-2:]
        masks = MaskSet.from_crops(height, width, boxes, crops)
        given.append(BoxMasks(masks, torch.full((len(boxes),), weight)))
    return replace(images, masks=tuple(given))


def one_image(images, index):
    whole = {name: (getattr(images, name)[index],) for name in ("labels", "masks")}
    part = slice(index, index + 1)
    return ImageBatch(images.images[part], images.sizes[part], images.original_sizes[part], **whole)


@pytest.fixture(scope="module")
def trained():
    """Return a network that has seen one image fifty times, the image, and the losses."""
    model, images, told = small_model(), filled(scenes(1)), []
    optimiser = torch.optim.AdamW(model.parameters(), 1.5e-3)
    for step in range(50):
        losses = model.losses(images, step / 50)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        told.append({name: float(value.detach()) for name, value in losses.items()})
    return model.eval(), images, told


def test_learns_squares_and_predicts_them_on_the_recorded_image(trained):
    model, images, told = trained
    assert all(set(losses) == NAMES for losses in told)
    sums = [sum(losses.values()) for losses in told]
    assert all(value < float("inf") for value in sums)
    assert sum(sums[-5:]) < 0.25 * sum(sums[:5])
    assert told[-1]["mask"] < 0.4 * told[0]["mask"]
    found, labels = model.predict(images)[0], images.labels[0]
    assert (found.scores.diff() <= 0).all()
    assert (found.masks.height, found.masks.width) == (128, 192)
    for label in (0, 1):
        best = int((found.labels == label).nonzero()[0])
        assert found.scores[best] > 0.5
        wanted = labels.boxes[label] * 2
        assert (found.boxes[best] - wanted).abs().max() < 16
        x1, y1, x2, y2 = wanted.int().tolist()
        true = torch.zeros(128, 192, dtype=torch.bool)
        true[y1:y2, x1:x2] = True
        mask = found.masks.dense(best)
        assert (mask & true).sum() / (mask | true).sum() > 0.7


def test_predictions_are_those_of_the_weights(trained, tmp_path):
    model, images, _ = trained
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = small_model()
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for one, other in zip(model.predict(images), again.eval().predict(images), strict=True):
        assert len(one) > 0
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.masks.bits, other.masks.bits)


def test_images_of_any_size_and_refined_masks(trained):
    """A fresh network predicts on an image whose rows torchvision would take for another stride."""
    model, images, _ = trained
    odd = replace(images, images=images.images[:, :, :, :], sizes=torch.tensor([[52, 96]]))
    fresh, used = copy.deepcopy(model), small_model()
    used.load_state_dict(model.state_dict())
    assert torch.equal(fresh.predict(odd)[0].boxes, used.eval().predict(odd)[0].boxes)
    assert (fresh.predict(odd)[0].boxes[:, 3] <= 128).all()
    model = copy.deepcopy(model)
    plain = model.predict(images)[0]
    model.refinement = ColorRefinement()
    sharp = model.predict(images)[0]
    assert torch.equal(plain.boxes, sharp.boxes)
    true = torch.zeros(128, 192, dtype=torch.bool)
    best = int((plain.labels == 0).nonzero()[0])
    x1, y1, x2, y2 = (images.labels[0].boxes[0] * 2).int().tolist()
    true[y1:y2, x1:x2] = True
    overlap = [(one.masks.dense(best) & true).sum() / (one.masks.dense(best) | true).sum() for one in (plain, sharp)]
    assert overlap[1] > overlap[0] > 0.5  # the square has one colour
    model.heads.score_thresh = 1.0
    assert [len(one) for one in model.predict(images)] == [0]


def test_no_objects_give_finite_losses_to_every_parameter():
    model = small_model()
    losses = model.losses(filled(scenes(empty=True)), 0.5)
    assert set(losses) == NAMES
    assert all(losses[name] == 0 for name in ("proposal_box", "box", "mask"))
    assert losses["objectness"] > 0
    assert losses["classification"] > 0
    sum(losses.values()).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []
    assert all(bool(value.grad.isfinite().all()) for value in model.parameters())


def test_what_is_drawn_depends_on_the_image_and_the_step_alone():
    model, images = small_model(), filled(scenes(2))
    torch.manual_seed(1)
    first = model.losses(images, 0.5)
    torch.manual_seed(2)  # neither read nor moved
    state = torch.get_rng_state()
    again = model.losses(images, 0.5)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in NAMES)
    other = model.losses(images, 0.51)
    assert any(not torch.equal(first[name], other[name]) for name in NAMES)
    # Both images draw as many samples as they may: the mean over both is the mean of their means.
    alone = [model.losses(one_image(images, index), 0.5) for index in range(2)]
    for name in ("objectness", "proposal_box"):
        torch.testing.assert_close(first[name], (alone[0][name] + alone[1][name]) / 2, rtol=1e-4, atol=1e-6)


def test_regions_to_be_ignored_teach_nothing():
    """Where all of an image is to be ignored, only its objects are learned from."""
    model, images = small_model(), filled(scenes(1))
    region = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
    own = images.labels[0]
    ignored = Boxes2D(
        torch.cat([region, own.boxes]),
        torch.cat([torch.tensor([IGNORE]), own.labels]),
        torch.tensor([True, False, False]),
    )
    given = images.masks[0]
    whole = MaskSet.from_crops(64, 96, torch.tensor([[0, 0, 96, 64]]), [torch.zeros(64, 96).bool()])
    boxes = torch.cat([whole.crop_boxes, given.masks.crop_boxes])
    masks = MaskSet.from_crops(64, 96, boxes, [whole.crop(0), given.masks.crop(0), given.masks.crop(1)])
    known = replace(images, labels=(ignored,), masks=(BoxMasks(masks, torch.tensor([1.0, 1.0, 1.0])),))
    drawn = {}
    for name, batch in (("whole", images), ("ignored", known)):
        pyramid, sizes = model._maps(batch), model._sizes(batch)
        found = model._propose(pyramid, sizes)
        objects = [labels.objects for labels in batch.labels]
        regions = [labels.boxes[labels.ignore] for labels in batch.labels]
        drawn[name] = model._box_samples(found, objects, regions, [torch.Generator().manual_seed(0)])[0]
    assert (drawn["whole"].labels == 0).any()
    assert not (drawn["ignored"].labels == 0).any()
    assert len(drawn["ignored"].labels) >= 2
    losses = model.losses(known, 0.5)
    assert losses["classification"] > 0
    assert losses["mask"] > 0
    # masks are found by the object's own row, behind the region's
    usual = model.losses(images, 0.5)
    wrong = replace(known, masks=(BoxMasks(masks, torch.tensor([1.0, 0.0, 0.0])),))
    assert model.losses(wrong, 0.5)["mask"] == 0
    torch.testing.assert_close(losses["mask"], usual["mask"], rtol=0.3, atol=0)
    alone = replace(known, labels=(ignored[ignored.ignore],), masks=(BoxMasks(whole, torch.ones(1)),))
    for name in ("proposal_box", "classification", "box", "mask"):
        assert model.losses(alone, 0.5)[name] == 0


def test_a_mask_counts_as_far_as_it_is_trusted():
    model, images = small_model(), scenes(1)
    whole, half, none = (model.losses(filled(images, weight), 0.5) for weight in (1.0, 0.5, 0.0))
    torch.testing.assert_close(half["mask"], whole["mask"] / 2)
    assert none["mask"] == 0
    for name in NAMES - {"mask"}:
        assert torch.equal(whole[name], none[name])  # class and box are learned without a mask


def test_samples():
    labels = torch.tensor([1.0] * 10 + [0.0] * 50 + [-1.0] * 20)
    positive, negative = draw_samples(labels, 16, 0.25, torch.Generator().manual_seed(0))
    assert (len(positive), len(negative)) == (4, 12)
    assert (labels[positive] == 1).all()
    assert (labels[negative] == 0).all()
    assert len(set(positive.tolist() + negative.tolist())) == 16
    others = draw_samples(labels, 16, 0.25, torch.Generator().manual_seed(1))
    assert not torch.equal(negative, others[1])
    few = draw_samples(labels[:5], 16, 0.25, torch.Generator().manual_seed(0))
    assert [len(one) for one in few] == [4, 0]
    assert [len(one) for one in draw_samples(labels[:0], 16, 0.25, torch.Generator())] == [0, 0]


def test_settings_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"camera\.mask_rcnn\.anchor_sizes: expected 5 sides in pixels.*got \[8\.0\]"):
        small_model(anchor_sizes=(8.0,))
    with pytest.raises(ConfigError, match=r"camera\.mask_rcnn: expected numbers of at least 1"):
        small_model(boxes_per_image=0)
