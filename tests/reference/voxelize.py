"""Voxelisation and mean features point by point, with a dictionary: the obvious twin of `lidar.voxelize`."""

from __future__ import annotations

import numpy as np


def voxelize(
    xyz: np.ndarray, batch_index: np.ndarray, voxel_size: tuple[float, ...], point_cloud_range: tuple[float, ...]
) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    """Return the sorted [b, z, y, x] of occupied voxels and the voxel of each point (-1 outside)."""
    low = np.array(point_cloud_range[:3], dtype=np.float32)
    edge = np.array(voxel_size, dtype=np.float32)
    span = np.array(point_cloud_range[3:]) - np.array(point_cloud_range[:3])
    cells = [round(float(length) / size) for length, size in zip(span, voxel_size, strict=True)]
    keys: list[tuple[int, int, int, int] | None] = []
    for point, frame in zip(xyz.astype(np.float32), batch_index, strict=True):
        x, y, z = (int(np.floor((point[axis] - low[axis]) / edge[axis])) for axis in range(3))
        inside = 0 <= x < cells[0] and 0 <= y < cells[1] and 0 <= z < cells[2]
        keys.append((int(frame), z, y, x) if inside else None)
    voxels = sorted({key for key in keys if key is not None})
    number = {key: index for index, key in enumerate(voxels)}
    return voxels, [-1 if key is None else number[key] for key in keys]


def voxel_means(columns: np.ndarray, point_to_voxel: list[int], num_voxels: int) -> np.ndarray:
    """Return the mean of the rows of each voxel, float64."""
    members: list[list[np.ndarray]] = [[] for _ in range(num_voxels)]
    for row, voxel in zip(columns.astype(np.float64), point_to_voxel, strict=True):
        if voxel >= 0:
            members[voxel].append(row)
    return np.array([np.mean(rows, axis=0) for rows in members])
