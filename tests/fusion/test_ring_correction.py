"""Ring segments that take one label."""

import numpy as np
import pytest
import torch

from fusion.ring_correction import correct_by_ring_segment
from mwsis.core.instances import BACKGROUND, IGNORE


def slow(labels: np.ndarray, segments: np.ndarray, classes=(0, 2)) -> np.ndarray:
    """The published rule, segment by segment."""
    corrected = labels.copy()
    for label in classes:
        for segment in set(segments[(labels == label) & (segments >= 0)].tolist()):
            members = segments == segment
            num_label, num_background = (labels[members] == label).sum(), (labels[members] == BACKGROUND).sum()
            if num_background > num_label:
                corrected[members] = BACKGROUND
            elif num_label >= 0.7 * members.sum():
                corrected[members] = label
    return corrected


@pytest.mark.parametrize("seed", range(5))
def test_equals_loop_over_segments(seed):
    rng = np.random.default_rng(seed)
    segments = rng.integers(-1, 60, 500)
    leaning = rng.integers(-2, 3, 61)
    labels = np.where(rng.random(500) < 0.7, leaning[segments], rng.integers(-2, 3, 500))
    corrected = correct_by_ring_segment(torch.from_numpy(labels), torch.from_numpy(segments))
    assert corrected.tolist() == slow(labels, segments).tolist()
    assert corrected.tolist() != labels.tolist()


def test_pedestrians_are_left_alone_unless_asked_for():
    labels, segments = torch.tensor([1, 1, 1, IGNORE]), torch.zeros(4, dtype=torch.int64)
    assert correct_by_ring_segment(labels, segments).tolist() == [1, 1, 1, IGNORE]
    assert correct_by_ring_segment(labels, segments, classes=(1,)).tolist() == [1, 1, 1, 1]
    assert correct_by_ring_segment(labels, segments, classes=(1,), majority_share=0.8).tolist() == [1, 1, 1, IGNORE]


def test_points_without_a_segment_stay():
    labels = torch.tensor([0, BACKGROUND, BACKGROUND])
    assert correct_by_ring_segment(labels, torch.full((3,), -1)).tolist() == labels.tolist()
    assert correct_by_ring_segment(labels[:0], labels[:0]).tolist() == []


def test_upstream_bug_12_can_be_switched_on_after_points_were_filtered():
    """Labels and segments of the same filtered points fit; those of different points are refused."""
    labels, segments = torch.tensor([0, 0, 0, BACKGROUND, 2]), torch.tensor([5, 5, 5, 5, 7])
    keep = torch.tensor([True, True, True, True, False])
    assert correct_by_ring_segment(labels[keep], segments[keep]).tolist() == [0, 0, 0, 0]
    with pytest.raises(AssertionError, match="same points"):
        correct_by_ring_segment(labels[keep], segments)
