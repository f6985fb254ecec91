"""Instances from classes and points, and affinities of near cells, one pixel and one pair at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BACKGROUND, IGNORE = -2, -1


def regions_of(cells: set[tuple[int, int]]) -> list[set[tuple[int, int]]]:
    """Return the 8-connected parts of a set of pixels, by flooding."""
    left, regions = set(cells), []
    while left:
        front = [left.pop()]
        region = set(front)
        while front:
            y, x = front.pop()
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    region.add(near)
                    front.append(near)
        regions.append(region)
    return regions


def nearest(u: float, v: float, points: list[tuple[int, float, float]]) -> int:
    """Return the index of the first of the nearest points."""
    return min(points, key=lambda point: ((u - point[1]) ** 2 + (v - point[2]) ** 2, point[0]))[0]


def instances_of_components(semantic: Tensor, xy: Tensor, labels: Tensor, min_area: int) -> Tensor:
    height, width = semantic.shape
    result = torch.full((height, width), IGNORE)
    result[semantic == 0] = BACKGROUND
    for label in set(labels.tolist()):
        pixels = {(y, x) for y in range(height) for x in range(width) if int(semantic[y, x]) == label + 1}
        for region in regions_of(pixels):
            points = [
                (index, float(xy[index, 0]), float(xy[index, 1]))
                for index in range(len(labels))
                if int(labels[index]) == label
                and (math.floor(float(xy[index, 1])), math.floor(float(xy[index, 0]))) in region
            ]
            if points and len(region) >= min_area:
                for y, x in region:
                    result[y, x] = nearest(x + 0.5, y + 0.5, points)
    return result


def instances_by_offsets(semantic: Tensor, xy: Tensor, labels: Tensor, offsets: Tensor, stride: int) -> Tensor:
    height, width = semantic.shape
    result = torch.full((height, width), IGNORE)
    for y in range(height):
        for x in range(width):
            value = int(semantic[y, x])
            points = [
                (index, float(xy[index, 0]), float(xy[index, 1]))
                for index in range(len(labels))
                if int(labels[index]) == value - 1
            ]
            if value == 0:
                result[y, x] = BACKGROUND
            elif points:
                u = (x + 0.5) * stride + float(offsets[0, y, x])
                v = (y + 0.5) * stride + float(offsets[1, y, x])
                result[y, x] = nearest(u, v, points)
    return result


def dense_affinity(features: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Return the full matrix of affinities of one (D, h, w) map, (h w, h w), and which pairs are near."""
    depth, height, width = features.shape
    flat = features.reshape(depth, -1).T
    gram = (flat @ flat.T / math.sqrt(depth)).sigmoid()
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([row.reshape(-1), column.reshape(-1)], 1)
    distance = (place[:, None] - place).square().sum(-1)
    return gram, distance <= radius**2


def transition(features: Tensor, radius: int, beta: float) -> Tensor:
    """Return T, (h w, h w): rows add up to 1."""
    gram, near = dense_affinity(features, radius)
    powered = gram**beta * near
    return powered / powered.sum(1, keepdim=True)


def affinity_loss(maps: list[tuple[Tensor, Tensor]], radius: int) -> float:
    """Return the loss over all pairs of (features, instances) maps."""
    same, different = [], []
    for features, instances in maps:
        gram, near = dense_affinity(features, radius)
        code = instances.reshape(-1).tolist()
        for i in range(len(code)):
            for j in range(len(code)):
                if i == j or not near[i, j] or IGNORE in (code[i], code[j]):
                    continue
                if code[i] == code[j] and code[i] != BACKGROUND:
                    same.append(1 - float(gram[i, j]))
                elif code[i] != code[j]:
                    different.append(float(gram[i, j]))
    means = [sum(values) / len(values) if values else 0.0 for values in (same, different)]
    return sum(means) / 2
