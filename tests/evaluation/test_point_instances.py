"""AP from label arrays equals pycocotools on 1 x N masks."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mwsis.core.instances import BACKGROUND, IGNORE, PointInstances, PointLabels
from mwsis.evaluation.instance_bins import ALL, COCO_SIZES, ROWS, Bin
from mwsis.evaluation.point_instances import THRESHOLDS, PointInstanceEvaluator

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")


def random_frame(seed: int, num_points: int = 400, crowded: bool = False) -> tuple[PointInstances, PointLabels]:
    """Blocks of points as objects; predictions are the same blocks with moved ends, split and dropped ones."""
    rng = np.random.default_rng(seed)
    num_blocks = 160 if crowded else 14
    cuts = np.sort(rng.choice(np.arange(1, num_points), num_blocks - 1, replace=False))
    block = np.searchsorted(cuts, np.arange(num_points), side="right")
    classes = np.array([0, 1, 2, BACKGROUND, IGNORE]) if not crowded else np.array([0, 0, 0, 1, BACKGROUND])
    label = classes[rng.integers(0, 5, num_blocks)]
    semantic = label[block]
    instance = np.where(semantic >= 0, block + 100, -1)
    moved = np.searchsorted(cuts + rng.integers(-6, 7, len(cuts)), np.arange(num_points), side="right")
    found = np.where(rng.random(num_blocks) < 0.85, np.arange(num_blocks), -1)[np.clip(moved, 0, num_blocks - 1)]
    found_label = np.where(rng.random(num_blocks) < 0.8, np.maximum(label, 0), 2)
    scores = np.round(rng.random(num_blocks), 1)  # many equal scores
    ids = torch.from_numpy(found)
    labels = torch.from_numpy(found_label)
    predicted = PointInstances(
        torch.where(ids >= 0, labels[ids.clamp(min=0)], BACKGROUND), ids, labels, torch.from_numpy(scores).float()
    )
    return predicted, PointLabels(torch.from_numpy(semantic), torch.from_numpy(instance))


def with_pycocotools(frames: list[tuple[PointInstances, PointLabels]], thresholds: np.ndarray) -> np.ndarray:
    """Return (thresholds, classes) AP, -1 without objects."""
    precision, _ = pycocotools_eval([(*frame, None) for frame in frames], thresholds, [(0, 1e10)])
    return precision[..., 0]


def pycocotools_eval(frames, thresholds, ranges, by_distance: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return (thresholds, classes, ranges) AP and (thresholds, classes, 3) recall of all sizes, -1 without objects.

    Ranges are of the number of points, or of the median distance, which pycocotools is then told is the area.
    """
    images, annotations, found, found_values = [], [], [], []
    for image_id, (predicted, gt, distances) in enumerate(frames, start=1):
        kept = gt.semantic_labels != IGNORE
        ids, semantic = gt.instance_ids[kept], gt.semantic_labels[kept]
        found_ids = predicted.instance_ids[kept]
        objects = [
            (label, (ids == instance) & (semantic == label))
            for label in range(len(CLASSES))
            for instance in ids[(semantic == label) & (ids >= 0)].unique().tolist()
        ]
        listed = zip(predicted.labels.tolist(), predicted.scores.tolist(), strict=True)
        claims = [(label, score, found_ids == index) for index, (label, score) in enumerate(listed)]
        claims = [claim for claim in claims if claim[2].any()]
        masks = [mask.numpy() for _, mask in objects] + [mask.numpy() for *_, mask in claims]
        images.append({"id": image_id, "height": 1, "width": int(kept.sum())})
        rles = coco_mask.encode(np.asfortranarray(np.stack(masks, -1)[None].astype(np.uint8))) if masks else []
        values = [float(distances[kept][mask].median()) if by_distance else int(mask.sum()) for mask in masks]
        for (label, _), rle, value in zip(objects, rles, values):
            row = {"image_id": image_id, "category_id": label + 1, "segmentation": rle, "iscrowd": 0}
            annotations.append(row | {"id": len(annotations) + 1, "area": value})
        for (label, score, _), rle in zip(claims, rles[len(objects) :]):
            found.append({"image_id": image_id, "category_id": label + 1, "segmentation": rle, "score": score})
        found_values += values[len(objects) :]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        truth.createIndex()
        results = truth.loadRes(found) if found else COCO()
        for row, value in zip(results.dataset.get("annotations", []), found_values, strict=True):
            row["area"] = value
        evaluation = COCOeval(truth, results, "segm")
        evaluation.params.iouThrs = thresholds
        evaluation.params.areaRng = [list(limits) for limits in ranges]
        evaluation.params.areaRngLbl = [str(limits) for limits in ranges]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, :, 2].mean(1), evaluation.eval["recall"][:, :, 0]


def scene(seed: int, sizes: list[int], num_blocks: int) -> tuple[PointInstances, PointLabels, torch.Tensor]:
    """Objects of given sizes in a row; found whole, halved, as pairs of equal neighbours, moved, or not at all.

    IoU of exactly 1/2 and 1/4, equal scores and values exactly at the limits of bins are common.
    """
    rng = np.random.default_rng(seed)
    kinds = rng.choice([0, 0, 1, BACKGROUND, IGNORE], num_blocks)
    block_sizes = rng.choice(sizes, num_blocks)
    repeated = rng.random(num_blocks) < 0.6
    for index in range(1, num_blocks):
        if repeated[index]:
            kinds[index], block_sizes[index] = kinds[index - 1], block_sizes[index - 1]
    block = np.repeat(np.arange(num_blocks), block_sizes)
    part = np.concatenate([np.arange(size) * 2 // size for size in block_sizes])
    manner = rng.choice(["whole", "halved", "with_next", "moved", "missed"], num_blocks)
    owner = np.where(manner[block] == "halved", block + num_blocks * part, block)
    previous = np.maximum(np.arange(num_blocks) - 1, 0)
    joined = (manner[previous] == "with_next") & (manner != "with_next")
    owner = np.where(joined[block], previous[block], owner)
    owner = np.where(manner[block] == "missed", -1, owner)
    owner = np.where(manner[block] == "moved", np.roll(owner, int(rng.integers(-9, 10))), owner)
    claimed = np.where(rng.random(2 * num_blocks) < 0.9, np.maximum(np.tile(kinds, 2), 0), 1)
    ids, labels = torch.from_numpy(owner), torch.from_numpy(claimed)
    scores = torch.from_numpy(np.round(rng.random(2 * num_blocks), 1)).float()
    predicted = PointInstances(torch.where(ids >= 0, labels[ids.clamp(min=0)], BACKGROUND), ids, labels, scores)
    distances = rng.choice([3.0, 14.5, 15.0, 29.5, 30.0, 49.5, 50.0, 70.0], num_blocks)[block]
    distances = distances + rng.choice([0.0, 0.0, 0.25, 0.5], len(block))
    gt = PointLabels(torch.from_numpy(kinds[block]), torch.from_numpy(np.where(kinds[block] >= 0, block + 7, -1)))
    return predicted, gt, torch.from_numpy(distances).float()


def without_found(frame):
    predicted, gt, distances = frame
    return (
        PointInstances(
            predicted.semantic_labels,
            torch.full_like(predicted.instance_ids, -1),
            *(predicted.labels, predicted.scores),
        ),
        gt,
        distances,
    )


def without_objects(frame):
    predicted, gt, distances = frame
    return (
        predicted,
        PointLabels(torch.full_like(gt.semantic_labels, BACKGROUND), torch.full_like(gt.instance_ids, -1)),
        distances,
    )


EDGES = [1, 5, 19, 20, 21, 99, 100, 101, 499, 500, 501]
COCO_EDGES = [1023, 1024, 1025, 9215, 9216, 9217, 400]
SCENES: dict[str, Callable[[int], list]] = {
    "rows": lambda seed: [scene(seed * 10 + k, EDGES, 24) for k in range(3)],
    "coco": lambda seed: [scene(seed * 10 + k, COCO_EDGES, 14) for k in range(3)],
    "crowded": lambda seed: [scene(seed, [4, 20, 40], 260), scene(seed + 1, EDGES, 24)],
    "empty": lambda seed: [
        without_found(scene(seed, EDGES, 12)),
        without_objects(scene(seed + 1, EDGES, 12)),
        without_found(without_objects(scene(seed + 2, EDGES, 12))),
        scene(seed + 3, EDGES, 12),
    ],
    "nothing found": lambda seed: [without_found(scene(seed, EDGES, 12))],
    "no objects": lambda seed: [without_objects(scene(seed, EDGES, 12))],
}


def limits_of(one: Bin) -> tuple[float, float]:
    """Return the limits of a bin as pycocotools takes them, both belong to it."""
    return (one.least, one.below - 1) if one.measure == "points" else (one.least, math.nextafter(one.below, 0))


def mean_or_nan(values: np.ndarray) -> float:
    return float(values[values > -1].mean()) if (values > -1).any() else math.nan


@pytest.mark.parametrize(
    ("kind", "seed"),
    [(kind, seed) for kind in SCENES for seed in range({"rows": 8, "coco": 4, "empty": 3}.get(kind, 1))],
)
def test_all_scores_equal_pycocotools(kind: str, seed: int):
    frames = SCENES[kind](seed)
    evaluator = PointInstanceEvaluator(CLASSES)
    for frame in frames:
        evaluator.add(*frame)
    ours = evaluator.compute()
    precision, recall = pycocotools_eval(frames, THRESHOLDS, [limits_of(one) for one in (ALL, *COCO_SIZES)])
    wanted = {f"instance_ap{suffix}": mean_or_nan(precision[part, :, 0]) for suffix, part in PARTS.items()}
    wanted |= {f"instance_ap_{one.name}": mean_or_nan(precision[1:, :, k + 1]) for k, one in enumerate(COCO_SIZES)}
    wanted |= {f"instance_ar{limit}": mean_or_nan(recall[1:, :, k]) for k, limit in enumerate((1, 10, 100))}
    for k, name in enumerate(CLASSES):
        wanted[f"instance_ap/{name}"] = mean_or_nan(precision[1:, k, 0])
        wanted[f"instance_ap50/{name}"] = mean_or_nan(precision[1, k, 0])
    assert ours.keys() == wanted.keys() | {"num_objects"}
    assert {key: ours[key] for key in wanted} == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    assert evaluator.rows() == expected_rows(frames)


PARTS = {"": slice(1, None), "25": 0, "50": 1, "75": 6}


def expected_rows(frames) -> list:
    """Return the rows according to pycocotools; `objects` are counted one by one."""
    rows = []
    for one in ROWS:
        precision, _ = pycocotools_eval(frames, THRESHOLDS, [limits_of(one)], one.measure == "distance")
        counts = [count_objects(frames, label, one) for label in range(len(CLASSES))]
        assert [count > 0 for count in counts] == (precision[0, :, 0] > -1).tolist()
        named = [(name, count, precision[:, [k], 0]) for k, (name, count) in enumerate(zip(CLASSES, counts))]
        for name, count, part in [*named, ("mean", sum(counts), precision[:, :, 0])]:
            if count:
                ap, ap50 = (pytest.approx(mean_or_nan(some), abs=1e-12) for some in (part[1:], part[1]))
                rows.append(
                    {"bin": one.name, "class": name, "objects": count, "instance_ap": ap, "instance_ap50": ap50}
                )
    return rows


def count_objects(frames, label: int, one: Bin) -> int:
    count = 0
    for _, gt, distances in frames:
        for instance in gt.instance_ids[gt.semantic_labels == label].unique():
            mine = (gt.instance_ids == instance) & (gt.semantic_labels == label)
            value = int(mine.sum()) if one.measure == "points" else float(distances[mine].median())
            count += one.least <= value < one.below
    return count


def test_scenes_reach_the_rules_that_matter():
    """More than 100 instances of a class; objects exactly at limits; one instance that may take two equal objects."""
    crowded = SCENES["crowded"](0)[0][0]
    assert int((crowded.labels[crowded.instance_ids.unique()[1:]] == 0).sum()) > 100
    sizes = {
        int(size)
        for seed in range(4)
        for _, gt, _ in SCENES["coco"](seed)
        for size in gt.instance_ids.unique(return_counts=True)[1]
    }
    assert sizes >= {1024, 1025, 9216, 9217}
    halves = 0
    for predicted, gt, _ in (frame for seed in range(8) for frame in SCENES["rows"](seed)):
        for index in predicted.instance_ids.unique().tolist():
            objects, counts = gt.instance_ids[predicted.instance_ids == index].unique(return_counts=True)
            halves += len(objects) == 2 and index >= 0 and int(objects[0]) >= 0 and counts[0] == counts[1]
    assert halves > 10


def test_without_distances_there_are_only_rows_of_points():
    predicted, gt, distances = scene(0, EDGES, 24)
    evaluator, with_distances = PointInstanceEvaluator(CLASSES), PointInstanceEvaluator(CLASSES)
    evaluator.add(predicted, gt)
    with_distances.add(predicted, gt, distances)
    assert evaluator.rows() == [row for row in with_distances.rows() if row["bin"].endswith("points")] != []
    assert evaluator.compute() == pytest.approx(with_distances.compute(), nan_ok=True)


@pytest.mark.parametrize("crowded", [False, True])
def test_equals_pycocotools(crowded: bool):
    frames = [random_frame(seed, 2000 if crowded else 400, crowded) for seed in range(3 if crowded else 8)]
    evaluator = PointInstanceEvaluator(CLASSES)
    for predicted, gt in frames:
        evaluator.add(predicted, gt)
    scores = evaluator.compute()
    table = with_pycocotools(frames, np.linspace(0.5, 0.95, 10))
    valid = (table > -1).all(0)
    assert valid[:2].all()
    assert 0.05 < scores["instance_ap"] < 0.9
    assert scores["instance_ap"] == pytest.approx(table[:, valid].mean(), abs=1e-12)
    assert scores["instance_ap50"] == pytest.approx(table[0, valid].mean(), abs=1e-12)
    loose = with_pycocotools(frames, np.array([0.25]))
    assert scores["instance_ap25"] == pytest.approx(loose[0, valid].mean(), abs=1e-12)
    for label in np.flatnonzero(valid):
        assert scores[f"instance_ap/{CLASSES[label]}"] == pytest.approx(table[:, label].mean(), abs=1e-12)
        assert scores[f"instance_ap50/{CLASSES[label]}"] == pytest.approx(table[0, label], abs=1e-12)
    if crowded:  # the cut at 100 instances a frame and class was exercised
        assert max(int((predicted.labels == 2).sum()) for predicted, _ in frames) < 100
        assert max(int((predicted.labels == 0).sum()) for predicted, _ in frames) > 90


def test_only_the_best_hundred_of_a_class_count():
    ids = torch.arange(150)
    predicted = PointInstances(torch.zeros(150).long(), ids, torch.zeros(150).long(), torch.linspace(1, 0, 150))
    gt = PointLabels(torch.zeros(150).long(), ids)
    evaluator = PointInstanceEvaluator(CLASSES)
    evaluator.add(predicted, gt)
    table = with_pycocotools([(predicted, gt)], np.linspace(0.5, 0.95, 10))
    assert evaluator.compute()["instance_ap/Vehicle"] == pytest.approx(table[:, 0].mean(), abs=1e-12)
    assert evaluator.compute()["instance_ap/Vehicle"] == pytest.approx(67 / 101)


def test_ignored_points_are_left_out_on_both_sides():
    gt = PointLabels(torch.tensor([0, 0, IGNORE, IGNORE, IGNORE]), torch.tensor([3, 3, -1, 3, -1]))
    found_ids = torch.tensor([0, 0, 0, 0, 1])
    predicted = PointInstances(torch.zeros(5).long(), found_ids, torch.zeros(2).long(), torch.tensor([0.5, 0.9]))
    evaluator = PointInstanceEvaluator(CLASSES)
    evaluator.add(predicted, gt)
    scores = evaluator.compute()
    assert scores["instance_ap"] == pytest.approx(1)  # the better scored one lies on ignored points only
    assert math.isnan(scores["instance_ap50/Cyclist"])
    assert scores["num_objects"] == 1


def test_an_id_that_spans_two_classes_is_two_objects():
    gt = PointLabels(torch.tensor([0, 0, 1, 1]), torch.tensor([3, 3, 3, 3]))
    predicted = PointInstances(gt.semantic_labels, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1]), torch.ones(2))
    evaluator = PointInstanceEvaluator(CLASSES)
    evaluator.add(predicted, gt)
    assert evaluator.compute()["num_objects"] == 2
    assert evaluator.compute()["instance_ap"] == pytest.approx(1)


def test_nothing_predicted_and_nothing_there():
    none = PointInstances(torch.full((4,), BACKGROUND), torch.full((4,), -1), torch.zeros(0).long(), torch.zeros(0))
    evaluator = PointInstanceEvaluator(CLASSES)
    assert math.isnan(evaluator.compute()["instance_ap"])
    evaluator.add(none, PointLabels(torch.full((4,), BACKGROUND), torch.full((4,), -1)))
    assert math.isnan(evaluator.compute()["instance_ap"])
    evaluator.add(none, PointLabels(torch.zeros(4).long(), torch.tensor([1, 1, 2, -1])))
    scores = evaluator.compute()
    assert (scores["instance_ap"], scores["instance_ap25"], scores["num_objects"]) == (0, 0, 2)
