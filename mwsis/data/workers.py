"""A function over many inputs: in this process, by processes of this machine, or by a Dask or Ray cluster.

joblib does the work. Here is what it is asked for: one thread a worker, results as they come, an interrupt that ends
everything at once, and sentences instead of tracebacks. Next: `conversion.py`, whose inputs are segments.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from mwsis.core.errors import ConfigError, closest_name

__all__ = ["KINDS", "Pool", "one_thread", "peak_memory", "worker_pool"]

Job = TypeVar("Job")
Result = TypeVar("Result")

JOBS_A_ROUND = 8
"""Jobs a worker is given at once where results cannot be had one by one (Ray)."""


@dataclass(frozen=True)
class Pool:
    """Workers that share a list of jobs.

    Attributes:
        kind: one of `KINDS`.
        count: workers; a single one of kind "processes" is this process.
    """

    kind: str
    count: int

    @property
    def in_process(self) -> bool:
        return self.kind == "processes" and self.count == 1

    @property
    def owner(self) -> int | None:
        """The process whose end should end a job, too; None where there is no such process on the worker's machine."""
        return os.getpid() if self.kind == "processes" and self.count > 1 else None

    def run(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        """Yield the result of every job as it comes, in no particular order.

        Args:
            function: picklable, as are jobs and results. What it raises ends the run and is raised here.
            jobs: started in this order.

        Raises:
            ConfigError: a worker was killed from outside.
        """
        if self.in_process:
            yield from map(function, jobs)
            return
        from joblib import Parallel, delayed

        calls = map(delayed(function), jobs)
        if self.kind == "ray":
            while batch := list(islice(calls, JOBS_A_ROUND * self.count)):
                yield from Parallel(batch_size=1)(batch)
            return
        results = Parallel(return_as="generator_unordered", batch_size=1)(calls)
        with _killed_workers_explained():
            try:
                yield from results
            finally:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that some results were not waited for
                    results.close()


@contextmanager
def worker_pool(count: int = 1, kind: str = "processes") -> Iterator[Pool]:
    """Yield workers; they start when they are first needed and end with the block.

    Args:
        count: workers; a cluster that is already running brings its own number.
        kind: "processes" of this machine; "dask": the cluster at DASK_SCHEDULER_ADDRESS, or else one of this machine;
            "ray": likewise with RAY_ADDRESS. The files must be visible to all machines under the same paths.

    Raises:
        ConfigError: there is no such kind, it is not installed, or ``count`` is less than one.
    """
    if kind not in KINDS:
        raise ConfigError(f"parallel={kind}: no such kind of workers{closest_name(kind, KINDS)}")
    if count < 1:
        raise ConfigError(f"workers: expected at least 1, got {count}")
    if kind == "processes" and count == 1:
        yield Pool(kind, count)
        return
    with KINDS[kind](count):
        from joblib import effective_n_jobs

        yield Pool(kind, effective_n_jobs())


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work on one thread, so that results do not depend on where they are computed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def peak_memory() -> int:
    """Return the most memory this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # what `getrusage` says on Linux includes the process that started this one
        held = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(held.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _processes(count: int) -> Iterator[None]:
    from joblib import parallel_config
    from joblib.externals.loky import get_reusable_executor

    try:
        with parallel_config(
            "loky", n_jobs=count, max_nbytes=None, inner_max_num_threads=1, initializer=_ignore_ctrl_c
        ):
            yield
    finally:
        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that waits for the results ends the workers


@contextmanager
def _dask(count: int) -> Iterator[None]:
    with _installed("dask"):
        import dask
        from distributed import Client
        from joblib import parallel_config

    address = dask.config.get("scheduler-address", None)
    local: dict[str, Any] = {"n_workers": count, "threads_per_worker": 1, "dashboard_address": None}
    with Client(address) if address else Client(**local), parallel_config("dask"):
        yield


@contextmanager
def _ray(count: int) -> Iterator[None]:
    with _installed("ray"):
        import ray
        from joblib import parallel_config
        from ray.util.joblib import register_ray

    register_ray()
    local: dict[str, Any] = {"num_cpus": count, "include_dashboard": False}
    ray.init(log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else local))
    try:
        with parallel_config("ray", n_jobs=int(ray.cluster_resources()["CPU"])):
            yield
    finally:
        ray.shutdown()


@contextmanager
def _installed(extra: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"parallel={extra}: {error}; install it with: uv sync --extra {extra}") from None


@contextmanager
def _killed_workers_explained() -> Iterator[None]:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    try:
        yield
    except TerminatedWorkerError:
        raise ConfigError(
            "a worker was killed from outside, most likely for lack of memory; "
            "nothing finished is lost, so run the same command again with fewer workers"
        ) from None


KINDS: dict[str, Callable[[int], AbstractContextManager[None]]] = {
    "processes": _processes,
    "dask": _dask,
    "ray": _ray,
}
