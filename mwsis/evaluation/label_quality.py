"""How well a method that only labels points from 2D boxes recovers the object in each box.

Needs no training: it compares (point, box) pairs with the true object of each box. Pairs are made by
`fusion.spatial_labels`; this file only counts. Scores are strict or tolerant: true 3D boxes are drawn by people, and
what lies just outside them or on the ground beneath is as likely theirs as ours. Class IoU of networks is in
`point_semantics.py`; pictures of single objects are in `mwsis.report.label_pictures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mwsis.core.frame import Frame, FrameTruth
from mwsis.core.instances import IGNORE
from mwsis.core.segment_ops import segment_median
from mwsis.evaluation.occlusion import hidden_shares

__all__ = ["LabelQuality", "ObjectScore", "box_columns", "object_pairs", "true_pairs"]

NUM_RESAMPLES = 1000
DRAWS_AT_ONCE = 1_000_000
MIN_OBJECT_POINTS = 5
"""Objects with fewer true points in the camera's image are not scored: one point would decide. Our choice."""
SHELL = 0.2
"""Metres: points this little outside a true 3D box count on neither side of the tolerant IoU."""
LOW = 0.1
"""Metres: nor do points of a true 3D box this little above its bottom."""
EDGES = {"range": (0.0, 15.0, 30.0, 45.0), "points": (5.0, 20.0, 100.0, 500.0), "hidden": (0.0, 0.1, 0.4)}
"""Lower edges of the bins of rows: metres of range, number of true points, hidden share; the last bin is open."""
COLUMNS = (
    *("frame", "camera", "box", "class", "range", "hidden", "shared", "labelled", "points"),
    *("tolerant_shared", "tolerant_labelled", "tolerant_points"),
)
COLUMN = {name: index for index, name in enumerate(COLUMNS)}


@dataclass(frozen=True)
class ObjectScore:
    """How one object was labelled.

    Attributes:
        frame_id: the data set's name of the frame.
        camera: the data set's name of the camera whose 2D box it is.
        box: index of the box, counted on over the frame's cameras.
        class_name: of the box.
        range: metres, median of the object's points from the sensor's axis.
        hidden: largest share of the box, in [0, 1], that the box of one nearer object of this camera covers; only an
            object with true points in the image can hide another.
        points: true points of the object in the camera's image.
        labelled: points that the method gave to the box.
        point_iou, precision, recall: of these two sets; precision is 0 where nothing was labelled.
        tolerant_iou: see `LabelQuality.rows`; None where the object has no 3D box or keeps no true point.
    """

    frame_id: str
    camera: str
    box: int
    class_name: str
    range: float
    hidden: float
    points: int
    labelled: int
    point_iou: float
    precision: float
    recall: float
    tolerant_iou: float | None


class LabelQuality:
    """Scores label-only methods object by object.

    Args:
        class_names: the classes, in the order of the labels.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._number: dict[str, int] = {}
        self._cameras: list[tuple[str, tuple[str, ...]]] = []
        self._objects: dict[str, list[Tensor]] = {}
        self._classes: dict[str, Tensor] = {}

    def add(self, method: str, frame: Frame, pairs: Tensor) -> None:
        """Record what one method labelled in one frame.

        An object is a 2D box, no ignored region, whose true instance is known and has at least 5 points in the image of
        the box's camera; those points are what the method should have labelled. A point given to any box of the object
        is given to the object. Points of true class `IGNORE` count on neither side.

        Args:
            method: name of the method, first column of the rows.
            frame: with ground truth.
            pairs: (P, 2) int64, (point, box) pairs that the method labelled, each once; boxes are counted over all
                cameras, objects and ignored regions alike.
        """
        assert frame.truth is not None, "labels are scored against ground truth"
        pairs = pairs[frame.truth.semantic_labels[pairs[:, 0]] != IGNORE]
        camera, label, instance = box_columns(frame)
        number = self._number.setdefault(frame.frame_id, len(self._number))
        if number == len(self._cameras):
            self._cameras.append((frame.frame_id, tuple(view.name for view in frame.cameras)))
        table = _object_table(frame, frame.truth, object_pairs(frame, pairs), camera, instance)
        table[:, COLUMN["frame"]], table[:, COLUMN["class"]] = number, label.double()
        scored = (instance >= 0) & (label >= 0) & (table[:, COLUMN["points"]] >= MIN_OBJECT_POINTS)
        self._objects.setdefault(method, []).append(table[scored])
        counts = _class_counts(frame, frame.truth, pairs, label, len(self.class_names))
        self._classes[method] = self._classes.get(method, torch.zeros_like(counts)) + counts

    def rows(self, by: str | None = None) -> list[dict[str, Any]]:
        """Return one row per method and class that has objects, methods in the order they were first added.

        Args:
            by: ``"range"``, ``"points"`` or ``"hidden"`` splits each row by the objects' range (0-15, 15-30, 30-45, >45
                m), number of true points (5-20, 20-100, 100-500, >500) or hidden share (0-0.1, 0.1-0.4, >0.4); a bin
                holds its lower edge and not its upper one.

        Returns:
            ``method``, ``class``, ``objects``; ``point_iou``, ``precision``, ``recall``: means over objects, where an
            object without labelled points has precision 0; ``point_iou_95``: low and high end of the 95 % interval of
            the first, by bootstrap over objects; ``pooled_iou``: shared points of all objects over the union of all;
            ``tolerant_iou``: mean over the objects whose true 3D box is known, less the points that lie in that box
            grown by .2 m on all six sides but not in that box with its bottom raised by .1 m, they count on neither
            side; objects that keep no true point are left out, None if that leaves none.
            Without ``by`` also ``semantic_iou``: of the points of all frames that a camera shows, those labelled as the
            class against those of the class, with or without a box. With it ``bin`` instead.

        Source: bins and tolerance follow a study of such labels on KITTI; semantic IoU is what MWSIS's figure counts.
        """
        rows = []
        for method, tables in self._objects.items():
            table = torch.cat(tables)
            for label, name in enumerate(self.class_names):
                of_class = table[table[:, COLUMN["class"]] == label]
                for title, objects in _binned(of_class, by):
                    row = {"method": method, "class": name, **({"bin": title} if by else {}), **_scores(objects)}
                    rows.append(row if by else {**row, "semantic_iou": _iou(*self._classes[method][label].tolist())})
        return rows

    def objects(self, method: str) -> list[ObjectScore]:
        """Return every scored object of a method, the worst first: by point IoU, of equals the one with more points."""
        table = torch.cat([torch.zeros(0, len(COLUMNS), dtype=torch.float64), *self._objects.get(method, [])])
        found = [self._object(dict(zip(COLUMNS, row, strict=True))) for row in table.tolist()]
        return sorted(found, key=lambda score: (score.point_iou, -score.points))

    def _object(self, row: dict[str, float]) -> ObjectScore:
        frame_id, cameras = self._cameras[int(row["frame"])]
        shared, labelled, points = row["shared"], row["labelled"], row["points"]
        return ObjectScore(
            frame_id=frame_id,
            camera=cameras[int(row["camera"])],
            box=int(row["box"]),
            class_name=self.class_names[int(row["class"])],
            range=row["range"],
            hidden=row["hidden"],
            points=int(points),
            labelled=int(labelled),
            point_iou=shared / (points + labelled - shared),
            precision=shared / max(labelled, 1),
            recall=shared / points,
            tolerant_iou=_iou(row["tolerant_shared"], row["tolerant_labelled"], row["tolerant_points"])
            if row["tolerant_points"] > 0
            else None,
        )


def box_columns(frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """Return camera, class (-1 ignored region) and true instance (-1 none) of each 2D box, (G,) int64 each.

    Boxes are counted over all cameras of the frame, which must have ground truth.
    """
    assert frame.truth is not None
    per_camera = [len(view.labels) for view in frame.cameras]
    assert [len(ids) for ids in frame.truth.box_instance_ids] == per_camera, "one instance id per box expected"
    none = torch.zeros(0, dtype=torch.int64)
    camera = torch.repeat_interleave(torch.arange(len(per_camera)), torch.tensor(per_camera, dtype=torch.int64))
    label = torch.cat([none, *(torch.where(view.labels.ignore, -1, view.labels.labels) for view in frame.cameras)])
    return camera, label, torch.cat([none, *frame.truth.box_instance_ids])


def object_pairs(frame: Frame, pairs: Tensor) -> Tensor:
    """Return (Q, 2) int64, the pairs with each point given to all boxes of its object whose cameras show it.

    A point has one instance, so one of the boxes where several cameras show an object. It stays with a box whose camera
    does not show it only if no other box of the object has it.

    Args:
        frame: with ground truth.
        pairs: (P, 2) int64 rows (point, box).
    """
    camera, _, instance = box_columns(frame)
    others = (instance[:, None] == instance) & (instance >= 0) & (camera[:, None] != camera)
    row, box = others[pairs[:, 1]].nonzero().T
    shown = (frame.pixels.camera_index[pairs[row, 0]] == camera[box, None]).any(1)
    row, box = row[shown], box[shown]
    elsewhere = torch.zeros(len(pairs), dtype=torch.bool).index_fill(0, row, True)
    own = (frame.pixels.camera_index[pairs[:, 0]] == camera[pairs[:, 1], None]).any(1) | ~elsewhere
    num_points = max(len(frame.points), 1)
    key = torch.cat([pairs[own, 1] * num_points + pairs[own, 0], box * num_points + pairs[row, 0]])
    key = torch.unique(key)
    return torch.stack([key % num_points, key // num_points], 1)


def true_pairs(frame: Frame) -> Tensor:
    """Return (T, 2) int64, the points of each 2D box's true object that the box's camera shows, as (point, box).

    Points of true class `IGNORE` are left out.
    """
    truth = frame.truth
    assert truth is not None
    box_camera, _, box_object = box_columns(frame)
    point = ((truth.instance_ids >= 0) & (truth.semantic_labels != IGNORE)).nonzero()[:, 0]
    in_image = (frame.pixels.camera_index[point, :, None] == box_camera).any(1)
    row, box = (in_image & (truth.instance_ids[point, None] == box_object)).nonzero().T
    return torch.stack([point[row], box], 1)


def _object_table(frame: Frame, truth: FrameTruth, pairs: Tensor, box_camera: Tensor, box_object: Tensor) -> Tensor:
    """Return (G, len(COLUMNS)) float64, one row per 2D box; frame and class are still to be filled in."""
    num_boxes = len(box_camera)
    point, box = pairs.T
    in_image = (frame.pixels.camera_index[point] == box_camera[box, None]).any(1)
    hit = in_image & (truth.instance_ids[point] == box_object[box]) & (box_object[box] >= 0)
    wanted = true_pairs(frame)
    counts = [torch.bincount(each, minlength=num_boxes) for each in (box[hit], box, wanted[:, 1])]
    distance = frame.points.xyz[wanted[:, 0], :2].double().norm(dim=1)
    range_ = segment_median(distance, wanted[:, 1], num_boxes)
    box3d, known = _box3d_of(truth, box_object)
    labelled_far, wanted_far = (
        known[rows[:, 1]] & ~_forgiven(frame.points.xyz[rows[:, 0]], box3d[rows[:, 1]]) for rows in (pairs, wanted)
    )
    counts += [
        torch.bincount(each, minlength=num_boxes)
        for each in (box[hit & labelled_far], box[labelled_far], wanted[wanted_far, 1])
    ]
    boxes = torch.cat([torch.zeros(0, 4), *(view.labels.boxes for view in frame.cameras)])
    hidden = hidden_shares(boxes, box_camera, range_)
    empty = torch.zeros(num_boxes)
    columns = (empty, box_camera, torch.arange(num_boxes), empty, range_, hidden, *counts)
    return torch.stack([column.double() for column in columns], 1)


def _box3d_of(truth: FrameTruth, box_object: Tensor) -> tuple[Tensor, Tensor]:
    """Return the true 3D box of each 2D box, (G, 7) float64, and which of them there are, (G,) bool."""
    same = (box_object[:, None] == truth.box3d_ids) & (box_object[:, None] >= 0)
    boxes3d = torch.cat([truth.boxes3d.double(), torch.zeros(1, 7, dtype=torch.float64)])
    known = same.any(1)
    first = same.int().argmax(1) if same.shape[1] else torch.zeros(len(same), dtype=torch.int64)
    return boxes3d[torch.where(known, first, len(truth.boxes3d))], known


def _forgiven(xyz: Tensor, boxes3d: Tensor) -> Tensor:
    """Return (P,) bool: points in the shell of their 3D box or in its lowest part; faces belong to what they bound.

    Args:
        xyz: (P, 3) metres.
        boxes3d: (P, 7), one box for each point.
    """
    offset, half, yaw = xyz.double() - boxes3d[:, :3], boxes3d[:, 3:6] / 2, boxes3d[:, 6]
    along = offset[:, 0] * yaw.cos() + offset[:, 1] * yaw.sin()
    across = offset[:, 1] * yaw.cos() - offset[:, 0] * yaw.sin()
    local = torch.stack([along, across, offset[:, 2]], 1)
    grown = (local.abs() <= half + SHELL).all(1)
    core = (local.abs() <= half).all(1) & (local[:, 2] >= LOW - half[:, 2])
    return grown & ~core


def _class_counts(frame: Frame, truth: FrameTruth, pairs: Tensor, box_label: Tensor, num_classes: int) -> Tensor:
    """Return (C, 3) int64: points that are and were labelled as a class, were, are; of those that a camera shows."""
    label = box_label[pairs[:, 1]]
    marked = torch.zeros(num_classes, len(frame.points), dtype=torch.bool)
    marked[label[label >= 0], pairs[label >= 0, 0]] = True
    marked &= frame.pixels.in_any_image
    real = (torch.arange(num_classes)[:, None] == truth.semantic_labels) & frame.pixels.in_any_image
    return torch.stack([(marked & real).sum(1), marked.sum(1), real.sum(1)], 1)


def _binned(table: Tensor, by: str | None) -> list[tuple[str, Tensor]]:
    """Return the name and the objects of each bin that has any; all objects in one bin without ``by``."""
    if by is None:
        return [("", table)] if len(table) else []
    edges = EDGES[by]
    uppers = torch.tensor(edges[1:], dtype=torch.float64)
    bin_of = torch.bucketize(table[:, COLUMN[by]].contiguous(), uppers, right=True)
    names = [f"{low:g}-{high:g}" for low, high in pairwise(edges)] + [f">{edges[-1]:g}"]
    parts = [(name, table[bin_of == number]) for number, name in enumerate(names)]
    return [(name, part) for name, part in parts if len(part)]


def _scores(table: Tensor) -> dict[str, Any]:
    """Return the scores of a row over (K, len(COLUMNS)) objects."""
    shared, labelled, points = (table[:, COLUMN[name]] for name in ("shared", "labelled", "points"))
    union = labelled + points - shared
    ious = shared / union
    kept = table[table[:, COLUMN["tolerant_points"]] > 0]
    near, near_labelled, near_points = (
        kept[:, COLUMN[f"tolerant_{name}"]] for name in ("shared", "labelled", "points")
    )
    return {
        "objects": len(table),
        "point_iou": float(ious.mean()),
        "point_iou_95": _interval(ious),
        "tolerant_iou": float((near / (near_labelled + near_points - near)).mean()) if len(kept) else None,
        "precision": float((shared / labelled.clamp(min=1)).mean()),
        "recall": float((shared / points).mean()),
        "pooled_iou": float(shared.sum() / union.sum()),
    }


def _iou(shared: float, labelled: float, points: float) -> float | None:
    """Return shared over union; None where both sets are empty."""
    union = labelled + points - shared
    return shared / union if union else None


def _interval(values: Tensor) -> list[float]:
    """Return the 2.5 and 97.5 % quantiles of the mean over resamples of (K,) values, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    at_once = max(1, DRAWS_AT_ONCE // len(values))
    means = []
    for start in range(0, NUM_RESAMPLES, at_once):
        shape = (min(at_once, NUM_RESAMPLES - start), len(values))
        means.append(values[torch.randint(len(values), shape, generator=generator)].mean(1))
    return [float(torch.cat(means).quantile(share)) for share in (0.025, 0.975)]
