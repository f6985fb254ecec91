"""Slow twin of `mwsis.evaluation.objects.predicted_pairs`: sets of points, one instance and one object at a time."""

from __future__ import annotations

from mwsis.core.instances import IGNORE
from mwsis.evaluation.predictions import FramePrediction


def predicted_pairs(prediction: FramePrediction) -> set[tuple[int, int]]:
    truth, frame = prediction.frame.truth, prediction.frame
    instances: dict[int, set[int]] = {}
    objects: dict[int, set[int]] = {}
    for place, point in enumerate(prediction.point_index.tolist()):
        if int(truth.semantic_labels[point]) == IGNORE:
            continue
        instances.setdefault(int(prediction.points.instance_ids[place]), set()).add(point)
        if int(truth.semantic_labels[point]) >= 0:
            objects.setdefault(int(truth.instance_ids[point]), set()).add(point)
    instances.pop(-1, None)
    objects.pop(-1, None)
    served: dict[int, list[tuple[float, int]]] = {}
    for instance, points in sorted(instances.items()):
        label = int(prediction.points.labels[instance])
        ious = [
            (len(points & own) / len(points | own), -object_id)
            for object_id, own in objects.items()
            if label == max(int(truth.semantic_labels[point]) for point in own)
        ]
        iou, object_id = max(ious, default=(0.0, 0))
        if iou > 0:
            served.setdefault(-object_id, []).append((iou, -instance))
    pairs, number = set(), -1
    for ids in truth.box_instance_ids:
        for object_id in ids.tolist():
            number += 1
            if object_id >= 0 and object_id in served:
                points = instances[-max(served[object_id])[1]]
                pairs |= {(point, number) for point in points if max(frame.pixels.camera_index[point].tolist()) >= 0}
    return pairs
