"""The point head and its losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lidar.point_head import PointHead, decode_votes, encode_votes, instance_centroids, semantic_loss, vote_loss
from mwsis.core.instances import BACKGROUND, IGNORE


def test_votes_are_root_compressed_and_come_back() -> None:
    offsets = torch.tensor([-4.0, -0.25, 0.0, 0.09, 9.0])
    torch.testing.assert_close(encode_votes(offsets), torch.tensor([-2.0, -0.5, 0.0, 0.3, 3.0]))
    torch.testing.assert_close(decode_votes(encode_votes(offsets)), offsets)


def test_head_starts_at_its_prior() -> None:
    torch.manual_seed(0)
    logits, votes = PointHead(19, 3)(torch.randn(50, 19))
    assert logits.shape == (50, 3)
    assert votes.shape == (50, 3, 3)
    assert float(logits.detach().sigmoid().mean()) == pytest.approx(0.01, abs=0.003)


def test_semantic_loss_equals_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator)
    labels = torch.tensor([0, 2, BACKGROUND, IGNORE, 1, BACKGROUND])
    total, count = 0.0, 0
    for row, label in zip(logits.sigmoid().tolist(), labels.tolist(), strict=True):
        for class_index, p in enumerate(row):
            if label == IGNORE:
                continue
            count += 1
            on = label == class_index
            total += -(0.8 * (1 - p) ** 3 * np.log(p) if on else 0.2 * p**3 * np.log(1 - p))
    assert float(semantic_loss(logits, labels)) == pytest.approx(100 * total / count, rel=1e-4)


def test_confidence_is_a_factor_of_each_points_loss() -> None:
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, BACKGROUND, IGNORE])
    apart = [float(semantic_loss(logits[row : row + 1], labels[row : row + 1])) for row in (0, 1)]
    weighted = semantic_loss(logits, labels, confidence=torch.tensor([0.25, 1.0, 0.5]))
    assert float(weighted) == pytest.approx((0.25 * apart[0] + apart[1]) / 2, rel=1e-5)


def test_ignored_and_invalid_points_carry_no_gradient() -> None:
    logits = torch.zeros(4, 3, requires_grad=True)
    labels = torch.tensor([0, IGNORE, 1, BACKGROUND])
    semantic_loss(logits, labels, valid=torch.tensor([True, True, False, True])).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(1) > 0).tolist() == [True, False, False, True]


def test_losses_of_nothing_are_zero_and_differentiable() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    votes = torch.zeros(2, 3, 3, requires_grad=True)
    nothing = torch.tensor([IGNORE, IGNORE])
    none = torch.tensor([-1, -1])
    loss = semantic_loss(logits, nothing) + vote_loss(votes, torch.zeros(2, 3), nothing, none, torch.zeros(2).long())
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(logits.grad.abs().sum() + votes.grad.abs().sum()) == 0


def test_centroids_are_per_frame_and_instance() -> None:
    xyz = torch.tensor([[0.0, 0, 0], [2, 0, 0], [10, 0, 0], [0, 4, 0], [0, 8, 0]])
    centroid = instance_centroids(xyz, torch.tensor([0, 0, -1, 0, 0]), torch.tensor([0, 0, 0, 1, 1]))
    torch.testing.assert_close(centroid, torch.tensor([[1.0, 0, 0], [1, 0, 0], [10, 0, 0], [0, 6, 0], [0, 6, 0]]))


def test_vote_loss_takes_the_vote_of_the_points_own_class() -> None:
    xyz = torch.tensor([[0.0, 0, 0], [8.0, 0, 0], [3.0, 3.0, 0], [1.0, 1.0, 1.0]])
    labels = torch.tensor([1, 1, BACKGROUND, 2])
    instances = torch.tensor([0, 0, 1, -1])
    votes = torch.full((4, 3, 3), 50.0)
    votes[:, 1] = 0
    votes[0, 1, 0], votes[1, 1, 0] = 2.0, -1.5  # the centroid is 4 m away: encoded 2 and -2
    loss = vote_loss(votes, xyz, labels, instances, torch.zeros(4).long())
    assert float(loss) == pytest.approx(0.5 / 6)
    only_first = torch.tensor([True, False, True, True])
    assert float(vote_loss(votes, xyz, labels, instances, torch.zeros(4).long(), valid=only_first)) == 0
