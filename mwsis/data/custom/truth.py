"""Ground truth of one's own recordings, as far as there is any: masks, point labels, 3D boxes. For scores alone.

Masks are the segmentations of `boxes.json`; point labels are ``.label`` files as `mwsis.data.label_files` reads them;
3D boxes are one JSON file. The number of an object (``object_id``) is the same in all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mwsis.core.errors import DataError, closest_name
from mwsis.core.frame import FrameTruth, ImageTruth
from mwsis.core.instances import BACKGROUND, IGNORE, PointLabels
from mwsis.data.coco import masks_of
from mwsis.data.custom.boxes import ImageBoxes, ListedBoxes
from mwsis.data.frame_parts import labels_in_boxes
from mwsis.data.label_files import read_labels
from mwsis.data.problems import Problems, entry, finite, read_json, require_known

__all__ = ["TrueBox", "frame_truth", "read_boxes3d", "read_point_truth"]

BOX_KEYS = ("frame", "category", "centre", "size", "yaw", "object_id")
TrueBox = tuple[list[float], int, int]
"""Centre, length, width, height, yaw; label; number of the object."""


def read_boxes3d(path: Path, label_of: Mapping[str, int], problems: Problems) -> dict[str, list[TrueBox]]:
    """Return the 3D boxes of each frame that has some.

    Args:
        path: the file; where there is none, no frame has any.
        label_of: label of each known category, `IGNORE` of one that is no class.
        problems: takes a sentence for every box that is wrong, and the box is left out.
    """
    if not path.is_file():
        return {}
    content = problems.collect(read_json, path)
    rows = None if content is None else problems.collect(entry, content, "boxes3d", list, str(path))
    found: dict[str, list[TrueBox]] = {}
    for place, row in enumerate(rows or []):
        where = f"{path}: boxes3d[{place}]"
        read = problems.collect(_true_box, row, label_of, where, kind="3D boxes")
        if read is not None:
            frame_id, box = read
            if any(box[2] == other[2] for other in found.get(frame_id, [])):
                problems.add(f"{where}: object_id: {box[2]} again in frame '{frame_id}'", "3D boxes")
            found.setdefault(frame_id, []).append(box)
    return found


def _true_box(row: Any, label_of: Mapping[str, int], where: str) -> tuple[str, TrueBox]:
    require_known(row, BOX_KEYS, where)
    category, number = entry(row, "category", str, where), entry(row, "object_id", int, where)
    if category not in label_of:
        raise DataError(f"{where}: category: no '{category}'{closest_name(category, label_of)}")
    if number < 0:
        raise DataError(f"{where}: object_id: expected 0 or more, got {number}")
    values = [*entry(row, "centre", list, where), *entry(row, "size", list, where), row.get("yaw")]
    if len(row["centre"]) != 3 or len(row["size"]) != 3 or not all(map(finite, values)) or min(row["size"]) <= 0:
        raise DataError(
            f"{where}: centre, size, yaw: expected x, y, z; length, width, height above 0; radians; "
            f"got {row['centre']}, {row['size']}, {row.get('yaw')}"
        )
    return entry(row, "frame", str, where), ([float(value) for value in values], label_of[category], number)


def read_point_truth(path: Path, num_points: int, num_classes: int) -> PointLabels | None:
    """Return the labels of a sweep's points; None where there is no file.

    Raises:
        DataError: the file does not have one label per point, or a code that stands for no class.
    """
    if not path.is_file():
        return None
    labels = read_labels(path)
    if len(labels) != num_points:
        raise DataError(f"{path}: expected {num_points} labels, one per point of the sweep, got {len(labels)}")
    if len(wrong := (labels.semantic_labels >= num_classes).nonzero()):
        raise DataError(
            f"{path}: label {int(wrong[0])}: class: expected a code up to {num_classes + 1} (0 unlabelled, 1 other, "
            f"2 and on the {num_classes} classes), got {int(labels.semantic_labels[wrong[0]]) + 2}"
        )
    return labels


def frame_truth(
    xyz: Tensor,
    listed: ListedBoxes,
    images: Sequence[ImageBoxes],
    boxes3d: Sequence[TrueBox],
    points: PointLabels | None,
) -> FrameTruth | None:
    """Return the truth of a frame; None where it has none.

    A point without a label of its own belongs to the 3D box that it lies in; it is `BACKGROUND` where the frame has 3D
    boxes but none around it, and `IGNORE` where nobody says anything about it.
    """
    has_masks = [listed.instances.has_truth(one.image) for one in images]
    if not (boxes3d or points is not None or any(has_masks)):
        return None
    corners = torch.tensor([box for box, _, _ in boxes3d], dtype=torch.float32).reshape(-1, 7)
    labels3d = torch.tensor([label for _, label, _ in boxes3d], dtype=torch.int64)
    ids3d = torch.tensor([number for _, _, number in boxes3d], dtype=torch.int64)
    if points is None:
        points = labels_in_boxes(xyz, corners, labels3d, ids3d, BACKGROUND if len(corners) else IGNORE)
    box_ids = _numbers(images, [*ids3d.tolist(), int(points.instance_ids.max()) if len(points) else -1])
    kept = labels3d >= 0
    return FrameTruth(
        semantic_labels=points.semantic_labels,
        instance_ids=points.instance_ids,
        boxes3d=corners[kept],
        box3d_labels=labels3d[kept],
        box3d_ids=ids3d[kept],
        box_instance_ids=box_ids,
        images=tuple(
            ImageTruth(one.labelled, masks_of(listed.instances, one.image, one.annotations), ids) if there else None
            for one, ids, there in zip(images, box_ids, has_masks, strict=True)
        ),
    )


def _numbers(images: Sequence[ImageBoxes], taken: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the number of each box's object; boxes that say none get one that nothing else has, or, crowds, -1."""
    given = [one.object_id for image in images for one in image.annotations if one.object_id is not None]
    free = max([*taken, *given, -1]) + 1
    numbers = []
    for image in images:
        row = []
        for one in image.annotations:
            unsaid = one.object_id is None and not one.crowd
            row.append(free if unsaid else -1 if one.object_id is None else one.object_id)
            free += unsaid
        numbers.append(torch.tensor(row, dtype=torch.int64))
    return tuple(numbers)
