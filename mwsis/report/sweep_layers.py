"""The points of a sweep coloured by class, by instance, and by whether a label is right: what 3D viewers show.

Each layer colours all points of the sweep. A point that a network did not see counts as not labelled. Pictures are
`pictures.py`; the viewers are `rerun_sink.py` and `open3d_sink.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mwsis.core.instances import IGNORE, PointLabels
from mwsis.evaluation.predictions import FramePrediction
from mwsis.report.pictures import (
    BACKGROUND_COLOUR,
    IGNORE_COLOUR,
    INSTANCE_COLOURS,
    Colour,
    align_instances,
    class_colour,
)

__all__ = ["ERRORS", "Layer", "class_palette", "sweep_layers"]

ERRORS: tuple[tuple[str, Colour], ...] = (
    ("not labelled", IGNORE_COLOUR),
    ("background", BACKGROUND_COLOUR),
    ("right", (86, 180, 233)),
    ("wrong class", (220, 84, 158)),
    ("missed", (240, 228, 66)),
    ("false alarm", (230, 90, 40)),
)
"""What a label of a point is against the true one; points that either leaves open are "not labelled"."""
NOT_LABELLED, BACKGROUND_RIGHT, RIGHT, WRONG_CLASS, MISSED, FALSE_ALARM = range(len(ERRORS))


@dataclass(frozen=True, eq=False)
class Layer:
    """One way to colour a sweep.

    Attributes:
        name: such as ``gt_class``, ``pseudo_instance``, ``predicted_error``.
        index: (N,) int64, row of the palette.
        palette: name ("" for those of no meaning of their own) and colour.
    """

    name: str
    index: Tensor
    palette: Sequence[tuple[str, Colour]]

    @property
    def colours(self) -> NDArray[np.uint8]:
        """(N, 3) uint8."""
        table = np.array([colour for _, colour in self.palette], dtype=np.uint8)
        coloured: NDArray[np.uint8] = table[self.index.numpy()]
        return coloured


def sweep_layers(prediction: FramePrediction, class_names: Sequence[str]) -> list[Layer]:
    """Return the layers that a frame has: of ground truth, of pseudo labels, of what a network found.

    Args:
        prediction: the frame, its labels and what was found in it.
        class_names: names by class index.

    Returns:
        ``<gt|pseudo|predicted>_<class|instance>``, and ``<pseudo|predicted>_error`` where there is ground truth; one
        object has one colour in all of them.
    """
    truth, found = prediction.frame.truth, prediction.points
    pseudo = prediction.pseudo
    sets = {"pseudo": prediction.on_all_points(pseudo.semantic_labels, pseudo.instance_ids)}
    if truth is not None:
        sets = {"gt": PointLabels(truth.semantic_labels, truth.instance_ids), **sets}
    if found is not None:
        sets["predicted"] = prediction.on_all_points(found.semantic_labels, found.instance_ids)
    reference = sets.get("gt", sets["pseudo"]).instance_ids
    layers = []
    for made, labels in sets.items():
        layers.append(Layer(f"{made}_class", labels.semantic_labels + 2, class_palette(class_names)))
        ids = labels.instance_ids if made == "gt" else align_instances(reference, labels.instance_ids)
        layers.append(_by_instance(f"{made}_instance", ids))
        if made != "gt" and "gt" in sets:
            layers.append(Layer(f"{made}_error", _errors(labels.semantic_labels, sets["gt"].semantic_labels), ERRORS))
    return layers


def class_palette(class_names: Sequence[str]) -> list[tuple[str, Colour]]:
    """Return name and colour of background, of what is not labelled, and of each class: row = label + 2."""
    rows = [("background", BACKGROUND_COLOUR), ("not labelled", IGNORE_COLOUR)]
    return rows + [(name, class_colour(label)) for label, name in enumerate(class_names)]


def _by_instance(name: str, ids: Tensor) -> Layer:
    count = len(INSTANCE_COLOURS)
    palette = [("no instance", BACKGROUND_COLOUR), *(("", colour) for colour in INSTANCE_COLOURS)]
    return Layer(name, torch.where(ids >= 0, ids % count + 1, 0), palette)


def _errors(labels: Tensor, gt: Tensor) -> Tensor:
    """Return the row of `ERRORS` of each point."""
    error = torch.full_like(gt, BACKGROUND_RIGHT)
    error[(labels >= 0) & (gt >= 0)] = WRONG_CLASS
    error[(labels == gt) & (gt >= 0)] = RIGHT
    error[(labels < 0) & (gt >= 0)] = MISSED
    error[(labels >= 0) & (gt < 0)] = FALSE_ALARM
    error[(labels == IGNORE) | (gt == IGNORE)] = NOT_LABELLED
    return error
