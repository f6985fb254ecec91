"""Commands run in this process as `python tools/<name>.py` runs them."""

from __future__ import annotations

import importlib
import sys

import pytest

from mwsis.training.commands import run_command
from tools import convert


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command in this process; return its exit code, what it printed and what it complained about."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tools/convert.py", "workers=1", *map(str, arguments)])
        code = 0
        try:
            run_command(convert.main, convert.__doc__)
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run a command in this process and return its one sentence."""

    def run(tool, *arguments):
        module = importlib.import_module(f"tools.{tool}")
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run_command(module.main, module.__doc__)
        captured = capsys.readouterr()
        assert stop.value.code == 2
        sentence = captured.err.strip().splitlines()[-1]
        assert sentence.startswith("error: ")
        return sentence

    return run
