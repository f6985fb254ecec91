"""Average precision of 3D boxes as KITTI defines it: AP at 40 recalls, from above and in space, by difficulty.

Arrays in, numbers out; `read_kitti_boxes` turns a label or result file into such arrays. Waymo's definition is in
`detection3d.py`. Not here: KITTI's scores of 2D boxes and of orientation. The slow twin is
tests/reference/kitti_detection.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mwsis.core.boxes3d import bev_iou, iou_3d
from mwsis.core.errors import DataError
from mwsis.core.frame import require

__all__ = ["KITTI_MIN_IOU", "KittiBoxes", "KittiEvaluator", "read_kitti_boxes"]

Array = np.ndarray[Any, Any]

KITTI_MIN_IOU = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
"""A match overlaps by more than this, from above and in space."""
NEIGHBOURS = {"Car": "Van", "Pedestrian": "Person_sitting"}
"""May be found as the class without gain or loss."""
VIEWS = {"bev": bev_iou, "3d": iou_3d}
NUM_RECALLS = 40
COUNTS, NEUTRAL, ABSENT = 0, 1, -1
"""What a box is to one class and difficulty: to be found or judged; neither; not there at all."""


@dataclass(frozen=True)
class Difficulty:
    """Which objects KITTI asks for.

    Attributes:
        min_height: px, higher 2D boxes only.
        max_occluded: 0 fully visible, 1 partly, 2 largely occluded, 3 unknown.
        max_truncated: share of the object outside the image.
    """

    min_height: float
    max_occluded: int
    max_truncated: float


DIFFICULTIES = {
    "easy": Difficulty(40, 0, 0.15),
    "moderate": Difficulty(25, 1, 0.3),
    "hard": Difficulty(25, 2, 0.5),
}


@dataclass(frozen=True, eq=False)
class KittiBoxes:
    """The boxes of one frame, true or found.

    Attributes:
        frame_id: the frame's name.
        types: KITTI's names; ``DontCare`` and other classes are left out of every score, as in KITTI's own of 3D boxes.
        boxes3d: (G, 7) float64, centre xyz, length, width, height, yaw, in any one upright frame.
        heights: (G,) float64, px, of the 2D boxes.
        occluded: (G,) int64, and
        truncated: (G,) float64, of true boxes; see `Difficulty`.
        scores: (G,) float64, of found boxes; higher is surer.
    """

    frame_id: str
    types: tuple[str, ...]
    boxes3d: Tensor
    heights: Tensor
    occluded: Tensor
    truncated: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        count = len(self.types)
        require(self.boxes3d, f"{self.frame_id}: boxes3d", (count, 7), torch.float64)
        for name in ("heights", "truncated", "scores"):
            require(getattr(self, name), f"{self.frame_id}: {name}", (count,), torch.float64)
        require(self.occluded, f"{self.frame_id}: occluded", (count,), torch.int64)


@dataclass
class _Case:
    """One class, difficulty and view: what every frame gives to it."""

    tables: list[_Table] = field(default_factory=list)

    def score(self) -> tuple[float, int]:
        """Return AP, NaN without objects, and the number of objects that count."""
        count = sum(int((table.object_state == COUNTS).sum()) for table in self.tables)
        if not count:
            return math.nan, 0
        hits = np.concatenate([table.hit_scores() for table in self.tables])
        cutoffs = _cutoffs(hits, count)
        right, wrong = sum((table.right_and_wrong(cutoffs) for table in self.tables), np.zeros((2, len(cutoffs))))
        precision = np.zeros(NUM_RECALLS + 1)
        precision[: len(cutoffs)] = right / np.maximum(right + wrong, 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        return float(best[1:].mean()), count


@dataclass(frozen=True, eq=False)
class _Table:
    """One frame: (G, D) which detections overlap which objects enough, and by how much; what each box counts as."""

    overlap: Array
    object_state: Array
    found_state: Array
    scores: Array

    def hit_scores(self) -> Array:
        """Return the scores of the detections that find an object when each takes the surest one that overlaps it."""
        free, hits = self.found_state != ABSENT, []
        for overlap, state in zip(self.overlap, self.object_state, strict=True):
            fits = free & (overlap > 0)
            if state == ABSENT or not fits.any():
                continue
            best = int(np.where(fits, self.scores, -np.inf).argmax())
            free[best] = False
            if state == COUNTS and self.found_state[best] == COUNTS:
                hits.append(self.scores[best])
        return np.array(hits)

    def right_and_wrong(self, cutoffs: Array) -> Array:
        """Return (2, cutoffs): objects found, detections that found nothing, among those at or above each cutoff.

        Each object takes the detection that overlaps it most, one too low to be judged only where there is no other.
        """
        shown = (self.scores >= cutoffs[:, None]) & (self.found_state != ABSENT)
        free, right = shown.copy(), np.zeros(len(cutoffs))
        for overlap, state in zip(self.overlap, self.object_state, strict=True):
            if state == ABSENT or not (overlap > 0).any():
                continue
            fits = free & (overlap > 0)
            wish = np.where(self.found_state == COUNTS, 1 + overlap, 1 - np.arange(1, len(overlap) + 1) / len(overlap))
            best = np.where(fits, wish, -1).argmax(1)
            row = np.flatnonzero(fits.any(1))
            free[row, best[row]] = False
            right[row] += (state == COUNTS) & (self.found_state[best[row]] == COUNTS)
        return np.stack([right, (free & (self.found_state == COUNTS)).sum(1)])


class KittiEvaluator:
    """Collects found and true boxes frame by frame and scores them at the end.

    Args:
        class_names: KITTI types to score.
    """

    def __init__(self, class_names: Sequence[str] = tuple(KITTI_MIN_IOU)) -> None:
        self.class_names = tuple(class_names)
        self._cases = {
            (name, difficulty, view): _Case() for name in class_names for difficulty in DIFFICULTIES for view in VIEWS
        }

    def add(self, found: KittiBoxes, gt: KittiBoxes) -> None:
        """Record one frame."""
        assert found.frame_id == gt.frame_id, f"detections of {found.frame_id}, objects of {gt.frame_id}"
        overlaps = {view: overlap(gt.boxes3d, found.boxes3d).numpy() for view, overlap in VIEWS.items()}
        for (name, difficulty, view), case in self._cases.items():
            object_state = _object_states(gt, name, DIFFICULTIES[difficulty])
            found_state = _found_states(found, name, DIFFICULTIES[difficulty])
            enough = np.where(overlaps[view] > KITTI_MIN_IOU[name], overlaps[view], 0)
            case.tables.append(_Table(enough, object_state, found_state, found.scores.numpy()))

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per class and difficulty: ``class``, ``difficulty``, ``objects``, ``ap_bev``, ``ap_3d``.

        AP is a share, not per cent; NaN where no object counts.

        Source: KITTI object development kit, ``evaluate_object.cpp``, with the 40 recalls of Simonelli et al.,
        "Disentangling Monocular 3D Object Detection", ICCV 2019. As there, ``DontCare`` regions, which have no 3D box,
        excuse no detection from above or in space.
        """
        rows = []
        for name in self.class_names:
            for difficulty in DIFFICULTIES:
                scores = {view: self._cases[name, difficulty, view].score() for view in VIEWS}
                aps = {f"ap_{view}": ap for view, (ap, _) in scores.items()}
                rows.append({"class": name, "difficulty": difficulty, "objects": scores["3d"][1], **aps})
        return rows


def read_kitti_boxes(path: Path, scored: bool) -> KittiBoxes:
    """Return the boxes of a KITTI label file, or with ``scored`` of a result file, which has one column more.

    Args:
        path: text, one box per line; the frame is named after the file. Its frame is the rectified camera's, turned to
            x forward, y left, z up.
        scored: whether the last column is a score.

    Raises:
        DataError: there is no such file, or a line has another number of columns or no numbers.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected a KITTI label file, got none; check the path")
    expected = 15 + scored
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    for number, words in enumerate(lines, 1):
        if len(words) != expected:
            raise DataError(f"{path}: line {number}: expected {expected} columns, got {len(words)}")
    try:
        table = torch.tensor([[float(word) for word in words[1:]] for words in lines], dtype=torch.float64)
    except ValueError as error:
        raise DataError(f"{path}: expected numbers after the type, got one that is none: {error}") from None
    table = table.reshape(-1, expected - 1)
    height, width, length, x, y, z, rotation_y = table[:, 7:14].unbind(1)
    boxes3d = torch.stack([z, -x, height / 2 - y, length, width, height, -rotation_y - math.pi / 2], 1)
    return KittiBoxes(
        frame_id=path.stem,
        types=tuple(words[0] for words in lines),
        boxes3d=boxes3d,
        heights=table[:, 6] - table[:, 4],
        occluded=table[:, 1].long(),
        truncated=table[:, 0],
        scores=table[:, 14] if scored else torch.ones(len(lines), dtype=torch.float64),
    )


def _object_states(gt: KittiBoxes, name: str, asked: Difficulty) -> Array:
    kinds = np.array(gt.types, dtype=object)
    hard = (gt.occluded > asked.max_occluded) | (gt.truncated > asked.max_truncated) | (gt.heights <= asked.min_height)
    states = np.where(hard.numpy(), NEUTRAL, COUNTS)
    states[kinds == NEIGHBOURS.get(name)] = NEUTRAL
    states[(kinds != name) & (kinds != NEIGHBOURS.get(name))] = ABSENT
    return states


def _found_states(found: KittiBoxes, name: str, asked: Difficulty) -> Array:
    """Return what each detection counts as; a low one of any class is neutral, as in KITTI's code."""
    states = np.where(np.array(found.types, dtype=object) == name, COUNTS, ABSENT)
    states[(found.heights < asked.min_height).numpy()] = NEUTRAL
    return states


def _cutoffs(hits: Array, count: int) -> Array:
    """Return the scores, descending, at which the recall comes nearest to 0, 1/40, ..., 1."""
    cutoffs, recall = [], 0.0
    ranked = np.sort(hits)[::-1]
    for number, score in enumerate(ranked, 1):
        last = number == len(ranked)
        if not last and (number + 1) / count - recall < recall - number / count:
            continue
        cutoffs.append(score)
        recall += 1 / NUM_RECALLS
    return np.array(cutoffs)
