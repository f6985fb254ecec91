"""Ring segments as published: a range image and one Python loop over its cells. One point per cell only."""

import numpy as np

from mwsis.core.frame import LidarGeometry, PointCloud


def ring_segments(points: PointCloud, lidar: LidarGeometry, seen: np.ndarray | None = None) -> np.ndarray:
    """Return (N,) int64 segment ids (any numbering), -1 where ring or column is -1 or ``seen`` (N,) is false."""
    columns = lidar.num_columns
    image = np.full((lidar.num_rings, 2, columns), np.nan)
    owner = np.full(image.shape, -1)
    for point in range(len(points)):
        cell = int(points.ring[point]), int(points.return_index[point]), int(points.azimuth_column[point])
        if cell[0] >= 0 and cell[2] >= 0 and (seen is None or seen[point]):
            assert owner[cell] < 0, "two points in one cell"
            image[cell], owner[cell] = float(points.ranges[point]), point
    segment_id = np.full(len(points), -1)
    next_id = 0
    for row in range(lidar.num_rings):
        if np.isnan(image[row]).all():
            continue
        farthest = np.nanmax(image[row])
        window = int(np.clip(500 / farthest, 12, 50) / 2) * columns / 2650
        tolerance = 0.24 * farthest / 50
        for column in range(columns):
            for ret in (0, 1):
                if owner[row, ret, column] < 0:
                    continue
                parent = _first_match(image[row], owner[row], ret, column, window, tolerance)
                if parent < 0:
                    segment_id[owner[row, ret, column]], next_id = next_id, next_id + 1
                else:
                    segment_id[owner[row, ret, column]] = segment_id[parent]
    return segment_id


def _first_match(ranges: np.ndarray, owner: np.ndarray, ret: int, column: int, window: float, tolerance: float) -> int:
    steps_back = 0
    while steps_back < window and steps_back <= column:
        earlier = column - steps_back
        for other in (0, 1) if steps_back > 0 else (0,) * ret:
            if owner[other, earlier] >= 0 and abs(ranges[ret, column] - ranges[other, earlier]) < tolerance:
                return owner[other, earlier]
        steps_back += 1
    return -1
