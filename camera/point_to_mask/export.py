"""The masks of all points as COCO files: one that `mwsis.data.given_masks` gives to training, one of their boxes.

Where boxes were never drawn, the next training takes those of the masks: `boxes.json` is its annotation file,
`masks.json` its ``data.masks``. Run lengths are made by the caller (`mwsis.evaluation.coco_masks.json_masks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from camera.point_to_mask.instances_from_semantics import PointMasks
from camera.point_to_mask.points import PointedImage
from camera.point_to_mask.semantic_maps import GROUND_TRUTH
from mwsis.core.files import write_json
from mwsis.core.instances import MaskSet

__all__ = ["MASK_SOURCE", "write_boxes", "write_masks"]

MASK_SOURCE = "p2seg"
Encode = Callable[[MaskSet], Sequence[Mapping[str, Any]]]


def write_masks(
    path: Path,
    images: Sequence[PointedImage],
    found: Iterable[PointMasks],
    class_names: Sequence[str],
    semantic_source: str,
    encode: Encode,
) -> None:
    """Write the masks, an annotation for each point.

    ``mask_weight`` is how far to trust the mask; a made-up square has 0 and is a crowd, COCO's word for a region that
    nothing is learned from. ``mask_source`` is ``p2seg``, but ``gt`` where people drew the maps of classes: such masks
    hold ground truth, and are given to a training with ``data.supervision=masks`` alone. ``semantic_source`` says so
    again. ``id`` and ``point`` are those the mask was made for.

    Args:
        path: of the JSON file.
        images: the images.
        found: the masks of their points, in this order; consumed one by one.
        class_names: become the categories, numbered from 1.
        semantic_source: who made the maps of classes (`semantic_maps.SOURCES`).
        encode: returns COCO's compressed run lengths of masks, as JSON holds them.

    Source: COCO's format; the further fields are those that `mwsis.data.given_masks.MaskFile` reads.
    """
    source = GROUND_TRUTH if semantic_source == GROUND_TRUTH else MASK_SOURCE
    rows = []
    for image, own in zip(images, found, strict=True):
        for index, (row, code) in enumerate(zip(_rows(image, own), encode(own.masks), strict=True)):
            rows.append(
                row
                | {
                    "category_id": int(image.points.labels[index]) + 1,
                    "area": int(own.masks.crop(index).sum()),
                    "segmentation": code,
                    "mask_weight": float(own.weight[index]),
                    "mask_source": source,
                    "semantic_source": semantic_source,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(class_names)]
    _write(path, images, categories, rows)


def write_boxes(
    path: Path, images: Sequence[PointedImage], found: Iterable[PointMasks], categories: Sequence[Mapping[str, Any]]
) -> None:
    """Write the boxes around the masks, without the masks, as an annotation file for a training on them.

    Args:
        path: of the JSON file.
        images: the images.
        found: the masks of their points, in this order.
        categories: of the file that the points came from; kept, so that other splits need not be written anew.
    """
    rows = [
        row | {"category_id": category}
        for image, own in zip(images, found, strict=True)
        for row, category in zip(_rows(image, own), image.categories, strict=True)
    ]
    _write(path, images, categories, rows)


def _rows(image: PointedImage, found: PointMasks) -> list[dict[str, Any]]:
    """Return what both files say of each point of an image."""
    rows = []
    for index, (x1, y1, x2, y2) in enumerate(found.masks.crop_boxes.tolist()):
        rows.append(
            {
                "id": image.ids[index],
                "image_id": image.id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": int(found.weight[index] == 0),
                "score": float(found.scores[index]),
                "point": image.points.xy[index].tolist(),
            }
        )
    return rows


def _write(
    path: Path, images: Sequence[PointedImage], categories: Sequence[Mapping[str, Any]], rows: list[dict[str, Any]]
) -> None:
    listed = [
        {"id": image.id, "file_name": image.file_name, "width": image.width, "height": image.height} for image in images
    ]
    write_json(path, {"images": listed, "categories": list(categories), "annotations": rows})
