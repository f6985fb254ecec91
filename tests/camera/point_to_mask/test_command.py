"""The command as a user runs it, from points to masks that the next training reads."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from camera.point_to_mask.activation_maps import ActivationStep
from mwsis.data.coco import CocoSource
from mwsis.data.given_masks import MaskFile
from mwsis.training.callbacks import read_losses
from mwsis.training.commands import run_command

TINY = (
    *(
        "trainer.max_steps=2",
        "trainer.frames_per_step=2",
        "data.image_widths=[96]",
        "method.point_to_mask.losses.radius=2",
    ),
    *("method.point_to_mask.backbone=mobilenetv3_small_050", "method.point_to_mask.head_channels=8"),
    "method.point_to_mask.affinity_channels=4",
)


def world(folder, with_masks=True, point=True):
    """Two images with two rectangles each, as a data set in COCO's format."""
    (folder / "train").mkdir(parents=True)
    (folder / "maps").mkdir()
    images, rows = [], []
    for number in range(2):
        pixels, semantic = np.full((64, 96, 3), 90, np.uint8), np.zeros((64, 96), np.uint8)
        for index, (x, y, label) in enumerate([(8, 10, 0), (50, 20 + 10 * number, 1)]):
            mask = np.zeros((64, 96), np.uint8, order="F")
            mask[y : y + 24, x : x + 30] = 1
            pixels[mask > 0], semantic[mask > 0] = (200, 80 * index, 30), label + 1
            code = coco_mask.encode(mask)
            row = {"id": len(rows) + 5, "image_id": number, "category_id": (3, 1)[label], "bbox": [x, y, 30, 24]}
            row |= {"segmentation": {"size": [64, 96], "counts": code["counts"].decode()}} if with_masks else {}
            rows.append(row | ({"point": [x + 12.5, y + 9.0]} if point else {}))
        Image.fromarray(pixels).save(folder / "train" / f"{number}.png")
        Image.fromarray(semantic).save(folder / "maps" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 64})
    names = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}]
    (folder / "train.json").write_text(json.dumps({"images": images, "categories": names, "annotations": rows}))
    return folder


def without_maps(folder):
    return (
        *("data=coco", f"data.root={folder}", "data.source.annotations.train=train.json"),
        *("data.source.images.train=train", "data.source.classes=[{Vehicle: [car]}, {Pedestrian: [person]}]"),
    )


def settings(folder):
    return (*without_maps(folder), f"semantic={folder / 'maps'}")


def maps_in(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "maps").iterdir())}


@pytest.fixture
def points(monkeypatch, capsys):
    """Run the command in this process; return its exit code and what it printed and complained about."""

    def run(*arguments, tool="tools.points"):
        module = importlib.import_module(tool)
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        code = 0
        try:
            run_command(module.main, module.__doc__)
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return code, said.out, said.err

    yield run
    torch.use_deterministic_algorithms(False)


def test_from_points_to_masks_that_the_next_training_reads(tmp_path, points):
    folder, out = world(tmp_path / "world"), tmp_path / "run"
    code, printed, _ = points(*settings(folder), "semantic_source=wsss", *TINY, f"out={out}")
    assert code == 0
    assert printed.rstrip().endswith(f"run: {out}")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["points"] == 4
    assert metrics["steps"] == 2
    assert metrics["masks_of"] == "network"
    assert metrics["gt_mask_iou"].keys() == {"network", "maps"}
    assert 0 < metrics["gt_mask_iou"]["network"] < 1
    assert 0 < metrics["gt_mask_iou"]["maps"] <= 1
    assert metrics["gt_mask_iou_untrained"].keys() == {"square", "nearest_point", "watershed"}
    assert all(0 < score <= 1 for score in metrics["gt_mask_iou_untrained"].values())
    assert {name for _, name, _ in read_losses(out / "losses.csv")} >= {"camera/classes", "camera/refined"}
    groups = [{"Vehicle": ["car"]}, {"Pedestrian": ["person"]}]
    source = CocoSource(folder, {"train": str(out / "boxes.json")}, {"train": "train"}, groups)
    masks = MaskFile(out / "masks.json", source.class_names, allow_truth=False)
    weights = [masks.of(source.read(f"train/{number}"))[0].weight for number in range(2)]
    assert int((torch.cat(weights) > 0).sum()) == 4 - metrics["without_mask"]
    before = (out / "masks.json").read_text()
    code, _, _ = points(f"resume={out}")
    assert code == 0
    assert (out / "masks.json").read_text() == before


def test_p2seg_defect_02_training_does_not_depend_on_masks_or_boxes_of_the_annotations(tmp_path, points):
    for name, with_masks in (("with", True), ("without", False)):
        folder = world(tmp_path / name, with_masks)
        code, _, _ = points(*settings(folder), "semantic_source=wsss", *TINY, f"out={tmp_path / f'run_{name}'}")
        assert code == 0
    first, second = (tmp_path / f"run_{name}" for name in ("with", "without"))
    assert (first / "losses.csv").read_text() == (second / "losses.csv").read_text()
    assert (first / "masks.json").read_text() == (second / "masks.json").read_text()
    assert json.loads((second / "metrics.json").read_text())["gt_mask_iou"] == {"network": None, "maps": None}


def test_a_file_of_points_alone_is_not_scored_and_said_so(tmp_path, points):
    folder = world(tmp_path / "world", with_masks=False)
    content = json.loads((folder / "train.json").read_text())
    for row in content["annotations"]:
        del row["bbox"]
    (folder / "train.json").write_text(json.dumps(content))
    code, printed, _ = points(*settings(folder), "semantic_source=wsss", *TINY, f"out={tmp_path / 'run'}")
    assert code == 0
    assert f"not scored: {folder / 'train.json'}: annotations[0]: bbox" in printed
    assert json.loads((tmp_path / "run/metrics.json").read_text())["gt_mask_iou"] == {"network": None, "maps": None}


def test_without_maps_the_run_makes_them_of_the_classes_of_points(tmp_path, points):
    folder, out = world(tmp_path / "world"), tmp_path / "gt"  # a name that a given folder of maps may not have
    code, printed, _ = points(*without_maps(folder), *TINY, f"out={out}")
    assert code == 0
    assert "warning: every image shows Vehicle, Pedestrian: where, cannot be learned" in printed
    assert maps_in(out).keys() == {"0.png", "1.png"}
    rows = json.loads((folder / "train.json").read_text())["annotations"]
    for number in range(2):
        semantic = np.array(Image.open(out / "maps" / f"{number}.png"))
        assert semantic.shape == (64, 96)
        assert set(np.unique(semantic)) <= {0, 1, 2, 255}
        for row in rows[2 * number : 2 * number + 2]:
            x, y = row["point"]
            assert semantic[int(y), int(x)] == {3: 1, 1: 2}[row["category_id"]]
    assert {name for _, name, _ in read_losses(out / "cam" / "losses.csv")} == {"loss", "camera/image_labels"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert (
        metrics["labels_used"] == "one point per object (annotated) and maps of classes (made of the points' classes)"
    )
    masks = json.loads((out / "masks.json").read_text())["annotations"]
    assert {row["semantic_source"] for row in masks} == {"wsss"}
    assert {row["mask_source"] for row in masks} == {"p2seg"}
    before = (out / "masks.json").read_text(), maps_in(out)
    code, printed, _ = points(f"resume={out}")
    assert code == 0
    assert before == ((out / "masks.json").read_text(), maps_in(out))
    code, _, _ = points(
        *without_maps(folder), f"semantic={out / 'maps'}", "semantic_source=gt", *TINY, f"out={tmp_path / 'b'}"
    )
    assert code == 0
    assert (tmp_path / "b" / "losses.csv").read_text() == (out / "losses.csv").read_text()


def test_made_maps_do_not_depend_on_interrupts_or_on_masks_and_boxes_of_the_annotations(tmp_path, points, monkeypatch):
    asked, pending, calls = (*TINY, "method.point_to_mask.cam.share=2"), [0, 2], []
    code, _, _ = points(*without_maps(world(tmp_path / "with")), *asked, f"out={tmp_path / 'whole'}")
    assert code == 0
    folder = world(tmp_path / "without", with_masks=False)
    content = json.loads((folder / "train.json").read_text())
    for row in content["annotations"]:
        row["bbox"] = [1.0, 2.0, 3.0, 4.0]
    (folder / "train.json").write_text(json.dumps(content))

    def interrupting(self, progress):
        calls.append(round(4 * progress))
        if pending and calls[-1] == pending[0]:
            pending.pop(0)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ActivationStep, "update_teacher", interrupting)
    out = tmp_path / "pieces"
    code, printed, _ = points(*without_maps(folder), *asked, f"out={out}")
    while pending or code == 130:
        assert code == 130
        assert f"interrupted; continue with: uv run tools/points.py resume={out}" in printed
        assert not (out / "maps").exists()
        code, printed, _ = points(f"resume={out}")
    assert code == 0
    assert calls == [0, 1, 2, 3]
    for name in ("cam/losses.csv", "losses.csv", "masks.json"):
        assert (out / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    assert maps_in(out) == maps_in(tmp_path / "whole")


@pytest.mark.slow
def test_images_with_points_join_others_with_boxes_and_masks(tmp_path, points):
    folder, out = world(tmp_path / "world"), tmp_path / "points"
    content = json.loads((folder / "train.json").read_text())
    content["images"] += [{**content["images"][0], "id": number, "supervision": "masks"} for number in (7, 8)]
    content["images"][2]["supervision"] = "boxes"
    rows = [
        {**row, "id": 50 + place, "image_id": 7 + place % 2} for place, row in enumerate(content["annotations"][:2])
    ]
    content["annotations"] += [{**row, "point": None} for row in rows]
    for image in content["images"][:2]:
        image["supervision"] = "points"
    (folder / "train.json").write_text(json.dumps(content))
    code, _, _ = points(*settings(folder), "semantic_source=wsss", *TINY, f"out={out}")
    assert code == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["points"] == 4
    assert 0 < metrics["gt_mask_iou"]["network"] < 1
    assert 0 < metrics["gt_mask_iou"]["maps"] <= 1
    asked = [setting for setting in settings(folder) if not setting.startswith("semantic=")]
    (folder / "val.json").write_text((out / "boxes.json").read_text())
    asked += [
        "data.source.annotations.val=val.json",
        "data.source.images.val=train",
        f"data.cache={tmp_path / 'cache'}",
    ]
    asked += ["method=mixed", "data.supervision=mixed", f"data.masks={out / 'masks.json'}", "data.image_widths=[96]"]
    end = tmp_path / "end"
    code, printed, _ = points(*asked, "trainer.max_steps=2", f"out={end}", tool="tools.train")
    assert code == 0
    assert "labels: masks of 1 image, boxes of 1, points of 2" in printed
    masked = json.loads((out / "masks.json").read_text())["annotations"]
    unknown = len({row["image_id"] for row in masked if row["mask_weight"] == 0})
    assert (f"warning: in {unknown} of the images with points" in printed) == (unknown > 0)
    used = json.loads((end / "metrics.json").read_text())["labels_used"]
    assert used.endswith("masks of 1 image, boxes of 1, points of 2")
    assert "points of 2" in (end / "report.html").read_text()


def test_masks_may_be_of_the_classes_of_the_maps(tmp_path, points):
    folder, out = world(tmp_path / "world"), tmp_path / "run"
    code, _, _ = points(*settings(folder), "semantic_source=wsss", "classes=maps", *TINY, f"out={out}")
    assert code == 0
    assert json.loads((out / "metrics.json").read_text())["masks_of"] == "maps"
    sizes = {"0": np.zeros((64, 96), bool), "1": np.zeros((64, 96), bool)}
    for row in json.loads((out / "masks.json").read_text())["annotations"]:
        if row["mask_weight"] > 0:
            sizes[str(row["image_id"])] |= coco_mask.decode(row["segmentation"]).astype(bool)
    for name, covered in sizes.items():
        given = np.asarray(Image.open(folder / "maps" / f"{name}.png")) > 0
        assert np.array_equal(covered, given)
    code, _, said = points(*settings(folder), "semantic_source=wsss", "classes=both", *TINY, f"out={tmp_path / 'a'}")
    assert code == 2
    assert "classes: expected one of network, maps, got 'both'" in said


def test_mistakes(tmp_path, points):
    folder = world(tmp_path / "world", point=False)
    code, _, said = points(*settings(folder), "semantic_source=wsss", *TINY, f"out={tmp_path / 'a'}")
    assert code == 2
    assert "point: expected [x, y], got none" in said
    code, _, said = points(*settings(folder), *TINY, f"out={tmp_path / 'b'}")
    assert code == 2
    assert "'method.point_to_mask.semantic_source' has no value" in said
    code, _, said = points(f"semantic={folder / 'maps'}", "semantic_source=wsss", *TINY, f"out={tmp_path / 'c'}")
    assert code == 2
    assert "use data=coco" in said
    given = (*settings(folder), "semantic_source=wsss", "points=box_centre", *TINY)
    code, _, said = points(*given, "method.point_to_mask.backbone=resnet5O", f"out={tmp_path / 'e'}")
    assert code == 2
    assert "method.point_to_mask.backbone: expected a timm model, got 'resnet5O'" in said
    assert not (tmp_path / "e").exists()
    (folder / "maps").rename(folder / "SegmentationClass")
    asked = [setting.replace("maps", "SegmentationClass") for setting in settings(folder)]
    code, _, said = points(*asked, "semantic_source=sam", "points=box_centre", *TINY, f"out={tmp_path / 'd'}")
    assert code == 2
    assert "is a name of ground truth" in said


def test_mistakes_where_maps_are_made(tmp_path, points):
    folder, out = world(tmp_path / "world"), tmp_path / "run"
    (out / "maps").mkdir(parents=True)
    code, _, said = points(*without_maps(folder), *TINY, f"out={out}")
    assert code == 2
    assert f"out={out}: already holds 'maps', which no run made" in said
    code, _, said = points(*without_maps(folder), "semantic_source=sam", *TINY, f"out={tmp_path / 'a'}")
    assert code == 2
    assert "'method.point_to_mask.semantic' has no value: semantic=FOLDER goes with semantic_source" in said
    content = json.loads((folder / "train.json").read_text())
    for name, sentence in (("0.jpg", "would share a map of classes"), ("../1.png", "would be written elsewhere")):
        content["images"][1]["file_name"] = name
        (folder / "train.json").write_text(json.dumps(content))
        code, _, said = points(*without_maps(folder), *TINY, f"out={tmp_path / 'a'}")
        assert code == 2
        assert sentence in said
    asked = without_maps(world(tmp_path / "other"))
    code, _, said = points(*asked, *TINY, "method.point_to_mask.backbone=resnet5O", f"out={tmp_path / 'a'}")
    assert code == 2
    assert "method.point_to_mask.backbone: expected a timm model, got 'resnet5O'" in said
    assert not (tmp_path / "a").exists()


def test_the_other_command_says_where_to_go(tmp_path, points):
    folder = world(tmp_path / "world")
    asked = [setting.replace("semantic=", "method.point_to_mask.semantic=") for setting in settings(folder)]
    val = ["data.source.annotations.val=train.json", "data.source.images.val=train"]
    code, _, said = points("method=p2seg", *asked, *val, f"out={tmp_path / 'run'}", tool="tools.train")
    assert code == 2
    assert "for points run tools/points.py" in said
