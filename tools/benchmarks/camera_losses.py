"""Suite ``camera_losses``: projection and look-alike pairs of box-supervised masks, against their published dense form.

The dense form keeps maps of every sample, every neighbour and every cell (K x 8 x H/4 x W/4); ours reads the pairs that
count. Both see the same street images, boxes and logits, and both compare colours once per image. The published step
has 10 images; a CPU gets fewer, because the dense form takes 1.4 GB for each of its maps. What either side needs grows
with their number, so the ratios stay.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from camera.affinity import CELL, color_distance, rgb_to_lab, valid_cells
from camera.context import MaskContext
from camera.fcos import Positives
from camera.terms import Pairwise, Projection, box_bands
from camera.transforms import ImageGeometry, decode_image
from mwsis.core.batch import ImageBatch
from mwsis.core.instances import Boxes2D
from mwsis.core.losses import dice
from tests.reference.pairwise import neighbours
from tools.benchmarks.measure import Row, best_times, comparison, stop_if_different
from tools.benchmarks.networks import difference, resident_bytes
from tools.benchmarks.street import street_frame

DILATION, THRESHOLD = 2, 0.3
TOLERANCE = 1e-5
"""Largest difference of losses and gradients, as a share of the largest value."""
Step = tuple[MaskContext, Tensor]
"""What the terms see, and the logits in it that gradients are taken of."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured: images, their rows and columns, samples of each, width of the street images."""

    num_images: int = field(default_factory=lambda: 10 if torch.cuda.is_available() else 2)
    size: tuple[int, int] = (800, 1344)
    masks_per_image: int = 64
    image_width: int = 768
    repeats: int = 3


def run(folder: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """Compare on one thread or on the GPU, after comparing losses and gradients."""
    torch.set_num_threads(1)
    images, boxes, gt_image = street_images(sizes)
    path = folder / "images.pt"
    torch.save((images, boxes, gt_image), path)
    step = make_step(images, boxes, gt_image, sizes.masks_per_image)
    stop_if_different(differing(loss_pass(our_losses, step), loss_pass(dense_losses, step)))
    times = best_times([partial(loss_pass, losses, step) for losses in (our_losses, dense_losses)], sizes.repeats)
    memory = [peak_in_own_process(is_dense, path, sizes.masks_per_image) for is_dense in (False, True)]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    facts = {
        "device": device().type,
        "threads": 1,
        "images": f"{len(images)} of {sizes.size[0]} x {sizes.size[1]}",
        "samples": len(step[1]),
        "objects": len(boxes),
        "share of an image that a box takes": round(float(area.mean()) / (sizes.size[0] * sizes.size[1]), 4),
    }
    return facts, [
        comparison("projection and pairs / dense", *times),
        comparison("their memory / dense", *(each / 2**20 for each in memory), unit="MiB"),
    ]


def device() -> torch.device:
    """Return where the losses run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def street_images(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Return (I, 3, H, W) uint8 images, (G, 4) boxes in their pixels and (G,) the image of each, none without a box."""
    views = [view for view in street_frame(4, 16, sizes.image_width).cameras if len(view.labels.objects)]
    images, boxes = [], []
    for index in range(sizes.num_images):
        view = views[index % len(views)]
        pixels = decode_image(view.image, view.name)
        geometry = ImageGeometry(*pixels.shape[1:], *sizes.size, flipped=bool(index // len(views) % 2))
        images.append(geometry.apply_image(pixels))
        boxes.append(geometry.apply_boxes(view.labels.objects).boxes)
    counts = torch.tensor([len(one) for one in boxes])
    return torch.stack(images), torch.cat(boxes), torch.repeat_interleave(torch.arange(len(images)), counts)


def make_step(images: Tensor, boxes: Tensor, gt_image: Tensor, masks_per_image: int) -> Step:
    """Return a step with random logits of so many samples of each image, evenly shared among its objects."""
    counts = gt_image.bincount()
    share = torch.arange(masks_per_image)[None] * counts[:, None] // masks_per_image
    gt_index = (share + (counts.cumsum(0) - counts)[:, None]).flatten()
    height, width = images.shape[2] // CELL, images.shape[3] // CELL
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(len(gt_index), height, width, generator=generator)
    none = torch.zeros_like(gt_index)
    positives = Positives(
        image_index=gt_image[gt_index],
        location_index=none,
        gt_index=gt_index,
        level=none,
        location=torch.zeros(len(gt_index), 2),
        class_index=none,
        gt_boxes=boxes,
        gt_labels=torch.zeros_like(gt_image),
        gt_image=gt_image,
        ignored=torch.zeros(len(images), 1, dtype=torch.bool),
    )
    positives = Positives(**{name: value.to(device()) for name, value in vars(positives).items()})
    sizes = torch.tensor([list(images.shape[2:])] * len(images))
    batch = ImageBatch(images.to(device()), sizes, sizes, tuple(Boxes2D.empty() for _ in images))
    logits = logits.to(device()).requires_grad_()
    return MaskContext(logits, positives, batch), logits


def our_losses(ctx: MaskContext) -> list[Tensor]:
    """Return both losses as they are trained."""
    return [Projection()(ctx), Pairwise(threshold=THRESHOLD, dilation=DILATION)(ctx)]


def dense_losses(ctx: MaskContext) -> list[Tensor]:
    """Return both losses in the published form: bitmaps of boxes, eight neighbours of every cell of every sample."""
    gt_index, image = ctx.positives.gt_index, ctx.positives.image_index
    on_row, on_col = box_bands(ctx.gt_boxes, *ctx.map_size)
    in_box = (on_row[:, :, None] & on_col[:, None]).float()[gt_index]
    prob = ctx.mask_logits.sigmoid()
    projection = dice(prob.amax(2), in_box.amax(2)) + dice(prob.amax(1), in_box.amax(1))
    weight = alike_neighbours(ctx.images)[image].float() * in_box[:, None]
    inner, outer = functional.logsigmoid(ctx.mask_logits), functional.logsigmoid(-ctx.mask_logits)
    both_in = inner[:, None] + neighbours(inner, DILATION)
    both_out = outer[:, None] + neighbours(outer, DILATION)
    pairs = -(torch.logaddexp(both_in, both_out) * weight).sum() / weight.sum().clamp(min=1)
    return [projection.mean(), pairs]


@torch.no_grad()
def alike_neighbours(images: ImageBatch) -> Tensor:
    """Return (I, 8, h, w) bool: the neighbour shows content of nearly the same colour."""
    lab = rgb_to_lab(functional.avg_pool2d(images.images.float(), CELL).floor())
    other = torch.stack([neighbours(channel, DILATION) for channel in lab.unbind(1)], 2)
    similarity = (-0.5 * color_distance(lab[:, None], other)).exp()
    valid = valid_cells(images, *lab.shape[-2:])
    return similarity * neighbours(valid.float(), DILATION) >= THRESHOLD


def loss_pass(losses: Callable[[MaskContext], list[Tensor]], step: Step) -> list[Tensor]:
    """Return the losses and the gradient of their sum, when they are there."""
    ctx, logits = step
    values = losses(ctx)
    (gradient,) = torch.autograd.grad(torch.stack(values).sum(), logits)
    if device().type == "cuda":
        torch.cuda.synchronize()
    return [*(value.detach() for value in values), gradient]


def differing(found: list[Tensor], expected: list[Tensor]) -> set[str]:
    """Return which of the two losses and their gradient differ."""
    names = ("projection", "pairs", "gradient")
    trio = zip(names, found, expected, strict=True)
    return {name for name, ours, dense in trio if difference(ours, dense) > TOLERANCE}


def peak_in_own_process(is_dense: bool, path: Path, masks_per_image: int) -> int:
    """Return the bytes that the first pass adds at its peak, in a process that does nothing else."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(peak_of_a_pass, is_dense, path, masks_per_image).result()


def peak_of_a_pass(is_dense: bool, path: Path, masks_per_image: int) -> int:
    """Return what a pass over the stored images adds to this process's memory, or to that of the GPU."""
    torch.set_num_threads(1)
    step = make_step(*torch.load(path, weights_only=True), masks_per_image)
    losses = dense_losses if is_dense else our_losses
    if device().type == "cuda":
        before = torch.cuda.memory_allocated()
        loss_pass(losses, step)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_bytes("VmRSS")
    loss_pass(losses, step)
    return resident_bytes("VmHWM") - before
