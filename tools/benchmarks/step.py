"""Suite ``step``: where the time of a training step goes, whether loading keeps up, what bfloat16 and compiling bring.

The step is the whole of MWSIS near the end of its run, when every teacher is asked. Its parts are clocked inside the
step itself; the reference of a part is the whole step, so a ratio is its share. Loading is that of one worker: the
number of workers that keep up with training is its ratio, rounded up.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.step import PretrainingStep
from mwsis.core.batch import Batch, move
from mwsis.data.dataset import FrameDataset, collate
from mwsis.training import build
from mwsis.training.commands import compose_run
from mwsis.training.config import BranchOptimConfig, RunConfig, typed
from mwsis.training.folder import RunFolder
from mwsis.training.optim import build_optimiser, clip_gradients
from mwsis.training.prepare import build_source, prepare
from mwsis.training.run import build_step
from tools.benchmarks.measure import Row, best_times, comparison, stop_if_different
from tools.benchmarks.networks import device

LATE = 0.95
"""Progress at which every part of the method is on."""


@dataclass(frozen=True)
class Sizes:
    """What is run: settings of tools/train.py, frames of a batch, and which other forms of the step."""

    overrides: tuple[str, ...] = ()
    frames: int = 2
    variants: tuple[str, ...] = ("bfloat16", "compiled")
    repeats: int = 5


def run(folder: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """Clock the parts after checking that a clocked step has the losses of a plain one."""
    torch.set_num_threads(1)
    config = settings(folder, sizes)
    samples, make = training_data(config, folder)
    batch = move(collate([samples[index] for index in range(sizes.frames)]), device())
    optim = build.optim_settings(config)
    plain, clocked = Stepper(make(config), optim), Stepper(make(config), optim, clocked=True)
    stop_if_different(differing(plain.losses(batch), clocked.losses(batch)))
    whole, loading = best_times(
        [partial(plain.take, batch), lambda: collate([samples[index] for index in range(sizes.frames)])], sizes.repeats
    )
    for _ in range(sizes.repeats):
        clocked.take(batch)
    rows = [comparison("loading in one worker / step", loading, whole)]
    rows += [comparison(f"{part} / step", 1000 * min(seconds), whole) for part, seconds in clocked.clock.spent.items()]
    for variant in sizes.variants:
        other = Stepper(varied(variant, config, make), optim)
        other.take(batch)  # compiles
        rows.append(
            comparison(
                f"step, {variant} / as it is",
                *best_times([partial(each.take, batch) for each in (other, plain)], sizes.repeats),
            )
        )
    points, images = len(batch.points.xyz), tuple(batch.images.images.shape)
    return {"device": device().type, "threads": 1, "points": points, "images": images}, rows


def settings(folder: Path, sizes: Sizes) -> RunConfig:
    """Return the default run on a few streets, with every part of the method in every step."""
    return typed(
        compose_run(
            [
                f"data.cache={folder / 'cache'}",
                f"data.source.train_segments={sizes.frames}",
                "data.source.val_segments=1",
                "data.cache_workers=1",
                "method.rsc=true",
                f"trainer.accelerator={'gpu' if device().type == 'cuda' else 'cpu'}",
                f"trainer.frames_per_step={sizes.frames}",
                "trainer.lidar_every=1",
                *sizes.overrides,
            ]
        )
    )


def training_data(config: RunConfig, folder: Path) -> tuple[FrameDataset, Callable[[RunConfig], PretrainingStep]]:
    """Return the samples, and what makes a new step for them."""
    prepared = prepare(config, build_source(config), lambda what, done, total: None)
    transform = build.build_transform(config, augment=True)
    samples = FrameDataset(prepared.train.frames, prepared.train.labels, transform, config.seed)

    def make(wanted: RunConfig) -> PretrainingStep:
        place = RunFolder(folder / "run")
        place.root.mkdir(exist_ok=True)
        step = build_step(wanted, prepared, place)
        assert step.vote_history is not None
        step.vote_history.reset()
        return step.to(device())

    return samples, make


def varied(variant: str, config: RunConfig, make: Callable[[RunConfig], PretrainingStep]) -> PretrainingStep:
    """Return the step in another form."""
    if variant == "bfloat16":
        return make(replace(config, trainer=replace(config.trainer, precision="bf16-camera")))
    assert variant == "compiled"
    step = make(config)
    for network in (step.student, step.teaching_model):
        assert network.camera is not None
        network.camera.backbone.compile()
        network.camera.pyramid.compile()
    return step


@dataclass
class Clock:
    """Seconds of each part, one entry per step; what a part calls and is clocked itself is not counted with it."""

    spent: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    inner: list[float] = field(default_factory=lambda: [0.0])

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = now()
        self.inner.append(0.0)
        yield
        whole = now() - began
        self.spent[part].append(whole - self.inner.pop())
        self.inner[-1] += whole


def now() -> float:
    """Return the time when all that was asked of the GPU is done."""
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


PARTS = {
    "_teacher_points": "LiDAR teacher",
    "_camera_losses": "camera student, its terms",
    "_lidar_losses": "LiDAR student, its labels (PVC, RSC)",
    "_cross_modal_losses": "distillation (CSCS)",
}
"""What a step is made of, by the methods of `fusion.step` that do it."""


class Stepper:
    """Takes training steps on one batch, as `mwsis.training.module` does.

    Args:
        step: student, teacher and losses; where it is clocked, its parts are wrapped.
        optim: settings by branch.
        clocked: whether the parts are clocked.
    """

    def __init__(self, step: PretrainingStep, optim: dict[str, BranchOptimConfig], clocked: bool = False) -> None:
        self.step, self.optim, self.clock = step.train(), optim, Clock()
        self.optimisers = {
            branch: build_optimiser(getattr(step.student, branch), config) for branch, config in optim.items()
        }
        if clocked:
            for method, part in PARTS.items():
                setattr(step, method, self._clocked(part, getattr(step, method)))
            assert step.mask_source is not None
            source: Any = step.mask_source
            source.propose = self._clocked("camera teacher, its masks (IPG)", source.propose)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of the batch."""
        return self.step.losses(batch, LATE)

    def take(self, batch: Batch) -> None:
        """Take a step; the two branches share no loss, so their backward passes are two."""
        losses = self.losses(batch)
        for branch in self.optim:
            with self.clock(f"{branch} student, backward".replace("lidar", "LiDAR")):
                torch.stack([value for name, value in losses.items() if name.startswith(f"{branch}/")]).sum().backward()
        with self.clock("optimisers, averages of teachers"):
            for branch, optimiser in self.optimisers.items():
                clip_gradients(getattr(self.step.student, branch), self.optim[branch])
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            self.step.update_teacher(LATE)
            now()

    def _clocked(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*arguments: Any) -> Any:
            with self.clock(part):
                return call(*arguments)

        return clocked


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> set[str]:
    """Return the names of losses that are not equal to the last bit, or on the GPU nearly."""
    near = 1e-3 if device().type == "cuda" else 0.0
    wrong = found.keys() ^ expected.keys()
    for name in found.keys() & expected.keys():
        if not torch.allclose(found[name], expected[name], rtol=near, atol=0):
            wrong.add(name)
    return wrong
