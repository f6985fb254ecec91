"""Commands run in this process as `python tools/<name>.py` runs them."""

from __future__ import annotations

import importlib
import sys
from functools import partial

import pytest

from mwsis.training.commands import run_command


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Run a command in this process; return its exit code, what it printed and what it complained about."""

    def run(tool, *arguments):
        module = importlib.import_module(f"tools.{tool}")
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *map(str, arguments)])
        code = 0
        try:
            run_command(module.main, module.__doc__)
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def command(run_tool):
    """Convert with one worker, see `run_tool`."""
    return partial(run_tool, "convert", "workers=1")


@pytest.fixture
def refused(run_tool):
    """Run a command in this process and return its one sentence."""

    def run(tool, *arguments):
        code, _, complaint = run_tool(tool, *arguments)
        assert code == 2
        sentence = complaint.strip().splitlines()[-1]
        assert sentence.startswith("error: ")
        return sentence

    return run
