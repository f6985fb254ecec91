"""bfloat16 stays inside the camera network; batches of one image size."""

from __future__ import annotations

import pytest
import torch

from mwsis.core.errors import ConfigError
from mwsis.data.dataset import FrameDataset, collate
from mwsis.training import build
from mwsis.training.batching import collate_padded
from mwsis.training.folder import RunFolder
from mwsis.training.run import build_step


@pytest.fixture(scope="module")
def samples(compose_tiny, prepare_tiny):
    run = compose_tiny()
    prepared = prepare_tiny(run)
    dataset = FrameDataset(prepared.train.frames, prepared.train.labels, build.build_transform(run, augment=True), 0)
    return run, prepared, [dataset[0], dataset[1]]


def test_bfloat16_maps_are_close_and_handed_on_in_float32(compose_tiny, samples):
    images = collate(samples[2]).images
    full, half = (
        build.build_segmentor(compose_tiny(f"trainer.precision={precision}"), 3).camera.dense(images)
        for precision in ("32", "bf16-camera")
    )
    for name in ("class_logits", "ltrb", "centerness_logits", "tower_feats"):
        one, other = getattr(full.head, name), getattr(half.head, name)
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        assert float(((one - other).norm() / one.norm()).detach()) < 0.05, name
    assert half.mask_feats.dtype == torch.float32


def test_bfloat16_leaves_the_lidar_branch_alone(compose_tiny, samples, tmp_path):
    losses = {}
    for precision in ("32", "bf16-camera"):
        run = compose_tiny(f"trainer.precision={precision}")
        step = build_step(run, samples[1], RunFolder(tmp_path / precision))
        losses[precision] = step.losses(collate(samples[2]), 0.0)
        sum(losses[precision].values()).backward()
        grads = [parameter.grad for parameter in step.student.camera.parameters() if parameter.grad is not None]
        assert grads
        assert all(grad.dtype == torch.float32 and bool(torch.isfinite(grad).all()) for grad in grads)
    for name, value in losses["32"].items():
        if name.startswith("lidar/"):
            assert torch.equal(value, losses["bf16-camera"][name])
        else:
            torch.testing.assert_close(losses["bf16-camera"][name], value, rtol=0.1, atol=0.05)


def test_images_are_padded_to_one_size(samples):
    plain, padded = collate(samples[2]), collate_padded(samples[2], (256, 224))
    height, width = plain.images.images.shape[-2:]
    assert padded.images.images.shape[-2:] == (256, 224)
    assert torch.equal(padded.images.images[..., :height, :width], plain.images.images)
    assert int(padded.images.images[..., height:, :].sum()) == int(padded.images.images[..., width:].sum()) == 0
    assert torch.equal(padded.images.sizes, plain.images.sizes)
    with pytest.raises(ConfigError, match=r"data\.pad_to"):
        collate_padded(samples[2], (32, 32))


def test_a_branch_sits_out_without_input(samples, tmp_path):
    from dataclasses import replace

    run, prepared, both = samples
    step = build_step(run, prepared, RunFolder(tmp_path))
    batch = collate(both)
    empty = replace(batch, images=replace(batch.images, images=batch.images.images[:0], labels=()))
    empty = replace(empty, image_index=torch.full_like(batch.image_index, -1))
    assert {name.split("/")[0] for name in step.losses(empty, 0.0)} == {"lidar"}
