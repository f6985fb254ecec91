"""The whole LiDAR branch: shapes, points outside the range, learning, instances."""

from __future__ import annotations

import pytest
import torch

from lidar.grouping import RADII
from lidar.point_head import decode_votes, semantic_loss, vote_loss
from lidar.segmentor import OUT_OF_RANGE_LOGIT, LidarSegmentor, build_lidar_segmentor
from lidar.unet_v2 import unet_v2_parts
from mwsis.core.batch import PointBatch
from mwsis.core.errors import ConfigError
from mwsis.core.instances import BACKGROUND

NUM_STEPS = 15
RANGE = (-8.0, -8.0, -2.0, 8.0, 8.0, 4.0)


def make_segmentor() -> LidarSegmentor:
    torch.manual_seed(0)
    return build_lidar_segmentor(unet_v2_parts, 3, (0.25, 0.25, 0.25), RANGE)


def scene(seed: int = 0) -> tuple[PointBatch, torch.Tensor, torch.Tensor]:
    """Two frames with two boxes of points on a rough ground, and one point far outside the range."""
    generator = torch.Generator().manual_seed(seed)
    xyz, labels, instances = [], [], []
    for _ in range(2):
        ground = torch.rand(120, 3, generator=generator) * torch.tensor([14.0, 14.0, 0.1]) - torch.tensor([7.0, 7, 0])
        car = torch.rand(80, 3, generator=generator) * torch.tensor([3.0, 1.5, 1.4]) + torch.tensor([2.0, 1.0, 0.2])
        person = torch.rand(40, 3, generator=generator) * torch.tensor([0.5, 0.5, 1.7]) + torch.tensor([-4.0, 2.0, 0.2])
        xyz.append(torch.cat([ground, car, person, torch.tensor([[90.0, 0, 0]])]))
        labels.append(torch.tensor([BACKGROUND] * 120 + [0] * 80 + [1] * 40 + [0]))
        instances.append(torch.tensor([-1] * 120 + [0] * 80 + [1] * 40 + [-1]))
    count = len(xyz[0])
    points = PointBatch(
        torch.cat(xyz),
        torch.rand(2 * count, 2, generator=generator),
        torch.tensor([0, count, 2 * count]),
        torch.arange(count).repeat(2),
        torch.full((2 * count,), -1),
    )
    return points, torch.cat(labels), torch.cat(instances)


def test_one_row_per_point_and_background_outside_the_range() -> None:
    points, _, _ = scene()
    output = make_segmentor()(points)
    assert output.class_logits.shape == (len(points.xyz), 3)
    assert output.vote_encoded.shape == (len(points.xyz), 3, 3)
    assert torch.equal(output.vote_offsets, decode_votes(output.vote_encoded))
    outside = ~output.in_range
    assert int(outside.sum()) == 2
    assert bool((output.class_logits[outside] == OUT_OF_RANGE_LOGIT).all())
    assert float(output.vote_encoded[outside].detach().abs().sum()) == 0


def test_a_batch_of_only_outside_points_is_background() -> None:
    xyz = torch.full((3, 3), 50.0)
    points = PointBatch(xyz, torch.zeros(3, 2), torch.tensor([0, 3]), torch.arange(3), torch.full((3,), -1))
    found = make_segmentor().eval().predict(points)
    assert found[0].semantic_labels.tolist() == [BACKGROUND] * 3


def test_learns_a_scene_and_finds_its_instances() -> None:
    segmentor = make_segmentor()
    points, labels, instances = scene()
    optimizer = torch.optim.AdamW([p for p in segmentor.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(NUM_STEPS):
        output = segmentor(points)
        loss = semantic_loss(output.class_logits, labels, valid=output.in_range) + vote_loss(
            output.vote_encoded, points.xyz, labels, instances, points.batch_index, valid=output.in_range
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    found = segmentor.predict(points)  # batch statistics: the running ones lag behind after so few steps
    assert len(found) == 2
    for frame, result in enumerate(found):
        here = points.batch_index == frame
        assert result.semantic_labels.shape == labels[here].shape
        assert (result.semantic_labels == labels[here])[:-1].float().mean() > 0.9
        assert 0 in result.labels.tolist()


def test_predict_carries_no_gradient() -> None:
    points, _, _ = scene()
    assert not make_segmentor().eval().predict(points)[0].scores.requires_grad


def test_classes_are_corrected_before_grouping() -> None:
    points, labels, _ = scene()
    found = make_segmentor().eval().predict(points, lambda predicted: torch.where(predicted == BACKGROUND, labels, 1))
    for frame, result in enumerate(found):
        assert torch.equal(result.semantic_labels, labels[points.batch_index == frame])
        assert set(result.labels.tolist()) == {0, 1}
        assert float(result.scores.max()) < 0.5  # what an untrained network gives classes it did not choose


def test_radii_must_match_the_classes() -> None:
    with pytest.raises(ConfigError, match="radii: expected 2"):
        build_lidar_segmentor(unet_v2_parts, 2, (0.25, 0.25, 0.25), RANGE, radii=RADII)
