"""What a machine and bad numbers can do to a run: steps that are not finite, full disks, killed workers, kills."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusion.step import PretrainingStep
from mwsis.core.errors import ConfigError
from mwsis.training.callbacks import read_losses
from mwsis.training.checkpoint import read_run_checkpoint
from mwsis.training.folder import RunFolder
from mwsis.training.launch import RunStopped
from mwsis.training.module import TrainingModule
from mwsis.training.run import train
from tests.training.kill_stress import assert_same_end, stress
from tools import train as command

BAD = (3, 7)
"""Steps whose losses or gradients are spoilt."""


def spoilt_loss(losses, batch):
    found = losses(batch)
    return {**found, "lidar/vote": found["lidar/vote"] * float("nan")}


def spoilt_gradient(losses, batch):
    found = losses(batch)
    found["lidar/vote"].register_hook(lambda gradient: gradient * float("inf"))
    return found


def spoilt_input(losses, batch):
    """Not a number from the first layer on: running statistics too."""
    points = replace(batch.points, point_feats=batch.points.point_feats * float("nan"))
    return losses(replace(batch, points=points))


@pytest.fixture
def spoil(monkeypatch):
    """Spoil some steps of every run; the step is found from its progress."""
    losses = PretrainingStep.losses

    def spoil_steps(how, steps, max_steps):
        def spoilt(self, batch, progress, with_lidar=True):
            def own(batch):
                return losses(self, batch, progress, with_lidar)

            return how(own, batch) if round(progress * max_steps) in steps else own(batch)

        monkeypatch.setattr(PretrainingStep, "losses", spoilt)

    return spoil_steps


@pytest.fixture
def watched_steps(monkeypatch):
    """Say of each step whether it changed anything that is saved."""
    changed, training_step = {}, TrainingModule.training_step

    def snapshot(module):
        optimisers = [optimiser.state_dict()["state"] for optimiser in module.branch_optimisers.values()]
        moments = [value for states in optimisers for state in states.values() for value in state.values()]
        return [tensor.clone() for tensor in (*module.step.state_dict().values(), *moments)]

    def watched(self, parts, batch_index):
        step, before = self.steps_done, snapshot(self)
        found = training_step(self, parts, batch_index)
        after = snapshot(self)
        changed[step] = len(before) != len(after) or not all(map(torch.equal, before, after))
        return found

    monkeypatch.setattr(TrainingModule, "training_step", watched)
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("how", [spoilt_loss, spoilt_gradient, spoilt_input])
def test_a_step_that_is_not_finite_changes_nothing_and_counts(
    tmp_path, compose_tiny, prepare_tiny, spoil, watched_steps, capfd, how
):
    run = compose_tiny("trainer.max_steps=10", "trainer.log_every=5")
    spoil(how, BAD, run.trainer.max_steps)
    folder = RunFolder(tmp_path)
    assert train(run, folder, prepare_tiny(run))
    assert watched_steps == {step: step not in BAD for step in range(10)}
    state = read_run_checkpoint(folder.checkpoint)
    assert (state["global_step"], state["skipped_steps"]) == (10, 2)
    rows = read_losses(folder.losses)
    assert [(step, value) for step, name, value in rows if name == "skipped"] == [(3, 1.0), (7, 1.0)]
    assert {step for step, *_ in rows} == {0, 3, 5, 7}
    said = capfd.readouterr().err
    wrong = "the gradient of lidar." if how is spoilt_gradient else "lidar/vote"
    assert all(f"skipped step {step}:" in said for step in BAD)
    assert wrong in said
    assert any(frame.frame_id in said for frame in prepare_tiny(run).train.frames)


@pytest.mark.slow
def test_skipped_steps_survive_an_interrupt(tmp_path, compose_tiny, prepare_tiny, spoil, monkeypatch):
    run = compose_tiny("trainer.max_steps=10", "trainer.max_skipped_steps=2")
    spoil(spoilt_input, BAD, run.trainer.max_steps)
    prepared = prepare_tiny(run)
    whole, pieces = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "pieces")
    assert train(run, whole, prepared)
    update = PretrainingStep.update_teacher

    def interrupting_update(self, progress):
        update(self, progress)
        if round(progress * run.trainer.max_steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PretrainingStep, "update_teacher", interrupting_update)
    assert not train(run, pieces, prepared)
    assert read_run_checkpoint(pieces.checkpoint)["skipped_steps"] == 1
    assert train(run, pieces, prepared)
    assert_same_end(whole, pieces)


@pytest.mark.slow
def test_too_many_skipped_steps_end_the_run(tmp_path, compose_tiny, prepare_tiny, spoil):
    run = compose_tiny("trainer.max_steps=10", "trainer.max_skipped_steps=1")
    spoil(spoilt_loss, BAD, run.trainer.max_steps)
    folder, prepared = RunFolder(tmp_path), prepare_tiny(run)
    with pytest.raises(RunStopped) as stopped:
        train(run, folder, prepared)
    said = str(stopped.value)
    assert said.startswith("step 7: lidar/vote not finite on frames ")
    assert any(frame.frame_id in said for frame in prepared.train.frames)
    assert "trainer.max_skipped_steps=1" in said
    assert "learning rate" in said
    assert read_run_checkpoint(folder.checkpoint)["global_step"] == 5


def test_settings_out_of_range_are_refused(compose_tiny):
    with pytest.raises(ConfigError, match="max_skipped_steps: expected at least 0"):
        compose_tiny("trainer.max_skipped_steps=-1")
    with pytest.raises(ConfigError, match=r"multiple of .* x trainer.accumulate \(3\), got 4"):
        compose_tiny("trainer.frames_per_step=4", "trainer.accumulate=3")


def disk_is_full(monkeypatch):
    def no_room(state, file):
        file.write(b"the first bytes")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", no_room)


def file_may_not_grow(monkeypatch):
    """A limit for real, which torch's writer runs into somewhere in the middle."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fill", "reason"), [(disk_is_full, "No space left on device"), (file_may_not_grow, "File too large")]
)
def test_a_checkpoint_without_room_keeps_the_previous_one(
    tmp_path, compose_tiny, prepare_tiny, monkeypatch, fill, reason
):
    run = compose_tiny()
    folder, prepared = RunFolder(tmp_path), prepare_tiny(run)
    update, allowed = PretrainingStep.update_teacher, resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:

        def filling_update(self, progress):
            update(self, progress)
            if round(progress * run.trainer.max_steps) == 6:
                fill(patch)

        patch.setattr(PretrainingStep, "update_teacher", filling_update)
        with pytest.raises(RunStopped) as stopped:
            train(run, folder, prepared)
    resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    said = str(stopped.value)
    assert said.startswith(f"{folder.checkpoint}: the checkpoint of step 10 was not written ({reason}, ")
    assert said.endswith(f"continue with resume={tmp_path}")
    assert [path.name for path in folder.checkpoint.parent.iterdir()] == ["last.ckpt"]
    assert read_run_checkpoint(folder.checkpoint)["global_step"] == 5
    assert train(run, folder, prepared)
    assert read_run_checkpoint(folder.checkpoint)["global_step"] == 12


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_loss_log_without_room_ends_the_run(tmp_path, compose_tiny, prepare_tiny, monkeypatch):
    """It used to end in a traceback."""
    update, folder = PretrainingStep.update_teacher, RunFolder(tmp_path)

    def filling_update(self, progress):
        update(self, progress)
        (tmp_path / "losses.csv").unlink(missing_ok=True)
        (tmp_path / "losses.csv").symlink_to("/dev/full")

    monkeypatch.setattr(PretrainingStep, "update_teacher", filling_update)
    run = compose_tiny()
    with pytest.raises(RunStopped, match=r"losses\.csv: the losses of step \d+ were not written \(No space left"):
        train(run, folder, prepare_tiny(run))


@pytest.mark.slow
def test_the_command_ends_with_one_sentence_or_counts_what_it_skipped(tmp_path, tiny_cache, spoil, monkeypatch, capsys):
    out = tmp_path / "run"
    arguments = ("experiment=smoke", f"data.cache={tiny_cache}", "trainer.max_steps=3", "trainer.checkpoint_every=2")
    spoil(spoilt_loss, (1,), 3)
    with monkeypatch.context() as patch:
        disk_is_full(patch)
        with pytest.raises(SystemExit) as ended:
            command.main([*arguments, f"out={out}"])
    assert ended.value.code == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: {out}/checkpoints/last.ckpt: ")
    command.main([f"resume={out}"])
    assert json.loads((out / "metrics.json").read_text())["skipped_steps"] == 1


@pytest.mark.parametrize("argument", ["seed=1", "trainer.max_steps=5", "trainer=gpu", "trainer.precision=bf16-camera"])
def test_a_resumed_run_keeps_its_settings(tmp_path, compose_tiny, argument):
    from omegaconf import OmegaConf

    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(compose_tiny())))
    with pytest.raises(ConfigError, match=r"takes every setting but trainer\.devices, .* remove "):
        command.main([f"resume={tmp_path}", argument])
    with pytest.raises(ConfigError, match=r"expected a multiple of .* \(2\), got 1"):
        command.main([f"resume={tmp_path}", "trainer.devices=2"])


@pytest.fixture
def signal_workers(monkeypatch):
    """At one step send a signal to the processes that load, and perhaps to this one as well."""
    update = PretrainingStep.update_teacher

    def at_step(wanted, max_steps, number, *others):
        def signalling_update(self, progress):
            update(self, progress)
            if round(progress * max_steps) == wanted:
                workers = multiprocessing.active_children()
                assert len(workers) == 1
                for pid in (workers[0].pid, *others):
                    os.kill(pid, number)

        monkeypatch.setattr(PretrainingStep, "update_teacher", signalling_update)

    return at_step


@pytest.mark.slow
def test_a_killed_loader_worker_is_explained(tmp_path, compose_tiny, prepare_tiny, signal_workers):
    run = compose_tiny("trainer.workers=1")
    signal_workers(6, run.trainer.max_steps, signal.SIGKILL)
    with pytest.raises(RunStopped) as stopped:
        train(run, RunFolder(tmp_path), prepare_tiny(run))
    said = str(stopped.value)
    assert said.startswith("a process that loads frames ended (DataLoader worker (pid")
    assert "); if memory ran out, lower trainer.workers=1; " in said
    assert said.endswith(f"continue with resume={tmp_path}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_stops_after_a_saved_step(
    tmp_path, compose_tiny, prepare_tiny, signal_workers, number
):
    run = compose_tiny("trainer.workers=1")
    signal_workers(6, run.trainer.max_steps, number, os.getpid())
    assert not train(run, RunFolder(tmp_path), prepare_tiny(run))
    assert read_run_checkpoint(RunFolder(tmp_path).checkpoint)["global_step"] == 7


@pytest.mark.slow
def test_kills_change_nothing(tmp_path, compose_tiny, prepare_tiny, tiny_cache):
    prepare_tiny(compose_tiny())
    stress(tmp_path, tiny_cache, num_kills=2)


@pytest.mark.ddp
@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_changes_nothing(tmp_path, compose_tiny, prepare_tiny, tiny_cache):
    prepare_tiny(compose_tiny())
    for death in stress(tmp_path, tiny_cache, num_kills=1, num_processes=2):
        assert death.code == 137
        assert death.seconds < 30
        named = f"error: process {death.rank} of 2 (counted from 0) was killed by signal 9 (SIGKILL); if memory ran out"
        assert named in death.said.splitlines()[-1]
        assert death.said.strip().endswith(f"continue with resume={tmp_path / 'killed'}")
