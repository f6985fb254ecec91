"""Instances from votes against the flood-fill twin, and the rules on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lidar.grouping import group_points
from mwsis.core.instances import BACKGROUND
from tests.reference.grouping import group_frame

RADII = (0.6, 0.1, 0.4)


def one_hot(labels: list[int], probability: float = 0.9) -> torch.Tensor:
    prob = torch.full((len(labels), 3), 0.05)
    for row, label in enumerate(labels):
        if label >= 0:
            prob[row, label] = probability
    return prob


@pytest.mark.parametrize("min_points", [1, 3])
def test_equals_the_flood_fill_twin(min_points: int) -> None:
    generator = torch.Generator().manual_seed(4)
    counts = [90, 0, 70]
    num_points = sum(counts)
    xyz = torch.rand(num_points, 3, generator=generator) * torch.tensor([6.0, 6.0, 2.0])
    prob = torch.rand(num_points, 3, generator=generator)
    votes = 0.3 * torch.randn(num_points, 3, 3, generator=generator)
    batch_index = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    found = group_points(xyz, prob, votes, batch_index, 3, RADII, min_points)
    assert len(found) == 3
    for frame, instances in enumerate(found):
        here = batch_index == frame
        semantic, ids, labels, scores = group_frame(
            xyz[here].numpy(), prob[here].numpy(), votes[here].numpy(), RADII, min_points
        )
        assert instances.semantic_labels.tolist() == semantic.tolist()
        assert instances.instance_ids.tolist() == ids.tolist()
        assert instances.labels.tolist() == labels
        np.testing.assert_allclose(instances.scores.numpy(), scores, rtol=1e-5)
    assert sum(len(instances.labels) for instances in found) >= 4


def test_the_vote_of_another_class_does_not_move_a_point() -> None:
    xyz = torch.tensor([[0.0, 0, 0], [5.0, 0, 0]])
    votes = torch.zeros(2, 3, 3)
    votes[1, 0, 0] = -4.7
    prob = one_hot([0, 0])
    zeros = torch.zeros(2, dtype=torch.int64)
    assert len(group_points(xyz, prob, votes, zeros, 1, RADII, 1)[0].labels) == 1
    votes[1, 0, 0], votes[1, 1, 0] = 0.0, -4.7
    assert len(group_points(xyz, prob, votes, zeros, 1, RADII, 1)[0].labels) == 2


def test_height_does_not_count() -> None:
    xyz = torch.tensor([[0.0, 0, 0], [0.0, 0, 50.0]])
    found = group_points(xyz, one_hot([1, 1]), torch.zeros(2, 3, 3), torch.zeros(2).long(), 1, RADII, 2)
    assert found[0].labels.tolist() == [1]


@pytest.mark.parametrize("seed", range(3))
def test_corrected_classes_are_grouped_and_scored_as_such(seed: int) -> None:
    """The twin is told the corrected classes; a score is the mean probability of that class, however small."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(80, 3, generator=generator) * torch.tensor([4.0, 4.0, 2.0])
    prob = torch.rand(80, 3, generator=generator)
    votes = 0.3 * torch.randn(80, 3, 3, generator=generator)
    corrected = torch.tensor([0, 1, 2, BACKGROUND])[torch.randint(4, (80,), generator=generator)]
    received: list[torch.Tensor] = []

    def relabel(labels: torch.Tensor) -> torch.Tensor:
        received.append(labels)
        return corrected

    found = group_points(xyz, prob, votes, torch.zeros(80).long(), 1, RADII, 2, relabel)[0]
    (plain,) = group_points(xyz, prob, votes, torch.zeros(80).long(), 1, RADII, 2)
    assert torch.equal(received[0], plain.semantic_labels)
    semantic, ids, labels, _ = group_frame(xyz.numpy(), one_hot(corrected.tolist()).numpy(), votes.numpy(), RADII, 2)
    assert found.semantic_labels.tolist() == corrected.tolist() == semantic.tolist()
    assert found.instance_ids.tolist() == ids.tolist()
    assert found.labels.tolist() == labels
    scores = [prob[ids == number, label].mean() for number, label in enumerate(labels)]
    np.testing.assert_allclose(found.scores.numpy(), scores, rtol=1e-5)
    assert len(labels) > 4


def test_a_point_that_gains_a_class_moves_by_its_vote_of_that_class() -> None:
    xyz = torch.tensor([[0.0, 0, 0], [9.0, 0, 0]])
    votes = torch.zeros(2, 3, 3)
    votes[1, 2, 0] = -8.8
    prob = one_hot([2, BACKGROUND])
    zeros = torch.zeros(2, dtype=torch.int64)
    assert group_points(xyz, prob, votes, zeros, 1, RADII, 1)[0].instance_ids.tolist() == [0, -1]
    found = group_points(xyz, prob, votes, zeros, 1, RADII, 1, lambda labels: torch.full_like(labels, 2))[0]
    assert found.instance_ids.tolist() == [0, 0]
    assert found.scores.tolist() == pytest.approx([(0.9 + 0.05) / 2])


def test_small_groups_keep_their_class_but_are_no_instance() -> None:
    xyz = torch.tensor([[0.0, 0, 0], [9.0, 0, 0], [9.1, 0, 0], [9.2, 0, 0]])
    found = group_points(xyz, one_hot([0, 0, 0, 0]), torch.zeros(4, 3, 3), torch.zeros(4).long(), 1, RADII, 3)[0]
    assert found.semantic_labels.tolist() == [0, 0, 0, 0]
    assert found.instance_ids.tolist() == [-1, 0, 0, 0]
    assert len(found.labels) == 1


def test_nothing_above_one_half_is_background() -> None:
    found = group_points(
        torch.zeros(5, 3), torch.full((5, 3), 0.5), torch.zeros(5, 3, 3), torch.tensor([0, 0, 2, 2, 2]), 3, RADII
    )
    assert [len(instances.semantic_labels) for instances in found] == [2, 0, 3]
    for instances in found:
        assert instances.semantic_labels.tolist() == [BACKGROUND] * len(instances.semantic_labels)
        assert len(instances.labels) == len(instances.scores) == 0


def test_no_points_at_all() -> None:
    empty = torch.zeros(0, 3)
    found = group_points(empty, empty, torch.zeros(0, 3, 3), torch.zeros(0).long(), 2, RADII)
    assert [len(instances.instance_ids) for instances in found] == [0, 0]
