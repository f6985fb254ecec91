"""mmdet's own networks beside ours and as ours: the same weights give the same masks, losses and detections."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch

from camera.mmdet_segmentor import build_mmdet, import_mmdet
from camera.mmdet_weights import compare_mmdet, from_mmdet, to_mmdet
from camera.segmentor import build_condinst
from camera.sources import PositiveAggregation
from camera.terms import MaskContext, Pairwise, Projection, PseudoMask
from fusion.step import PretrainingStep
from mwsis.core.batch import Batch, PointBatch
from mwsis.core.errors import ConfigError
from mwsis.core.instances import PointLabels
from mwsis.training.build import build_method, build_segmentor, check_start, check_training
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from tests.camera.mmdet_models import SETTINGS, config_text, randomise, scenes

INSTALLED = importlib.util.find_spec("mmdet") is not None
with_mmdet = pytest.mark.skipif(not INSTALLED, reason="the extra 'mmdet' is not installed")


@pytest.mark.skipif(INSTALLED, reason="the extra 'mmdet' is installed")
def test_without_the_extra_one_sentence():
    with pytest.raises(ConfigError, match=r"camera\.mmdet: 'mmdet' is not installed; install the extra 'mmdet'"):
        build_mmdet("config.py", 3)


def detector_of(text):
    """Return mmdet's detector with weights with which it finds something."""
    import_mmdet()
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = Config.fromstring(text, ".py").model
    model.backbone.init_cfg = None
    detector = MODELS.build(model)
    detector.init_weights()
    randomise(detector)
    return detector


def as_mmdet_samples(images, labels=True):
    """Return what mmdet's data loader gives: BGR images of their own size, boxes."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    inputs, samples = [], []
    for image, (height, width), boxes in zip(images.images, images.sizes.tolist(), images.labels, strict=True):
        inputs.append(image[:, :height, :width].flip(0))
        sample = DetDataSample(
            metainfo={"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
        )
        if labels:
            sample.gt_instances = InstanceData(bboxes=boxes.boxes.clone(), labels=boxes.labels)
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


def mmdet_losses(detector, images):
    from mmengine import MessageHub

    MessageHub.get_current_instance().update_info("iter", 10**6)  # past the warm-up of the pair loss
    detector.train()
    prepared = detector.data_preprocessor(as_mmdet_samples(images), training=True)
    return detector.loss(prepared["inputs"], prepared["data_samples"])


def mmdet_detections(detector, images):
    detector.eval()
    prepared = detector.data_preprocessor(as_mmdet_samples(images, labels=False), training=False)
    with torch.no_grad():
        return [one.pred_instances for one in detector.predict(prepared["inputs"], prepared["data_samples"])]


def our_losses(model, images):
    model.train()
    dense = model.dense(images)
    positives = model.assign(dense, images.labels)
    sampled = model.sample(dense, positives)
    ctx = MaskContext(model.decode_masks(dense, sampled), sampled, images)
    return {**model.detection_loss(dense, positives), "projection": Projection()(ctx), "pairwise": Pairwise()(ctx)}


def imported(detector, width=8, **settings):
    model = build_condinst(
        4,
        backbone="resnet50",
        mask_channels=width,
        mask_hidden=width,
        frozen_stages=1,
        max_per_image=1000,
        **SETTINGS,
        **settings,
    )
    assert compare_mmdet(detector.state_dict(), model).fits
    model.load_state_dict(from_mmdet(detector.state_dict(), model))
    return model


def adapted(text, detector, folder):
    (folder / "config.py").write_text(text)
    torch.save({"state_dict": detector.state_dict(), "meta": {}}, folder / "weights.pth")
    return build_mmdet(folder / "config.py", 4, weights=folder / "weights.pth")


@pytest.fixture(
    scope="module", params=["imported", "imported wide", "imported caffe pixels", "adapted", "adapted wide"]
)
def pair(request, tmp_path_factory):
    """Return mmdet's detector and our segmentor with its weights; tests leave both as they are."""
    if not INSTALLED:
        pytest.skip("the extra 'mmdet' is not installed")
    style = "caffe" if "caffe" in request.param else "imagenet"
    width = 16 if "wide" in request.param else 8
    text = config_text(width=width, style=style)
    detector = detector_of(text)
    if request.param.startswith("imported"):
        return detector, imported(detector, width, pixel_style=style)
    return detector, adapted(text, detector, tmp_path_factory.mktemp("mmdet"))


def test_losses_equal_mmdets_boxinst(pair):
    detector, model = pair
    images = scenes()
    theirs = mmdet_losses(copy.deepcopy(detector), images)
    ours = our_losses(copy.deepcopy(model), images)
    names = {
        "projection": "loss_mask_project",
        "pairwise": "loss_mask_pairwise",
        "classification": "loss_cls",
        "centerness": "loss_centerness",
    }
    if not detector.data_preprocessor._channel_conversion:
        del names["pairwise"]  # of BGR images mmdet compares the colours as if they were RGB
    for name, other in names.items():
        assert theirs[other] > 0.01
        torch.testing.assert_close(ours[name], theirs[other], rtol=1e-5, atol=1e-5)


def test_detections_equal_mmdets(pair):
    """mmdet's threshold is on the class score alone and it reports no root, so its list goes on below ours."""
    detector, model = pair
    images = scenes()
    for theirs, ours in zip(mmdet_detections(detector, images), model.eval().predict(images), strict=True):
        keep = theirs.scores > model.score_threshold
        assert 3 <= int(keep.sum()) < len(keep) < 1000
        torch.testing.assert_close(ours.scores.square(), theirs.scores[keep], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.boxes, theirs.bboxes[keep], rtol=1e-5, atol=1e-3)
        assert ours.labels.equal(theirs.labels[keep])
        masks = torch.stack([ours.masks.dense(index) for index in range(len(ours))])
        assert masks.any()
        assert not masks.all()
        assert (masks != theirs.masks[keep]).sum() <= 1e-5 * masks.numel()


@with_mmdet
def test_the_round_trip_is_exact_and_mmdet_loads_it_strictly():
    detector = detector_of(config_text("CondInst"))
    weights = detector.state_dict()
    back = to_mmdet(imported(detector).state_dict())
    assert back.keys() == weights.keys()
    assert all(back[name].equal(weights[name]) and back[name].dtype == weights[name].dtype for name in weights)
    detector.load_state_dict(back, strict=True)


@with_mmdet
def test_an_mmdet_network_learns_and_teaches(tmp_path):
    (tmp_path / "config.py").write_text(config_text())
    torch.manual_seed(0)
    student = build_mmdet(tmp_path / "config.py", 4).train()
    teacher = copy.deepcopy(student).requires_grad_(False)
    images = scenes()
    dense = student.dense(images)
    sampled = student.sample(dense, student.assign(dense, images.labels))
    logits, teacher_dense = student.decode_masks(dense, sampled), teacher.dense(images)
    soft = teacher.decode_masks(teacher_dense, sampled).sigmoid()
    torch.testing.assert_close(soft, logits.sigmoid())
    target = PositiveAggregation()(soft, *teacher.evidence(teacher_dense, sampled), sampled.gt_index, sampled.num_gt)
    ctx = MaskContext(logits, sampled, images, target)
    loss = sum(our_losses(student, images).values()) + PseudoMask(high=0.5, low=0.5)(ctx)
    loss.backward()
    trained = {name for name, value in student.named_parameters() if value.requires_grad}
    assert {name for name, value in student.named_parameters() if value.grad is not None} == trained
    assert torch.isfinite(loss)


@with_mmdet
def test_an_image_without_boxes_reaches_every_parameter(tmp_path):
    from mwsis.core.batch import ImageBatch
    from mwsis.core.instances import Boxes2D

    (tmp_path / "config.py").write_text(config_text())
    model = build_mmdet(tmp_path / "config.py", 4)
    full = scenes()
    images = ImageBatch(full.images, full.sizes, full.original_sizes, (Boxes2D.empty(), Boxes2D.empty()))
    losses = our_losses(model, images)
    assert losses["projection"] == losses["pairwise"] == 0
    sum(losses.values()).backward()
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []


@with_mmdet
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (config_text().replace("'BoxInst'", "'RTMDet'"), "expected a CondInst or BoxInst, got RTMDet"),
        (config_text().replace("mask_stride=8", "mask_stride=4"), "expected mask features at stride 8"),
        ("nothing = 1", "expected an mmdet configuration with 'model'"),
    ],
)
def test_other_models_are_refused(tmp_path, text, sentence):
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        build_mmdet(tmp_path / "config.py", 3)


@with_mmdet
def test_operators_without_mmcvs_compiled_code():
    import_mmdet()
    from mmcv.ops import DeformConv2dPack, sigmoid_focal_loss
    from mmcv.ops import nms as mmcv_nms

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 3, generator=generator, requires_grad=True)
    target, weight = torch.randint(0, 4, (50,), generator=generator), torch.tensor([1.0, 2.0, 0.5])
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "sum").backward()
    found, logits.grad = logits.grad, None
    wanted = torch.nn.functional.one_hot(target, 4)[:, :3]
    py_sigmoid_focal_loss(logits, wanted, reduction="sum").backward()
    torch.testing.assert_close(found, logits.grad)
    weighted = sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "none")
    plain = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "none")
    torch.testing.assert_close(weighted, plain * torch.cat([weight, torch.ones(1)])[target][:, None])
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 4], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    assert mmcv_nms(boxes, scores, 0.45)[1].tolist() == [1, 2, 0]  # 36 / 81 = .444
    assert mmcv_nms(boxes, scores, 0.45, offset=1)[1].tolist() == [1, 2]  # 50 / 100
    with pytest.raises(ConfigError, match="needs mmcv's operator 'deform_conv_forward'"):
        DeformConv2dPack(4, 4, 3, padding=1)(torch.zeros(1, 4, 8, 8))


@with_mmdet
@pytest.mark.parametrize("recipe", ["boxteacher", "mwsis_camera", "sim"])
def test_a_recipe_trains_an_mmdet_network(tmp_path, recipe):
    """The setting `camera.mmdet`: student, EMA teacher and every term of the recipe, one step with a gradient."""
    (tmp_path / "config.py").write_text(config_text())
    run = typed(compose_run(["experiment=smoke", f"method={recipe}", f"camera.mmdet={tmp_path / 'config.py'}"]))
    check_training(run)
    check_start(run, 4)
    step = PretrainingStep(build_segmentor(run, 4), build_method(run), 4).train()
    none = torch.zeros(0, dtype=torch.int64)
    points = PointBatch(torch.zeros(0, 3), torch.zeros(0, 2), torch.zeros(2, dtype=torch.int64), none, none)
    slots = torch.zeros(0, 1, 2), torch.zeros(0, 1, dtype=torch.int64)
    batch = Batch(torch.zeros(1, dtype=torch.int64), ("f",), points, scenes(), *slots, PointLabels(none, none))
    losses = step.losses(batch, 0.95)
    assert {f"camera/{name}" for name in step.method.camera_terms} < set(losses)
    sum(losses.values()).backward()
    assert all(bool(torch.isfinite(value.grad).all()) for value in step.student.parameters() if value.grad is not None)
    before = copy.deepcopy(step.teacher.state_dict())
    with torch.no_grad():
        for value in step.student.parameters():
            value.add_(0.01)
    step.update_teacher(0.95)
    assert any(not value.equal(before[name]) for name, value in step.teacher.state_dict().items())
