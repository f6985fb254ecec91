"""COCO results and labelme polygons: read back, they are the masks."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from mwsis.core.instances import Detections, MaskSet
from mwsis.data.coco import CocoSource
from mwsis.export.labels.coco import CocoResults
from mwsis.export.labels.exporter import LabelledFrame
from mwsis.export.labels.labelme import Labelme
from tests.data.coco_folder import SETTINGS, coco_folder
from tests.data.frames_for_tests import random_frame
from tests.export.labels.labelled import CLASSES, Drive, labelled
from tests.export.labels.test_outlines import filled


@pytest.fixture
def made():
    return [labelled(random_frame(seed, segment="drive/1"), seed) for seed in (1, 2)]


def export(kind, folder, frames, source):
    exporter = kind(folder, source)
    exporter.begin()
    for one in frames:
        exporter.add(one)
    exporter.finish({})
    return json.loads((folder / "export.json").read_text())


def loaded(folder):
    """Return results and images as pycocotools reads them."""
    with contextlib.redirect_stdout(io.StringIO()):
        images = COCO(folder / "images.json")
        return images.loadRes(str(folder / "results.json")), images


def test_coco_results_read_back(tmp_path, made):
    index = export(CocoResults, tmp_path, made, Drive())
    results, images = loaded(tmp_path)
    for one in made:
        ids = index["frames"][one.frame.frame_id]["image_ids"]
        for view, image_id, found in zip(one.frame.cameras, ids, one.detections, strict=True):
            listed = images.imgs[image_id]
            assert (listed["frame_id"], listed["camera"]) == (one.frame.frame_id, view.name)
            rows = results.loadAnns(results.getAnnIds(image_id))
            assert len(rows) == len(found) == 4
            for number, row in enumerate(rows):
                assert (results.annToMask(row) == found.masks.dense(number).numpy()).all()
                assert row["score"] == pytest.approx(float(found.scores[number]))
                assert images.cats[row["category_id"]]["name"] == CLASSES[int(found.labels[number])]
    rows = json.loads((tmp_path / "results.json").read_text())
    x, y, width, height = rows[0]["bbox"]
    assert (x, y, x + width, y + height) == tuple(made[0].detections[0].boxes[0].tolist())


def test_results_on_coco_have_cocos_own_ids(tmp_path):
    """Images of the file, and of classes made of several categories the first."""
    source = CocoSource(coco_folder(tmp_path / "coco"), **SETTINGS, classes=["person", {"vehicle": ["truck", "car"]}])
    assert source.category_ids("train") == [1, 8]
    frame = source.read("train/12")
    masks = MaskSet.from_crops(48, 64, torch.tensor([[1, 2, 5, 6]]), [torch.ones(4, 4, dtype=torch.bool)])
    found = Detections(torch.tensor([[1.0, 2, 5, 6]]), torch.tensor([1]), torch.tensor([0.5]), masks)
    export(CocoResults, tmp_path, [LabelledFrame(frame, None, [found])], source)
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert (row["image_id"], row["category_id"], row["score"]) == (12, 8, 0.5)
    assert row["bbox"] == [1, 2, 4, 4]


def test_labelme_polygons_read_back(tmp_path, made):
    """Shapes of one group are one object, whatever its holes; the image lies beside them."""
    index = export(Labelme, tmp_path, made, Drive())
    for one in made:
        for view, found in zip(one.frame.cameras, one.detections, strict=True):
            path = tmp_path / index["frames"][one.frame.frame_id]["files"][view.name]
            page = json.loads(path.read_text())
            size = (page["imageHeight"], page["imageWidth"])
            assert size == (view.camera.height, view.camera.width)
            assert (path.parent / page["imagePath"]).read_bytes() == view.image
            with Image.open(path.parent / page["imagePath"]) as image:
                assert image.size == size[::-1]
            masks = np.zeros((len(found), *size), dtype=bool)
            for shape in page["shapes"]:
                assert shape["shape_type"] == "polygon"
                assert shape["label"] == CLASSES[int(found.labels[shape["group_id"]])]
                masks[shape["group_id"]] |= filled(shape["points"], *size)
            expected = [found.masks.dense(number).numpy() for number in range(len(found))]
            assert (masks == np.stack(expected)).all()


def test_an_empty_mask_and_an_image_without_masks(tmp_path):
    frame = random_frame(1)
    none = labelled(frame, num_masks=0).detections
    empty = Detections(
        torch.tensor([[1.0, 1, 2, 2]]),
        torch.tensor([0]),
        torch.tensor([0.9]),
        MaskSet.from_crops(30, 48, torch.zeros(1, 4), [torch.zeros(0, 0)]),
    )
    one = LabelledFrame(frame, None, [empty, none[1]])
    index = export(Labelme, tmp_path / "labelme", [one], Drive())
    for path in index["frames"][frame.frame_id]["files"].values():
        assert json.loads((tmp_path / "labelme" / path).read_text())["shapes"] == []
    export(CocoResults, tmp_path / "coco", [one], Drive())
    results, _ = loaded(tmp_path / "coco")
    assert [results.annToMask(row).sum() for row in results.loadAnns(results.getAnnIds())] == [0]
