"""Whole runs on a tiny world: exact resumption, no leak of ground truth, switches."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch.nn import functional

import camera.fcos
import camera.terms
import fusion.distillation
import lidar.point_head
from fusion.step import PretrainingStep
from mwsis.core.frame import FrameTruth
from mwsis.core.instances import MaskSet
from mwsis.training.callbacks import read_losses
from mwsis.training.checkpoint import read_run_checkpoint
from mwsis.training.evaluate import evaluate_run
from mwsis.training.folder import RunFolder
from mwsis.training.prepare import Prepared, Split
from mwsis.training.run import train
from tests.training.conftest import SIM_AT_ONCE
from tests.training.kill_stress import assert_same

SIM_STATE = ("mask_source.num_updates", "copy_paste.table", "copy_paste.pixels")


def run_to_end(run, prepared, root):
    folder = RunFolder(root)
    while not train(run, folder, prepared):
        pass
    return read_run_checkpoint(folder.checkpoint)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_three_interrupts_change_nothing(tmp_path, compose_tiny, prepare_tiny, monkeypatch):
    run = compose_tiny()
    prepared = prepare_tiny(run)
    whole = run_to_end(run, prepared, tmp_path / "whole")

    pending = [2, 5, 9]
    update, calls = PretrainingStep.update_teacher, []

    def interrupting_update(self, progress):
        update(self, progress)
        step = round(progress * run.trainer.max_steps)
        calls.append(step)
        if pending and step == pending[0]:
            pending.pop(0)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(PretrainingStep, "update_teacher", interrupting_update)
    pieces = run_to_end(run, prepared, tmp_path / "pieces")
    assert pending == []
    assert calls == list(range(run.trainer.max_steps))
    for part in ("model", "optimisers", "global_step"):
        assert_same({part: whole[part]}, {part: pieces[part]})
    votes = [(tmp_path / name / "vote_history.u16").read_bytes() for name in ("whole", "pieces")]
    assert votes[0] == votes[1]
    losses = [(tmp_path / name / "losses.csv").read_text() for name in ("whole", "pieces")]
    assert losses[0] == losses[1]
    scores = [evaluate_run(run, state, prepared, "test", lambda *_: None)[0] for state in (whole, pieces)]
    assert scores[0] == scores[1]


@pytest.fixture
def equal_counts(monkeypatch):
    """Every normaliser is the number of frames, and batch norms use what they have seen: parts add up exactly."""
    seen = []
    losses = PretrainingStep.losses

    def counting_losses(self, batch, progress, with_lidar=True):
        seen.append(len(batch.frame_ids))
        return losses(self, batch, progress, with_lidar)

    def frozen(self, values):
        return functional.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias)

    monkeypatch.setattr(PretrainingStep, "losses", counting_losses)
    monkeypatch.setattr(torch.nn.modules.batchnorm._BatchNorm, "forward", frozen)
    for module in (camera.fcos, camera.terms, lidar.point_head, fusion.distillation):
        monkeypatch.setattr(module, "normaliser", lambda count, at_least=1.0: torch.tensor(100.0 * seen[-1]))
    return seen


@pytest.mark.slow
def test_parts_of_a_step_add_up_to_the_step(tmp_path, compose_tiny, prepare_tiny, equal_counts):
    settings = (
        *("trainer.max_steps=3", "trainer.frames_per_step=2", "data.cameras_per_frame=1", "data.pad_to=[128,192]"),
        *("camera.optim.kind=sgd", "camera.optim.lr=0.001", "lidar.optim.kind=sgd", "lidar.optim.lr=0.0001"),
        *("method.lidar_to_camera.start=0", "method.camera_to_lidar.start=0", "method.camera_terms.ipg.start=0"),
    )
    ends, losses = [], []
    for num_parts in (1, 2):
        run = compose_tiny(*settings, f"trainer.accumulate={num_parts}")
        ends.append(run_to_end(run, prepare_tiny(run), tmp_path / str(num_parts))["model"])
        losses.append(read_losses(tmp_path / str(num_parts) / "losses.csv"))
    assert equal_counts == [2] * 3 + [1] * 6
    for (*key, value), (*other, same) in zip(*losses, strict=True):
        assert key == other
        assert same == pytest.approx(value, rel=1e-5), key
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-6, atol=1e-6, msg=name)
    votes = [(tmp_path / name / "vote_history.u16").read_bytes() for name in ("1", "2")]
    assert votes[0] == votes[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [("method=mwsis",), SIM_AT_ONCE, ("method=pseudo_depth", "data.depth=lidar")],
    ids=["mwsis", "sim", "pseudo_depth"],
)
def test_an_interrupt_between_accumulated_steps_changes_nothing(
    tmp_path, compose_tiny, prepare_tiny, monkeypatch, method
):
    settings = ("trainer.max_steps=4", "trainer.frames_per_step=2", "trainer.accumulate=2")
    run = compose_tiny(*method, *settings)
    prepared = prepare_tiny(run)
    whole = run_to_end(run, prepared, tmp_path / "whole")
    update, calls = PretrainingStep.update_teacher, []

    def interrupting_update(self, progress):
        update(self, progress)
        calls.append(progress)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(PretrainingStep, "update_teacher", interrupting_update)
    assert not train(run, RunFolder(tmp_path / "pieces"), prepared)
    pieces = run_to_end(run, prepared, tmp_path / "pieces")
    assert calls == [0.0, 0.25, 0.5, 0.75]
    for part in ("model", "optimisers", "global_step"):
        assert_same({part: whole[part]}, {part: pieces[part]})
    assert all(bool(value.any()) for name, value in whole["model"].items() if name in SIM_STATE)
    losses = [(tmp_path / name / "losses.csv").read_text() for name in ("whole", "pieces")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_kill_between_checkpoints_changes_nothing(tmp_path, compose_tiny, prepare_tiny, monkeypatch):
    run = compose_tiny()
    prepared = prepare_tiny(run)
    whole = run_to_end(run, prepared, tmp_path / "whole")

    update = PretrainingStep.update_teacher

    def dying_update(self, progress):
        update(self, progress)
        if round(progress * run.trainer.max_steps) == 7:
            raise RuntimeError("the machine went away")

    with monkeypatch.context() as patch:
        patch.setattr(PretrainingStep, "update_teacher", dying_update)
        with pytest.raises(RuntimeError, match="went away"):
            train(run, RunFolder(tmp_path / "killed"), prepared)
    assert read_run_checkpoint(RunFolder(tmp_path / "killed").checkpoint)["global_step"] == 5
    killed = run_to_end(run, prepared, tmp_path / "killed")
    assert_same({"model": whole["model"]}, {"model": killed["model"]})
    assert (tmp_path / "whole" / "vote_history.u16").read_bytes() == (
        tmp_path / "killed" / "vote_history.u16"
    ).read_bytes()


class Poisoned:
    """Frames whose ground truth is wrong everywhere: other labels, all-ones masks, shifted 3D boxes."""

    def __init__(self, frames):
        self.frames = frames
        self.num_points = frames.num_points

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        from dataclasses import replace

        frame = self.frames[index]
        truth = frame.truth
        images = tuple(
            None
            if image is None
            else replace(
                image,
                masks=MaskSet(
                    image.masks.height, image.masks.width, image.masks.crop_boxes, torch.ones_like(image.masks.bits)
                ),
            )
            for image in truth.images
        )
        poisoned = FrameTruth(
            torch.ones_like(truth.semantic_labels),
            torch.arange(len(truth.instance_ids)),
            truth.boxes3d + 3.0,
            truth.box3d_labels.flip(0),
            truth.box3d_ids,
            truth.box_instance_ids,
            images,
        )
        return replace(frame, truth=poisoned)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [("method=mwsis",), SIM_AT_ONCE, ("method=pseudo_depth", "data.depth=lidar"), ("method=mwsis_plus",)],
    ids=["mwsis", "sim", "pseudo_depth", "mwsis_plus"],
)
def test_poisoned_ground_truth_changes_no_bit_of_twenty_steps(tmp_path, compose_tiny, prepare_tiny, method):
    run = compose_tiny(*method, "trainer.max_steps=20", "trainer.checkpoint_every=20")
    clean = prepare_tiny(run)
    poisoned = Prepared(clean.source, Split(Poisoned(clean.train.frames), clean.train.labels), clean.val)
    first, second = (run_to_end(run, data, tmp_path / name) for name, data in (("a", clean), ("b", poisoned)))
    assert_same({"model": first["model"]}, {"model": second["model"]})
    assert all(bool(value.any()) for name, value in first["model"].items() if name in SIM_STATE)
    assert (tmp_path / "a" / "losses.csv").read_text() == (tmp_path / "b" / "losses.csv").read_text()


@pytest.mark.parametrize("labels", ["published", "default"])
def test_poisoned_ground_truth_changes_no_label(compose_tiny, prepare_tiny, labels):
    from mwsis.training.prepare import labelling_of

    run = compose_tiny(f"method.labels={labels}")
    labeller = labelling_of(run, ("Vehicle", "Pedestrian", "Cyclist")).labeller
    frames = prepare_tiny(run).train.frames
    for clean, poisoned in zip(frames, Poisoned(frames), strict=False):
        made = [labeller(frame) for frame in (clean, poisoned)]
        assert torch.equal(made[0].pseudo.semantic_labels, made[1].pseudo.semantic_labels)
        assert torch.equal(made[0].pseudo.instance_ids, made[1].pseudo.instance_ids)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "present", "absent"),
    [
        (("method=boxinst",), "camera/pairwise", "lidar/semantic"),
        (("method=frustum",), "lidar/semantic", "camera/projection"),
        (("method.ipg=false",), "lidar/from_camera", "camera/ipg"),
        (("method.cscs.camera_to_lidar=false", "method.ema=false"), "camera/from_lidar", "lidar/from_camera"),
        (("method.cscs.lidar_to_camera=false", "method.pvc=false"), "lidar/from_camera", "camera/from_lidar"),
    ],
)
def test_switches_decide_which_losses_exist(tmp_path, compose_tiny, prepare_tiny, overrides, present, absent):
    run = compose_tiny("trainer.max_steps=6", *overrides)
    run_to_end(run, prepare_tiny(run), tmp_path / "run")
    names = {line.split(",")[1] for line in (tmp_path / "run" / "losses.csv").read_text().splitlines()[1:]}
    assert present in names
    assert absent not in names


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mwsis", "frustum"])
def test_lidar_trains_on_every_kth_step_only(tmp_path, compose_tiny, prepare_tiny, monkeypatch, method):
    run = compose_tiny(f"method={method}", "trainer.lidar_every=3", "trainer.max_steps=5")
    update, moved = PretrainingStep.update_teacher, []
    last = {}

    def watching_update(self, progress):
        for branch in run.method.branches:
            weights = [parameter.detach().clone() for parameter in getattr(self.student, branch).parameters()]
            if branch in last:
                moved.append((branch, any(not torch.equal(*pair) for pair in zip(weights, last[branch], strict=True))))
            last[branch] = weights
        update(self, progress)

    monkeypatch.setattr(PretrainingStep, "update_teacher", watching_update)
    assert train(run, RunFolder(tmp_path), prepare_tiny(run))
    assert [changed for branch, changed in moved if branch == "lidar"] == [False, False, True, False]
    assert all(changed for branch, changed in moved if branch == "camera")
