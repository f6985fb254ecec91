"""Switches of the label and prediction corrections: votes (PVC) and ring segments (RSC)."""

from __future__ import annotations

import pytest
import torch

from fusion.vote_history import DEPTH
from lidar.segmentor import PointOutput
from mwsis.core.errors import ConfigError
from mwsis.core.instances import BACKGROUND
from mwsis.training import build, prepare
from mwsis.training.callbacks import read_losses
from mwsis.training.config import VOTES_KEPT
from mwsis.training.folder import RunFolder
from mwsis.training.inference import predict
from mwsis.training.run import build_step, train


def test_published_rules_are_the_default(compose_tiny):
    method = build.build_method(compose_tiny())
    assert (method.votes_agreeing, method.votes_looked_at) == (4, 4)
    assert method.correct_segments_of == ()
    assert VOTES_KEPT == DEPTH


@pytest.mark.parametrize(("agree", "of"), [(1, 1), (2, 2), (2, 3), (3, 4)])
def test_the_majority_reaches_the_method(compose_tiny, agree, of):
    method = build.build_method(compose_tiny(f"method.pvc_agree={agree}", f"method.pvc_of={of}"))
    assert (method.votes_agreeing, method.votes_looked_at) == (agree, of)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("method.pvc_of=5",), "method.pvc_of: expected 1 to 4, got 5"),
        (("method.pvc_of=0",), "method.pvc_of: expected 1 to 4, got 0"),
        (("method.pvc_agree=2",), "method.pvc_agree: expected more than half of method.pvc_of=4"),
        (("method.pvc_agree=4", "method.pvc_of=3"), "no more than all, got 4"),
        (("method.pvc_agree=0", "method.pvc_of=1"), "no more than all, got 0"),
        (("method.rsc=true", "method.rsc_classes=[]"), "method.rsc_classes: expected at least one class"),
        (("method=boxinst", "method.rsc=true"), "method.rsc=true needs 'lidar'"),
        (("method=boxinst", "method.rsc_labels=true"), "method.rsc_labels=true needs 'lidar'"),
    ],
)
def test_impossible_settings_are_refused(compose_tiny, overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        compose_tiny(*overrides)


@pytest.mark.parametrize("switch", ["method.rsc", "method.rsc_labels"])
def test_an_unknown_class_is_refused_before_training(compose_tiny, switch):
    run = compose_tiny(f"{switch}=true", "method.rsc_classes=[Vehicle,Cyclists]")
    sentence = r"method\.rsc_classes: street has no class 'Cyclists'; did you mean 'Cyclist'\?"
    with pytest.raises(ConfigError, match=sentence):
        build.build_method(run)
    assert prepare.ring_classes(compose_tiny("method.rsc_classes=[Lorry]")) == ()  # nobody asks


def test_classes_are_names(compose_tiny):
    assert prepare.ring_classes(compose_tiny("method.rsc=true")) == (0, 2)
    chosen = compose_tiny("method.rsc_labels=true", "method.rsc_classes=[Pedestrian,Vehicle]")
    assert build.build_method(chosen).correct_segments_of == (1, 0)
    assert build.build_method(compose_tiny("method.rsc=true")).correct_segments_of == ()


def semantic_losses(folder):
    return [value for _, name, value in read_losses(folder.losses) if name == "lidar/semantic"]


@pytest.mark.slow
def test_corrected_labels_are_trained_on(tmp_path, compose_tiny, prepare_tiny):
    """The first LiDAR loss differs by the labels alone: same weights, same points."""
    first = {}
    for switch in ("false", "true"):
        run = compose_tiny("trainer.max_steps=2", f"method.rsc_labels={switch}", "method=frustum")
        folder = RunFolder(tmp_path / switch)
        assert train(run, folder, prepare_tiny(run))
        first[switch] = semantic_losses(folder)[0]
    assert first["true"] != first["false"]


@pytest.mark.slow
def test_votes_of_a_majority_are_trained_on(tmp_path, compose_tiny, prepare_tiny):
    """Corrections by one vote of one begin with the second visit, long before four of four."""
    losses = {}
    for agree in (1, 4):
        asked = (f"method.pvc_agree={agree}", f"method.pvc_of={agree}", "method.pvc=true", "method.pvc_start=0")
        run = compose_tiny("trainer.max_steps=6", "method=frustum", *asked)
        folder = RunFolder(tmp_path / str(agree))
        assert train(run, folder, prepare_tiny(run))
        losses[agree] = semantic_losses(folder)
    assert losses[1][0] == losses[4][0]
    assert losses[1][5] != losses[4][5]


def test_corrected_predictions_are_grouped(tmp_path, compose_tiny, prepare_tiny, monkeypatch):
    """Every point of an instance has the instance's class, also where ring segments gave it to the point."""
    run = compose_tiny("method=frustum")
    prepared = prepare_tiny(run)
    model = build_step(run, prepared, RunFolder(tmp_path)).student
    transform = build.build_transform(run, augment=False)

    def says_vehicle_for_most(points):
        generator = torch.Generator().manual_seed(0)
        logits = torch.full((len(points.xyz), 3), -5.0)
        logits[torch.rand(len(points.xyz), generator=generator) < 0.85, 0] = 5.0
        return PointOutput(logits, torch.zeros(len(points.xyz), 3, 3), torch.ones(len(points.xyz), dtype=torch.bool))

    monkeypatch.setattr(model.lidar, "forward", says_vehicle_for_most)
    plain, corrected = (
        next(iter(predict(model, prepared.val.frames, prepared.val.labels, transform, classes))).points
        for classes in ((), (0, 2))
    )
    gained = (plain.semantic_labels == BACKGROUND) & (corrected.semantic_labels >= 0)
    assert int((gained & (corrected.instance_ids >= 0)).sum()) > 0
    member = corrected.instance_ids >= 0
    assert torch.equal(corrected.labels[corrected.instance_ids[member]], corrected.semantic_labels[member])
