"""Score the ways to label points from 2D boxes on frames that have ground truth; no network is involved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusion.label_methods import LABEL_METHODS
from mwsis.core.frame import Frame
from mwsis.data.classes import kinds_of
from mwsis.evaluation.label_quality import LabelQuality
from mwsis.training.config import DataConfig

__all__ = ["label_quality", "score_labels"]


def label_quality(
    frames: Sequence[Frame], names: Sequence[str], data: DataConfig, num_frames: int | None = None
) -> list[dict[str, Any]]:
    """Return the quality rows of the label-only methods; empty when the frames have no ground truth.

    Args:
        frames: of one split.
        names: of the classes.
        data: has the constants of the classes.
        num_frames: look at so many frames, evenly spread; None = all.
    """
    quality = LabelQuality(names)
    count = len(frames) if num_frames is None else min(num_frames, len(frames))
    for number in range(count):
        score_labels(quality, frames[number * len(frames) // count], data)
    return quality.rows()


def score_labels(quality: LabelQuality, frame: Frame, data: DataConfig) -> None:
    """Add what each label-only method makes of a frame; nothing when the frame has no ground truth.

    Args:
        quality: is added to.
        frame: the frame.
        data: has the constants of the classes.
    """
    if frame.truth is not None:
        kinds = kinds_of(quality.class_names, data.kinds)
        for name, method in LABEL_METHODS.items():
            quality.add(name, frame, method.pairs(frame, data.radii, kinds))
