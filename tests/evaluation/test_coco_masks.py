"""Crop-only run lengths equal full-size ones; AP equals pycocotools; masks are compared with filled boxes."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mwsis.core.frame import ImageTruth
from mwsis.core.instances import Boxes2D, Detections, MaskSet
from mwsis.evaluation.coco_masks import CocoMaskEvaluator, check_ap_arithmetic, encode_masks

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")
HEIGHT, WIDTH = 60, 90


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


def blob(rng: np.random.Generator, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    distance = ((columns + 0.5 - centre[0]) / radii[0]) ** 2 + ((rows + 0.5 - centre[1]) / radii[1]) ** 2
    return distance + rng.normal(0, 0.05, (HEIGHT, WIDTH)) < 1


def to_masks(dense: list[np.ndarray]) -> tuple[MaskSet, torch.Tensor]:
    """Return the masks and their tight boxes."""
    boxes, crops = [], []
    for mask in dense:
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes.append([int(edge) for edge in box])
        crops.append(torch.from_numpy(mask[box[1] : box[3], box[0] : box[2]]))
    extents = torch.tensor(boxes).reshape(-1, 4)
    return MaskSet.from_crops(HEIGHT, WIDTH, extents, crops), extents.float()


def random_image(seed: int, ignored: bool) -> tuple[Detections, ImageTruth]:
    rng = np.random.default_rng(seed)
    objects, found, labels, found_labels = [], [], [], []
    for _ in range(6):
        centre, radii = rng.uniform([10, 10], [80, 50]), rng.uniform(4, 12, 2)
        label = int(rng.integers(0, 2))  # no object of the third class
        objects.append(blob(rng, centre, radii))
        labels.append(label)
        for _ in range(int(rng.integers(0, 3))):
            found.append(blob(rng, centre + rng.normal(0, 1, 2), radii * rng.uniform(0.8, 1.2, 2)))
            found_labels.append(label if rng.random() < 0.8 else 2)
    masks, boxes = to_masks(objects)
    ignore = torch.zeros(6, dtype=torch.bool)
    classes = torch.tensor(labels)
    if ignored:
        ignore[0], ignore[1], classes[0] = True, True, -1
    order = np.argsort(-np.round(rng.random(len(found)), 1), kind="stable")
    found_masks, found_boxes = to_masks([found[i] for i in order])
    scores = torch.linspace(0.9, 0.1, len(found))
    detections = Detections(found_boxes, torch.tensor(found_labels)[order].long(), scores, found_masks)
    return detections, ImageTruth(Boxes2D(boxes, classes, ignore), masks, torch.arange(6))


def with_pycocotools(images: list[tuple[Detections, ImageTruth]]) -> np.ndarray:
    """Return (thresholds, recalls, classes) precision."""
    annotations, found, sizes = [], [], []
    for image_id, (detections, truth) in enumerate(images, start=1):
        sizes.append({"id": image_id, "height": HEIGHT, "width": WIDTH})
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
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO()
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
        truth_set.dataset = {"info": {}, "images": sizes, "annotations": annotations, "categories": categories}
        truth_set.createIndex()
        evaluation = COCOeval(truth_set, truth_set.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 2]


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
    precision = with_pycocotools(images)
    assert (precision[..., 2] == -1).all()
    assert 0.1 < scores["mask_ap"] < 0.9
    assert scores["mask_ap"] == pytest.approx(precision[..., :2].mean(), abs=1e-9)
    assert scores["mask_ap50"] == pytest.approx(precision[0, :, :2].mean(), abs=1e-9)
    assert scores["mask_ap75"] == pytest.approx(precision[5, :, :2].mean(), abs=1e-9)
    assert scores["mask_ap/Pedestrian"] == pytest.approx(precision[..., 1].mean(), abs=1e-9)
    assert math.isnan(scores["mask_ap/Cyclist"])
    assert scores["num_images"] == 6
    assert scores["num_objects"] == 6 * (4 if ignored else 6)


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
    assert lazy["matched_mask_iou"] == lazy["matched_box_iou"] == 0.55


def test_each_object_is_matched_once_by_the_best_score_of_its_class():
    triangle, square = torch.ones(10, 10).tril().bool(), torch.ones(10, 10).bool()
    boxes = torch.tensor([[20.0, 30, 30, 40]]).repeat(3, 1)
    scores = one_object(boxes, [0.9, 0.8, 0.7], [1, 0, 0], [square, square, triangle])
    assert (scores["num_matched"], scores["matched_mask_iou"]) == (1, 0.55)
    beside = one_object(torch.tensor([[26.0, 30, 36, 40]]), [0.9], [0], [square])
    assert beside["num_matched"] == 0
    assert math.isnan(beside["matched_mask_iou"])
    assert math.isnan(beside["matched_box_iou"])


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
