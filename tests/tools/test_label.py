"""The label command as a user runs it: files, scores and a sheet of pictures, and one sentence for each mistake."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from waymo_open_dataset.protos import metrics_pb2

from fusion.default_labels import default_labels
from fusion.label_methods import LABEL_METHODS
from fusion.spatial_labels import spatial_labels
from lidar.boxes_from_instances import USUAL_SIZES, fit_boxes3d
from lidar.rings import LOCAL, ring_segments
from mwsis.data.kitti import KittiSource
from mwsis.data.label_files import read_labels
from tests.tools.test_commands import kitti_folder
from tools import label

pytestmark = pytest.mark.filterwarnings("ignore:.*order of the points:UserWarning")
METHODS = ("frustum", "clustering", "spg", "spg_default")
OLD_KEYS = {"method", "class", "objects", "point_iou", "point_iou_95", "precision", "recall", "pooled_iou"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Frames with a car in the box and a wall behind it, so that every method labels them differently."""
    root, draw = kitti_folder(tmp_path_factory.mktemp("kitti")), np.random.default_rng(0)
    car = draw.uniform((11.3, -0.8, -0.9, 0), (12.7, 1.8, 0.4, 1), (90, 4))
    wall = draw.uniform((17.0, -6.0, -1.0, 0), (17.2, 6.0, 2.0, 1), (700, 4))
    for sweep in (root / "training" / "velodyne").iterdir():
        np.concatenate([car, wall]).astype(np.float32).tofile(sweep)
    return root


@pytest.fixture
def labelled(folder, tmp_path):
    """Label the folder; return where to."""

    def run(*arguments):
        cache = folder / "cache"
        label.main(["data=kitti", f"data.root={folder}", f"data.cache={cache}", f"out={tmp_path}", *arguments])
        return tmp_path

    return run


def expected_labels(frame, method):
    seen = frame.pixels.in_any_image
    if method == "spg_default":
        return default_labels(frame, ring_segments(frame.points, frame.lidar, seen, LOCAL))
    segments = ring_segments(frame.points, frame.lidar, seen)
    return spatial_labels(frame, segments, rings=method == "spg", clustering=method != "frustum")


def method_written(out):
    return json.loads((out / "labels" / "labels.json").read_text())["method"]


@pytest.mark.parametrize("method", METHODS)
def test_files_hold_the_labels_of_the_method(labelled, folder, method):
    out, source = labelled(f"method={method}"), KittiSource(folder)
    index = json.loads((out / "labels" / "labels.json").read_text())
    assert index["method"]["name"] == method
    assert index["source"] == {"name": "kitti", "fingerprint": source.fingerprint()}
    assert list(index["frames"]) == source.frame_ids("all")
    for frame_id, entry in index["frames"].items():
        found, expected = read_labels(out / "labels" / entry["file"]), expected_labels(source.read(frame_id), method)
        assert torch.equal(found.semantic_labels, expected.semantic_labels)
        assert torch.equal(found.instance_ids, expected.instance_ids)
        assert entry["num_points"] == len(expected)


def test_methods_differ_on_these_frames(folder):
    """Otherwise the test above could not tell them apart."""
    frame = KittiSource(folder).read("000000")
    made = [expected_labels(frame, method).semantic_labels.tolist() for method in METHODS]
    assert len({tuple(one) for one in made}) == len(METHODS)


def test_scores_of_all_methods_and_pictures_of_one(labelled, capsys):
    out = labelled("method=spg")
    quality = json.loads((out / "quality.json").read_text())
    assert [row["method"] for row in quality["rows"]] == list(METHODS)  # cars only
    assert quality["rows"][0].keys() == OLD_KEYS | {"tolerant_iou", "semantic_iou"}
    for part in ("by_range", "by_points", "by_hidden"):
        objects = sum(row["objects"] for row in quality[part] if row["method"] == "spg")
        assert objects == quality["rows"][2]["objects"] == 3
    assert quality["worst"]["method"] == "spg"
    worst = [score["point_iou"] for score in quality["worst"]["objects"]]
    assert worst == sorted(worst)
    assert sum(worst) / 3 == pytest.approx(quality["rows"][2]["point_iou"])
    with Image.open(out / "quality.png") as sheet:
        assert np.asarray(sheet).std() > 0
    printed = capsys.readouterr().out
    assert "tolerant_iou" in printed
    assert [line.split()[0] for line in printed.splitlines() if " mean " in line] == list(METHODS)


def test_without_a_method_the_configuration_decides(labelled):
    assert method_written(labelled())["name"] == "spg_default"
    assert method_written(labelled("method.labels=published"))["name"] == "spg"
    assert method_written(labelled("method.spg=false")) == {"name": "frustum", "constants": {}}
    clusters = method_written(labelled("method.labels=published", "method.spg_rings=false"))
    assert clusters == {"name": "clustering", "constants": {"radii": [0.6, 0.1, 0.4]}}


def test_boxes_in_three_formats_fitted_to_the_labels_and_scored(labelled, folder, capsys):
    out, source = labelled("boxes3d=true"), KittiSource(folder)
    index = json.loads((out / "boxes" / "boxes.json").read_text())
    assert (index["num_frames"], index["num_boxes"]) == (3, 3)
    assert index["method"]["name"] == "spg_default"
    assert index["fit"]["sizes_of"] == "kitti"
    expected = []
    for frame_id in source.frame_ids("all"):
        frame = source.read(frame_id)
        expected.append(fit_boxes3d(frame.points.xyz, expected_labels(frame, "spg_default"), USUAL_SIZES["kitti"]))
        assert (out / "boxes" / "kitti" / "label_2" / f"{frame_id}.txt").read_text().startswith("Car ")
    infos = pickle.loads((out / "boxes" / "openpcdet" / "infos.pkl").read_bytes())
    for info, boxes in zip(infos, expected, strict=True):
        assert info["annos"]["gt_boxes_lidar"] == pytest.approx(boxes.boxes3d.numpy(), abs=1e-6)
    objects = metrics_pb2.Objects.FromString((out / "boxes" / "waymo" / "objects.bin").read_bytes()).objects
    assert [item.object.num_lidar_points_in_box for item in objects] == [int(boxes.num_points) for boxes in expected]
    (row,) = json.loads((out / "quality.json").read_text())["boxes3d"]
    assert (row["class"], row["objects"], row["boxes"]) == ("Vehicle", 3, 3)
    assert 0 < row["iou_3d"] < row["bev_iou"] < 1
    assert "ap_bev_50" in capsys.readouterr().out


def test_exports_hold_the_same_labels(labelled, capsys):
    out = labelled("export=[kitti,nuscenes]")
    printed = capsys.readouterr().out
    assert f"export kitti: {out / 'export_kitti'} (3 frames)" in printed
    index = json.loads((out / "export_kitti" / "export.json").read_text())
    assert index["method"]["name"] == "spg_default"
    for frame_id, entry in index["frames"].items():
        made = read_labels(out / "labels" / f"{frame_id}.label")
        codes = np.fromfile(out / "export_kitti" / entry["file"], "<u4")
        assert ((codes & 0xFFFF == 10) == (made.semantic_labels == 0).numpy()).all()
        assert ((codes >> 16).astype(int) - 1 == made.instance_ids.numpy()).all()
        assert (codes & 0xFFFF == 10).sum() > 0


def test_no_boxes_unless_asked_for(labelled):
    out = labelled()
    assert not (out / "boxes").exists()
    assert "boxes3d" not in json.loads((out / "quality.json").read_text())


def test_methods_have_the_names_of_the_scores():
    assert set(label.SETTINGS) == set(LABEL_METHODS)


def test_the_mean_is_over_classes_and_none_where_a_class_has_none():
    score = {"method": "spg", "precision": 1.0, "recall": 0.5, "pooled_iou": 0.5, "semantic_iou": 0.5}
    rows = [
        {**score, "class": "Vehicle", "objects": 9, "point_iou": 0.8, "tolerant_iou": 0.9},
        {**score, "class": "Cyclist", "objects": 1, "point_iou": 0.4, "tolerant_iou": None},
    ]
    mean = label.mean_row(rows)
    assert (mean["objects"], mean["point_iou"], mean["tolerant_iou"]) == (10, pytest.approx(0.6), None)


def test_waymo_labels_carry_the_licence_note():
    run = SimpleNamespace(data=SimpleNamespace(radii=[0.6, 0.1, 0.4], kinds=None))
    facts = {
        name: label.facts_of(run, "spg", SimpleNamespace(name=name, class_names=("Car",), fingerprint=lambda: "f"))
        for name in ("waymo_v2", "kitti")
    }
    assert "Waymo Open Dataset" in facts["waymo_v2"]["licence"]
    assert "licence" not in facts["kitti"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("method=mwsis",), ("method=mwsis", "frustum", "spg_default")),
        (("method=spg_defalt",), ("did you mean 'spg_default'",)),
        (("method=spg", "method.labels=default"), ("method.labels=default", "method=spg")),
        (("method.labels=ours",), ("method.labels", "ours")),
        (("boxes3d=yes",), ("boxes3d=yes", "true or false")),
        (("method.spg_rings=false",), ("method.spg_rings", "method.labels=published")),
        (("export=coco",), ("export=coco", "only points are made")),
        (("export=semantickitti",), ("export=semantickitti", "did you mean 'kitti'")),
    ],
)
def test_wrong_methods(refused, folder, tmp_path, arguments, words):
    out = tmp_path / "out"
    sentence = refused("label", "data=kitti", f"data.root={folder}", f"data.cache={tmp_path}", f"out={out}", *arguments)
    for word in words:
        assert word in sentence, sentence
    assert not out.exists()


def test_out_is_a_file(refused, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert "expected a folder" in refused("label", "data=street", f"out={tmp_path / 'out'}")
    assert (tmp_path / "out").read_text() == "mine"


BREAKS = {
    "missing folder": (lambda root: shutil.rmtree(root / "training/velodyne"), ("velodyne",)),
    "truncated sweep": (lambda root: os.truncate(root / "training/velodyne/000001.bin", 1001), ("000001.bin", "1001")),
    "wrong column": (
        lambda root: (root / "training/label_2/000001.txt").write_text(
            "Car 0.00 0 0.00 left 10.00 60.00 40.00 1.50 1.60 4.00 0.00 1.00 12.00 0.00\n"
        ),
        ("000001.txt", "line 1", "left"),
    ),
    "no image": (lambda root: (root / "training/image_2/000001.png").write_text("text"), ("000001.png", "image")),
    "no calibration": (
        lambda root: (root / "training/calib/000001.txt").write_text("P2: 1 2 3\n"),
        ("000001.txt", "P2"),
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_broken_kitti_folder(refused, tmp_path, case):
    spoil, words = BREAKS[case]
    spoil(kitti_folder(tmp_path / "kitti"))
    out = tmp_path / "out"
    sentence = refused("label", "data=kitti", f"data.root={tmp_path / 'kitti'}", f"data.cache={tmp_path}", f"out={out}")
    for word in words:
        assert word in sentence, sentence
    assert not out.exists()


def test_missing_root(refused):
    assert "no/such/folder" in refused("label", "data=kitti", "data.root=no/such/folder", "out=x")
