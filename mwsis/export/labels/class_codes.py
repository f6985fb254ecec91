"""The numbers that SemanticKITTI, nuScenes-lidarseg and Waymo give classes, by the names that data sets use here.

Classes here are coarser than theirs: a ``Vehicle`` may be a truck, yet has to be one of their classes, and most are
cars. Next: `point_files.py` and `waymo.py`, which write these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mwsis.core.errors import ConfigError
from mwsis.core.instances import BACKGROUND, IGNORE
from mwsis.data.waymo.classes import LIDAR_CLASSES

__all__ = ["NUSCENES_LIDARSEG", "SEMANTIC_KITTI", "WAYMO_SEGMENTATION", "ClassCodes"]


@dataclass(frozen=True)
class ClassCodes:
    """The classes of a format.

    Attributes:
        title: the format's own name.
        unlabelled: the number of `IGNORE`.
        other: the number of `BACKGROUND`.
        numbers: number by lower-case name.
    """

    title: str
    unlabelled: int
    other: int
    numbers: Mapping[str, int]

    def of(self, class_names: Sequence[str]) -> tuple[int, ...]:
        """Return the number of each class.

        Raises:
            ConfigError: the format has no such class.
        """
        for name in class_names:
            if name.lower() not in self.numbers:
                known = ", ".join(sorted(self.numbers))
                raise ConfigError(f"class {name}: {self.title} has no such class; it knows {known}")
        return tuple(self.numbers[name.lower()] for name in class_names)

    def encode(self, semantic_labels: Tensor, class_names: Sequence[str]) -> Tensor:
        """Return the (N,) int64 numbers of (N,) int64 labels.

        Args:
            semantic_labels: class, `BACKGROUND` or `IGNORE`.
            class_names: names by class index.
        """
        assert (IGNORE, BACKGROUND) == (-1, -2)
        table = torch.tensor([*self.of(class_names), self.other, self.unlabelled])
        return table[semantic_labels]

    def legend(self, class_names: Sequence[str]) -> dict[str, int]:
        """Return number by class name, and those of what has none."""
        return {"unlabelled": self.unlabelled, "other": self.other} | dict(zip(class_names, self.of(class_names)))


SEMANTIC_KITTI = ClassCodes(
    title="SemanticKITTI",
    unlabelled=0,
    other=99,
    numbers={
        **{"car": 10, "bicycle": 11, "bus": 13, "motorcycle": 15, "on-rails": 16, "truck": 18, "other-vehicle": 20},
        **{"person": 30, "bicyclist": 31, "motorcyclist": 32},
        **{"vehicle": 10, "pedestrian": 30, "cyclist": 31, "train": 16},
    },
)
"""``label`` of ``semantic-kitti.yaml``, classes of things standing or moving alike; 99 is "other-object"."""
NUSCENES_LIDARSEG = ClassCodes(
    title="nuScenes-lidarseg",
    unlabelled=0,
    other=29,
    numbers={
        **{"animal": 1, "pedestrian": 2, "barrier": 9, "traffic_cone": 12, "bicycle": 14, "bus": 16, "car": 17},
        **{"construction_vehicle": 18, "motorcycle": 21, "trailer": 22, "truck": 23},
        **{"vehicle": 17, "cyclist": 14, "person": 2},
    },
)
"""``index`` of ``category.json``, an adult for every person; 0 is "noise", 29 "static.other", which is for points of
the background that cannot be told apart. A bicycle's box holds its rider there, so a cyclist is a bicycle."""
WAYMO_SEGMENTATION = ClassCodes(
    title="Waymo's LiDAR segmentation",
    unlabelled=0,
    other=0,
    numbers={
        **{name.lower(): number for number, (name, *_) in enumerate(LIDAR_CLASSES) if number},
        **{"vehicle": 1, "cyclist": 6, "person": 7},
    },
)
"""``Segmentation.Type``; it has no class for all that is no object, so that is undefined, too."""
