"""The ladder command: what it starts, what it does not repeat, and what it says about what failed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mwsis.core.errors import ConfigError
from mwsis.training.build import check_training
from mwsis.training.commands import CONFIG_DIR, run_command
from tools import ablate

TWO = {
    "branch": "camera",
    "metric": "mask_ap",
    "beside": ["matched_mask_iou"],
    "rows": [
        {"name": "fill", "meaning": "boxes", "overrides": ["method=boxfill"]},
        {"name": "inst", "meaning": "colours", "over": "fill", "overrides": ["method=boxinst"]},
    ],
}
TINY = (
    *("experiment=smoke", "ladder=two", "trainer.max_steps=2"),
    *("data.source.train_frames_per_segment=1", "data.source.lidar_columns=64"),
)
# In the place of tools/train.py: notes how it was started, and leaves a score.
FAKE = """
import json, os, pathlib, sys, time
given = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder = pathlib.Path(given.get("out", given.get("resume")).strip("'"))
(folder / "given.json").write_text(json.dumps(sys.argv[1:] + ["threads=" + os.environ["OMP_NUM_THREADS"]]))
(folder / "config.yaml").write_text("method: x")
if "FAIL" in os.environ and os.environ["FAIL"] in folder.name:
    print("reading", end="\\r"); print("step 1"); print("error: no more memory"); print()
    raise SystemExit(2)
if "WAIT" in os.environ:
    try:
        (folder / "waiting").touch(); time.sleep(60)
    except KeyboardInterrupt:
        (folder / "saved").touch(); raise SystemExit(130)
score = {"mask_ap": float(given.get("seed", 9)), "matched_mask_iou": 0.5}
metrics = {"camera": {"teacher": score, "student": score}, "steps": 2, "wall_s": 7.0}
metrics["data"] = {"name": "street", "fingerprint": "f00", "train_frames": 1, "val_frames": 1}
(folder / "metrics.json").write_text(json.dumps(metrics))
"""
ONE_TO_START = (
    "import sys; from pathlib import Path; from tools import ablate; from mwsis.training.commands import run_command;"
    "ablate.CONFIG_DIR, ablate.TRAIN = map(Path, sys.argv[1:3]); del sys.argv[1:3]; run_command(ablate.main, '')"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a ladder of two rows, and nothing that trains."""
    (tmp_path / "configs/ladder").mkdir(parents=True)
    (tmp_path / "configs/ladder/two.yaml").write_text(yaml.safe_dump(TWO))
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(ablate, "CONFIG_DIR", tmp_path / "configs")
    monkeypatch.setattr(ablate, "TRAIN", tmp_path / "fake.py")
    return tmp_path


@pytest.fixture
def climb(home, cache, monkeypatch, capsys):
    """Run the command in this process; return exit code, what was printed and what it complained about."""

    def run(*arguments):
        given = [*TINY, f"out={home / 'out'}", f"data.cache={cache}", *arguments]
        monkeypatch.setattr(sys, "argv", ["tools/ablate.py", *given])
        code = 0
        try:
            run_command(ablate.main, ablate.__doc__)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def folders(home):
    """Return the run folders by (method, seed)."""
    found = {}
    for path in sorted((home / "out/runs").iterdir()):
        given = json.loads((path / "given.json").read_text())
        method = next(argument for argument in given if argument.startswith("method="))
        found[method.removeprefix("method="), int(path.name[-1])] = path
    return found


def table(home):
    with open(home / "out/table.csv", newline="") as file:
        return {(line["row"], line["kind"], line["seeds"]): line for line in csv.DictReader(file)}


def test_all_rows_and_seeds_are_trained_and_tabled(climb, home):
    code, said, _ = climb("seeds=[0,1]", "workers=2")
    assert code == 0
    started = folders(home)
    assert set(started) == {("boxfill", 0), ("boxfill", 1), ("boxinst", 0), ("boxinst", 1)}
    given = json.loads((started["boxinst", 1] / "given.json").read_text())
    assert given[0] == "experiment=smoke"
    assert {"method=boxinst", "trainer.max_steps=2", "seed=1", f"out='{started['boxinst', 1]}'"} <= set(given)
    assert given[-1] == f"threads={max(len(os.sched_getaffinity(0)) // 2, 1)}"
    lines = table(home)
    assert set(lines) == {
        (row, *kind) for row in ("fill", "inst") for kind in (("run", "0"), ("run", "1"), ("row", "0 1"))
    }
    inst = lines["inst", "row", "0 1"]
    assert [float(inst[key]) for key in ("mean", "min", "max", "n", "gain")] == [0.5, 0.0, 1.0, 2, 0.0]
    assert inst["ranges"] == "ranges overlap"
    assert inst["trained_from"] == "2D boxes"
    assert "4 of 4 runs, 2 of 2 rows" in said
    assert ".500 (.000 to 1.000)" in said
    assert "4 of 4 finished" in (home / "out/table.html").read_text()


def test_finished_runs_are_kept_and_interrupted_ones_continue(climb, home):
    assert climb("seeds=[0,1]")[0] == 0
    runs = folders(home)
    kept, half, damaged = runs["boxfill", 0], runs["boxinst", 0], runs["boxinst", 1]
    (half / "metrics.json").unlink()
    (damaged / "metrics.json").write_text('{"steps": 2, "wal')
    score = json.loads((kept / "metrics.json").read_text())
    short = runs["boxfill", 1]
    (short / "metrics.json").write_text(json.dumps({**score, "steps": 1}))
    for path in runs.values():
        (path / "given.json").unlink()
    code, said, _ = climb("seeds=[0,1,2]")
    assert code == 0
    assert "6 runs" in said
    assert "5 to do" in said
    assert not (kept / "given.json").exists()
    for path in (half, damaged, short):
        assert json.loads((path / "given.json").read_text())[:-1] == [f"resume='{path}'"]
        assert len(list(path.glob("ablate-*.log"))) == 2
    lines = table(home)
    assert lines["fill", "run", "0"]["wall_s"] == "7.0"
    assert lines["inst", "run", "0"]["wall_s"] == ""  # nobody knows how long the first attempt took
    assert {key[2] for key in lines if key[1] == "run"} == {"0", "1", "2"}
    assert "0 to do" in climb("seeds=[0,1,2]")[1]


def test_a_failing_row_is_named_and_the_others_go_on(climb, home, monkeypatch):
    assert climb("seeds=[0]")[0] == 0
    failing = folders(home)["boxfill", 0].name.split("-")[0]
    monkeypatch.setenv("FAIL", failing)
    code, said, complaint = climb("seeds=[1,2]")
    assert code == 3
    assert complaint.count("failed: two/fill, seed") == 2
    assert "exit code 2: error: no more memory" in complaint
    assert "2 runs failed; the same command tries them again" in complaint
    assert "done: two/inst, seed 2" in said
    assert "0 of 2, failed: seed 1: exit code 2: error: no more memory; seed 2: " in said
    lines = table(home)
    assert ("inst", "row", "1 2") in lines
    assert lines["fill", "row", ""]["failed"].startswith("seed 1: exit code 2")
    monkeypatch.delenv("FAIL")
    assert climb("seeds=[1,2]")[0] == 0


def test_an_interrupt_lets_every_run_save(home, cache):
    given = [*TINY, f"out={home / 'out'}", f"data.cache={cache}", "seeds=[0,1]", "workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-c", ONE_TO_START, str(home / "configs"), str(home / "fake.py"), *given],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "WAIT": "1", "PYTHONPATH": str(Path(ablate.__file__).parents[1])},
        text=True,
    )
    runs = home / "out/runs"
    wait_for(lambda: len(list(runs.glob("*/waiting"))) == 2 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 130, complaint
    assert "the same command continues" in complaint
    assert len(list(runs.glob("*/saved"))) == len(list(runs.iterdir())) == 2  # two others never began
    assert not list(runs.glob("*/metrics.json"))


def wait_for(happened):
    deadline = time.monotonic() + 600  # a busy machine starts two processes slowly
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_other_frames_than_expected_are_refused_before_any_run(climb, home):
    code, _, complaint = climb("data.expected_content='0123'")
    assert code == 2
    assert (
        complaint.strip().splitlines()[-1].startswith("error: data.expected_content: expected frames with content 0123")
    )
    assert not (home / "out/runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ladder=tow"], "ladder=tow: no such ladder; did you mean 'two'"),
        (["seeds=[0,x]"], "seeds=[0,x]: expected different numbers"),
        (["seeds=0,0"], "seeds=0,0: expected different numbers"),
        (["seed=3"], "seed=3: 'seed' differs from run to run; give seeds=[...]"),
        (["workers=0"], "workers=0: expected a number"),
        (["trainer.max_stepz=3"], "did you mean 'trainer.max_steps'"),
        (["trainer.max_steps=0"], "trainer.max_steps: expected at least 1"),
        (["method=boxteacher"], "ladder two: rows fill and inst are the same run with these settings"),
        (
            ["method.branches=[lidar]"],
            "row fill: expected method.branches with 'camera', which is judged, got ['lidar']",
        ),
        (["experiment=smok"], "experiment=smok: no such experiment; did you mean 'smoke'"),
    ],
)
def test_wrong_arguments(climb, home, arguments, said):
    code, _, complaint = climb(*arguments)
    assert code == 2
    assert said in complaint.strip().splitlines()[-1]
    assert not (home / "out").exists()


def test_settings_that_make_two_rows_one_are_refused(home, cache):
    ladder = {**TWO, "rows": [*TWO["rows"], {"name": "again", "meaning": "x", "overrides": ["method=boxinst"]}]}
    (home / "configs/ladder/two.yaml").write_text(yaml.safe_dump(ladder))
    with pytest.raises(ConfigError, match="rows inst and again are the same run"):
        ablate.compose_rows([ablate.read_ladder("two")], "smoke", [])


def test_shipped_ladders_train_what_they_say():
    ladders = [ablate.read_ladder(name) for name in ablate.ladder_names("camera,lidar")]
    assert [ladder.name for ladder in ladders] == ["camera", "lidar"]
    kinds = ablate.compose_rows(ladders, "street_bench_v1", [])
    jobs = ablate.jobs_of(kinds, [0, 1, 2], Path("out"))
    assert len(kinds) == 15
    assert len(jobs) == 3 * 13  # the whole method, and with what is ours, are rows of both
    for row in ("mwsis", "ours"):
        assert kinds["camera", row].digest == kinds["lidar", row].digest
    assert jobs[4].name == "camera/mwsis = lidar/mwsis, seed 0"
    for (ladder, row), kind in kinds.items():
        check_training(kind.run)
        assert ladder in kind.run.method.branches
        assert kind.run.trainer.lidar_every == 1
        assert (kind.run.data.supervision == "masks") == (row == "full")
        assert kind.run.data.expected_content is not None
        assert (kind.run.camera.refinement is not None) == (row == "ours" or "camera" not in kind.run.method.branches)
    for row, sharpened, start in (("ipg", False, 0.75), ("ipg_sharpened", True, 0.1)):
        method = kinds["camera", row].run.method
        assert (method.refine_masks, method.camera_terms["ipg"].start) == (sharpened, start)
    labels = {row: kind.run.method for (ladder, row), kind in kinds.items() if ladder == "lidar"}
    switches = ("spg", "labels", "spg_rings", "pvc", "rsc", "rsc_labels")
    told = {row: tuple(getattr(method, name) for name in switches) for row, method in labels.items()}
    assert not told["frustum"][0]
    assert told["clustering"] == (True, "published", False, False, False, False)
    assert told["spg"] == (True, "published", True, False, False, False)
    assert told["spg_default"] == (True, "default", True, False, False, False)
    assert told["pvc"] == (True, "default", True, True, False, False)
    assert told["rsc"] == told["mwsis"] == told["ours"] == (True, "default", True, True, True, True)
    assert not any(told["frustum"][3:])


def test_a_split_of_each_seed():
    ladders = [ablate.read_ladder(name) for name in ablate.ladder_names("kitti_camera,kitti_lidar")]
    kinds = ablate.compose_rows(ladders, "kitti_mini", ["data.root=/k", "data.source.val_frames=${seed}/5"])
    jobs = ablate.jobs_of(kinds, [0, 3], Path("out"))
    assert len(jobs) == 2 * 3  # the whole method is a row of both ladders
    assert {job.seed: job.run.data.source["val_frames"] for job in jobs} == {0: "0/5", 3: "3/5"}


def test_where_things_are_kept_does_not_name_a_run():
    ladder = [ablate.read_ladder("camera")]
    one = ablate.compose_rows(ladder, "smoke", ["data.cache=/a", "data.cache_workers=3"])
    other = ablate.compose_rows(ladder, "smoke", ["data.cache=/b"])
    third = ablate.compose_rows(ladder, "smoke", ["data.cache=/b", "trainer.max_steps=3"])
    digests = [[kind.digest for kind in kinds.values()] for kinds in (one, other, third)]
    assert digests[0] == digests[1]
    assert not set(digests[1]) & set(digests[2])


@pytest.mark.slow
def test_two_rows_for_real(climb, home, monkeypatch):
    monkeypatch.setattr(ablate, "TRAIN", CONFIG_DIR.parent / "tools/train.py")
    code, said, complaint = climb("seeds=[0]")
    assert code == 0, complaint
    lines = table(home)
    runs = [json.loads(path.read_text()) for path in (home / "out/runs").glob("*/metrics.json")]
    assert {run["method"] for run in runs} == {"boxfill", "boxinst"}
    assert {run["steps"] for run in runs} == {2}
    by_method = {run["method"]: run["camera"]["teacher"] for run in runs}
    for row, method in (("fill", "boxfill"), ("inst", "boxinst")):
        assert float(lines[row, "row", "0"]["mean"]) == by_method[method]["mask_ap"]
        assert float(lines[row, "run", "0"]["wall_s"]) > 0
    assert "no range: one seed" in said
    assert "0 to do" in climb("seeds=[0]")[1]
