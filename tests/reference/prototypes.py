"""SIM's prototypes one number at a time: assignment by scaling sums, threshold by sorting, likeness cell by cell."""

from __future__ import annotations

import math


def scaled_plan(similarity, epsilon, iterations):
    """Return the plan of `camera.prototypes.sinkhorn` as rows of numbers, by scaling sums."""
    num_cells, num_prototypes = len(similarity), len(similarity[0])
    largest = max(max(row) for row in similarity)
    plan = [[math.exp((value - largest) / epsilon) for value in row] for row in similarity]
    for _ in range(iterations):
        for prototype in range(num_prototypes):
            total = sum(row[prototype] for row in plan) * num_prototypes
            for row in plan:
                row[prototype] /= total
        for row in plan:
            total = sum(row) * num_cells
            row[:] = [value / total for value in row]
    return plan


def threshold(fused, instance, cells, least, most):
    """Return the threshold of one object from maps (rows of numbers) and its cells (row, column)."""
    sure = sum(instance[row][col] > 0.7 for row, col in cells)
    values = sorted((fused[row][col] for row, col in cells), reverse=True)
    return min(max(values[sure], least), most) if sure < len(values) else least


def largest_cosine(feature, prototypes):
    """Return the largest cosine of a vector with some others."""

    def cosine(other):
        lengths = math.sqrt(sum(a * a for a in feature) * sum(b * b for b in other))
        return sum(a * b for a, b in zip(feature, other, strict=True)) / lengths

    return max(cosine(other) for other in prototypes)
