"""A check, how it is asked, and what comes of it: one sentence each, whatever happens inside.

Every check runs in a process of its own: what is broken enough to crash Python, as compiled packages are, ends that
process alone. Nothing but Python is imported here. The checks are in `install.py`, `computing.py` and `machine.py`.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import TypeAlias

from mwsis.core.errors import MwsisError

__all__ = ["ADVICE", "BROKEN", "OK", "Answer", "Check", "Finding", "advise", "broken", "examine", "ok"]

OK, ADVICE, BROKEN = "ok", "advice", "broken"
TIMEOUT_S = 600.0
"""For one check; the slowest takes ten seconds of computing, which a busy machine may stretch."""

Answer: TypeAlias = tuple[str, str, str]
"""State, what was found, what to do about it ("" where it is ok)."""


@dataclass(frozen=True)
class Check:
    """A question to the machine.

    Attributes:
        name: short, for the table.
        look: finds the answer; what it raises is an answer, too.
        if_it_fails: what to do when it raises or crashes.
        needs: names of checks without which this one cannot be made.
        keep: a module that this process imports once the answer is ok, so that the checks that follow have it at once.
    """

    name: str
    look: Callable[[], Answer]
    if_it_fails: str
    needs: tuple[str, ...] = ()
    keep: str = ""


@dataclass(frozen=True)
class Finding:
    """The answer to a check.

    Attributes:
        name: of the check.
        state: `OK`, `ADVICE` or `BROKEN`.
        finding: a sentence.
        advice: a sentence; "" where the state is ok.
    """

    name: str
    state: str
    finding: str
    advice: str


def ok(finding: str) -> Answer:
    """Return the answer that nothing is to be done."""
    return OK, finding, ""


def advise(finding: str, advice: str) -> Answer:
    """Return the answer that something could be better."""
    return ADVICE, finding, advice


def broken(finding: str, advice: str) -> Answer:
    """Return the answer that something must be put right first."""
    return BROKEN, finding, advice


def examine(checks: Sequence[Check], timeout_s: float = TIMEOUT_S) -> Iterator[Finding]:
    """Yield what each check finds, in order; none raises.

    Args:
        checks: one that needs a broken one is not made, and says so.
        timeout_s: for each.
    """
    wrong: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name in wrong]
        if missing:
            answer = advise(f"not looked at, because {missing[0]} is broken", "put that right and run this again")
        else:
            answer = _apart(check, timeout_s)
        if answer[0] == BROKEN:
            wrong.add(check.name)
        elif check.keep:
            import_module(check.keep)
        yield Finding(check.name, *answer)


def _apart(check: Check, timeout_s: float) -> Answer:
    """Return the answer of a process of its own, or how that ended."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    said = os.memfd_create("said")  # not a file: the disk may be full
    child = context.Process(target=_answer, args=(check, sender, said), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(timeout_s):
            return broken(
                f"no answer after {timeout_s:.0f} s: it hangs, or other work keeps the machine busy", check.if_it_fails
            )
        answer: Answer = receiver.recv()
        return answer
    except EOFError:
        child.join()
        return broken(f"Python {_ending(child.exitcode)}{_last_words(said)}", check.if_it_fails)
    finally:
        child.kill()
        child.join()
        receiver.close()
        os.close(said)


def _answer(check: Check, sender: Connection, said: int) -> None:
    """Answer in the child; what packages print is kept for the case that they crash."""
    for stream in (1, 2):
        os.dup2(said, stream)
    sys.stdout = sys.stderr = open(said, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    faulthandler.disable()  # its stacks would hide what was printed before
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        answer = check.look()
    except MwsisError as error:
        answer = broken(str(error), check.if_it_fails)
    except Exception as error:
        answer = broken(f"{type(error).__name__}: {_one_line(str(error))}", check.if_it_fails)
    sender.send(answer)
    sender.close()


def _one_line(text: str, most: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + " ..."


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"ended with exit code {code}"


def _last_words(said: int) -> str:
    """Return the last line that a process printed, as a clause."""
    text = os.pread(said, 1 << 20, 0).decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return f" after printing '{_one_line(lines[-1])}'" if lines else ""
