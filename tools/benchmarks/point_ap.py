"""Suite ``point_ap``: average precision of LiDAR instances from label arrays, against pycocotools on masks of one row.

MWSIS scores points that way: a frame is an image of one row, an instance a run-length encoded mask of it.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import area, encode
from torch import Tensor

from mwsis.core.instances import BACKGROUND, PointInstances, PointLabels
from mwsis.evaluation.point_instances import PointInstanceEvaluator
from tools.benchmarks.measure import Array, Row, best_times, comparison, stop_if_different

CLASS_NAMES = ("Vehicle", "Pedestrian", "Cyclist")
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Sizes:
    """How much is scored; ``run_length`` points in a row share their labels, as neighbours on a ring do."""

    num_frames: int = 20
    num_points: int = 150_000
    num_objects: int = 60
    num_detections: int = 100
    run_length: int = 10
    repeats: int = 5


@dataclass(frozen=True)
class Scored:
    """One frame: what was found and what is there."""

    found: PointInstances
    gt: PointLabels
    object_labels: Tensor


def run(folder: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """Compare on one thread, after comparing AP, AP50 and AP75; ours computes its other scores, too."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    frames = [made_up_frame(rng, sizes) for _ in range(sizes.num_frames)]
    encoded = encode_all(frames)
    ours, reference = with_labels(frames), with_masks(encoded)
    stop_if_different({name for name, value in reference.items() if not abs(ours[name] - value) <= TOLERANCE})
    labels, masks, both = best_times(
        [lambda: with_labels(frames), lambda: with_masks(encoded), lambda: with_masks(encode_all(frames))],
        sizes.repeats,
    )
    facts = {"frames": sizes.num_frames, "points": sizes.num_points, "AP": round(ours["instance_ap"], 4)}
    return facts, [
        comparison("labels to AP / pycocotools with encoding", labels, both),
        comparison("labels to AP / pycocotools, masks encoded", labels, masks),
    ]


def with_labels(frames: list[Scored]) -> dict[str, float]:
    """Return our scores."""
    evaluator = PointInstanceEvaluator(CLASS_NAMES)
    for frame in frames:
        evaluator.add(frame.found, frame.gt)
    return evaluator.compute()


def encode_all(frames: list[Scored]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the annotations of all true objects and of all detections as pycocotools reads them."""
    objects, found = [], []
    for number, frame in enumerate(frames, 1):
        no_scores = torch.ones(len(frame.object_labels))
        objects += annotations(number, frame.gt.instance_ids, frame.object_labels, no_scores)
        found += annotations(number, frame.found.instance_ids, frame.found.labels, frame.found.scores)
    for every in (objects, found):
        for number, annotation in enumerate(every, 1):
            annotation["id"] = number
    return objects, found


def annotations(image: int, instance_ids: Tensor, labels: Tensor, scores: Tensor) -> list[dict[str, Any]]:
    """Return the instances of a frame that have points, as masks of one row."""
    masks = instance_ids[:, None] == torch.arange(len(labels))
    rows = encode(np.asfortranarray(masks.numpy()[None], np.uint8))
    return [
        {"image_id": image, "category_id": int(label), "segmentation": row, "area": int(size), "iscrowd": 0, "score": s}
        for row, size, label, s in zip(rows, area(rows), labels, scores.double().tolist(), strict=True)
        if size
    ]


def with_masks(encoded: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> dict[str, float]:
    """Return pycocotools' scores under our names."""
    with redirect_stdout(io.StringIO()):
        coco = COCOeval(*(indexed(part) for part in encoded), "segm")
        coco.evaluate()
        coco.accumulate()
        coco.summarize()
    return dict(zip(("instance_ap", "instance_ap50", "instance_ap75"), map(float, coco.stats), strict=False))


def indexed(annotated: list[dict[str, Any]]) -> COCO:
    """Return annotations as a data set."""
    coco = COCO()
    size = annotated[0]["segmentation"]["size"]
    images = {annotation["image_id"] for annotation in annotated}
    coco.dataset = {
        "images": [{"id": image, "height": size[0], "width": size[1]} for image in sorted(images)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(CLASS_NAMES)],
        "annotations": [dict(annotation) for annotation in annotated],
    }
    coco.createIndex()
    return coco


def made_up_frame(rng: np.random.Generator, sizes: Sizes) -> Scored:
    """Return objects on a third of the points, and detections: objects that lost up to half, and scattered points."""
    num_runs = sizes.num_points // sizes.run_length
    objects = np.where(rng.random(num_runs) < 0.3, rng.integers(0, sizes.num_objects, num_runs), -1)
    blur = np.where(objects >= 0, rng.random(sizes.num_objects)[objects] * 0.5, 0.05)
    guessed = rng.integers(-1, sizes.num_detections, num_runs)
    found = np.where(rng.random(num_runs) < blur, guessed, objects)
    object_labels = rng.integers(0, len(CLASS_NAMES), sizes.num_objects)
    labels = rng.integers(0, len(CLASS_NAMES), sizes.num_detections)
    copied = min(sizes.num_objects, sizes.num_detections)
    labels[:copied] = np.where(rng.random(copied) < 0.9, object_labels[:copied], labels[:copied])
    scores = torch.from_numpy(rng.permutation(sizes.num_detections) / sizes.num_detections).float()
    points = per_point(found, labels, sizes.run_length)
    gt = PointLabels(*per_point(objects, object_labels, sizes.run_length))
    return Scored(PointInstances(*points, torch.from_numpy(labels), scores), gt, torch.from_numpy(object_labels))


def per_point(instances: Array, labels: Array, run_length: int) -> tuple[Tensor, Tensor]:
    """Return the class and the instance of each point from the instance of each run."""
    semantic = np.where(instances >= 0, labels[instances], BACKGROUND)
    return torch.from_numpy(semantic.repeat(run_length)), torch.from_numpy(instances.repeat(run_length))
