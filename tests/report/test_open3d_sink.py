"""Point clouds as files, read by a parser of PLY's and PCD's headers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from mwsis.core.errors import ConfigError
from mwsis.evaluation.predictions import FramePrediction
from mwsis.report.open3d_sink import open3d_module, write_clouds
from mwsis.report.sweep_layers import sweep_layers
from tests.data.frames_for_tests import random_frame
from tests.export.labels.labelled import CLASSES, labelled


@pytest.fixture
def shown():
    made = labelled(random_frame(2), 2)
    return FramePrediction(made.frame, made.points, torch.arange(51), None, None)


def need_open3d():
    try:
        open3d_module()
    except ConfigError as error:
        pytest.skip(str(error))


def test_without_open3d_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(ConfigError, match=r"backend=open3d: .*install the extra 'viz'"):
        open3d_module()


def test_ply_files_hold_points_and_colours(shown, tmp_path):
    need_open3d()
    paths = write_clouds(shown, CLASSES, tmp_path, "ply")
    layers = {layer.name: layer for layer in sweep_layers(shown, CLASSES)}
    assert [path.stem for path in paths] == list(layers)
    for path in paths:
        header, _, body = path.read_bytes().partition(b"end_header\n")
        assert b"element vertex 51\n" in header
        kinds = [line.split()[1:] for line in header.decode().splitlines() if line.startswith("property")]
        dtype = np.dtype([(name, {"double": "<f8", "float": "<f4", "uchar": "u1"}[kind]) for kind, name in kinds])
        rows = np.frombuffer(body, dtype)
        assert np.allclose(np.stack([rows[axis] for axis in "xyz"], 1), shown.frame.points.xyz.numpy())
        assert np.array_equal(np.stack([rows[name] for name in ("red", "green", "blue")], 1), layers[path.stem].colours)


def test_pcd_files(shown, tmp_path):
    need_open3d()
    for path in write_clouds(shown, CLASSES, tmp_path, "pcd"):
        assert b"\nPOINTS 51\n" in path.read_bytes()
