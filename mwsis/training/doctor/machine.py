"""Is the machine large and fast enough for the run that was chosen? Disks, frame store, cores, memory, GPUs.

What a run needs is read from its composed configuration; sizes that only a run can know are measured ones, named below.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mwsis.core.files import existing_folder, free_bytes
from mwsis.training.doctor.checks import Answer, advise, broken, ok
from mwsis.training.doctor.limits import free_memory, num_cores

if TYPE_CHECKING:
    from mwsis.data.store import FrameStore
    from mwsis.training.config import RunConfig

__all__ = ["cores_suffice", "disk_has_room", "gpus_suffice", "memory_suffices", "shared_memory_suffices", "store_reads"]

LEAST_FREE = 200e6
"""Bytes; checkpoint, export and report of the smallest networks, the old checkpoint beside the new one."""
AMPLE_FREE = 5e9
"""Bytes; the same of the paper's networks (54 million parameters, teacher and optimiser states beside them)."""
PROBE_BYTES = 1 << 20
PROCESS_BYTES = 2.5e9
"""Of a training process: the default run's takes 1.4 GB on a CPU; a GPU's context and larger images come on top."""
WORKER_BYTES = 0.7e9
"""Of a process that loads frames: .64 GB beside the same run, most of that Python with torch."""
POINT_BYTES = 20e6
"""Of a sample's points and labels: 170,000 points with two projections each."""
CAMERAS = 5
"""Of a frame, where the configuration does not say."""
PREFETCHED = 2
"""Batches that torch keeps ready for each worker."""
READ_FRAMES, READ_S = 64, 3.0
SLOW_S = 0.5
"""Reading the frames of a step for so long is worth a word: a step takes a second or less."""
GB = 1e9


def disk_has_room(folder: Path, purpose: str, setting: str) -> Answer:
    """Answer whether files can be written where a folder is or will be, and how much room there is.

    Args:
        folder: may not be there yet.
        purpose: what will be kept there, in words.
        setting: by which another folder is chosen.
    """
    place = existing_folder(folder)
    elsewhere = f"give another folder with {setting}"
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".mwsis-") as probe:
            probe.write(os.urandom(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return broken(
            f"{place}: {PROBE_BYTES >> 20} MB cannot be written ({error.strerror}), and {purpose} go there",
            f"make room or get the right to write there, or {elsewhere}",
        )
    free = free_bytes(place)
    said = f"{place}: {free / GB:.3g} GB free for {purpose}"
    if free < LEAST_FREE:
        return broken(f"{said}, less than the {LEAST_FREE / GB:.1f} GB of a small run", f"make room, or {elsewhere}")
    if free < AMPLE_FREE:
        return advise(
            f"{said}, enough for small networks",
            f"for those of the paper have {AMPLE_FREE / GB:.0f} GB, or {elsewhere}",
        )
    return ok(said)


def store_reads(store: Path | None, run: RunConfig) -> Answer:
    """Answer how fast frames are read in random order, every byte, not from memory where the system allows it.

    Args:
        store: a frame store; None = that of the run's training split.
        run: how many frames a step reads.

    Raises:
        DataError: the store, or the data set it would be made of, is missing or damaged.
    """
    from mwsis.data.store import INDEX, FrameStore

    if store is None:
        from mwsis.training.prepare import build_source, plan_run

        store = plan_run(run, build_source(run))[0].frames.root
        if not (store / INDEX).is_file():
            return ok(f"no frame store of this data set in {run.data.cache} yet; tools/train.py or convert.py makes it")
    opened = FrameStore(store)
    frames, read_bytes, seconds = _read(opened)
    step_s = seconds / frames * run.trainer.frames_per_step
    said = f"{store}: {frames / seconds:.3g} frames/s, {read_bytes / seconds / 1e6:.3g} MB/s, one reader"
    if step_s > SLOW_S:
        return advise(
            f"{said}; the {run.trainer.frames_per_step} frames of a step take {step_s:.2g} s",
            "keep the cache on a disk of this machine (data.cache=...), or raise trainer.workers",
        )
    return ok(said)


def _read(store: FrameStore) -> tuple[int, int, float]:
    """Return how many frames were read, their bytes, and the seconds it took."""
    import torch

    from mwsis.data.store import frame_record, num_bytes

    for path in [store.root] if store.root.is_file() else sorted(store.root.glob("*.arrow")):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0)).tolist()
    began, frames, read_bytes = time.perf_counter(), 0, 0
    for row in order[:READ_FRAMES]:
        read_bytes += num_bytes(frame_record(store[row]))
        frames += 1
        if time.perf_counter() - began > READ_S:
            break
    return frames, read_bytes, time.perf_counter() - began


def cores_suffice(run: RunConfig) -> Answer:
    """Answer whether training and loading processes have a core each."""
    have, trainer = num_cores(), run.trainer
    wanted = trainer.devices * (1 + trainer.workers)
    if wanted > have:
        fitting = max(have // trainer.devices - 1, 0)
        return advise(
            f"{have} cores, {wanted} wanted by {_processes(run)}",
            f"set trainer.workers={fitting}" if fitting < trainer.workers else "train on fewer devices of this machine",
        )
    if run.data.cache_workers > have:
        return advise(
            f"{have} cores, and data.cache_workers={run.data.cache_workers} read the data set",
            f"set data.cache_workers={have}",
        )
    return ok(f"{have} cores for {_processes(run)}")


def memory_suffices(run: RunConfig) -> Answer:
    """Answer whether the processes of a run fit into the memory that is free."""
    free, trainer = free_memory(), run.trainer
    wanted = trainer.devices * (PROCESS_BYTES + trainer.workers * WORKER_BYTES)
    said = f"{free / GB:.3g} GB of memory free, about {wanted / GB:.2g} GB wanted by {_processes(run)}"
    if free < PROCESS_BYTES:
        return broken(
            f"{said}; not even one process fits", "end other programs, or take a machine or container with more memory"
        )
    if free < wanted:
        return advise(said, "lower trainer.workers or trainer.devices")
    return ok(said)


def shared_memory_suffices(run: RunConfig, place: Path = Path("/dev/shm")) -> Answer:
    """Answer whether /dev/shm, through which loading processes hand over samples, holds those that are kept ready."""
    trainer, width = run.trainer, max(run.data.image_widths)
    if not trainer.workers:
        return ok("not used: trainer.workers=0 loads frames in the training process")
    sample = 3 * width * width * 2 / 3 * (run.data.cameras_per_frame or CAMERAS) + POINT_BYTES
    wanted = trainer.workers * PREFETCHED * sample * trainer.frames_per_step / trainer.nodes
    free = shutil.disk_usage(place).free
    said = f"{place} has {free / GB:.3g} GB free, and samples kept ready take about {wanted / GB:.2g} GB"
    if free < wanted:
        return advise(said, "in a container raise it (docker run --shm-size=16g), or lower trainer.workers")
    return ok(said)


def gpus_suffice(run: RunConfig) -> Answer:
    """Answer whether the GPUs that the trainer asks for are here, and can do what it asks."""
    import torch

    trainer, have = run.trainer, torch.cuda.device_count()
    asked = f"trainer.accelerator={trainer.accelerator}, trainer.devices={trainer.devices}"
    if trainer.accelerator not in ("gpu", "cuda"):
        return ok(f"{asked}: runs without a GPU" if not have else f"{asked}: {have} GPUs here")
    if have < trainer.devices:
        if trainer.slurm and "SLURM_JOB_ID" not in os.environ:
            return advise(f"{asked}: {have} GPUs here, outside a Slurm job", "run this again inside one, with srun")
        fewer = f"trainer.devices={have}" if have else "trainer=cpu"
        return broken(f"{asked}: {have} GPUs here", f"set {fewer}, or use a machine with more")
    if trainer.precision == "bf16-camera" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return broken(
            f"trainer.precision=bf16-camera, and {torch.cuda.get_device_name()} has no bfloat16",
            "set trainer.precision=32",
        )
    return ok(f"{asked}: {have} GPUs here")


def _processes(run: RunConfig) -> str:
    """Say which processes a run starts on a machine."""
    devices, workers = run.trainer.devices, run.trainer.workers
    training = f"{devices} training process{'es' * (devices > 1)}"
    return f"{training} with {workers} loading frames each" if workers else training
