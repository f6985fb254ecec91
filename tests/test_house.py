"""The house itself: sizes, names, siblings."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("mwsis", "lidar", "camera", "fusion", "tools")
BANNED_FILES = {"utils.py", "misc.py", "common.py", "helpers.py"}


def sources():
    return [path for package in PACKAGES for path in sorted((PROJECT / package).rglob("*.py"))]


def function_lengths():
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.end_lineno - node.lineno + 1, f"{path.relative_to(PROJECT)}:{node.name}"


def test_sizes_stay_within_budget():
    functions = sorted(function_lengths())
    files = sorted((len(path.read_text().splitlines()), str(path)) for path in sources())
    lengths = np.array([length for length, _ in functions])
    lines = np.array([count for count, _ in files])
    print(f"functions median {np.median(lengths):.0f} p90 {np.percentile(lengths, 90):.0f} max {functions[-1]}")
    print(f"files p90 {np.percentile(lines, 90):.0f} max {files[-1]}")
    assert np.median(lengths) <= 12
    assert np.percentile(lengths, 90) <= 45
    assert functions[-1][0] <= 100, functions[-1]
    assert np.percentile(lines, 90) <= 400
    assert files[-1][0] <= 600, files[-1]


def test_names_say_something():
    assert [path for path in sources() if path.name in BANNED_FILES] == []


def test_a_foreign_lidar_package_is_noticed(tmp_path):
    (tmp_path / "lidar").mkdir()
    (tmp_path / "lidar" / "__init__.py").write_text('"""Something else."""\n')
    done = subprocess.run(
        [sys.executable, "-c", "import mwsis"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{PROJECT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "package 'lidar' resolves to" in done.stderr.splitlines()[-1]
    assert "uninstall the foreign 'lidar' package" in done.stderr.splitlines()[-1]


def test_viewers_are_imported_in_one_file_each():
    importing = {"rerun": set(), "open3d": set()}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for package in {name.partition(".")[0] for name in names} & importing.keys():
                importing[package].add(str(path.relative_to(PROJECT)))
    assert importing == {"rerun": {"mwsis/report/rerun_sink.py"}, "open3d": {"mwsis/report/open3d_sink.py"}}
