"""Mask R-CNN as the camera branch of a run: what it is built from, what is refused, exact resumption."""

from __future__ import annotations

import math
import os
import signal

import pytest
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn

from camera.mask_rcnn import MaskRCNN
from camera.sources import OfflineMasks
from camera.transforms import ImageGeometry
from fusion.step import PretrainingStep
from mwsis.core.errors import ConfigError, WeightMismatchError
from mwsis.core.frame import BoxMasks
from mwsis.core.instances import MaskSet
from mwsis.training.build import build_method, build_segmentor, build_transform, check_start, check_training
from mwsis.training.callbacks import read_losses
from mwsis.training.checkpoint import read_run_checkpoint
from mwsis.training.config import labels_used
from mwsis.training.evaluate import evaluate_run
from mwsis.training.folder import RunFolder
from mwsis.training.mask_rcnn import unused_settings
from mwsis.training.run import train
from tests.training.conftest import MASK_RCNN
from tests.training.kill_stress import assert_same

NAMES = {f"camera/{name}" for name in ("objectness", "proposal_box", "classification", "box", "mask")}
FULL = ("method=full", "data.supervision=masks")


def test_it_is_built_from_the_configuration(compose_tiny):
    run = compose_tiny(*FULL, *MASK_RCNN)
    check_training(run)
    check_start(run, 3)
    first, second = (build_segmentor(run, 3).camera for _ in range(2))
    assert isinstance(first, MaskRCNN)
    assert_same(first.state_dict(), second.state_dict())
    method = build_method(run)
    assert method.camera_terms == {}
    assert type(method.mask_source) is OfflineMasks
    assert build_transform(run, augment=True).mask_stride == 1
    assert labels_used(run) == "2D boxes and their gt_ masks"
    condinst = compose_tiny(*FULL)
    assert set(build_method(condinst).camera_terms) == {"projection", "masks"}
    assert build_transform(condinst, augment=True).mask_stride == 4


def test_the_published_one_has_the_published_network(compose_tiny):
    run = compose_tiny(*FULL, "camera=mask_rcnn", "camera.pretrained=false")
    camera = build_segmentor(run, 80).camera
    with torch.device("meta"):
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81)
    for ours, other in (
        (camera.pyramid, theirs.backbone.fpn),
        (camera.rpn, theirs.rpn),
        (camera.heads, theirs.roi_heads),
    ):
        shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (ours, other)]
        assert shapes[0] == shapes[1]
    assert camera.rpn._pre_nms_top_n == theirs.rpn._pre_nms_top_n
    assert camera.rpn._post_nms_top_n == theirs.rpn._post_nms_top_n
    for name in ("score_thresh", "nms_thresh", "detections_per_img"):
        assert getattr(camera.heads, name) == getattr(theirs.roi_heads, name)
    for one in ("rpn", "heads"):
        ours, other = getattr(camera, one), theirs.rpn if one == "rpn" else theirs.roi_heads
        assert vars(ours.proposal_matcher) == vars(other.proposal_matcher)
        assert vars(ours.fg_bg_sampler) == vars(other.fg_bg_sampler)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=boxinst"], r"camera.mask_rcnn: .*, which method.camera_terms.pairwise is about; set method=full"),
        (["method=sim"], r"which method.camera_terms.\w+ is about; set method=full with data.supervision=masks"),
        (["method=mwsis"], r"which method.camera_terms.\w+ is about; set method=full"),
        (["method=mixed", "data.supervision=mixed"], r"which method.camera_terms.masks is about; set method=full"),
        ([*FULL, "method.refine_masks=true"], r"which method.mask_source is about; set method=full"),
        ([*FULL, "method.camera_terms.masks.enabled=true"], r"which method.camera_terms.masks is about"),
        (["method=full"], r"method.mask_source \(OfflineMasks\) needs masks of the boxes; set data.supervision=masks"),
    ],
)
def test_other_methods_are_refused_before_training(compose_tiny, overrides, said):
    with pytest.raises(ConfigError, match=said):
        check_training(compose_tiny(*MASK_RCNN, *overrides))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("camera.weights=start.pt", r"camera.weights: that is for CondInst"),
        ("camera.mmdet=config.py", r"camera.mmdet: that is for CondInst"),
        ("camera.mask_rcnn.anchor_sizes=[8]", r"anchor_sizes: expected 5 sides in pixels"),
        ("camera.pretrained=/nowhere.pt", r"camera.pretrained: /nowhere.pt: no such file"),
    ],
)
def test_settings_are_refused_before_training(compose_tiny, setting, said):
    with pytest.raises((ConfigError, WeightMismatchError), match=said):
        check_start(compose_tiny(*FULL, *MASK_RCNN, "camera.norm=batch", setting), 3)


def test_settings_of_condinst_are_named(compose_tiny):
    assert unused_settings(compose_tiny(*FULL, *MASK_RCNN).camera) == []
    assert unused_settings(compose_tiny(*FULL).camera) == []
    asked = compose_tiny(*FULL, *MASK_RCNN, "camera.prior=0.2", "camera.size_ranges=[1,2,3,4]").camera
    assert unused_settings(asked) == ["camera.prior", "camera.size_ranges"]


def test_masks_are_given_as_fine_as_the_image():
    crop = torch.rand(9, 14, generator=torch.Generator().manual_seed(0)) > 0.5
    given = BoxMasks(MaskSet.from_crops(32, 48, torch.tensor([[20, 3, 34, 12]]), [crop]), torch.ones(1))
    same = ImageGeometry(32, 48, 32, 48, flipped=False).apply_masks(given, 1).masks
    assert torch.equal(same.dense(0), given.masks.dense(0))
    mirrored = ImageGeometry(32, 48, 32, 48, flipped=True, crop=(10, 0, 40, 20)).apply_masks(given, 1).masks
    assert torch.equal(mirrored.dense(0), given.masks.dense(0)[:20, 10:40].flip(1))


def masks_below(weight):
    source = OfflineMasks(min_weight=weight)
    masks = MaskSet.from_crops(8, 8, torch.tensor([[0, 0, 1, 1]] * 3), [torch.ones(1, 1).bool()] * 3)
    return source.of_boxes([BoxMasks(masks, torch.tensor([0.0, 0.4, 0.8]))])[0].weight.tolist()


def test_masks_trusted_too_little_are_left_out():
    assert masks_below(0.0) == pytest.approx([0.0, 0.4, 0.8])
    assert masks_below(0.5) == pytest.approx([0.0, 0.0, 0.8])


@pytest.mark.slow
def test_interrupts_change_nothing(tmp_path, compose_tiny, prepare_tiny, monkeypatch):
    run = compose_tiny(*FULL, *MASK_RCNN, "trainer.max_steps=8")
    prepared = prepare_tiny(run)
    whole, pieces = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "pieces")
    assert train(run, whole, prepared)

    update, pending = PretrainingStep.update_teacher, [1, 5]

    def interrupting_update(self, progress):
        update(self, progress)
        if pending and round(progress * run.trainer.max_steps) == pending[0]:
            pending.pop(0)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(PretrainingStep, "update_teacher", interrupting_update)
    lives = 1
    while not train(run, pieces, prepared):
        lives += 1
        torch.manual_seed(lives)
    assert (lives, pending) == (3, [])
    ends = [read_run_checkpoint(folder.checkpoint) for folder in (whole, pieces)]
    for part in ("model", "optimisers", "global_step"):
        assert_same({part: ends[0][part]}, {part: ends[1][part]})
    losses = read_losses(whole.losses)
    assert losses == read_losses(pieces.losses)
    assert all(math.isfinite(value) for _, _, value in losses)
    assert {name for step, name, _ in losses if step == 7} == NAMES | {"loss"}
    totals = [value for _, name, value in losses if name == "loss"]
    assert sum(totals[-3:]) < sum(totals[:3])
    scores = [evaluate_run(run, state, prepared, "test", lambda *_: None)[0] for state in ends]
    assert scores[0] == scores[1]
    assert scores[0]["camera"]["teacher"]["matched_box_iou"] is not None
    assert scores[0]["labels_used"] == "2D boxes and their gt_ masks"
    torch.use_deterministic_algorithms(False)
