"""Frames to be looked at: as the data set has them, labelled from 2D boxes, with what a run's network finds in them.

Nothing is converted or cached: frames are read from the data set itself, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mwsis.core.errors import ConfigError, closest_name
from mwsis.data.source import Source
from mwsis.evaluation.predictions import FramePrediction
from mwsis.training import build
from mwsis.training.config import RunConfig
from mwsis.training.inference import predict
from mwsis.training.prepare import labelling_of, ring_classes
from mwsis.training.run import load_run

__all__ = ["chosen_frames", "shown_frames"]


def chosen_frames(run: RunConfig, source: Source, frame_id: str | None, segment: str | None) -> list[str]:
    """Return the frames to be shown.

    Args:
        run: configuration; its validation split is looked through before its training split.
        source: the data set.
        frame_id: one frame, also of neither split.
        segment: all frames of one, in order.

    Returns:
        At least one frame; the first of the validation split when nothing is asked for.

    Raises:
        ConfigError: both are given, or there is no such segment, or no frame at all.
        DataError: there is no such split.
    """
    if frame_id is not None:
        if segment is not None:
            raise ConfigError("frame and segment: give one of them")
        return [frame_id]
    splits = [source.frame_ids(split) for split in dict.fromkeys((run.data.val_split, run.data.train_split))]
    listed = [one for split in splits for one in split]
    if not listed:
        raise ConfigError(f"{run.data.name}: no frames in {run.data.val_split} and {run.data.train_split}; give frame=")
    if segment is None:
        return listed[:1]
    segments = {one: source.segment_of(one) for one in dict.fromkeys(listed)}
    found = [one for one, name in segments.items() if name == segment]
    if not found:
        raise ConfigError(f"segment={segment}: no such segment{closest_name(segment, set(segments.values()))}")
    return found


def shown_frames(
    run: RunConfig, source: Source, frame_ids: Sequence[str], state: dict[str, Any] | None, what: str
) -> Iterator[FramePrediction]:
    """Yield frames with their labels and, of a run, what its teacher finds.

    Args:
        run: configuration.
        source: the data set.
        frame_ids: in order.
        state: checkpoint of a run, or None: labels only, of all points of the sweep.
        what: names the checkpoint in errors.

    Raises:
        DataError: there is no such frame, or it cannot be decoded.
        WeightMismatchError: the checkpoint's weights do not fit its configuration.
    """
    label = labelling_of(run, source.class_names).labeller
    teacher = None if state is None else load_run(state, run, len(source.class_names), what)[0]
    transform, rsc = build.build_transform(run, augment=False), ring_classes(run) if run.method.rsc else ()
    for frame_id in frame_ids:
        frame = source.read(frame_id)
        labels = label(frame)
        if teacher is None:
            yield FramePrediction(frame, labels.pseudo, torch.arange(len(frame.points)), None, None)
        else:
            yield from predict(teacher, [frame], [labels], transform, rsc)
