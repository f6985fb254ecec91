"""Suite ``mask_ap``: AP of camera masks from their crops, against pycocotools on bitmaps of the images' full size."""

from __future__ import annotations

import io
from collections.abc import Sequence
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

from mwsis.core.frame import ImageTruth
from mwsis.core.instances import Boxes2D, Detections, MaskSet
from mwsis.evaluation.coco_masks import AREAS, CocoMaskEvaluator, encode_masks
from tools.benchmarks.measure import Array, Row, best_times, comparison, stop_if_different

CLASS_NAMES = ("Vehicle", "Pedestrian", "Cyclist")
TOLERANCE = 1e-9
CROWDED = 0.07
"""Part of the objects that are crowds."""
RADII = (0.006, 0.12)
"""Of the objects, in image heights."""

Images = list[tuple[Detections, ImageTruth]]
Encoded = tuple[list[dict[str, Any]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Sizes:
    """How much is scored."""

    num_images: int = 20
    height: int = 1280
    width: int = 1920
    num_objects: int = 30
    num_detections: int = 60
    repeats: int = 3


def run(folder: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """Compare on one thread, after comparing every AP; ours computes its other scores, too.

    Both sides begin with masks as crops: the reference pastes them into bitmaps, image by image, and encodes those.
    """
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = [made_up_image(rng, sizes) for _ in range(sizes.num_images)]
    encoded = encode_all(images)
    ours, reference = with_crops(images), with_pycocotools(images, encoded)
    stop_if_different({name for name, value in reference.items() if not same(ours[name], value)})
    masks = images[0][0].masks
    pasted = bitmaps(masks)
    stop_if_different({"codes"} if encode_masks(masks) != encode(pasted) else set())
    crops, full, ready, code, code_full = best_times(
        [
            lambda: with_crops(images),
            lambda: with_pycocotools(images, encode_all(images)),
            lambda: with_pycocotools(images, encoded),
            lambda: encode_masks(masks),
            lambda: encode(pasted),
        ],
        sizes.repeats,
    )
    facts = {"images": sizes.num_images, "objects": sizes.num_objects, "detections": sizes.num_detections}
    return facts | {"AP": round(ours["mask_ap"], 4)}, [
        comparison("crops to AP / pycocotools with bitmaps", crops, full),
        comparison("crops to AP / pycocotools, masks encoded", crops, ready),
        comparison("codes of an image / from its bitmaps", code, code_full),
    ]


def same(ours: float, reference: float) -> bool:
    """Return whether two scores are equal, or both say that there is nothing to score."""
    return abs(ours - reference) <= TOLERANCE or (np.isnan(ours) and np.isnan(reference))


def with_crops(images: Images) -> dict[str, float]:
    """Return our scores."""
    evaluator = CocoMaskEvaluator(CLASS_NAMES)
    for detections, truth in images:
        evaluator.add(detections, truth)
    return evaluator.compute()


def bitmaps(masks: MaskSet) -> Array:
    """Return (H, W, G) uint8 in the order of memory that pycocotools encodes without another copy."""
    full = np.zeros((masks.height, masks.width, len(masks)), np.uint8, order="F")
    for index, (x1, y1, x2, y2) in enumerate(masks.crop_boxes.tolist()):
        full[y1:y2, x1:x2, index] = masks.crop(index).numpy()
    return full


def encode_all(images: Images) -> Encoded:
    """Return the annotations of all true objects and of all detections as pycocotools reads them."""
    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, (detections, truth) in enumerate(images, 1):
        crowds = truth.labels.ignore.long().tolist()
        objects += annotations(number, truth.masks, truth.labels.labels, [{"iscrowd": crowd} for crowd in crowds])
        scores = detections.scores.double().tolist()
        found += annotations(number, detections.masks, detections.labels, [{"score": score} for score in scores])
    for every in (objects, found):
        for number, annotation in enumerate(every, 1):
            annotation["id"] = number
    return objects, found


def annotations(image: int, masks: MaskSet, labels: Tensor, more: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the annotations of an image."""
    rows = encode(bitmaps(masks))
    return [
        {"image_id": image, "category_id": label, "segmentation": row, "area": int(size), "iscrowd": 0, **facts}
        for row, size, label, facts in zip(rows, area(rows), labels.tolist(), more, strict=True)
    ]


def with_pycocotools(images: Images, encoded: Encoded) -> dict[str, float]:
    """Return pycocotools' scores under our names."""
    with redirect_stdout(io.StringIO()):
        coco = COCOeval(*(indexed(images, part) for part in encoded), "segm")
        coco.evaluate()
        coco.accumulate()
    precision = coco.eval["precision"][..., -1]  # thresholds, recalls, classes, areas; 100 detections
    everywhere = precision[..., 0]
    scores = {"mask_ap": everywhere, "mask_ap50": everywhere[0], "mask_ap75": everywhere[5]}
    scores |= {f"mask_ap_{name}": precision[..., index] for index, name in enumerate(AREAS) if index}
    scores |= {f"mask_ap/{name}": everywhere[..., label] for label, name in enumerate(CLASS_NAMES)}
    return {name: float(part[part > -1].mean()) if (part > -1).any() else float("nan") for name, part in scores.items()}


def indexed(images: Images, annotated: list[dict[str, Any]]) -> COCO:
    """Return annotations as a data set."""
    coco = COCO()
    sizes = [(truth.masks.height, truth.masks.width) for _, truth in images]
    coco.dataset = {
        "images": [{"id": number, "height": h, "width": w} for number, (h, w) in enumerate(sizes, 1)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(CLASS_NAMES)],
        "annotations": [dict(annotation) for annotation in annotated],
    }
    coco.createIndex()
    return coco


def made_up_image(rng: np.random.Generator, sizes: Sizes) -> tuple[Detections, ImageTruth]:
    """Return objects of all sizes, some of them crowds, and detections: objects moved and resized, by falling score."""
    low, high = RADII
    radii = sizes.height * low * (high / low) ** rng.random((sizes.num_objects, 1)) * rng.uniform(0.7, 1.4, (1, 2))
    centres = rng.random((sizes.num_objects, 2)) * [sizes.width, sizes.height]
    labels = rng.integers(0, len(CLASS_NAMES), sizes.num_objects)
    source = rng.integers(0, sizes.num_objects, sizes.num_detections)
    moved = centres[source] + rng.normal(0, 0.15, (sizes.num_detections, 2)) * radii[source]
    resized = radii[source] * rng.uniform(0.8, 1.25, (sizes.num_detections, 2))
    guessed = np.where(rng.random(sizes.num_detections) < 0.9, labels[source], 0)
    truth_masks, found_masks = ellipses(rng, centres, radii, sizes), ellipses(rng, moved, resized, sizes)
    crowds = torch.from_numpy(rng.random(sizes.num_objects) < CROWDED)
    given = Boxes2D(truth_masks.crop_boxes.float(), torch.from_numpy(labels), crowds)
    scores = torch.linspace(0.99, 0.01, sizes.num_detections)
    found = Detections(found_masks.crop_boxes.float(), torch.from_numpy(guessed), scores, found_masks)
    return found, ImageTruth(given, truth_masks, torch.arange(sizes.num_objects))


def ellipses(rng: np.random.Generator, centres: Array, radii: Array, sizes: Sizes) -> MaskSet:
    """Return ellipses with ragged edges, each at least one pixel large."""
    boxes, crops = [], []
    limit = np.array([sizes.width, sizes.height])
    for centre, radius in zip(centres.clip(1, limit - 1), radii.clip(1.5), strict=True):
        (x1, y1), (x2, y2) = (centre - radius).clip(0).astype(int), (centre + radius + 1).clip(max=limit).astype(int)
        rows, columns = np.mgrid[y1:y2, x1:x2] + 0.5
        distance = ((columns - centre[0]) / radius[0]) ** 2 + ((rows - centre[1]) / radius[1]) ** 2
        boxes.append([int(x1), int(y1), int(x2), int(y2)])
        crops.append(torch.from_numpy(distance + rng.normal(0, 0.03, distance.shape) < 1))
    return MaskSet.from_crops(sizes.height, sizes.width, torch.tensor(boxes), crops)
