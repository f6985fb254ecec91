"""The camera half of a step: who is asked for masks, how often, and when."""

from __future__ import annotations

import math

import pytest
import torch

from camera.affinity import Feature, Mask
from camera.segmentor import build_condinst
from camera.sources import BoxFill, Compose, MatchedDetections, PositiveAggregation
from camera.terms import LevelSet, Pairwise, PseudoMask
from fusion.segmentor import MultimodalSegmentor
from fusion.step import Method, PretrainingStep, WeightedTerm
from mwsis.core.batch import Batch, ImageBatch, PointBatch
from mwsis.core.instances import Boxes2D, PointLabels
from mwsis.core.schedule import EMADecay, Ramp

RANGES = (16.0, 32.0, 64.0, 128.0, math.inf)


def camera_student() -> MultimodalSegmentor:
    torch.manual_seed(0)
    camera = build_condinst(
        3,
        backbone="test_resnet",
        channels=32,
        num_convs=1,
        mask_branch_channels=32,
        mask_branch_convs=1,
        norm="group",
        size_ranges=RANGES,
        score_threshold=0.0,
        box_bias=2.0,
    )
    return MultimodalSegmentor(camera, None)


def batch_of(labels: list[Boxes2D]) -> Batch:
    """Images of noise, 64 by 96 pixels, without a sweep."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (len(labels), 3, 64, 96), generator=generator).byte()
    sizes = torch.tensor([[64, 96]] * len(labels)).reshape(-1, 2)
    none = torch.zeros(0, dtype=torch.int64)
    points = PointBatch(torch.zeros(0, 3), torch.zeros(0, 2), torch.zeros(2, dtype=torch.int64), none, none)
    return Batch(
        frame_index=torch.zeros(1, dtype=torch.int64),
        frame_ids=("f",),
        points=points,
        images=ImageBatch(pixels, sizes, sizes, tuple(labels)),
        pixel_uv=torch.zeros(0, 2, 2),
        image_index=torch.zeros(0, 2, dtype=torch.int64),
        pseudo=PointLabels(none, none),
    )


def boxes_of(rows: list[list[float]]) -> Boxes2D:
    labels = torch.arange(len(rows)) % 3
    return Boxes2D(torch.tensor(rows).reshape(-1, 4), labels, torch.zeros(len(rows), dtype=torch.bool))


BATCH = batch_of([boxes_of([[8.0, 8.0, 40.0, 50.0], [50.0, 5.0, 90.0, 40.0]]), boxes_of([[20.0, 20.0, 60.0, 60.0]])])


def counting(model: MultimodalSegmentor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each pass of the camera network over images."""
    calls: list[int] = []
    dense = model.camera.dense

    def counted(images):
        calls.append(len(images))
        assert model.training == model.camera.training
        return dense(images)

    monkeypatch.setattr(model.camera, "dense", counted)
    return calls


def method(source, ema=True, **terms) -> Method:
    weighted = {name: WeightedTerm(term, Ramp(start=0.5)) for name, term in terms.items()}
    return Method(weighted, source, ema_decay=EMADecay() if ema else None)


@pytest.mark.parametrize(
    ("source", "terms", "passes"),
    [
        (None, {"level": LevelSet()}, 0),
        (BoxFill(), {"masks": PseudoMask()}, 0),
        (PositiveAggregation(), {"level": LevelSet()}, 0),  # nobody asks for its masks
        (PositiveAggregation(), {"masks": PseudoMask()}, 1),
        (None, {"feature": Pairwise(Feature("teacher"))}, 1),
        (
            Compose([MatchedDetections(), PositiveAggregation()], "mean"),
            {"a": PseudoMask(), "b": Pairwise(Mask(), 0.5), "c": Pairwise(Feature()), "d": LevelSet("teacher")},
            1,
        ),
    ],
)
def test_the_teacher_looks_at_a_batch_once_or_never(source, terms, passes, monkeypatch) -> None:
    step = PretrainingStep(camera_student(), method(source, **terms), 3).train()
    calls = counting(step.teaching_model, monkeypatch)
    before = step.losses(BATCH, 0.4)
    assert calls == []
    assert not {f"camera/{name}" for name in terms} & set(before)
    losses = step.losses(BATCH, 0.6)
    assert calls == [2] * passes
    assert {f"camera/{name}" for name in terms} <= set(losses)
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    assert step.student.training
    assert not step.teaching_model.training
    sum(losses.values()).backward()
    assert all(parameter.grad is None for parameter in step.teacher.parameters())


def test_without_a_teacher_the_student_is_asked_in_evaluation_mode(monkeypatch) -> None:
    step = PretrainingStep(camera_student(), method(PositiveAggregation(), ema=False, ipg=PseudoMask()), 3).train()
    modes = []
    dense = step.student.camera.dense
    monkeypatch.setattr(
        step.student.camera, "dense", lambda images: (modes.append(step.student.training), dense(images))[1]
    )
    step.losses(BATCH, 0.6)
    assert modes == [True, False]
    assert step.student.training
