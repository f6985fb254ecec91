"""Damage every kind of input many times and see that each is read, or refused in one sentence, within bounds.

    python -m tests.fuzz.campaign [cases of each kind] [kind]

prints a table. A case is a function of its number; `--case` in an error line says which to run again. Each kind has a
process of its own with a limit on memory, each case one on time: what ends a process is a crash, as is any exception
but those that commands answer with a sentence and exit code 2.
"""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from mwsis.core.errors import MwsisError
from tests.fuzz.mutations import damaged
from tests.fuzz.readers import READERS, Reader

SECONDS = 20
MORE_MEMORY = 2 << 30
"""Bytes that reading a file of a few kilobytes may take beyond what the process has."""


@dataclass
class Outcome:
    """What became of the cases of one kind."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    peak_mb: float = 0.0
    crashes: list[str] = field(default_factory=list)


def run_case(reader: Reader, folder: Path, seed: int) -> str:
    """Return ``refused`` or ``accepted``; anything else is raised.

    Raises:
        AssertionError: the sentence is none, or reading has left something behind.
    """
    reader.make(folder)
    files = sorted(path for path in folder.glob(reader.files) if path.is_file())
    if files:
        path = files[seed % len(files)]
        path.write_bytes(damaged(path.read_bytes(), seed, path.suffix == ".json"))
    before = sorted(folder.rglob("*"))
    try:
        reader.read(folder, seed)
    except MwsisError as error:
        said = str(error)
        assert said, "an error without a sentence"
        assert len(said.splitlines()) == 1, f"more than a sentence: {said[:300]!r}"
        return "refused"
    finally:
        assert sorted(folder.rglob("*")) == before, "reading left something behind"
    return "accepted"


def run_kind(name: str, seeds: range) -> Outcome:
    """Run cases in this process."""
    outcome = Outcome()

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    with tempfile.TemporaryDirectory() as folder:  # what is made once for all cases is not a case's time
        READERS[name].make(Path(folder))
    signal.signal(signal.SIGALRM, too_long)
    for seed in seeds:
        began = time.monotonic()
        signal.alarm(SECONDS)
        try:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome.counts[run_case(READERS[name], Path(folder), seed)] += 1
        except BaseException as error:
            outcome.counts["crashed"] += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(str(error).split())[:200]
            outcome.crashes.append(
                f"case {seed}: {type(error).__name__}: {said} ({Path(where.filename).name}:{where.lineno})"
            )
        finally:
            signal.alarm(0)
        outcome.slowest = max(outcome.slowest, time.monotonic() - began)
    outcome.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return outcome


def _limited(name: str, seeds: range, pipe: Connection) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pipe.send(run_kind(name, seeds))


def run_apart(name: str, seeds: range) -> Outcome:
    """Run cases in a process of their own, whose end is a crash of one of them."""
    context = get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_limited, args=(name, seeds, theirs))
    process.start()
    theirs.close()
    try:
        outcome: Outcome = mine.recv()
    except EOFError:
        process.join()
        outcome = Outcome(Counter(crashed=1), crashes=[f"cases {seeds}: the process ended with {process.exitcode}"])
    process.join()
    return outcome


def main(arguments: list[str]) -> None:
    count = int(arguments[0]) if arguments else 1000
    names = [name for name in READERS if not arguments[1:] or arguments[1] in name]
    print(
        "| input | cases | refused | accepted | crashed | slowest, s | peak memory, MB |\n|---|---|---|---|---|---|---|"
    )
    crashes = []
    for name in names:
        outcome = run_apart(name, READERS[name].cases(count))
        counts = [outcome.counts[kind] for kind in ("refused", "accepted", "crashed")]
        row = [name, sum(counts), *counts, f"{outcome.slowest:.2f}", f"{outcome.peak_mb:.0f}"]
        print(f"| {' | '.join(map(str, row))} |", flush=True)
        crashes += [f"{name}: {crash}" for crash in outcome.crashes]
    for crash in crashes:
        print(crash)
    raise SystemExit(bool(crashes))


if __name__ == "__main__":
    main(sys.argv[1:])
