"""Suite ``labels``: ring segments and labels of a street sweep from boxes, against the slow twins of the tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusion.label_methods import LABEL_METHODS
from fusion.spatial_labels import CLASS_RADII
from mwsis.core.frame import Frame
from mwsis.core.instances import PointLabels
from tests.reference import rings as slow_rings
from tests.reference import spatial_labels as slow_labels
from tools.benchmarks.measure import Row, best_times, comparison, require_same
from tools.benchmarks.street import street_frame


@dataclass(frozen=True)
class Sizes:
    """How much is labelled.

    Attributes:
        street, few: rows and columns of the sweep that is labelled, and of the one the slow twins can bear.
        image_width: of the street's cameras.
        repeats: of each measurement.
    """

    street: tuple[int, int] = (64, 2650)
    few: tuple[int, int] = (64, 96)
    image_width: int = 384
    repeats: int = 15


def run(folder: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """Compare ring segments and labels of a sweep with the published loops, one point at a time, on one thread.

    The loops are the slow twins in ``tests/reference``; they get a sweep with few columns. The rows of the full sweep
    have the budget of a frame as reference: 60 ms for the published labels, 250 ms for ours.
    """

    def quick(frame: Frame, name: str) -> PointLabels:
        method = LABEL_METHODS[name]
        return method.recipe(frame, method.segments(frame), CLASS_RADII)

    def slow(frame: Frame) -> Any:
        segments = slow_rings.ring_segments(frame.points, frame.lidar, frame.pixels.in_any_image.numpy())
        return slow_labels.spatial_labels(frame, segments, True, True, CLASS_RADII)

    torch.set_num_threads(1)
    full, few = (street_frame(*sweep, sizes.image_width) for sweep in (sizes.street, sizes.few))
    made, (semantic, instance) = quick(few, "spg"), slow(few)
    ours = {"semantic_labels": made.semantic_labels.numpy(), "instance_ids": made.instance_ids.numpy()}
    require_same(ours, {"semantic_labels": semantic, "instance_ids": instance})
    small, published, default = best_times(
        [
            lambda: quick(few, "spg"),
            lambda: quick(full, "spg"),
            lambda: quick(full, "spg_default"),
        ],
        sizes.repeats,
    )
    (loops,) = best_times([lambda: slow(few)], 1)
    facts = {
        "points": len(full.points),
        "boxes": sum(len(view.labels) for view in full.cameras),
        "points of the small sweep": len(few.points),
    }
    return facts, [
        comparison("published, small sweep / loops over points", small, loops),
        comparison("published, full sweep / 60 ms", published, 60.0),
        comparison("default, full sweep / 250 ms", default, 250.0),
    ]
