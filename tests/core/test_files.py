from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mwsis.core.files import atomic_write, write_json


def write_half(path: Path, failure: BaseException) -> None:
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(b"half of the n")
        raise failure


def test_replaces_the_file_only_when_complete(tmp_path: Path):
    path = tmp_path / "labels.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as unfinished:
        assert unfinished.parent == path.parent
        assert unfinished.suffix == ".bin"
        unfinished.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(failure: type[BaseException], tmp_path: Path):
    path = tmp_path / "labels.bin"
    path.write_bytes(b"old")
    with pytest.raises(failure):
        write_half(path, failure())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_no_new_file(tmp_path: Path):
    with pytest.raises(OSError, match="disk"):
        write_half(tmp_path / "deep" / "x.bin", OSError("disk full"))
    assert list((tmp_path / "deep").iterdir()) == []


def test_json_holds_what_we_write(tmp_path: Path):
    @dataclass
    class Row:
        name: str
        iou: float

    write_json(
        tmp_path / "a" / "scores.json", {"rows": [Row("Wägen", float("nan"))], 3: torch.tensor(2), "p": Path("x")}
    )
    content = json.loads((tmp_path / "a" / "scores.json").read_text(encoding="utf-8"))
    assert content == {"rows": [{"name": "Wägen", "iou": None}], "3": 2, "p": "x"}


def test_json_failure_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "scores.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
