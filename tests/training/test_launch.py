"""Who starts the processes of a run, what happens when one fails, and what Slurm is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mwsis.core.errors import ConfigError
from mwsis.training import launch
from mwsis.training.callbacks import SaveAndStop
from mwsis.training.config import TrainerConfig
from mwsis.training.folder import open_run

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = {"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "77"}
SLURM |= {"SLURM_NODELIST": "gpu[03-04]"}


@pytest.fixture(autouse=True)
def no_other_processes(monkeypatch):
    for name in (*VARIABLES, *SLURM, "SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def test_a_lone_process_starts_none():
    assert not launch.starts_processes(TrainerConfig(max_steps=1))
    assert launch.is_first()
    assert launch.is_first_of_node()
    launch.join(TrainerConfig(max_steps=1))
    with launch.in_turns():
        assert launch.agreed(3) == 3
    launch.leave()


def test_several_devices_start_processes_which_start_none(monkeypatch):
    trainer = TrainerConfig(max_steps=1, devices=2)
    assert launch.starts_processes(trainer)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launch.starts_processes(trainer)


def test_wrong_numbers_of_processes_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="srun"):
        launch.starts_processes(TrainerConfig(max_steps=1, devices=2, nodes=2))
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="expected 4 processes, got 3"):
        launch.starts_processes(TrainerConfig(max_steps=1, devices=2, nodes=2))


def test_srun_says_who_is_who():
    environment = dict(SLURM)
    launch.adopt_slurm(environment)
    assert [environment[name] for name in VARIABLES] == ["8", "5", "1", "1", "gpu03", "15077"]
    launch.adopt_slurm(nothing := {})
    assert nothing == {}


def test_every_process_learns_its_place(tmp_path):
    program = (
        f"import os, pathlib; pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text(os.environ['WORLD_SIZE'])"
    )
    assert launch.run_processes([sys.executable, "-c", program], 3) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "3", "1": "3", "2": "3"}


def test_a_failing_process_ends_the_others():
    program = "import os, sys, time; sys.exit(2) if os.environ['RANK'] == '1' else time.sleep(600)"
    assert launch.run_processes([sys.executable, "-c", program], 2) == 2


@pytest.mark.parametrize("survivor", ["time.sleep(600)", "time.sleep(0.1); sys.exit(1)"])
def test_a_killed_process_is_named_and_ends_the_others(capsys, survivor):
    program = (
        "import os, signal, sys, time\n"
        f"os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else ({survivor.replace('; ', ', ')})"
    )
    assert launch.run_processes([sys.executable, "-c", program], 2, resume="/runs/one") == 137
    said = capsys.readouterr().err
    assert "process 1 of 2 (counted from 0) was killed by signal 9 (SIGKILL)" in said
    assert "memory" in said
    assert said.endswith("continue with resume=/runs/one\n")


def test_processes_notice_that_their_starter_is_gone(tmp_path):
    program = f"""
import os, pathlib, time
from mwsis.training import launch
here = pathlib.Path({str(tmp_path)!r}, os.environ["RANK"])
here.write_text("" if launch.is_orphan() else "watched ")
while not launch.is_orphan(): time.sleep(0.05)
with here.open("a") as file: file.write("orphaned")
"""
    starter = f"""
import sys
from mwsis.training import launch
launch.run_processes([sys.executable, "-c", {program!r}], 2)
"""
    with subprocess.Popen([sys.executable, "-c", starter]) as process:
        wait_until(lambda: all((tmp_path / rank).is_file() for rank in "01"))
        process.kill()
    wait_until(lambda: {(tmp_path / rank).read_text() for rank in "01"} == {"watched orphaned"})
    assert not launch.is_orphan()


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interrupt_is_passed_on_once(tmp_path):
    program = f"""
import os, pathlib, signal, sys, time
here = pathlib.Path({str(tmp_path)!r}, os.environ["RANK"])
def on_signal(*_):
    with here.open("a") as file: file.write("interrupted ")
signal.signal(signal.SIGINT, on_signal)
here.write_text("ready ")
while "interrupted" not in here.read_text(): time.sleep(0.05)
time.sleep(0.3)
"""

    def interrupt_when_ready():
        while not all((tmp_path / rank).is_file() and (tmp_path / rank).read_text() for rank in "01"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_when_ready, daemon=True).start()
    assert launch.run_processes([sys.executable, "-c", program], 2) == 0
    assert {(tmp_path / rank).read_text() for rank in "01"} == {"ready interrupted "}


def test_frames_of_a_step_divide_among_processes(compose_tiny):
    with pytest.raises(ConfigError, match="expected a multiple of"):
        compose_tiny("trainer.frames_per_step=3", "trainer.devices=2")


def test_a_requeued_job_continues_its_run(tmp_path, monkeypatch, compose_tiny):
    from omegaconf import OmegaConf

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    run = compose_tiny("trainer.slurm=true")
    config = OmegaConf.structured(run)
    first = open_run(config)[1]
    assert first.root.name.endswith("-77")
    first.config.parent.mkdir(parents=True)
    first.config.write_text(OmegaConf.to_yaml(config))
    with pytest.raises(ConfigError, match="already holds a run"):
        open_run(config)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again, folder = open_run(config)
    assert (again, folder) == (run, first)


def test_requeueing_asks_scontrol(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    launch.requeue()
    assert "resume=" in capsys.readouterr().err
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    launch.requeue()
    assert (tmp_path / "asked").read_text() == "requeue 5_3\n"


def test_sigusr1_is_heeded_under_slurm_only(tmp_path):
    assert signal.SIGUSR1 not in SaveAndStop(tmp_path, 1, {})._signals
    assert signal.SIGUSR1 in SaveAndStop(tmp_path, 1, {}, slurm=True)._signals
