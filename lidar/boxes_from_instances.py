"""Amodal 3D boxes around labelled LiDAR points: from the points alone, no network and no ground truth.

A LiDAR sees one or two sides of an object. Their directions give the box's yaw, the side nearest to the sensor stays
where it was seen, and what was not seen is filled up to the usual size of the class, away from the sensor. Next:
`mwsis/data/box_files.py`, which writes such boxes, and `mwsis/evaluation/box_quality.py`, which scores them. The slow
twin is tests/reference/boxes_from_instances.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mwsis.core.ground import height_above_ground
from mwsis.core.instances import PointLabels

__all__ = ["BOX_FIT", "USUAL_SIZES", "BoxFit", "FittedBoxes", "fit_boxes3d"]

USUAL_SIZES = {
    "waymo": ((4.7, 2.1, 1.7), (0.91, 0.86, 1.73), (1.78, 0.84, 1.78)),
    "kitti": ((3.9, 1.6, 1.56), (0.8, 0.6, 1.73), (1.76, 0.6, 1.73)),
}
"""Mean length, width, height of Vehicle (KITTI: Car), Pedestrian, Cyclist, metres: the anchors that published detectors
take from each data set's statistics (SECOND and PointPillars in OpenPCDet's configurations)."""
SIDED, UPRIGHT, LONG = range(3)
"""Shapes of the three classes, in their order: flat sides; as good as round from above; long and thin."""


@dataclass(frozen=True)
class BoxFit:
    """The constants of the fit, one set for all sensors.

    Attributes:
        num_yaws: directions tried over a quarter turn.
        near_edge: metres; points nearer to a side than this count alike.
        trim: share of the points that an extent may do without at either end,
        slack: but only those farther than this (metres) outside the others.
        floor: metres; points less than this above the ground say nothing about sides.
        whole: a side at least this share of the usual length is the length; a shorter one may be either.
        slim: a person is at least this share of the usual width.
        tall: a top at least this share of the usual height was seen; else the object is of usual height.
        few: points with which the score is halved.

    Source: ours; chosen on 16 frames of street world 7 (142 vehicles, 181 people, 97 cyclists).
    """

    num_yaws: int = 90
    near_edge: float = 0.2
    trim: float = 0.02
    slack: float = 0.3
    floor: float = 0.1
    whole: float = 0.75
    slim: float = 0.6
    tall: float = 0.75
    few: float = 10.0


BOX_FIT = BoxFit()


@dataclass(frozen=True, eq=False)
class FittedBoxes:
    """One box per object of a frame.

    Attributes:
        boxes3d: (G, 7) float32, centre xyz, length, width, height (metres, vehicle frame), yaw (rad, about +z). Points
            do not tell front from back: yaw lies in (-pi/2, pi/2], so every object faces as the vehicle does.
        labels: (G,) int64, class.
        scores: (G,) float32 in [0, 1), more for more and surer points.
        instance_ids: (G,) int64, ascending, those of the point labels.
        num_points: (G,) int64, of the object.
    """

    boxes3d: Tensor
    labels: Tensor
    scores: Tensor
    instance_ids: Tensor
    num_points: Tensor

    def __len__(self) -> int:
        return len(self.boxes3d)


def fit_boxes3d(
    xyz: Tensor,
    labels: PointLabels,
    usual_sizes: tuple[tuple[float, float, float], ...] = USUAL_SIZES["waymo"],
    fit: BoxFit = BOX_FIT,
    kinds: Sequence[int] = (SIDED, UPRIGHT, LONG),
) -> FittedBoxes:
    """Return a box for every labelled object of a sweep.

    A vehicle's yaw is the one for which its points lie closest to two sides; a cyclist's and a person's is that of the
    line they lie along. A vehicle's length is the longer side where that is long enough, else the side along which the
    vehicle that carries the sensor drives, as most traffic does.

    Args:
        xyz: (N, 3) float, metres, vehicle frame; what is near is near its origin, the sensor some metre away or not.
        labels: (N,) labels; an object is the points of one instance id with a class.
        usual_sizes: length, width, height of a vehicle, a pedestrian, a cyclist, metres.
        fit: the constants.
        kinds: which of these each class is like (`mwsis.data.classes.kinds_of`).

    Returns:
        One box per object, which stands on the ground under its points.

    Complexity: O(yaws x points of objects), one object at a time.

    Source: closeness criterion of Zhang et al., "Efficient L-Shape Fitting for Vehicle Detection Using Laser Scanners",
    IV 2017, *generalised* to trimmed extents; growth away from the sensor and choice of the length: ours.
    """
    belongs = (labels.instance_ids >= 0) & (labels.semantic_labels >= 0)
    points, weight = xyz[belongs].double(), labels.weight[belongs]
    height = height_above_ground(xyz)[belongs]
    ids, index = torch.unique(labels.instance_ids[belongs], return_inverse=True)
    boxes, classes, scores, counts = [torch.zeros(0, 7)], [], [], []
    for number in range(len(ids)):
        rows = index == number
        label = int(labels.semantic_labels[belongs][rows].mode().values)
        kind = kinds[label]
        boxes.append(_fit_one(points[rows], height[rows], kind, usual_sizes[kind], fit)[None].float())
        count = int(rows.sum())
        classes.append(label)
        scores.append(float(weight[rows].mean()) * count / (count + fit.few))
        counts.append(count)
    whole, number_of = torch.tensor(classes, dtype=torch.int64), torch.tensor(counts, dtype=torch.int64)
    return FittedBoxes(torch.cat(boxes), whole, torch.tensor(scores, dtype=torch.float32), ids, number_of)


def _fit_one(points: Tensor, height: Tensor, kind: int, usual: tuple[float, float, float], fit: BoxFit) -> Tensor:
    """Return the (7,) box of (K, 3) points whose heights above the ground are (K,)."""
    ground = (points[:, 2] - height).median()
    body = height > fit.floor
    flat = points[body if int(body.sum()) >= 2 else torch.ones_like(body), :2]
    axes = _sides(flat, fit) if kind == SIDED else _line(flat)
    low, high = _extent(flat @ axes.T, fit)
    seen = high - low
    longer = int(seen.argmax())
    if kind == SIDED and float(seen[longer]) < fit.whole * usual[0]:
        longer = int(axes[:, 0].abs().argmax())
    wanted = seen.new_tensor(usual[:2] if longer == 0 else (usual[1], usual[0]))
    if kind == UPRIGHT:
        wanted = wanted * (seen.max() / usual[0]).clamp(fit.slim, 1)
    full = torch.maximum(seen, wanted)
    start = torch.where(low + high > 0, low, high - full)  # the end nearer to the sensor stays
    centre = (start + full / 2) @ axes
    lowest, top = (end[0] for end in _extent(height[:, None], fit))
    ground, top = ground + lowest.clamp(max=0), top - lowest.clamp(max=0)  # what lies below the plane stands there
    tall = top if float(top) >= fit.tall * usual[2] else top.new_tensor(usual[2])
    yaw = torch.atan2(axes[longer, 1], axes[longer, 0])
    yaw = math.pi / 2 - torch.remainder(math.pi / 2 - yaw, math.pi)
    return torch.stack([*centre, ground + tall / 2, full[longer], full[1 - longer], tall, yaw])


def _sides(flat: Tensor, fit: BoxFit) -> Tensor:
    """Return (2, 2), the two directions, one per row, whose outer lines (K, 2) points lie closest to."""
    yaw = torch.arange(fit.num_yaws, dtype=flat.dtype, device=flat.device) * (math.pi / 2 / fit.num_yaws)
    axes = torch.stack([yaw.cos(), yaw.sin(), -yaw.sin(), yaw.cos()], 1).reshape(-1, 2, 2)
    places = flat @ axes.transpose(1, 2)  # (yaws, K, 2)
    low, high = places.quantile(places.new_tensor([fit.trim, 1 - fit.trim]), dim=1)[..., None, :]
    distance = torch.minimum((places - low).abs(), (high - places).abs()).amin(2)
    closeness = (1 / distance.clamp(min=fit.near_edge)).sum(1)
    return axes[int(closeness.argmax())]


def _line(flat: Tensor) -> Tensor:
    """Return (2, 2), the direction along which (K, 2) points spread most, and the one across."""
    offset = flat - flat.mean(0)
    x, y = torch.linalg.eigh(offset.T @ offset).eigenvectors[:, 1]
    return torch.stack([x, y, -y, x]).reshape(2, 2)


def _extent(places: Tensor, fit: BoxFit) -> tuple[Tensor, Tensor]:
    """Return where (K, 2) places begin and end, (2,) each, without outliers."""
    low, high = places.quantile(places.new_tensor([fit.trim, 1 - fit.trim]), dim=0)
    return torch.maximum(low - fit.slack, places.amin(0)), torch.minimum(high + fit.slack, places.amax(0))
