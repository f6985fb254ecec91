"""Slow twin of `fusion.object_points`: one object, one instance, one point at a time."""

from __future__ import annotations

import torch

from mwsis.core.instances import IGNORE


def extent_overlap(box, pixels):
    """Return the IoU of a box with the extent of pixels."""
    low, high = pixels.amin(0), pixels.amax(0)
    sides = torch.minimum(box[2:], high) - torch.maximum(box[:2], low)
    inside = float(sides.clamp(min=0).prod())
    whole = float((box[2:] - box[:2]).prod() + (high - low).prod()) - inside
    return inside / whole if whole > 0 else 0.0


def object_points_one_by_one(pairs, frame, pseudo, objects, least):
    """Return per object a list of (u, v, on the object, weight)."""
    seen = {}
    for row, point in enumerate(pairs.point_index.tolist()):
        instance = int(pseudo.instance_ids[point])
        if instance >= 0:
            key = (int(pairs.image_index[row]), int(frame[point]), instance)
            seen.setdefault(key, []).append(row)
    overlap = torch.zeros(len(objects.gt_boxes), len(seen))
    for column, ((image, _, _), rows) in enumerate(seen.items()):
        label = int(pseudo.semantic_labels[pairs.point_index[rows[0]]])
        for g in range(len(objects.gt_boxes)):
            if int(objects.gt_image[g]) == image and int(objects.gt_labels[g]) == label:
                overlap[g, column] = extent_overlap(objects.gt_boxes[g], pairs.pixel_uv[rows])
    found = []
    for g, box in enumerate(objects.gt_boxes):
        points = []
        column = int(overlap[g].argmax()) if len(seen) else -1
        if column >= 0 and float(overlap[g, column]) >= least and int(overlap[:, column].argmax()) == g:
            _, home, mine = list(seen)[column]
            for row, point in enumerate(pairs.point_index.tolist()):
                uv = pairs.pixel_uv[row]
                here = int(pairs.image_index[row]) == int(objects.gt_image[g])
                if not here or bool((uv < box[:2]).any()) or bool((uv >= box[2:]).any()):
                    continue
                if int(pseudo.semantic_labels[point]) == IGNORE:
                    continue
                on = int(pseudo.instance_ids[point]) == mine and int(frame[point]) == home
                points.append((*uv.tolist(), float(on), float(pseudo.weight[point])))
        found.append(points)
    return found
