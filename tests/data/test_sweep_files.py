from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mwsis.core.errors import DataError
from mwsis.data.sweep_files import read_columns
from tests.data.custom_folder import FIELDS, sweep_bytes

PCD = """VERSION 0.7
FIELDS x y z _ intensity _
SIZE 4 4 4 1 4 2
TYPE F F F U F I
COUNT 1 1 1 3 1 1
WIDTH 1
HEIGHT 2
VIEWPOINT 0 0 0 1 0 0 0
POINTS 2
DATA ascii
"""
PLY = """ply
format ascii 1.0
comment two points and a face
element vertex 2
property float x
property double y
property uchar z
element face 1
property list uchar int vertex_indices
end_header
1 2 3
4.5 -1e3 6
3 0 1 1
"""


def rows() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(7, 5))
    table = np.zeros(7, [*((name, "<f4") for name in FIELDS[:5]), ("ring", "<u2"), ("return", "u1")])
    for column, name in enumerate(FIELDS[:5]):
        table[name] = values[:, column]
    table["ring"], table["return"] = [0, 1, 2, 40, 63, 300, 5], [0, 1, 0, 1, 0, 0, 1]
    return table


@pytest.mark.parametrize("suffix", [".bin", ".npy", ".pcd", ".ply", ".ascii.pcd", ".ascii.ply"])
def test_formats_hold_the_same_columns(tmp_path: Path, suffix: str) -> None:
    path, table = tmp_path / f"sweep.{suffix.rpartition('.')[2]}", rows()
    path.write_bytes(sweep_bytes(table, suffix))
    found = read_columns(path, FIELDS)
    assert list(found) == list(FIELDS)
    for name in FIELDS:
        assert np.array_equal(found[name].astype(table.dtype[name]), table[name]), name


def test_a_plain_array(tmp_path: Path) -> None:
    np.save(tmp_path / "sweep.npy", np.arange(8.0).reshape(2, 4))
    found = read_columns(tmp_path / "sweep.npy", ("x", "y", "z", "intensity"))
    assert found["intensity"].tolist() == [3, 7]


def test_padding_in_pcd_and_faces_in_ply(tmp_path: Path) -> None:
    (tmp_path / "sweep.pcd").write_text(PCD + "1 2 3 9 9 9 0.5 7\n4 5 6 9 9 9 0.25 7\n\n")
    found = read_columns(tmp_path / "sweep.pcd", ())
    assert found["z"].tolist() == [3, 6]
    assert found["intensity"].tolist() == [0.5, 0.25]
    dtype = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("p", "u1", 3), ("i", "<f4"), ("q", "<i2")])
    packed = np.array([(1, 2, 3, (9, 9, 9), 0.5, 7), (4, 5, 6, (9, 9, 9), 0.25, 7)], dtype)
    (tmp_path / "binary.pcd").write_bytes(PCD.replace("ascii", "binary").encode() + packed.tobytes())
    assert read_columns(tmp_path / "binary.pcd", ())["intensity"].tolist() == [0.5, 0.25]
    (tmp_path / "sweep.ply").write_text(PLY)
    found = read_columns(tmp_path / "sweep.ply", ())
    assert {name: column.tolist() for name, column in found.items()} == {"x": [1, 4.5], "y": [2, -1000], "z": [3, 6]}


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.bin", b"\0" * 30, r"expected a multiple of 16 bytes \(float32 x y z intensity\), got 30"),
        ("a.bin", b"", "expected at least one point, got none"),
        ("a.las", b"", r"expected one of \.bin, \.npy, \.pcd, \.ply"),
        (
            "a.npy",
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (10**9, 4), }",
            "numpy",
        ),
        ("a.pcd", PCD + "1 2 3 9 9 9 0.5 7\n", "after line 10: expected 2 lines, one per point, got 1"),
        ("a.pcd", PCD + "1 2 3 9 9 9 0.5 7\n1 2 3 9 9 9 x 7\n", "line 12: expected 8 numbers, got '1 2 3 9 9 9 x 7'"),
        ("a.pcd", PCD + "1 2 3 9 9 9 0.5 7\n1 2 3\n", "line 12: expected 8 numbers, got '1 2 3'"),
        ("a.pcd", PCD.replace("ascii", "binary_compressed"), "line 10: DATA: expected ascii or binary"),
        ("a.pcd", PCD.replace("ascii", "binary") + "1234", "after line 10: expected 42 bytes for 2 points, got 4"),
        ("a.pcd", PCD.replace("HEIGHT 2", "HEIGHT 3"), "line 9: POINTS: expected WIDTH times HEIGHT = 3, got 2"),
        ("a.pcd", PCD.replace("POINTS 2", "POINTS two"), "line 9: POINTS: expected a whole number, got 'two'"),
        ("a.pcd", PCD.replace("SIZE 4", "SIZE 3", 1), "line 2: x: no such type: TYPE F SIZE 3"),
        ("a.pcd", PCD.replace(" U ", " "), "line 4: TYPE: expected 6, one per field, got 5"),
        ("a.pcd", PCD.replace("FIELDS x y", "FIELDS x x"), "line 2: FIELDS: expected different names"),
        ("a.pcd", PCD.replace("TYPE F F F U F I\n", ""), "line 9: header ends without TYPE"),
        ("a.pcd", PCD.partition("DATA")[0], "line 10: the header does not end; expected a PCD file"),
        ("a.pcd", b"\xff\xfe\n" * 3, "line 1: expected text, got other bytes"),
        ("a.ply", PLY.replace("ply\n", "PLY\n", 1), "line 1: expected 'ply', got 'PLY'"),
        ("a.ply", PLY.replace("ascii", "binary_big_endian"), "format: expected ascii 1.0 or binary_little_endian"),
        ("a.ply", PLY.replace("property float x", "property list uchar int x"), "line 5: property: expected a type"),
        ("a.ply", PLY.replace("element vertex", "element edge"), "line 4: element: expected vertex first, got 'edge'"),
        ("a.ply", PLY.replace("4.5", "nine"), "line 12: expected 3 numbers, got 'nine -1e3 6'"),
        ("a.ply", PLY.replace("end_header\n", ""), "expected|property|the header does not end"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, content: str | bytes, match: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=match) as error:
        read_columns(path, ("x", "y", "z", "intensity"))
    assert str(error.value).startswith(str(path))


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "sweep.npy", np.array([[print, 1, 2, 3]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="expected an array of numbers"):
        read_columns(tmp_path / "sweep.npy", ("x", "y", "z", "intensity"))
    with pytest.raises(DataError, match="no such file"):
        read_columns(tmp_path / "none.npy", ())
