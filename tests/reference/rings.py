"""Ring segments by their rules: a range image and one Python loop over its cells. One point per cell only."""

import numpy as np

from lidar.rings import PUBLISHED, RingRule
from mwsis.core.frame import LidarGeometry, PointCloud


def ring_segments(
    points: PointCloud, lidar: LidarGeometry, seen: np.ndarray | None = None, rule: RingRule = PUBLISHED
) -> np.ndarray:
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
        roots = []
        for column in range(columns):
            for ret in (0, 1):
                point = owner[row, ret, column]
                if point < 0:
                    continue
                by = image[row, ret, column] if rule.local else np.nanmax(image[row])
                window = int(np.clip(500 / by, 12, 50) / 2) * columns / 2650
                tolerance = max(0.24 * by / 50, rule.floor)
                parent = _first_match(image[row], owner[row], ret, column, window, tolerance, wraps=False)
                if parent < 0:
                    roots.append((point, ret, column, window, tolerance))
                    segment_id[point], next_id = next_id, next_id + 1
                else:
                    segment_id[point] = segment_id[parent]
        for point, ret, column, window, tolerance in roots if rule.wraps else []:
            before = _first_match(image[row], owner[row], ret, column, window, tolerance, wraps=True)
            if before >= 0:
                segment_id[segment_id == segment_id[point]] = segment_id[before]
    return segment_id


def _first_match(
    ranges: np.ndarray, owner: np.ndarray, ret: int, column: int, window: float, tolerance: float, wraps: bool
) -> int:
    steps_back = 0
    while steps_back < window and (wraps or steps_back <= column):
        earlier = (column - steps_back) % ranges.shape[1]
        for other in (0, 1) if steps_back > 0 else (0,) * ret:
            if owner[other, earlier] >= 0 and abs(ranges[ret, column] - ranges[other, earlier]) < tolerance:
                return owner[other, earlier]
        steps_back += 1
    return -1
