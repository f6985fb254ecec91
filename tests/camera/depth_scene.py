"""Two images with known depth, boxes and samples, for tests of what looks at depth."""

from __future__ import annotations

from dataclasses import replace

import torch

from camera.context import MaskContext
from mwsis.core.batch import DepthMaps
from tests.camera.test_terms import MAP, context


def depth_maps(seed=0, metric=True, missing=0.3):
    """Return maps of steps and slopes with holes and some ground, (2, 16, 24)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 1, 4, 6, generator=generator) * 20 + 4
    value = torch.nn.functional.interpolate(coarse, size=MAP, mode="nearest")[:, 0]
    value = value + torch.rand(2, *MAP, generator=generator) * 0.3
    valid = torch.rand(2, *MAP, generator=generator) > missing
    ground = valid & (torch.rand(2, *MAP, generator=generator) > 0.8)
    value = value if metric else value * 8
    return DepthMaps(value * valid, valid, ground & torch.tensor(metric), metric)


def scene(depth, gt_index=(0, 0, 1, 2, 3), seed=1, **settings) -> MaskContext:
    """Return a context of random logits and depth outputs, both differentiable."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(gt_index), *MAP, generator=generator).requires_grad_()
    output = torch.rand(len(gt_index), *MAP, generator=generator).requires_grad_()
    ctx = context(logits, list(gt_index), **settings)
    return replace(ctx, images=replace(ctx.images, depth=depth), depth_output=output)
