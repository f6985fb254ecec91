"""Every camera recipe: what it is made of, that it trains on anything, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from camera.prototypes import PrototypeRefiner
from camera.sources import BoxFill, Compose, MatchedDetections, OfflineMasks, PositiveAggregation, Refined
from fusion.step import PretrainingStep
from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import BoxMasks
from mwsis.core.instances import MaskSet
from mwsis.training.build import build_method, build_transform, check_training
from mwsis.training.callbacks import read_losses
from mwsis.training.folder import RunFolder
from mwsis.training.run import train
from tests.fusion.test_step import batch_of, boxes_of, camera_student

RECIPES = {
    "boxinst": (type(None), {"projection", "pairwise"}),
    "mwsis_camera": (PositiveAggregation, {"projection", "pairwise", "ipg"}),
    "boxteacher": (MatchedDetections, {"projection", "pairwise", "pseudo_mask", "mask_affinity"}),
    "sim": (PrototypeRefiner, {"projection", "pairwise", "pseudo_mask", "paste"}),
    "full": (OfflineMasks, {"projection", "masks"}),
    "mixed": (Compose, {"projection", "pairwise", "masks"}),
    "boxfill": (BoxFill, {"projection", "filled"}),
}
TRAINED_ON_MASKS = ("full", "mixed")


def settings_of(recipe):
    return [f"method={recipe}"] + ["data.supervision=masks"] * (recipe in TRAINED_ON_MASKS)


def composed(compose_tiny, recipe, *overrides):
    return compose_tiny(*settings_of(recipe), *overrides)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_consist_of_what_they_say(compose_tiny, recipe):
    run = composed(compose_tiny, recipe)
    check_training(run)
    method = build_method(run)
    source, terms = RECIPES[recipe]
    assert type(method.mask_source) is source
    assert set(method.camera_terms) == terms
    assert run.method.name == recipe
    assert run.method.branches == ["camera"]
    assert method.lidar_to_camera is method.camera_to_lidar is method.record_votes_from is None


ODD = {
    "no box in one image": [[], [[20.0, 20.0, 60.0, 60.0]]],
    "no box at all": [[], []],
    "no positives": [[[1.0, 1.0, 1.5, 1.5]], []],
    "one pixel": [[[40.0, 20.0, 41.0, 21.0]], [[20.0, 20.0, 60.0, 60.0]]],
    "outside the image": [[[100.0, 70.0, 140.0, 90.0]], [[-30.0, -30.0, -2.0, -2.0]]],
    "300 boxes": [[[x, y, x + 20.0, y + 20.0] for x in range(0, 75, 5) for y in range(0, 40, 2)], []],
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("odd", ODD)
def test_odd_batches_give_finite_losses_and_gradients(compose_tiny, recipe, odd):
    batch = batch_of([boxes_of(rows) for rows in ODD[odd]])
    if recipe in TRAINED_ON_MASKS:
        masks = [
            MaskSet.from_crops(16, 24, torch.zeros(len(one), 4), [torch.zeros(0, 0)] * len(one))
            for one in batch.images.labels
        ]
        given = tuple(BoxMasks(one, torch.zeros(len(one))) for one in masks)
        batch = replace(batch, images=replace(batch.images, masks=given))
    method = build_method(composed(compose_tiny, recipe))
    step = PretrainingStep(camera_student(), method, 3).train()
    losses = step.losses(batch, 0.95)
    assert set(losses) >= {f"camera/{name}" for name in method.camera_terms}
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    for name, parameter in step.student.named_parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name
    if odd == "no box at all":
        assert all(losses[f"camera/{name}"] == 0 for name in method.camera_terms)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=full"], r"method.mask_source \(OfflineMasks\) needs masks of the boxes; set data.supervision=masks"),
        (
            ["method=boxteacher", "method.ema=false"],
            r"\(MatchedDetections\) needs a teacher of its own; set method.ema",
        ),
        (["method=boxfill", "method.mask_source=null"], r"camera_terms.filled \(PseudoMask\) needs pseudo masks; give"),
        (["method=full", "data.masks=/nowhere.json"], r"data.masks=/nowhere.json: cannot be read"),
    ],
)
def test_what_nothing_provides_is_refused_before_training(compose_tiny, overrides, said):
    run = compose_tiny(*overrides)
    for refused in (check_training, lambda run: build_transform(run, augment=True)):
        with pytest.raises((ConfigError, DataError), match=said):
            refused(run)
    build_transform(run, augment=False)  # evaluation needs none of it


def test_pseudo_masks_are_refined_on_request(compose_tiny):
    assert isinstance(build_method(compose_tiny("method=mwsis_camera")).mask_source, PositiveAggregation)
    refined = build_method(compose_tiny("method=mwsis_camera", "method.refine_masks=true")).mask_source
    assert isinstance(refined, Refined)
    assert isinstance(refined.source, PositiveAggregation)


def test_a_term_cannot_take_the_place_of_another_loss(compose_tiny):
    """The lower bound once named its term `box`, and trained without the boxes' own loss."""
    run = compose_tiny("method=boxinst")
    run.method.camera_terms["box"] = run.method.camera_terms["projection"]
    with pytest.raises(ConfigError, match=r"method.camera_terms.box: a loss of that name exists already"):
        build_method(run)


def test_unneeded_sources_are_not_held_against_a_run(compose_tiny):
    check_training(compose_tiny("method=mwsis", "method.ema=false"))  # the student teaches itself
    check_training(compose_tiny("method=frustum", "method.ema=false"))
    check_training(compose_tiny("method=boxinst", "method.mask_source={_target_: camera.sources.OfflineMasks}"))
    with pytest.raises(
        ConfigError, match=r"data.supervision: expected one of \['boxes', 'masks', 'mixed'\], got points"
    ):
        compose_tiny("data.supervision=points")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_twelve_steps_of_each_recipe(tmp_path, compose_tiny, prepare_tiny, recipe):
    run = composed(compose_tiny, recipe)
    assert train(run, RunFolder(tmp_path), prepare_tiny(run))
    losses = read_losses(tmp_path / "losses.csv")
    assert {step for step, _, _ in losses} == set(range(12))
    assert all(math.isfinite(value) for _, _, value in losses)
    last = {name for step, name, _ in losses if step == 11}
    assert {f"camera/{term}" for term in RECIPES[recipe][1]} <= last
    if recipe in TRAINED_ON_MASKS:
        assert next(value for step, name, value in losses if (step, name) == (11, "camera/masks")) > 0
