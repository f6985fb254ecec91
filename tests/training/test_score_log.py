"""Scores on the way: they change nothing, survive interrupts and agree with the evaluation at the end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from fusion.step import PretrainingStep
from mwsis.core.errors import ConfigError
from mwsis.training.evaluate import evaluate_run
from mwsis.training.folder import RunFolder
from mwsis.training.launch import RunStopped
from mwsis.training.run import train
from mwsis.training.score_log import is_due, modes_kept, read_scores
from tests.training.kill_stress import assert_same
from tests.training.test_run import run_to_end


@pytest.mark.parametrize(
    ("max_steps", "every", "due"),
    [
        (740, 0.25, [185, 370, 555, 740]),
        (10, 0.25, [3, 5, 8, 10]),
        (7, 1.0, [7]),
        (3, 0.1, [1, 2, 3]),
        (1000, 0.1, list(range(100, 1001, 100))),
        (49, 0.3, [15, 30, 45]),
    ],
)
def test_scores_are_due_at_the_multiples_of_a_share(max_steps, every, due):
    assert [done for done in range(1, max_steps + 1) if is_due(done, max_steps, every)] == due


def test_they_are_never_due_when_off(compose_tiny, prepare_tiny, tmp_path):
    run = compose_tiny("trainer.max_steps=1", "trainer.score_every=0")
    run_to_end(run, prepare_tiny(run), tmp_path)
    assert not RunFolder(tmp_path).scores.exists()
    assert read_scores(RunFolder(tmp_path).scores) == []


@pytest.mark.parametrize("setting", ["trainer.score_every=-0.1", "trainer.score_every=1.5", "trainer.score_frames=0"])
def test_wrong_settings_are_refused(compose_tiny, setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        compose_tiny(setting)


def test_every_part_returns_to_its_own_mode():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    model.train()
    model[1][1].eval()  # a frozen norm
    before = [part.training for part in model.modules()]
    with modes_kept(model):
        model.eval()
    assert [part.training for part in model.modules()] == before == [True, True, True, True, False]


@pytest.mark.slow
def test_scoring_changes_no_bit_of_twenty_steps(tmp_path, compose_tiny, prepare_tiny):
    settings = ("trainer.max_steps=20", "trainer.checkpoint_every=20")
    ends, randoms = {}, {}
    for every in (0, 0.25):
        run = compose_tiny(*settings, f"trainer.score_every={every}")
        ends[every] = run_to_end(run, prepare_tiny(run), tmp_path / str(every))
        randoms[every] = torch.get_rng_state()
    for part in ("model", "optimisers"):
        assert_same({part: ends[0][part]}, {part: ends[0.25][part]})
    assert torch.equal(randoms[0], randoms[0.25])
    for name in ("losses.csv", "vote_history.u16"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "0.25" / name).read_bytes()
    rows = read_scores(tmp_path / "0.25" / "scores.csv")
    assert list(dict.fromkeys(row["step"] for row in rows)) == [4, 9, 14, 19]
    networks = list(dict.fromkeys((row["network"], row["branch"]) for row in rows))
    assert networks == [("teacher", "camera"), ("teacher", "lidar"), ("student", "camera"), ("student", "lidar")]
    assert {row["name"] for row in rows} <= {"mask_ap50", "matched_mask_iou", "instance_ap50", "miou"}


@pytest.mark.slow
def test_interrupts_and_kills_leave_the_scores_of_an_unbroken_run(tmp_path, compose_tiny, prepare_tiny, monkeypatch):
    """Interrupted in a step after which scores are due and in another; killed with a score that no checkpoint knows."""
    run = compose_tiny("trainer.score_every=0.25", "trainer.checkpoint_every=5")  # due after 3, 6, 9, 12 steps
    prepared, update = prepare_tiny(run), PretrainingStep.update_teacher
    whole = run_to_end(run, prepared, tmp_path / "whole")
    interrupts, kills = [2, 4], [10]

    def breaking_update(self, progress):
        update(self, progress)
        step = round(progress * run.trainer.max_steps)
        if interrupts and step == interrupts[0]:
            os.kill(os.getpid(), signal.SIGINT)
            interrupts.pop(0)
        if kills and step == kills[0]:
            kills.pop()
            raise RuntimeError("the machine went away")

    monkeypatch.setattr(PretrainingStep, "update_teacher", breaking_update)
    run = compose_tiny("trainer.score_every=0.25", "trainer.checkpoint_every=8")
    with pytest.raises(RuntimeError, match="went away"):
        run_to_end(run, prepared, tmp_path / "pieces")
    text = (tmp_path / "pieces" / "scores.csv").read_text()
    assert {line.split(",")[0] for line in text.splitlines()[1:]} == {"2", "5", "8"}  # the last checkpoint is of step 8
    pieces = run_to_end(run, prepared, tmp_path / "pieces")
    assert not interrupts
    assert not kills
    assert_same({"model": whole["model"]}, {"model": pieces["model"]})
    assert (tmp_path / "pieces" / "scores.csv").read_text() == (tmp_path / "whole" / "scores.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("ema", ["true", "false"])
def test_the_last_scores_are_those_of_the_evaluation(tmp_path, compose_tiny, prepare_tiny, ema):
    run = compose_tiny("trainer.max_steps=6", "trainer.score_every=0.5", f"method.ema={ema}", "method.ema_window=0.5")
    prepared = prepare_tiny(run)
    assert len(prepared.val.frames) == 1  # so both score the same frames
    state = run_to_end(run, prepared, tmp_path)
    metrics = evaluate_run(run, state, prepared, "test", lambda *_: None).metrics
    rows = [row for row in read_scores(tmp_path / "scores.csv") if row["step"] == 5]
    assert {row["network"] for row in rows} == ({"teacher", "student"} if ema == "true" else {"student"})
    for row in rows:
        assert row["value"] == metrics[row["branch"]][row["network"]][row["name"]]
    for branch, name in (("camera", "mask_ap50"), ("lidar", "miou")):
        assert (branch, name) in {(row["branch"], row["name"]) for row in rows}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_score_log_without_room_ends_the_run_with_one_sentence(tmp_path, compose_tiny, prepare_tiny, monkeypatch):
    update = PretrainingStep.update_teacher

    def filling_update(self, progress):
        update(self, progress)
        (tmp_path / "scores.csv").unlink(missing_ok=True)
        (tmp_path / "scores.csv").symlink_to("/dev/full")

    monkeypatch.setattr(PretrainingStep, "update_teacher", filling_update)
    run = compose_tiny("trainer.max_steps=2", "trainer.score_every=0.5")
    with pytest.raises(RunStopped, match=r"scores\.csv: the scores after step 0 were not written \(No space left"):
        train(run, RunFolder(tmp_path), prepare_tiny(run))


def test_only_the_first_process_scores(tmp_path, compose_tiny, prepare_tiny, monkeypatch):
    run = compose_tiny("trainer.max_steps=1", "trainer.score_every=1")
    prepared = prepare_tiny(run)
    given = []
    monkeypatch.setattr("mwsis.training.run.fit", lambda *arguments: given.append(arguments[-1]))
    for first in (True, False):
        monkeypatch.setattr("mwsis.training.launch.is_first", lambda first=first: first)
        train(run, RunFolder(tmp_path), prepared)
    assert [len(callbacks) for callbacks in given] == [1, 0]
