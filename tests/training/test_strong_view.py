"""The strong view is the student's alone and changes nothing else of a sample."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from camera.segmentor import CondInst
from fusion.step import PretrainingStep
from mwsis.data.dataset import FrameDataset, collate
from mwsis.training.batching import collate_padded
from mwsis.training.build import build_method, build_segmentor, build_transform


@pytest.fixture
def samples(compose_tiny, prepare_tiny):
    """Return the first training sample with and without the strong view, and the run."""
    run = compose_tiny(
        "method=boxteacher",
        "method.strong_view.prob=1",
        "data.image_widths=[96]",
    )
    train = prepare_tiny(run).train
    with_view = build_transform(run, augment=True)
    pair = [
        FrameDataset(train.frames, train.labels, transform, run.seed)[0]
        for transform in (with_view, replace(with_view, strong_view=None))
    ]
    return run, *pair


def test_everything_but_the_student_s_image_stays(samples):
    _, strong, plain = samples
    assert len(strong.strong) == len(strong.images)
    assert plain.strong == ()
    assert torch.equal(strong.xyz, plain.xyz)
    assert all(torch.equal(a, b) for a, b in zip(strong.images, plain.images))
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(strong.labels, plain.labels))
    assert not any(torch.equal(a, b) for a, b in zip(strong.strong, strong.images))
    batch = collate([strong, strong])
    padded = collate_padded([strong, strong], (256, 320)).images
    assert padded.strong.shape == padded.images.shape == (len(batch.images), 3, 256, 320)
    assert torch.equal(batch.images.for_student.images, batch.images.strong)
    assert collate([plain]).images.for_student.images is not None
    assert collate([plain]).images.strong is None


def test_evaluation_sees_the_recorded_images(samples):
    run, *_ = samples
    assert build_transform(run, augment=False).strong_view is None


def test_the_teacher_sees_the_recorded_image_and_the_student_the_other(samples, monkeypatch):
    run, strong, _ = samples
    step = PretrainingStep(build_segmentor(run, 3), build_method(run), 3)
    seen, dense = [], CondInst.dense

    def watched(self, images):
        seen.append((self.training, images.images))
        return dense(self, images)

    monkeypatch.setattr(CondInst, "dense", watched)
    batch = collate([strong])
    step.train()
    step.losses(batch, 0.95)
    assert [training for training, _ in seen] == [True, False]
    assert torch.equal(seen[0][1], batch.images.strong)
    assert torch.equal(seen[1][1], batch.images.images)
