"""Ring segments that take one label."""

import numpy as np
import pytest
import torch

from fusion.ring_correction import correct_by_ring_segment
from mwsis.core.instances import BACKGROUND, IGNORE

CLASSES = (0, 2)


def slow(labels: np.ndarray, segments: np.ndarray, classes=CLASSES) -> np.ndarray:
    """The published rule, segment by segment; points that are ignored count in it and keep their label."""
    corrected = labels.copy()
    for label in classes:
        for segment in set(segments[(labels == label) & (segments >= 0)].tolist()):
            members = segments == segment
            num_label, num_background = (labels[members] == label).sum(), (labels[members] == BACKGROUND).sum()
            if num_background > num_label:
                corrected[members] = BACKGROUND
            elif num_label >= 0.7 * members.sum():
                corrected[members] = label
    return np.where(labels == IGNORE, IGNORE, corrected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ignored", [[], [IGNORE]])
def test_equals_loop_over_segments(seed, ignored):
    """Without `IGNORE`, as predictions are, and with it, as labels made from boxes."""
    rng = np.random.default_rng(seed)
    segments = rng.integers(-1, 60, 500)
    kinds = np.array([0, 1, 2, BACKGROUND, *ignored])
    leaning = rng.choice(kinds, 61)
    labels = np.where(rng.random(500) < 0.7, leaning[segments], rng.choice(kinds, 500))
    corrected = correct_by_ring_segment(torch.from_numpy(labels), torch.from_numpy(segments), CLASSES)
    assert corrected.tolist() == slow(labels, segments).tolist()
    assert corrected.tolist() != labels.tolist()


def test_published_rule_on_predictions():
    """Seven of ten win the segment, six do not; more background than class loses it, as much does not."""
    for num_class, expected in ((7, [2] * 10), (6, None), (5, None), (4, [BACKGROUND] * 10)):
        labels = torch.tensor([2] * num_class + [BACKGROUND] * (10 - num_class))
        corrected = correct_by_ring_segment(labels, torch.zeros(10, dtype=torch.int64), CLASSES)
        assert corrected.tolist() == (expected or labels.tolist())


def test_only_the_classes_asked_for():
    labels, segments = torch.tensor([1, 1, 1, BACKGROUND]), torch.zeros(4, dtype=torch.int64)
    assert correct_by_ring_segment(labels, segments, CLASSES).tolist() == labels.tolist()
    assert correct_by_ring_segment(labels, segments, (1,)).tolist() == [1, 1, 1, 1]
    assert correct_by_ring_segment(labels, segments, (1,), majority_share=0.8).tolist() == labels.tolist()


def test_ignored_points_count_and_stay():
    segments = torch.zeros(10, dtype=torch.int64)
    won = torch.tensor([0] * 7 + [BACKGROUND, IGNORE, IGNORE])
    assert correct_by_ring_segment(won, segments, CLASSES).tolist() == [0] * 8 + [IGNORE] * 2
    too_little_known = torch.tensor([0] * 6 + [BACKGROUND] + [IGNORE] * 3)
    assert correct_by_ring_segment(too_little_known, segments, CLASSES).tolist() == too_little_known.tolist()
    lost = torch.tensor([0] + [BACKGROUND] * 2 + [IGNORE] * 7)
    assert correct_by_ring_segment(lost, segments, CLASSES).tolist() == [BACKGROUND] * 3 + [IGNORE] * 7


def test_points_without_a_segment_stay():
    labels = torch.tensor([0, BACKGROUND, BACKGROUND])
    assert correct_by_ring_segment(labels, torch.full((3,), -1), CLASSES).tolist() == labels.tolist()
    assert correct_by_ring_segment(labels[:0], labels[:0], CLASSES).tolist() == []
