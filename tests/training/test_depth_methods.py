"""Methods that look at depth: what they consist of and refuse, that they train, and that prediction needs no depth."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from camera.matching import Hungarian
from camera.prototypes import PrototypeRefiner
from camera.segmentor import build_condinst
from camera.sources import MatchedDetections, PositiveAggregation
from fusion.depth_maps import FileDepth, LidarDepth
from fusion.segmentor import MultimodalSegmentor
from fusion.step import PretrainingStep
from mwsis.core.batch import DepthMaps
from mwsis.core.errors import ConfigError, DataError
from mwsis.data.dataset import FrameDataset, collate
from mwsis.data.depth_files import DepthWriter
from mwsis.training.build import build_method, build_segmentor, build_transform, check_start, check_training
from mwsis.training.callbacks import read_losses
from mwsis.training.folder import RunFolder
from mwsis.training.run import train
from tests.fusion.test_step import RANGES, batch_of, boxes_of, counting
from tests.training.test_recipes import ODD

LIDAR = ("method=pseudo_depth", "data.depth=lidar")
DEPTH_TERMS = {"camera/depth_pairs", "camera/depth_regression"}


def test_pseudo_depth_consists_of_what_it_says(compose_tiny):
    run = compose_tiny(*LIDAR)
    check_training(run)
    method = build_method(run)
    assert set(method.camera_terms) == {"projection", "pairwise", "depth_pairs", "depth_regression", "pseudo_mask"}
    assert type(method.mask_source) is MatchedDetections
    matcher = method.mask_source.matcher
    assert type(matcher) is Hungarian
    assert (matcher.alpha, matcher.beta, matcher.minimum, matcher.class_aware) == (0.1, 0.3, 0.5, False)
    assert {name: method.camera_terms[name].schedule(0.9) for name in ("pseudo_mask", "depth_pairs")} == {
        "pseudo_mask": 0.5,
        "depth_pairs": 0.25,
    }
    assert (run.method.name, run.method.branches) == ("pseudo_depth", ["camera"])
    assert method.lidar_to_camera is method.camera_to_lidar is method.record_votes_from is None
    assert build_segmentor(run, 3).camera.controller.weight.shape[0] == 242
    assert build_segmentor(compose_tiny("method=boxinst"), 3).camera.controller.weight.shape[0] == 233


def test_mwsis_plus_is_mwsis_with_prototypes_and_depth(compose_tiny):
    run, plain = compose_tiny("method=mwsis_plus"), compose_tiny("method=mwsis")
    check_training(run)
    method, base = build_method(run), build_method(plain)
    assert set(method.camera_terms) == {*base.camera_terms, "depth_pairs", "depth_regression"}
    assert (run.data.depth, run.camera.depth_gate) == ("lidar", "half")
    assert type(method.mask_source) is PrototypeRefiner
    inner = method.mask_source.inner
    assert type(inner) is type(base.mask_source) is PositiveAggregation
    assert (inner.mu, inner.use_cls) == (base.mask_source.mu, base.mask_source.use_cls) == (1.0, True)
    changed = replace(run.method, name="mwsis", mask_source=None, camera_terms={})
    assert changed == replace(plain.method, mask_source=None, camera_terms={})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=pseudo_depth"], r"\((Pairwise|DepthRegression)\) needs depth of the images; set data.depth=lidar"),
        ([*LIDAR, "camera.depth_gate=null"], r"depth_regression \(DepthRegression\) needs a network that says how"),
        (["method=pseudo_depth", "data.depth=/nowhere"], r"/nowhere/depth.json: cannot be read \(No such file"),
        ([*LIDAR, "camera.mmdet=condinst.py"], r"needs a network that says how.* and no camera.mmdet"),
        ([*LIDAR, "method.ema=false"], r"mask_source \(MatchedDetections\) needs a teacher of its own"),
    ],
)
def test_what_nothing_provides_is_refused_before_training(compose_tiny, overrides, said):
    run = compose_tiny(*overrides)
    for refused in (check_training, lambda run: build_transform(run, augment=True)):
        with pytest.raises((ConfigError, DataError), match=said):
            refused(run)
    assert build_transform(run, augment=False).depth is None  # evaluation needs none of it


def test_a_matcher_alone_asks_for_depth(compose_tiny):
    hungarian = ("method.mask_source.matcher._target_=camera.matching.Hungarian", "~method.mask_source.matcher.iou")
    with pytest.raises(ConfigError, match=r"mask_source \(MatchedDetections\) needs depth"):
        check_training(compose_tiny("method=boxteacher", *hungarian))


def test_no_such_gate(compose_tiny):
    with pytest.raises(ConfigError, match=r"camera.depth_gate: no 'hafl'; did you mean 'half'"):
        build_segmentor(compose_tiny(*LIDAR, "camera.depth_gate=hafl"), 3)
    check_start(compose_tiny(*LIDAR), 3)


def test_depth_is_loaded_only_where_a_term_or_source_looks_at_it(compose_tiny, tmp_path):
    DepthWriter(tmp_path, metric=False, made_by="tests").finish()
    assert isinstance(build_transform(compose_tiny(*LIDAR), augment=True).depth, LidarDepth)
    folder = compose_tiny("method=pseudo_depth", f"data.depth={tmp_path}")
    assert isinstance(build_transform(folder, augment=True).depth, FileDepth)
    unused = compose_tiny("method=boxinst", "data.depth=/nowhere")
    with pytest.warns(UserWarning, match=r"data\.depth=/nowhere: nothing in method 'boxinst' looks at depth"):
        assert build_transform(unused, augment=True).depth is None
    off = [f"method.camera_terms.{name}.enabled=false" for name in ("depth_pairs", "depth_regression", "pseudo_mask")]
    with pytest.warns(UserWarning, match="nothing in method 'pseudo_depth' looks at depth"):
        assert build_transform(compose_tiny(*LIDAR, *off), augment=True).depth is None


def with_depth(batch, metric, known=True):
    """Return the batch with slopes of depth in its images of 64 by 96 px, or with nothing known of them."""
    slope = torch.linspace(5, 60, 24).expand(len(batch.images), 16, 24).contiguous()
    maps = DepthMaps(slope, torch.full_like(slope, known).bool(), torch.zeros_like(slope).bool(), metric)
    return replace(batch, images=replace(batch.images, depth=maps if known else maps.without(~maps.valid)))


def depth_step(run):
    torch.manual_seed(0)
    camera = build_condinst(
        3,
        backbone="test_resnet",
        channels=32,
        num_convs=1,
        mask_branch_channels=32,
        mask_branch_convs=1,
        norm="group",
        size_ranges=RANGES,
        score_threshold=0.0,
        box_bias=2.0,
        depth_gate=run.camera.depth_gate,
    )
    return PretrainingStep(MultimodalSegmentor(camera, None), build_method(run), 3).train()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("metric", [True, False])
@pytest.mark.parametrize("odd", ODD)
def test_odd_batches_give_finite_losses_and_gradients(compose_tiny, odd, metric, known):
    batch = with_depth(batch_of([boxes_of(rows) for rows in ODD[odd]]), metric, known)
    step = depth_step(compose_tiny(*LIDAR))
    losses = step.losses(batch, 0.95)
    assert set(losses) >= {f"camera/{name}" for name in step.method.camera_terms}
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    for name, parameter in step.student.named_parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name
    if odd == "no box at all":
        assert all(losses[f"camera/{name}"] == 0 for name in step.method.camera_terms)
    if not known:
        assert all(losses[name] == 0 for name in DEPTH_TERMS)


@pytest.mark.parametrize("gate", ["half", "product"])
def test_both_gates_learn_depth_and_predict_without_any(compose_tiny, gate):
    step = depth_step(compose_tiny(*LIDAR, f"camera.depth_gate={gate}"))
    batch = with_depth(batch_of([boxes_of([[8.0, 8.0, 40.0, 50.0]]), boxes_of([[20.0, 20.0, 60.0, 60.0]])]), True)
    losses = step.losses(batch, 0.6)
    assert all(float(losses[name].detach()) > 0 for name in DEPTH_TERMS)
    losses["camera/depth_regression"].backward()
    assert bool(step.student.camera.controller.bias.grad[233:].any())
    found = []
    for images in (batch.images, replace(batch.images, depth=None)):
        found.append(step.student.eval().camera.predict(images))
    for with_maps, without in zip(*found, strict=True):
        assert len(with_maps.scores) > 0
        assert torch.equal(with_maps.scores, without.scores)
        assert torch.equal(with_maps.masks.bits, without.masks.bits)


def test_the_teacher_looks_at_a_batch_once_and_in_evaluation_mode(compose_tiny, monkeypatch):
    """Detections, their masks for the matching and the masks matched come from one pass; none before the start."""
    step = depth_step(compose_tiny(*LIDAR, "method.mask_source.matcher.minimum=0"))
    calls = counting(step.teaching_model, monkeypatch)
    batch = with_depth(batch_of([boxes_of([[8.0, 8.0, 40.0, 50.0]]), boxes_of([[20.0, 20.0, 60.0, 60.0]])]), True)
    assert "camera/pseudo_mask" not in step.losses(batch, 0.4)
    assert calls == []
    assert float(step.losses(batch, 0.6)["camera/pseudo_mask"].detach()) > 0
    assert calls == [2]
    assert not step.teaching_model.training
    assert step.student.training


def test_what_a_pasted_object_hides_has_no_depth(compose_tiny):
    run = compose_tiny("method=sim", "method.copy_paste.prob=1")
    step = depth_step(run)
    batch = with_depth(batch_of([boxes_of([[8.0, 8.0, 40.0, 50.0]]), boxes_of([[20.0, 20.0, 60.0, 60.0]])]), True)
    covered = torch.zeros(2, 64, 96, dtype=torch.bool)
    covered[1, :32, :48] = True
    compose = step.copy_paste.compose

    def pasting(images, progress):
        return replace(compose(images, progress), covered=covered)

    step.copy_paste.compose = pasting
    composed, _ = step._pasted(batch, 0.5)
    depth = composed.images.depth
    assert not depth.valid[1, :8, :12].any()
    assert not depth.value[1, :8, :12].any()
    assert int(depth.valid.sum()) == 2 * 16 * 24 - 8 * 12
    assert bool(batch.images.depth.valid.all())


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [LIDAR, ("method=mwsis_plus",)], ids=["pseudo_depth", "mwsis_plus"])
def test_twenty_steps(tmp_path, compose_tiny, prepare_tiny, overrides):
    run = compose_tiny(*overrides, "trainer.max_steps=20")
    assert train(run, RunFolder(tmp_path), prepare_tiny(run))
    losses = read_losses(tmp_path / "losses.csv")
    assert all(math.isfinite(value) for _, _, value in losses)
    last = {name: value for step, name, value in losses if step == 19}
    assert {f"camera/{name}" for name in build_method(run).camera_terms} <= set(last)
    assert all(last[name] > 0 for name in DEPTH_TERMS)


@pytest.mark.slow
def test_depth_of_a_folder_trains_and_is_not_that_of_the_points(tmp_path, compose_tiny, prepare_tiny):
    """A folder of inverse depth made of the images' brightness: the same step, other losses on depth alone."""
    prepared = prepare_tiny(compose_tiny(*LIDAR))
    writer = DepthWriter(tmp_path, metric=False, made_by="tests")
    from camera.transforms import decode_image

    for frame in prepared.train.frames:
        for view in frame.cameras:
            writer.add(frame.frame_id, view.name, decode_image(view.image, "test").float().mean(0)[::2, ::2])
    writer.finish()
    losses = []
    for depth in ("lidar", str(tmp_path)):
        run = compose_tiny("method=pseudo_depth", f"data.depth={depth}")
        step = PretrainingStep(build_segmentor(run, 3), build_method(run), 3).train()
        samples = FrameDataset(prepared.train.frames, prepared.train.labels, build_transform(run, True), run.seed)
        losses.append(step.losses(collate([samples[0, 0], samples[1, 1]]), 0.4))
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        assert torch.equal(value, losses[1][name]) == (name not in DEPTH_TERMS), name
        assert bool(torch.isfinite(losses[1][name]))
