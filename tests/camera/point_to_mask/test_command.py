"""The command as a user runs it, from points to masks that the next training reads."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

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


def settings(folder):
    return (
        *(
            "data=coco",
            f"data.root={folder}",
            f"semantic={folder / 'maps'}",
            "data.source.annotations.train=train.json",
        ),
        *(
            "data.source.images.train=train",
            "data.source.classes=[{Vehicle: [car]}, {Pedestrian: [person]}]",
        ),
    )


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
    assert 0 < metrics["gt_mask_iou"] < 1
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
    assert json.loads((second / "metrics.json").read_text())["gt_mask_iou"] is None


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
    assert 0 < metrics["gt_mask_iou"] < 1
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


def test_mistakes(tmp_path, points):
    folder = world(tmp_path / "world", point=False)
    code, _, said = points(*settings(folder), "semantic_source=wsss", *TINY, f"out={tmp_path / 'a'}")
    assert code == 2
    assert "point: expected [x, y], got none" in said
    code, _, said = points("data=coco", f"data.root={folder}", *TINY, f"out={tmp_path / 'b'}")
    assert code == 2
    assert "'method.point_to_mask.semantic' has no value" in said
    code, _, said = points(f"semantic={folder / 'maps'}", "semantic_source=wsss", *TINY, f"out={tmp_path / 'c'}")
    assert code == 2
    assert "use data=coco" in said
    (folder / "maps").rename(folder / "SegmentationClass")
    asked = [setting.replace("maps", "SegmentationClass") for setting in settings(folder)]
    code, _, said = points(*asked, "semantic_source=sam", "points=box_centre", *TINY, f"out={tmp_path / 'd'}")
    assert code == 2
    assert "is a name of ground truth" in said


def test_the_other_command_says_where_to_go(tmp_path, points):
    folder = world(tmp_path / "world")
    asked = [setting.replace("semantic=", "method.point_to_mask.semantic=") for setting in settings(folder)]
    val = ["data.source.annotations.val=train.json", "data.source.images.val=train"]
    code, _, said = points("method=p2seg", *asked, *val, f"out={tmp_path / 'run'}", tool="tools.train")
    assert code == 2
    assert "for points run tools/points.py" in said
