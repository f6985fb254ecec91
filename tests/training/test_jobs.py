"""Commands side by side: what outlives a killed parent keeps the folder."""

from __future__ import annotations

import os
import signal

import pytest

from mwsis.core.errors import ConfigError
from mwsis.training.jobs import alone_in, how_it_ended, run_jobs, start


def test_a_folder_stays_taken_until_the_last_of_its_processes_has_ended(tmp_path):
    (tmp_path / "sleep.py").write_text("import time; print('here', flush=True); time.sleep(60)")
    out = tmp_path / "out"
    with alone_in(out) as lock:
        with pytest.raises(ConfigError, match="is at work there"), alone_in(out):
            pass
        process = start(tmp_path / "sleep.py", [], tmp_path / "log", 1, lock)
    with pytest.raises(ConfigError, match="a run that a killed one has left, is at work there"), alone_in(out):
        pass
    process.kill()
    process.wait()
    with alone_in(out):
        assert how_it_ended(process.returncode, tmp_path / "log").startswith("killed by SIGKILL: ")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a folder, got a file"), alone_in(tmp_path / "file"):
        pass


def test_no_more_than_so_many_at_a_time_and_in_order(tmp_path):
    (tmp_path / "one.py").write_text("import sys; raise SystemExit(int(sys.argv[1]))")
    begun, ended, most = [], [], 0

    def begin(job):
        nonlocal most
        begun.append(job)
        most = max(most, len(begun) - len(ended))
        return start(tmp_path / "one.py", [str(job)], tmp_path / f"log{job}", 1, lock)

    with alone_in(tmp_path / "out") as lock:
        run_jobs([3, 0, 7, 1], 2, begin, lambda job, code, seconds: ended.append((job, code, seconds >= 0)))
    assert begun == [3, 0, 7, 1]
    assert sorted(ended) == [(0, 0, True), (1, 1, True), (3, 3, True), (7, 7, True)]
    assert most == 2


def test_every_interrupt_is_passed_on(tmp_path):
    """SIGTERM is an interrupt, too; a run that takes long to save is told again."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, signal, sys, time\n"
        "told = []\n"
        "signal.signal(signal.SIGINT, lambda *_: told.append(1))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "while len(told) < 2: time.sleep(.02)\n"
        "print('told twice')"
    )

    def begin(job):
        process = start(tmp_path / "slow.py", [str(tmp_path / "ready")], tmp_path / "log", 1, lock)
        while not (tmp_path / "ready").exists():
            pass
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
        return process

    previous = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with alone_in(tmp_path / "out") as lock, pytest.raises(KeyboardInterrupt):
            run_jobs([0], 1, begin, lambda *_: None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert (tmp_path / "log").read_text() == "told twice\n"
