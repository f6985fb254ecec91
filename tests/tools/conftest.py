"""The convert command, run as `python tools/convert.py` runs it."""

from __future__ import annotations

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
