"""Several processes for one run: starting them, finding each other, waiting for each other, asking Slurm to go on.

local   the command starts itself once per device of this machine and only watches (`run_processes`)
torchrun, srun   the processes are started from outside; their variables say who is who
Each process then calls `join`. What a step needs from the others is `mwsis.core.distributed`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from mwsis.core.errors import ConfigError

if TYPE_CHECKING:
    from mwsis.training.config import TrainerConfig

__all__ = [
    "RunStopped",
    "adopt_slurm",
    "agreed",
    "in_turns",
    "is_first",
    "is_first_of_node",
    "is_orphan",
    "join",
    "leave",
    "requeue",
    "run_processes",
    "slurm_job",
    "starts_processes",
    "was_requeued",
]

T = TypeVar("T")

GRACE_S = 60.0
"""What the other processes get to end after one failed, seconds."""
LONGEST_WAIT = timedelta(days=7)
"""For the first process to read a data set, while the others wait."""
STARTER = "MWSIS_STARTER"
"""Environment variable: the process that started this one and watches it, where `run_processes` did."""
_waiting_room: Any = None


class RunStopped(Exception):
    """The run cannot go on, though its settings were in order; ``str(error)`` is a sentence on why and what next.

    Empty where another process of the run says it.
    """


def starts_processes(trainer: TrainerConfig) -> bool:
    """Return whether this process must start those of the run and is none of them itself.

    Raises:
        ConfigError: processes on several machines, which only a scheduler can start, or as many as do not fit.
    """
    started = os.environ.get("WORLD_SIZE")
    wanted = trainer.devices * trainer.nodes
    if started is not None:
        if int(started) != wanted:
            raise ConfigError(
                f"trainer.devices={trainer.devices} on trainer.nodes={trainer.nodes}: expected {wanted} processes, got "
                f"{started} from whoever started them"
            )
        return False
    if trainer.nodes > 1 or (trainer.slurm and wanted > 1):
        raise ConfigError(f"trainer.nodes={trainer.nodes}: start the command with srun (trainer=slurm) or torchrun")
    return wanted > 1


def adopt_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Translate what srun says about this process into the variables that torch reads; nothing outside srun."""
    if "SLURM_PROCID" not in environment or "WORLD_SIZE" in environment:
        return
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    environment.update(
        WORLD_SIZE=environment["SLURM_NTASKS"],
        RANK=environment["SLURM_PROCID"],
        LOCAL_RANK=environment["SLURM_LOCALID"],
        NODE_RANK=environment["SLURM_NODEID"],
        MASTER_ADDR=SLURMEnvironment.resolve_root_node_address(environment["SLURM_NODELIST"]),
        # of the job, so that two jobs on one machine do not meet
        MASTER_PORT=str(15000 + int(environment["SLURM_JOB_ID"]) % 10000),
    )


def is_first() -> bool:
    """Return whether this process writes the run's files; true for a lone one."""
    return int(os.environ.get("RANK", "0")) == 0


def is_first_of_node() -> bool:
    """Return whether this process is the first one on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def is_orphan() -> bool:
    """Return whether the process that watched over this one is gone; without one nobody would pass on an interrupt."""
    return STARTER in os.environ and os.getppid() != int(os.environ[STARTER])


def run_processes(command: list[str], num_processes: int, resume: str = "RUN") -> int:
    """Run a command once per device of this machine until all have ended.

    An interrupt is passed on once to each; when one fails, the others are ended; when one was killed, that is said.

    Args:
        command: started ``num_processes`` times.
        num_processes: they find their place in RANK, LOCAL_RANK and WORLD_SIZE.
        resume: run folder, for the sentence that says how to go on.

    Returns:
        0, or the exit code of the first that failed; 128 + its number for a signal.
    """
    shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared |= {"NODE_RANK": "0", STARTER: str(os.getpid())}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]
    # In sessions of their own, so that ctrl-C reaches them once: through here.
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, **place}, start_new_session=True) for place in places
    ]

    def pass_on(number: int, stack: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        rank, code = _wait(processes)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if code >= 0:
        return code
    name, memory = signal.Signals(-code).name, "if memory ran out, lower trainer.workers; " * (code == -signal.SIGKILL)
    sys.stderr.write(
        f"error: process {rank} of {num_processes} (counted from 0) was killed by signal {-code} ({name}); {memory}"
        f"continue with resume={resume}\n"
    )
    return 128 - code


def _wait(processes: list[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Return rank and exit code of the first process that failed, minus its number for a signal; or of process 0."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [(rank, code) for rank, code in enumerate(codes) if code]
        if failed:
            _end(processes)
            return min(failed, key=lambda one: one[1] > 0)  # one that was killed: others then fail because of it
        if None not in codes:
            return 0, 0
        time.sleep(0.1)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + GRACE_S
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def join(trainer: TrainerConfig) -> None:
    """Connect this process with the others of the run; nothing for a lone one."""
    global _waiting_room
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    import torch
    from torch import distributed

    on_cuda = trainer.accelerator != "cpu" and torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    _waiting_room = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)


def leave() -> None:
    """Part from the other processes: what follows is the first one's alone."""
    global _waiting_room
    if _waiting_room is not None:
        from torch import distributed

        _waiting_room = None
        distributed.destroy_process_group()


def agreed(value: T) -> T:
    """Return the first process's value on all processes."""
    if _waiting_room is None:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


@contextmanager
def in_turns() -> Iterator[None]:
    """Let the first process through the block, then the first of every other machine, then the rest."""
    if _waiting_room is None:
        yield
        return
    from torch import distributed

    turn = 0 if is_first() else 1 if is_first_of_node() else 2
    for _ in range(turn):
        distributed.barrier(_waiting_room)
    yield
    for _ in range(2 - turn):
        distributed.barrier(_waiting_room)


def slurm_job() -> str | None:
    """Return the name of the Slurm job, the same after it was requeued; None outside Slurm."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def was_requeued() -> bool:
    """Return whether Slurm started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def requeue() -> None:
    """Ask Slurm to start this job again; it continues from the checkpoint."""
    job = slurm_job()
    scontrol = shutil.which("scontrol")
    if job is None or scontrol is None:
        sys.stderr.write("cannot requeue: no Slurm job or no scontrol here; continue with resume=...\n")
        return
    subprocess.run([scontrol, "requeue", job], check=False)
