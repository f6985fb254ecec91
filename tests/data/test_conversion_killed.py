"""A conversion that is killed, at every moment that matters and at random ones, and run again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from mwsis.data.workers import worker_pool
from tests.data.test_conversion import SmallSource, content, run

PROJECT = Path(__file__).resolve().parents[2]


def run_slowly(home: str) -> None:
    with worker_pool(2) as pool:
        run(SmallSource(delay=0.02, segments=12), Path(home), pool)


EVENTS = ("replace", "fsync", "unlink", "mkdir", "open")


def die_at(event: int, home: Path) -> None:
    """Convert, and be killed just before the ``event``-th call to the operating system that matters."""
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return wrapped

    for name in EVENTS:
        setattr(os, name, counted(getattr(os, name)))
    run(SmallSource(segments=2), home)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """From scratch, and every third time where the last one left off."""
    run(SmallSource(segments=2), tmp_path / "whole")
    whole = content(tmp_path / "whole")
    event, code = 0, -9
    while code == -9:
        event += 1
        home = tmp_path / str(event)
        shutil.copytree(tmp_path / "kept", home) if event % 3 == 0 else None
        child = get_context("fork").Process(target=die_at, args=(event, home))
        child.start()
        child.join()
        code = child.exitcode
        assert code in (-9, 0)
        shutil.rmtree(tmp_path / "kept", ignore_errors=True)
        if home.exists():
            shutil.copytree(home, tmp_path / "kept")
        complete = sum(path.suffix == ".arrow" and path.name[0] != "." for path in home.rglob("*"))
        run(source := SmallSource(segments=2), home)
        assert content(home) == whole
        assert len(source.reads) <= 8 - 2 * (complete // 2)
        shutil.rmtree(home)
    assert event > 40


@pytest.mark.slow
def test_killed_process_with_its_workers(tmp_path: Path) -> None:
    run(SmallSource(segments=12), tmp_path / "whole")
    home = tmp_path / "killed"
    program = f"from tests.data.test_conversion_killed import run_slowly; run_slowly({str(home)!r})"
    for pause in (0.0, 0.3):
        child = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, start_new_session=True)
        count = len(list(home.rglob("*.arrow")))
        while child.poll() is None and len(list(home.rglob("*.arrow"))) <= count:
            time.sleep(0.01)
        time.sleep(pause)
        if pause:
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()  # its workers notice by themselves
        child.wait()
    run(SmallSource(segments=12), home)
    assert content(home) == content(tmp_path / "whole")
