"""Commands side by side: a few at a time, each in a session of its own, stopped cleanly when this process is.

For many runs on one machine (`tools/ablate.py`); the processes of a single run are `launch.py`.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mwsis.core.errors import ConfigError

__all__ = ["alone_in", "how_it_ended", "run_jobs", "start"]

Job = TypeVar("Job")
Process = subprocess.Popen[bytes]
POLL_S = 0.2


def start(script: Path, arguments: Sequence[str], log: Path, threads: int, lock: int) -> Process:
    """Start a Python script; ctrl-C reaches it only through this process.

    Args:
        script: run by this process's Python.
        arguments: of the script.
        log: written anew with all it prints.
        threads: it computes with.
        lock: descriptor of `alone_in`; the lock lasts as long as the script.
    """
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,
            pass_fds=[lock],
        )


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    begin: Callable[[Job], Process],
    ended: Callable[[Job, int, float], None],
) -> None:
    """Run jobs until all have ended; when this process is interrupted, they save, stop and are waited for.

    Args:
        jobs: in order.
        workers: at a time.
        begin: starts one.
        ended: called with each that has ended, its exit code and the seconds it took.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM, when all have stopped.
    """
    waiting, running = deque(jobs), dict[Process, tuple[Job, float]]()
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                running[begin(job)] = (job, time.monotonic())
            time.sleep(POLL_S)
            for process in [process for process in running if process.poll() is not None]:
                job, began = running.pop(process)
                ended(job, process.returncode, time.monotonic() - began)
    finally:
        _stop(running)
        signal.signal(signal.SIGTERM, previous)


def _stop(processes: Iterable[Process]) -> None:
    """Ask processes to save and stop, and wait for them; a further ctrl-C asks again, which they heed at once."""
    while left := [process for process in processes if process.poll() is None]:
        try:
            for process in left:
                process.send_signal(signal.SIGINT)
            for process in left:
                process.wait()
        except KeyboardInterrupt:
            continue


def how_it_ended(code: int, log: Path) -> str:
    """Return an exit code in words and the last line of what a process said."""
    lines = [line.strip() for line in re.split(r"[\r\n]", log.read_text(encoding="utf-8", errors="replace"))]
    said = next((line for line in reversed(lines) if line), "it said nothing")
    return f"{f'exit code {code}' if code >= 0 else f'killed by {signal.Signals(-code).name}'}: {said}"


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Keep a second command out of a folder, and out of what a killed one left running there.

    Args:
        folder: made if needed.

    Yields:
        A descriptor; the lock holds until this process and all that were given it have ended.

    Raises:
        ConfigError: another one is at work, or this is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out={folder}: expected a folder, got a file")
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"out={folder}: another command, or a run that a killed one has left, is at work there; wait for it"
        ) from None
    except OSError:  # a file system without locks
        return
