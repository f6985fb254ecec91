"""What teaches across the sensors: every projected point, as published, or those that the camera can see."""

from __future__ import annotations

import pytest
import torch

from fusion.correspondence import point_pixel_pairs
from fusion.step import PretrainingStep
from mwsis.data.dataset import FrameDataset, collate
from mwsis.training.build import build_method, build_segmentor, build_transform

CROSS_MODAL = ("camera/from_lidar", "lidar/from_camera")


@pytest.fixture
def losses_of(compose_tiny, prepare_tiny):
    """Return the batch and the losses of the first step in which everything is on, for these settings."""

    def losses(*overrides):
        run = compose_tiny("method=mwsis", *overrides)
        prepared = prepare_tiny(run)
        step = PretrainingStep(build_segmentor(run, 3), build_method(run), 3).train()
        samples = FrameDataset(prepared.train.frames, prepared.train.labels, build_transform(run, True), run.seed)
        batch = collate([samples[0, 0], samples[1, 1]])
        return step, batch, step.losses(batch, 0.95)

    return losses


@pytest.mark.slow
def test_switches_change_the_distillation_and_nothing_else(losses_of):
    _, published_batch, published = losses_of()
    step, batch, ours = losses_of("method.cscs.hidden_pairs=false", "method.cscs.border_reach=1")
    assert published_batch.pixel_depth is None
    assert batch.pixel_depth.shape == batch.image_index.shape
    assert torch.equal(batch.pixel_depth > 0, batch.image_index >= 0)
    everyone = point_pixel_pairs(batch.pixel_uv, batch.image_index)
    assert 0.5 * len(everyone) < len(step._pairs(batch)) < len(everyone)
    assert published.keys() == ours.keys()
    for name, value in ours.items():
        assert bool(torch.isfinite(value))
        assert torch.equal(value, published[name]) == (name not in CROSS_MODAL), name
    ours["camera/from_lidar"].backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in step.student.lidar.parameters())
    step.student.camera.zero_grad()
    ours["lidar/from_camera"].backward()
    assert all(parameter.grad is None for parameter in step.student.camera.parameters())
    assert all(parameter.grad is None for parameter in step.teacher.parameters())
