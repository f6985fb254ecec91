"""Slow, obvious twins of everything about depth: loops over points, cells, boxes and assignments."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch


def raster_one_by_one(uv, depth, ground, height, width):
    """Return (depth, ground) of each cell by looking at every point: (h, w) each, 0 and False where there is none."""
    rows, cols = -(-height // 4), -(-width // 4)
    seen = [
        (int(v // 4), int(u // 4), z, bool(g))
        for (u, v), z, g in zip(uv.tolist(), depth.tolist(), ground.tolist(), strict=True)
        if 0 <= u < width and 0 <= v < height and z > 0
    ]
    value, on_ground = torch.zeros(rows, cols), torch.zeros(rows, cols, dtype=torch.bool)
    for row, col in itertools.product(range(rows), range(cols)):
        around = [z for r, c, z, _ in seen if abs(r - row) <= 1 and abs(c - col) <= 1]
        here = [(z, g) for r, c, z, g in seen if (r, c) == (row, col)]
        shown = [(z, g) for z, g in here if z <= 1.05 * min(around) + 1.0]
        if shown:
            nearest = min(z for z, _ in shown)
            value[row, col] = nearest
            on_ground[row, col] = any(g for z, g in shown if z == nearest)
    return value, on_ground


def similarity_of_cells(depth, image, cell, other, metres=0.1, metres_per_metre=0.01, grey_levels=1.0):
    """Return the similarity of two cells (row, col) of an image; 0 where either is unknown, ground or outside."""
    height, width = depth.value.shape[1:]
    for row, col in (cell, other):
        if not (0 <= row < height and 0 <= col < width):
            return 0.0
        if not depth.valid[image, row, col] or depth.ground[image, row, col]:
            return 0.0
    first, second = (float(depth.value[image, row, col]) for row, col in (cell, other))
    scale = metres + metres_per_metre * min(first, second) if depth.metric else grey_levels
    return math.exp(-abs(first - second) / scale)


def nearness_one_by_one(depth, known):
    """Return what `camera.depth_terms.nearness_in_boxes` does, box by box with numpy's quantiles."""
    nearness, used = torch.zeros_like(depth), torch.zeros_like(known)
    for box in range(len(known)):
        logs = np.log(depth[box][known[box]].double().numpy())
        if len(logs) < 8:
            continue
        near, far = np.quantile(logs, [0.05, 0.95])
        if far - near < 0.02:
            continue
        used[box] = known[box]
        q = np.clip((far - np.log(depth[box].double().numpy().clip(1e-9))) / (far - near), 0, 1)
        nearness[box] = torch.from_numpy(q).float() * known[box]
    return nearness, used


def regression_loss(output, gt_index, boxes_known, depth, metric):
    """Return the depth regression of K samples: mean over an object's known cells, then over samples with any."""
    target, used = nearness_one_by_one(depth, boxes_known) if metric else (depth / 255, boxes_known)
    each = []
    for sample, gt in enumerate(gt_index.tolist()):
        cells = used[gt]
        if bool(cells.any()):
            each.append((output[sample][cells] - target[gt][cells]).square().mean())
    return torch.stack(each).mean() if each else output.sum() * 0


def agreement_one_by_one(prob, box, similar, known):
    """Return (D, number of known mask cells) of one mask and one box; ``similar`` and ``known`` to the right neighbour.

    Args:
        prob, box, similar, known: (h, w).
    """
    good = total = count = 0.0
    for row, col in itertools.product(*(range(side) for side in prob.shape)):
        if not (box[row, col] and known[row, col]):
            continue
        p, s = float(prob[row, col]), float(similar[row, col])
        total += p
        good += p * (s > 0.5) + p * (s < 0.1)
        count += p > 0.5
    return (good / total if total else 0.0), int(count)


def best_assignment(utility):
    """Return the largest sum of a one-to-one matching of rows and columns, by trying all of them."""
    if utility.shape[0] > utility.shape[1]:
        utility = utility.T
    num_rows, num_cols = utility.shape
    return max(
        (sum(float(utility[row, col]) for row, col in enumerate(order)))
        for order in itertools.permutations(range(num_cols), num_rows)
    )
