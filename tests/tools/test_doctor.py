"""tools/doctor.py as users start it: on a sound installation, and where packages are missing or others'."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools import doctor

PROJECT = Path(__file__).resolve().parents[2]
QUICK = ("out=runs", "data.cache=cache")


def outcome(folder, *path, arguments=(), flags=()):
    """Start the command in a folder with entries before everything else on Python's path; return code and findings."""
    done = subprocess.run(
        [sys.executable, *flags, str(PROJECT / "tools" / "doctor.py"), "json=found.json", *QUICK, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ":".join(map(str, path)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    found = json.loads((folder / "found.json").read_text())
    assert found["healthy"] == (done.returncode == 0)
    for check in found["checks"]:
        assert check["finding"] in done.stdout
        assert check["advice"] in done.stdout
        assert bool(check["advice"]) == (check["state"] != "ok")
        assert "\n" not in check["finding"] + check["advice"]
    return done.returncode, {check["name"]: check for check in found["checks"]}, done.stdout


def broken(checks):
    return {name: check["finding"] for name, check in checks.items() if check["state"] == "broken"}


@pytest.mark.slow
def test_a_sound_installation_is_healthy(tmp_path):
    code, checks, said = outcome(tmp_path, PROJECT)
    assert (code, broken(checks)) == (0, {})
    assert said.splitlines()[-1] == "healthy"
    assert "values and gradients are those of dense convolutions on cpu" in checks["spconv"]["finding"]
    assert checks["packages"]["finding"] == f"mwsis, lidar, camera, fusion resolve to {PROJECT}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json"]


def without(name, folder):
    """Return a folder with links to all that is installed but what is called so."""
    site = Path(torch.__file__).resolve().parents[1]
    folder.mkdir()
    for entry in site.iterdir():
        if not entry.name.startswith((name, "__")):
            (folder / entry.name).symlink_to(entry)
    return folder


def foreign(name, folder, text='"""Something else."""\n'):
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    return folder


@pytest.mark.slow
def test_without_spconv_and_with_a_foreign_lidar_both_are_named(tmp_path):
    """Links to the real packages stand for an environment of its own: what lies beside them cannot be imported."""
    stranger = foreign("lidar", tmp_path / "stranger")
    site = without("spconv", tmp_path / "site")
    code, checks, said = outcome(tmp_path, stranger, PROJECT, site, flags=("-S",))
    assert code == 3
    assert broken(checks) == {
        "packages": f"package 'lidar' resolves to {stranger}/lidar/__init__.py, which is not ours and would be "
        f"imported instead of {PROJECT}/lidar",
        "spconv": "spconv is not installed, without which there is no LiDAR branch",
    }
    assert "pip install 'spconv-cu12" in checks["spconv"]["advice"]
    assert said.splitlines()[-1] == "broken: packages, spconv"


@pytest.mark.slow
@pytest.mark.parametrize("text", ['__version__ = "1.13.1"\n', 'raise ValueError("no libcublas in [...]")\n'])
def test_another_torch_first_on_the_path_is_named_alone(tmp_path, text):
    """Also one that does not load: torch 2.6 beside the CUDA libraries of another ends so."""
    old = foreign("torch", tmp_path / "old", text)
    (old / "torch-1.13.1.dist-info").mkdir()
    (old / "torch-1.13.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.13.1\n")
    code, checks, _ = outcome(tmp_path, old, PROJECT)
    assert code == 3
    assert broken(checks) == {
        "torch": f"torch 1.13.1 ({old}/torch/__init__.py), and mwsis needs <2.15,>=2.8",
    }
    assert checks["spconv"]["finding"] == "not looked at, because torch is broken"


@pytest.mark.slow
def test_where_almost_nothing_is_installed_it_still_answers(tmp_path):
    code, checks, _ = outcome(tmp_path, PROJECT, flags=("-S",))
    assert code == 3
    assert broken(checks)["torch"] == "ModuleNotFoundError: No module named 'torch'"
    assert broken(checks)["configuration"].startswith("settings cannot be read (No module named ")
    assert checks["cores"]["finding"] == "not looked at, because configuration is broken"


def quickly(monkeypatch):
    """Leave out the checks of the installation, which the tests above make."""
    monkeypatch.setattr(doctor, "installation", list)
    monkeypatch.setattr(doctor, "extras", lambda run: [])


def test_wrong_arguments_are_refused(refused, monkeypatch):
    quickly(monkeypatch)
    assert "experiment=mwsis_waymoo: no such experiment; did you mean" in refused("doctor", "experiment=mwsis_waymoo")
    assert "'trainer.workerz' is not a setting" in refused("doctor", "trainer.workerz=2")
    assert "expected key=value" in refused("doctor", "healthy")


def test_a_run_that_cannot_begin_here_is_broken(run_tool, monkeypatch, tmp_path):
    quickly(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arguments = ("experiment=mwsis_waymo", "trainer=ddp", f"data.root={tmp_path}", *QUICK)
    code, said, _ = run_tool("doctor", *arguments)
    assert code == 3
    assert "trainer.accelerator=gpu, trainer.devices=4: 0 GPUs here" in said
    assert str(tmp_path) in next(line for line in said.splitlines() if line.startswith("broken  frame store"))
    code, said, _ = run_tool("doctor", "trainer.devices=0", *QUICK)
    assert code == 3
    assert "trainer.devices: expected at least 1, got 0" in said
    assert said.splitlines()[-1] == "broken: configuration"


def test_findings_are_written_whole_or_not_at_all(refused, run_tool, monkeypatch, tmp_path):
    quickly(monkeypatch)
    path = tmp_path / "found.json"
    assert run_tool("doctor", f"json={path}", *QUICK)[0] == 0
    before = path.read_text()
    assert json.loads(before)["healthy"]

    def full(path, obj):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mwsis.core.files.write_json", full)
    assert "cannot be written (No space left on device)" in refused("doctor", f"json={path}", *QUICK)
    assert path.read_text() == before
