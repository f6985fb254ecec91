"""Crop-only run lengths equal full-size ones; AP equals pycocotools; masks are compared with filled boxes."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mwsis.core.frame import ImageTruth
from mwsis.core.instances import Boxes2D, Detections, MaskSet
from mwsis.data.coco import CocoSource
from mwsis.evaluation.coco_masks import CocoMaskEvaluator, check_ap_arithmetic, encode_masks

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")
HEIGHT, WIDTH = 60, 90
SHARED = Path(os.environ.get("MWSIS_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "coco_mini"


def full_size_rle(masks: MaskSet, index: int) -> dict:
    return coco_mask.encode(np.asfortranarray(masks.dense(index).numpy().astype(np.uint8)))


@pytest.mark.parametrize(
    "crop_box", [(3, 4, 20, 30), (0, 0, 90, 60), (5, 0, 9, 60), (80, 50, 90, 60), (0, 0, 1, 1), (0, 0, 0, 0)]
)
@pytest.mark.parametrize("density", [0.0, 0.2, 0.9, 1.0])
def test_encoding_crops_gives_the_strings_of_full_masks(crop_box: tuple[int, ...], density: float):
    x1, y1, x2, y2 = crop_box
    crop = torch.rand(y2 - y1, x2 - x1, generator=torch.Generator().manual_seed(0)) < density
    masks = MaskSet.from_crops(HEIGHT, WIDTH, torch.tensor([crop_box]), [crop])
    assert encode_masks(masks) == [full_size_rle(masks, 0)]


def blob(rng: np.random.Generator, centre: np.ndarray, radii: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    distance = ((columns + 0.5 - centre[0]) / radii[0]) ** 2 + ((rows + 0.5 - centre[1]) / radii[1]) ** 2
    return distance + rng.normal(0, 0.05, size) < 1


def to_masks(dense: list[np.ndarray], size: tuple[int, int]) -> tuple[MaskSet, torch.Tensor]:
    """Return the masks and their tight boxes."""
    boxes, crops = [], []
    for mask in dense:
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes.append([int(edge) for edge in box])
        crops.append(torch.from_numpy(mask[box[1] : box[3], box[0] : box[2]]))
    extents = torch.tensor(boxes).reshape(-1, 4)
    return MaskSet.from_crops(*size, extents, crops), extents.float()


def random_image(seed: int, ignored: bool, scale: float = 1.0) -> tuple[Detections, ImageTruth]:
    """Return objects of areas up to 450 px, times the square of the scale, and detections near them."""
    size = (round(HEIGHT * scale), round(WIDTH * scale))
    rng = np.random.default_rng(seed)
    objects, found, labels, found_labels = [], [], [], []
    for _ in range(6):
        centre, radii = rng.uniform([10, 10], [80, 50]) * scale, rng.uniform(4, 12, 2) * scale
        label = int(rng.integers(0, 2))  # no object of the third class
        objects.append(blob(rng, centre, radii, size))
        labels.append(label)
        for _ in range(int(rng.integers(0, 3))):
            moved, resized = centre + rng.normal(0, 1, 2) * scale, radii * rng.uniform(0.8, 1.2, 2)
            found.append(blob(rng, moved, resized, size))
            found_labels.append(label if rng.random() < 0.8 else 2)
    masks, boxes = to_masks(objects, size)
    ignore = torch.zeros(6, dtype=torch.bool)
    classes = torch.tensor(labels)
    if ignored:
        ignore[0], ignore[1], classes[0] = True, True, -1
    order = np.argsort(-np.round(rng.random(len(found)), 1), kind="stable")
    found_masks, found_boxes = to_masks([found[i] for i in order], size)
    scores = torch.linspace(0.9, 0.1, len(found))
    detections = Detections(found_boxes, torch.tensor(found_labels)[order].long(), scores, found_masks)
    return detections, ImageTruth(Boxes2D(boxes, classes, ignore), masks, torch.arange(6))


def with_pycocotools(images: list[tuple[Detections, ImageTruth]]) -> np.ndarray:
    """Return (thresholds, recalls, classes, areas) precision."""
    annotations, found, sizes = [], [], []
    for image_id, (detections, truth) in enumerate(images, start=1):
        sizes.append({"id": image_id, "height": truth.masks.height, "width": truth.masks.width})
        for index in range(len(truth.labels)):
            label = int(truth.labels.labels[index])
            rle = full_size_rle(truth.masks, index)
            for category in [label + 1] if label >= 0 else [1, 2, 3]:
                row = {"image_id": image_id, "category_id": category, "segmentation": rle, "id": len(annotations) + 1}
                row |= {"iscrowd": int(truth.labels.ignore[index]), "area": float(coco_mask.area(rle))}
                annotations.append(row)
        for index in range(len(detections)):
            row = {"image_id": image_id, "category_id": int(detections.labels[index]) + 1}
            row |= {"segmentation": full_size_rle(detections.masks, index), "score": float(detections.scores[index])}
            found.append(row)
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    return official({"info": {}, "images": sizes, "annotations": annotations, "categories": categories}, found)


def official(content: dict, found: list[dict]) -> np.ndarray:
    """Return pycocotools' (thresholds, recalls, classes, areas) precision with 100 detections an image."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO()
        truth_set.dataset = content
        truth_set.createIndex()
        evaluation = COCOeval(truth_set, truth_set.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 2]


def mean_of(precision: np.ndarray) -> float:
    return float(precision[precision > -1].mean()) if (precision > -1).any() else math.nan


def by_name(precision: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    """Return pycocotools' precision under our names."""
    everywhere = precision[..., 0]
    parts = {"mask_ap": everywhere, "mask_ap50": everywhere[0], "mask_ap75": everywhere[5]}
    parts |= {f"mask_ap_{area}": precision[..., k + 1] for k, area in enumerate(("small", "medium", "large"))}
    parts |= {f"mask_ap/{name}": everywhere[..., k] for k, name in enumerate(names)}
    return {name: mean_of(part) for name, part in parts.items()}


@pytest.mark.filterwarnings("ignore:AP .* is oddly low")
@pytest.mark.parametrize("ignored", [False, True])
def test_equals_pycocotools_and_prints_nothing(ignored: bool, capfd: pytest.CaptureFixture[str]):
    images = [random_image(seed, ignored) for seed in range(6)]
    evaluator = CocoMaskEvaluator(CLASSES)
    for detections, truth in images:
        evaluator.add(detections, truth)
    scores = evaluator.compute()
    assert evaluator.compute() == pytest.approx(scores, nan_ok=True)  # may be asked again
    assert capfd.readouterr() == ("", "")
    precision = with_pycocotools(images)[..., 0]
    assert (precision[..., 2] == -1).all()
    assert 0.1 < scores["mask_ap"] < 0.9
    assert scores["mask_ap"] == pytest.approx(precision[..., :2].mean(), abs=1e-9)
    assert scores["mask_ap50"] == pytest.approx(precision[0, :, :2].mean(), abs=1e-9)
    assert scores["mask_ap75"] == pytest.approx(precision[5, :, :2].mean(), abs=1e-9)
    assert scores["mask_ap/Pedestrian"] == pytest.approx(precision[..., 1].mean(), abs=1e-9)
    assert math.isnan(scores["mask_ap/Cyclist"])
    assert scores["num_images"] == 6
    assert scores["num_objects"] == 6 * (4 if ignored else 6)


@pytest.mark.filterwarnings("ignore:AP .* is oddly low")
@pytest.mark.parametrize("ignored", [False, True])
def test_sizes_equal_pycocotools(ignored: bool):
    images = [random_image(seed, ignored, scale) for seed, scale in enumerate((1.0, 1.5, 3.0, 4.0, 6.0, 8.0))]
    evaluator = CocoMaskEvaluator(CLASSES)
    for detections, truth in images:
        evaluator.add(detections, truth)
    scores, wanted = evaluator.compute(), by_name(with_pycocotools(images), CLASSES)
    assert len({round(wanted[f"mask_ap_{area}"], 3) for area in ("small", "medium", "large")}) == 3
    assert {name: scores[name] for name in wanted} == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_a_size_without_objects_has_no_ap():
    scores = one_object(torch.tensor([[20.0, 30, 30, 40]]), [0.9], [0], [torch.ones(10, 10).tril().bool()])
    assert scores["mask_ap_small"] == pytest.approx(1)
    assert math.isnan(scores["mask_ap_medium"])
    assert math.isnan(scores["mask_ap_large"])


@pytest.mark.parametrize("others", [0.9, 0.0])
def test_an_impossible_ap_is_refused(others: float, monkeypatch: pytest.MonkeyPatch):
    evaluator = CocoMaskEvaluator(CLASSES)
    evaluator.add(*random_image(0, ignored=False))
    wrong = np.full_like(evaluator._precision(), others)
    wrong[0], wrong[5] = 0.6, 0.4
    monkeypatch.setattr(evaluator, "_precision", lambda: wrong)
    with pytest.raises(AssertionError, match="outside"):
        evaluator.compute()


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="the shared COCO images are not in this checkout")
def test_real_annotations_equal_pycocotools():
    """Detections are the true masks moved by a few pixels; areas are counted in pixels on both sides."""
    splits = {"val": "instances_val2017.json"}, {"val": "val2017"}
    source, rng = CocoSource(REAL, *splits, classes=None), np.random.default_rng(0)
    content = json.loads((REAL / "instances_val2017.json").read_text())
    ids = sorted(category["id"] for category in content["categories"])
    evaluator, found, areas = CocoMaskEvaluator(source.class_names), [], {}
    for frame_id in source.frame_ids("val"):
        truth = source.read(frame_id).truth.images[0]
        image_id = int(frame_id.removeprefix("val/"))
        areas[image_id] = truth.masks.areas().tolist()
        shifts = rng.integers(-6, 7, len(truth.masks)).tolist()
        moved = [np.roll(truth.masks.dense(k).numpy(), shift, axis=1) for k, shift in enumerate(shifts)]
        kept = [k for k, mask in enumerate(moved) if mask.any()]
        masks, boxes = to_masks([moved[k] for k in kept], (truth.masks.height, truth.masks.width))
        labels = torch.tensor([int(truth.labels.labels[k]) if rng.random() < 0.9 else 0 for k in kept])
        scores = torch.from_numpy(np.sort(rng.random(len(kept)))[::-1].copy()).float()
        detections = Detections(boxes, labels, scores, masks)
        evaluator.add(detections, truth)
        for k in range(len(kept)):
            row = {"image_id": image_id, "category_id": ids[int(labels[k])], "score": float(scores[k])}
            found.append(row | {"segmentation": full_size_rle(masks, k)})
    for annotation in content["annotations"]:
        annotation["area"] = areas[annotation["image_id"]].pop(0)
    ours, wanted = evaluator.compute(), by_name(official(content, found), source.class_names)
    assert 0.2 < wanted["mask_ap"] < 0.9
    assert {name: ours[name] for name in wanted} == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def one_object(boxes: torch.Tensor, scores: list[float], labels: list[int], crops: list[torch.Tensor]) -> dict:
    """A triangle of 55 cells in a 10 x 10 box at (20, 30), and some detections of it."""
    triangle = torch.ones(10, 10).tril().bool()
    truth_box = torch.tensor([[20, 30, 30, 40]])
    truth = ImageTruth(
        Boxes2D(truth_box.float(), torch.tensor([0]), torch.tensor([False])),
        MaskSet.from_crops(HEIGHT, WIDTH, truth_box, [triangle]),
        torch.tensor([4]),
    )
    masks = MaskSet.from_crops(HEIGHT, WIDTH, boxes.long(), crops)
    evaluator = CocoMaskEvaluator(CLASSES)
    evaluator.add(Detections(boxes, torch.tensor(labels).long(), torch.tensor(scores), masks), truth)
    return evaluator.compute()


def test_matched_masks_against_filled_boxes():
    triangle, square = torch.ones(10, 10).tril().bool(), torch.ones(10, 10).bool()
    box = torch.tensor([[20.0, 30, 30, 40]])
    perfect = one_object(box, [0.9], [0], [triangle])
    assert (perfect["matched_mask_iou"], perfect["matched_box_iou"]) == (1, 0.55)
    lazy = one_object(box, [0.9], [0], [square])
    assert lazy["matched_mask_iou"] == lazy["matched_box_iou"] == lazy["matched_own_box_iou"] == 0.55
    shifted = one_object(box + torch.tensor([0.0, 2.4, 0.0, 2.4]), [0.9], [0], [square])
    assert shifted["matched_box_iou"] == 0.55
    assert shifted["matched_own_box_iou"] == pytest.approx(52 / (100 + 55 - 52))  # all rows but the first two


def test_each_object_is_matched_once_by_the_best_score_of_its_class():
    triangle, square = torch.ones(10, 10).tril().bool(), torch.ones(10, 10).bool()
    boxes = torch.tensor([[20.0, 30, 30, 40]]).repeat(3, 1)
    scores = one_object(boxes, [0.9, 0.8, 0.7], [1, 0, 0], [square, square, triangle])
    assert (scores["num_matched"], scores["matched_mask_iou"]) == (1, 0.55)
    beside = one_object(torch.tensor([[26.0, 30, 36, 40]]), [0.9], [0], [square])
    assert beside["num_matched"] == 0
    assert math.isnan(beside["matched_mask_iou"])
    assert math.isnan(beside["matched_box_iou"])
    assert math.isnan(beside["matched_own_box_iou"])


def test_a_detection_on_an_ignored_region_costs_nothing():
    square = torch.ones(10, 10).bool()
    extents = torch.tensor([[20, 30, 30, 40], [50, 10, 60, 20]])
    masks = MaskSet.from_crops(HEIGHT, WIDTH, extents, [square, square])
    labels = Boxes2D(extents.float(), torch.tensor([0, -1]), torch.tensor([False, True]))
    evaluator = CocoMaskEvaluator(CLASSES)
    truth = ImageTruth(labels, masks, torch.tensor([4, -1]))
    found = masks[torch.tensor([1, 0])]
    scores = torch.tensor([0.9, 0.8])
    evaluator.add(Detections(extents.float().flip(0), torch.tensor([0, 0]), scores, found), truth)
    assert evaluator.compute()["mask_ap/Vehicle"] == pytest.approx(1)
    assert evaluator.compute()["num_matched"] == 1
    assert evaluator.compute()["num_objects"] == 1


def test_nothing_found_and_nothing_there():
    nothing = MaskSet.from_crops(HEIGHT, WIDTH, torch.zeros(0, 4), [])
    no_detections = Detections(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0), nothing)
    no_truth = ImageTruth(Boxes2D.empty(), nothing, torch.zeros(0).long())
    evaluator = CocoMaskEvaluator(CLASSES)
    assert math.isnan(evaluator.compute()["mask_ap"])
    evaluator.add(no_detections, no_truth)
    assert math.isnan(evaluator.compute()["mask_ap"])
    found, truth = random_image(0, ignored=False)
    evaluator.add(no_detections, truth)
    scores = evaluator.compute()
    assert (scores["mask_ap"], scores["num_objects"], scores["num_images"]) == (0, 6, 2)
    only_found = CocoMaskEvaluator(CLASSES)
    only_found.add(found, no_truth)
    assert math.isnan(only_found.compute()["mask_ap"])


def test_ap_arithmetic():
    check_ap_arithmetic(0.375, 0.59, 0.40)
    for ap in (0.25, 0.50):
        with pytest.raises(AssertionError, match="outside"):
            check_ap_arithmetic(ap, 0.59, 0.40)
    with pytest.warns(UserWarning, match="oddly low"):
        check_ap_arithmetic(0.1905, 0.481, 0.281)
