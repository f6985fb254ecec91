"""Slow twin of `mwsis.evaluation.label_quality`: sets of points, one box and one point at a time."""

from __future__ import annotations

import math
from statistics import median_low

from mwsis.core.frame import Frame
from mwsis.core.instances import IGNORE


def object_counts(frame: Frame, pairs: list[tuple[int, int]]) -> dict[int, dict[str, float]]:
    """Return what is counted for each 2D box with a known object of at least five points, by index of the box."""
    truth, found, box = frame.truth, {}, -1
    for camera, view in enumerate(frame.cameras):
        for own, instance in enumerate(truth.box_instance_ids[camera].tolist()):
            box += 1
            if instance < 0 or bool(view.labels.ignore[own]):
                continue
            wanted = {point for point in range(len(frame.points)) if is_wanted(frame, point, camera, instance)}
            same = boxes_of_object(frame, box, camera, instance)
            labelled = {point for point, of in pairs if of in {box, *same} and shows(frame, point, camera)}
            for point, of in pairs:  # not shown here: a mistake, unless another camera shows the object and the point
                elsewhere = any(shows(frame, point, camera_of(frame, other)) for other in same)
                if of == box and not shows(frame, point, camera) and not elsewhere:
                    labelled.add(point)
            labelled = {point for point in labelled if int(truth.semantic_labels[point]) != IGNORE}
            if len(wanted) >= 5:
                hidden = hidden_share(frame, camera, own, wanted)
                found[box] = {"hidden": hidden, **counts(frame, wanted, labelled, instance)}
    return found


def boxes_of_object(frame: Frame, box: int, camera: int, instance: int) -> set[int]:
    """Return the boxes of the same object in other cameras."""
    found, number = set(), -1
    for other, ids in enumerate(frame.truth.box_instance_ids):
        for own in ids.tolist():
            number += 1
            if own == instance and other != camera:
                found.add(number)
    return found - {box}


def camera_of(frame: Frame, box: int) -> int:
    counts = [len(view.labels) for view in frame.cameras]
    return next(camera for camera in range(len(counts)) if box < sum(counts[: camera + 1]))


def shows(frame: Frame, point: int, camera: int) -> bool:
    return camera in frame.pixels.camera_index[point].tolist()


def is_wanted(frame: Frame, point: int, camera: int, instance: int) -> bool:
    truth = frame.truth
    return (
        shows(frame, point, camera)
        and int(truth.instance_ids[point]) == instance
        and int(truth.semantic_labels[point]) != IGNORE
    )


def hidden_share(frame: Frame, camera: int, own: int, wanted: set[int]) -> float:
    """Return the largest share of a box that one box of the same camera with a nearer object covers."""
    boxes, ids = frame.cameras[camera].labels.boxes.double().tolist(), frame.truth.box_instance_ids[camera].tolist()
    x0, y0, x1, y1 = boxes[own]
    largest = 0.0
    for (a0, b0, a1, b1), instance in zip(boxes, ids, strict=True):
        points = {point for point in range(len(frame.points)) if is_wanted(frame, point, camera, instance)}
        if instance < 0 or not points or median_range(frame, points) >= median_range(frame, wanted):
            continue
        width, height = min(x1, a1) - max(x0, a0), min(y1, b1) - max(y0, b0)
        if width > 0 and height > 0:
            largest = max(largest, width * height / ((x1 - x0) * (y1 - y0)))
    return largest


def median_range(frame: Frame, points: set[int]) -> float:
    return median_low([math.hypot(*frame.points.xyz[point, :2].double().tolist()) for point in points])


def counts(frame: Frame, wanted: set[int], labelled: set[int], instance: int) -> dict[str, float]:
    row = {
        "range": median_range(frame, wanted),
        "shared": len(wanted & labelled),
        "labelled": len(labelled),
        "points": len(wanted),
    }
    ids = frame.truth.box3d_ids.tolist()
    if instance in ids:
        box3d = frame.truth.boxes3d[ids.index(instance)].double().tolist()
        forgiven = {point for point in wanted | labelled if is_forgiven(frame.points.xyz[point].tolist(), box3d)}
        wanted, labelled = wanted - forgiven, labelled - forgiven
    else:
        wanted, labelled = set(), set()
    return row | {
        "tolerant_shared": len(wanted & labelled),
        "tolerant_labelled": len(labelled),
        "tolerant_points": len(wanted),
    }


def is_forgiven(place: list[float], box3d: list[float]) -> bool:
    """Within .2 m outside the box, measured face by face, or in its lowest .1 m."""
    x, y, z, length, width, height, yaw = box3d
    ahead = (place[0] - x) * math.cos(yaw) + (place[1] - y) * math.sin(yaw)
    left = -(place[0] - x) * math.sin(yaw) + (place[1] - y) * math.cos(yaw)
    up = place[2] - z
    beyond = max(abs(ahead) - length / 2, abs(left) - width / 2, abs(up) - height / 2)
    if beyond > 0:
        return beyond <= 0.2
    return up + height / 2 < 0.1


def class_counts(frame: Frame, pairs: list[tuple[int, int]], label: int) -> tuple[int, int, int]:
    """Return how many points that a camera shows are and were labelled as a class, were, are."""
    labels = [
        -1 if ignored else of
        for view in frame.cameras
        for of, ignored in zip(view.labels.labels.tolist(), view.labels.ignore.tolist(), strict=True)
    ]
    truth = frame.truth.semantic_labels.tolist()
    seen = {point for point in range(len(truth)) if max(frame.pixels.camera_index[point].tolist()) >= 0}
    marked = {point for point, box in pairs if labels[box] == label and truth[point] != IGNORE} & seen
    real = {point for point in seen if truth[point] == label}
    return len(marked & real), len(marked), len(real)
