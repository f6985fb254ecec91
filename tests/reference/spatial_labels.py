"""Labels from 2D boxes, one box and one point at a time, in the published order of steps."""

import numpy as np

from mwsis.core.frame import Frame

BACKGROUND, IGNORE = -2, -1


def points_in_boxes2d(frame: Frame) -> tuple[dict[int, list[int]], list[int]]:
    """Return the points of each box (index over all cameras) and the class of each box, -1 for an ignore region."""
    members: dict[int, list[int]] = {}
    classes: list[int] = []
    pixels, cameras = frame.pixels.pixel_uv.tolist(), frame.pixels.camera_index.tolist()
    for camera, view in enumerate(frame.cameras):
        for box, label, ignore in zip(view.labels.boxes.tolist(), view.labels.labels, view.labels.ignore):
            inside = []
            for point in range(len(frame.points)):
                for (u, v), shown_by in zip(pixels[point], cameras[point]):
                    if shown_by == camera and box[0] <= u < box[2] and box[1] <= v < box[3]:
                        inside.append(point)
                        break
            members[len(classes)] = inside
            classes.append(-1 if ignore else int(label))
    return members, classes


def ring_flags(in_box: np.ndarray, seen: np.ndarray, segment_id: np.ndarray) -> np.ndarray:
    flags = np.zeros(len(in_box), dtype=int)
    for segment in set(segment_id.tolist()):
        mine = (segment_id == segment) & seen
        inside = mine & in_box
        if not inside.any():
            continue
        share = (mine & ~in_box).sum() / mine.sum()
        if segment == -1:
            flags[inside] = 1 if share == 0 else -1
        elif share < 0.05:
            flags[inside] = 1
        elif share < 0.5:
            flags[inside] = -1
    return flags


def largest_cluster(xy: np.ndarray, members: list[int], radius: float) -> list[int]:
    clusters: list[list[int]] = []
    left = np.array(members, dtype=int)
    while len(left):
        cluster, left, frontier = [int(left[0])], left[1:], 0
        while frontier < len(cluster):
            near = np.hypot(*(xy[left] - xy[cluster[frontier]]).T) < radius
            cluster, left = cluster + left[near].tolist(), left[~near]
            frontier += 1
        clusters.append(cluster)
    return max(clusters, key=len) if clusters else []  # the first of equally large ones


def centroids(xyz: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """Return (N, 3) the mean of the points of each point's instance; the point itself without one."""
    centre = xyz.copy()
    for point, own in enumerate(instance):
        if own >= 0:
            centre[point] = xyz[instance == own].mean(0)
    return centre


def spatial_labels(
    frame: Frame, segment_id: np.ndarray, rings: bool, clustering: bool, radii: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return semantic labels and instance ids."""
    members, classes = points_in_boxes2d(frame)
    seen = frame.pixels.in_any_image.numpy()
    in_box = np.zeros(len(frame.points), dtype=bool)
    for box, points in members.items():
        if classes[box] >= 0:
            in_box[points] = True
    flags = ring_flags(in_box, seen, segment_id) if rings else in_box.astype(int)
    xy = frame.points.xyz[:, :2].double().numpy()
    slots: list[list[int]] = [[] for _ in range(len(frame.points))]
    for box, points in members.items():
        if classes[box] < 0:
            continue
        kept = [point for point in points if flags[point] == 1]
        for point in largest_cluster(xy, kept, radii[classes[box]]) if clustering else kept:
            slots[point] = [*slots[point][:1], box]
    hidden = {point for box, points in members.items() if classes[box] < 0 for point in points}
    semantic, instance = np.full(len(xy), BACKGROUND), np.full(len(xy), -1)
    for point, ids in enumerate(slots):
        if ids:
            semantic[point], instance[point] = classes[ids[-1]], ids[-1]
        elif flags[point] == -1 or not seen[point] or point in hidden:
            semantic[point] = IGNORE
    return semantic, instance
