"""The doctor's checks one by one: what each finds when something is wrong; nothing that one does ends the others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import namedtuple
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from lidar import sparse
from mwsis.core.errors import DataError
from mwsis.data.store import write_frames
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from mwsis.training.doctor import computing, install, limits, machine
from mwsis.training.doctor.checks import ADVICE, BROKEN, OK, Check, advise, examine, ok
from tests.data.frames_for_tests import random_frame

usage = namedtuple("usage", "total used free")


def asked(look, **more):
    (finding,) = examine([Check("it", look, "put it right", **more)], timeout_s=60)
    return finding.state, finding.finding, finding.advice


def run_with(**trainer):
    run = typed(compose_run([]))
    return replace(run, trainer=replace(run.trainer, **trainer))


def test_a_check_that_raises_is_broken_in_one_sentence():
    def raises(error):
        def look():
            raise error

        return look

    assert asked(lambda: ok("fine")) == (OK, "fine", "")
    assert asked(lambda: advise("slow", "wait")) == (ADVICE, "slow", "wait")
    assert asked(raises(DataError("file: no such"))) == (BROKEN, "file: no such", "put it right")
    assert asked(raises(ImportError("libusb:\n not  found"))) == (
        BROKEN,
        "ImportError: libusb: not found",
        "put it right",
    )


def test_a_check_that_crashes_python_is_broken_and_the_next_one_is_made():
    def crash():
        os.write(1, b"terminate called\n  what(): no kernel image\n")
        os.kill(os.getpid(), signal.SIGSEGV)

    first, second = examine([Check("one", crash, "again"), Check("two", lambda: ok("fine"), "")])
    assert (first.state, first.advice) == (BROKEN, "again")
    assert first.finding == "Python was killed by signal 11 (SIGSEGV) after printing 'what(): no kernel image'"
    assert second.state == OK
    assert asked(lambda: os._exit(7))[1] == "Python ended with exit code 7"


def test_a_check_that_hangs_is_ended():
    began = time.monotonic()
    (finding,) = examine([Check("one", lambda: time.sleep(60) or ok(""), "again")], timeout_s=0.3)
    assert finding.state == BROKEN
    assert finding.finding.startswith("no answer after 0 s: it hangs, or other work")
    assert time.monotonic() - began < 30


def test_what_needs_a_broken_check_is_not_made():
    checks = [Check("torch", lambda: 1 / 0, "again"), Check("gpu", lambda: ok("fine"), "", ("torch",))]
    first, second = examine(checks)
    assert first.finding == "ZeroDivisionError: division by zero"
    assert (second.state, second.finding) == (ADVICE, "not looked at, because torch is broken")


def test_versions_are_those_that_the_project_allows(monkeypatch):
    assert install.python_fits()[0] == install.requirements_are_met()[0] == install.torch_works()[0] == OK
    monkeypatch.setattr(torch, "__version__", "1.13.1+cu117")
    state, finding, advice = install.torch_works()
    assert state == BROKEN
    assert finding.startswith("torch 1.13.1+cu117 (")
    assert "and mwsis needs <2.15,>=2.8" in finding
    assert "pip install 'torch<2.15,>=2.8'" in advice
    monkeypatch.setattr(install.platform, "python_version", lambda: "3.8.1")
    assert install.python_fits()[1] == "Python 3.8.1, and mwsis needs <3.13,>=3.10"
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "timm" else version(name))
    assert install.requirements_are_met()[:2] == (BROKEN, "timm is 0.1 and must be <2,>=1.0.20")


def test_a_torchvision_for_another_torch_is_noticed(monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision.ops, "nms", lambda *arguments: torch.tensor([0, 1]))
    state, finding, _ = install.torch_works()
    assert state == BROKEN
    assert "NMS keeps [0, 1] instead of [1, 2]" in finding


def test_packages_of_others_are_named(tmp_path):
    ours, foreign = tmp_path / "ours", tmp_path / "site"
    found = {}
    for name in ("mwsis", "lidar"):
        found[name] = ours / name / "__init__.py"
        found[name].parent.mkdir(parents=True)
        found[name].write_text('"""Of mwsis."""')
    assert install.packages_are_ours(found, ours)[0] == OK
    assert install.packages_are_ours(found, tmp_path)[0] == ADVICE
    assert install.packages_are_ours(found | {"camera": None}, ours)[1].startswith("package 'camera' is found nowhere")
    (foreign / "lidar").mkdir(parents=True)
    found["lidar"] = foreign / "lidar" / "__init__.py"
    found["lidar"].write_text('"""Of mwsis."""')
    assert "different copies" in install.packages_are_ours(found, ours)[1]
    found["lidar"].write_text('"""Something else."""')
    state, finding, advice = install.packages_are_ours(found, ours)
    assert state == BROKEN
    assert finding == (
        f"package 'lidar' resolves to {found['lidar']}, which is not ours and would be imported instead of "
        f"{ours / 'lidar'}"
    )
    assert advice == "uninstall the foreign 'lidar', or take its folder off PYTHONPATH"


def test_sparse_convolutions_are_held_against_dense_ones(monkeypatch):
    assert computing.largest_difference("cpu") < 1e-5
    assert computing.spconv_works()[0] == OK

    def no_gradient(tensor):
        volume = dense(tensor)
        return volume.detach() + 0 * volume

    dense = sparse.dense
    monkeypatch.setattr(sparse, "dense", no_gradient)  # right values, no gradients, as the CPU wheel
    state, finding, _ = computing.spconv_works()
    assert state == BROKEN
    assert "on cpu is off by 1 of the largest value or gradient" in finding
    monkeypatch.setattr(sparse, "dense", lambda tensor: dense(tensor) * torch.tensor(float("nan")))
    assert computing.spconv_works()[0] == BROKEN
    monkeypatch.setattr(sparse, "dense", lambda tensor: dense(tensor) * 1.01)
    assert computing.spconv_works()[0] == BROKEN


def test_the_wrong_wheel_of_spconv_is_named(monkeypatch):
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"spconv": ["spconv"]})
    assert "wrong values with several threads" in computing.spconv_works()[1]
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"spconv": ["torch"]})
    state, finding, advice = computing.spconv_works()
    assert state == ADVICE
    assert "but mwsis is tested with spconv-cu12" in finding
    assert advice.startswith("pip uninstall torch, then uv sync, or pip install 'spconv-cu12")
    monkeypatch.setattr(computing, "find_spec", lambda name: None)
    assert computing.spconv_works()[:2] == (BROKEN, "spconv is not installed, without which there is no LiDAR branch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines whose GPU torch cannot use")
def test_a_driver_without_a_usable_gpu_is_advice(monkeypatch):
    monkeypatch.setattr(computing, "driver_version", lambda: None)
    assert computing.gpu_works()[0] == OK
    monkeypatch.setattr(computing, "driver_version", lambda: "470.1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    state, finding, _ = computing.gpu_works()
    assert state == ADVICE
    assert "NVIDIA driver 470.1, but torch" in finding
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built for the CPU alone" in computing.gpu_works()[1]


def test_extras_are_broken_only_where_a_run_needs_them(monkeypatch):
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    assert install.extra_works("mmdet")[0] == OK
    assert install.extra_works("mmdet", "camera.mmdet")[:2] == (BROKEN, "not installed, and camera.mmdet needs it")

    def fails(name):
        raise OSError("libusb-1.0.so.0: cannot open")

    monkeypatch.setattr(install, "find_spec", lambda name: True)
    monkeypatch.setattr(install, "import_module", fails)
    state, finding, advice = install.extra_works("open3d")
    assert (state, finding) == (ADVICE, "installed, but its import fails (libusb-1.0.so.0: cannot open)")
    assert "uv sync --extra viz" in advice
    assert install.extra_works("mmdet", "camera.mmdet")[0] == BROKEN


def test_little_room_is_advice_and_less_is_broken(tmp_path, monkeypatch):
    def with_free(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, free))
        return machine.disk_has_room(tmp_path / "not" / "there", "runs", "out=...")

    assert with_free(10**10)[0] == OK
    assert with_free(10**9)[0] == ADVICE
    state, finding, advice = with_free(10**7)
    assert state == BROKEN
    assert finding == f"{tmp_path}: 0.01 GB free for runs, less than the 0.2 GB of a small run"
    assert advice == "make room, or give another folder with out=..."
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named(tmp_path):
    """A real one, of 256 kB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        state, finding, _ = machine.disk_has_room(place / "runs", "runs", "out=...")
        assert not list(place.iterdir())
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert (state, finding) == (
        BROKEN,
        f"{place}: 1 MB cannot be written (No space left on device), and runs go there",
    )


def test_a_store_is_read_or_said_to_be_damaged(tmp_path, monkeypatch):
    path = tmp_path / "frames.arrow"
    write_frames(path, [random_frame(seed) for seed in range(3)])
    state, finding, _ = machine.store_reads(path, run_with())
    assert state == OK
    assert finding.startswith(f"{path}: ")
    assert finding.endswith("MB/s, one reader")
    monkeypatch.setattr(machine, "SLOW_S", 0.0)
    state, finding, _ = machine.store_reads(path, run_with(frames_per_step=8))
    assert state == ADVICE
    assert "the 8 frames of a step take" in finding
    path.write_bytes(path.read_bytes()[:-100])
    assert "truncated or foreign" in asked(lambda: machine.store_reads(path, run_with()))[1]
    assert "no index.json" in asked(lambda: machine.store_reads(tmp_path / "none", run_with()))[1]


def test_a_run_is_held_against_cores_and_memory(monkeypatch):
    monkeypatch.setattr(machine, "num_cores", lambda: 8)
    assert machine.cores_suffice(run_with(workers=7))[0] == OK
    state, finding, advice = machine.cores_suffice(run_with(devices=2, workers=8))
    assert (state, advice) == (ADVICE, "set trainer.workers=3")
    assert finding == "8 cores, 18 wanted by 2 training processes with 8 loading frames each"
    monkeypatch.setattr(machine, "free_memory", lambda: int(4e9))
    assert machine.memory_suffices(run_with())[0] == OK
    assert machine.memory_suffices(run_with(workers=8))[0] == ADVICE
    monkeypatch.setattr(machine, "free_memory", lambda: int(1e9))
    assert machine.memory_suffices(run_with())[0] == BROKEN


def test_shared_memory_matters_with_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 64 << 20))  # what Docker gives
    assert machine.shared_memory_suffices(run_with(), tmp_path)[0] == OK
    state, finding, advice = machine.shared_memory_suffices(run_with(workers=8), tmp_path)
    assert state == ADVICE
    assert "0.0671 GB free" in finding
    assert "--shm-size" in advice


def test_gpus_that_a_run_asks_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine.gpus_suffice(run_with(accelerator="cpu"))[0] == OK
    assert machine.gpus_suffice(run_with(accelerator="gpu", devices=2))[0] == OK
    state, finding, advice = machine.gpus_suffice(run_with(accelerator="gpu", devices=4))
    assert (state, finding) == (BROKEN, "trainer.accelerator=gpu, trainer.devices=4: 2 GPUs here")
    assert advice == "set trainer.devices=2, or use a machine with more"
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert machine.gpus_suffice(run_with(accelerator="gpu", devices=4, slurm=True))[0] == ADVICE
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GTX 1080")
    state, finding, _ = machine.gpus_suffice(run_with(accelerator="gpu", precision="bf16-camera"))
    assert (state, finding) == (BROKEN, "trainer.precision=bf16-camera, and GTX 1080 has no bfloat16")


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_less_than_its_machine(tmp_path, version):
    groups, proc = tmp_path / "cgroup", tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/job\n" if version == 2 else "4:memory:/job\n3:cpu,cpuacct:/job\n")
    assert limits.free_memory(groups, proc) == 8000 * 1024
    assert limits.num_cores(groups, proc) == len(os.sched_getaffinity(0))
    files = {
        1: {
            "cpu/job/cpu.cfs_quota_us": "150000",
            "cpu/job/cpu.cfs_period_us": "100000",
            "memory/job/memory.limit_in_bytes": "5000000",
            "memory/job/memory.usage_in_bytes": "4000000",
            "memory/job/memory.stat": "cache 1\ntotal_inactive_file 1000000\n",
        },
        2: {
            "job/cpu.max": "150000 100000",
            "memory.max": "max",
            "job/memory.max": "5000000",
            "job/memory.current": "4000000",
            "job/memory.stat": "anon 1\ninactive_file 1000000\n",
        },
    }[version]
    for name, text in files.items():
        path = Path(groups / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert limits.free_memory(groups, proc) == 2_000_000
    assert limits.num_cores(groups, proc) == 1
