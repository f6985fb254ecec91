"""What may change between training and prediction: the data set and settings of prediction, nothing else."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from mwsis.core.errors import ConfigError
from mwsis.training.commands import compose_run, restore_config
from mwsis.training.config import typed


@pytest.fixture
def saved():
    return OmegaConf.to_yaml(compose_run(["experiment=coco_mini", "data.root=/coco", "camera.channels=48"]))


def restored(saved, *overrides):
    return typed(restore_config(saved, compose_run(list(overrides)), overrides))


def test_settings_of_prediction_replace_the_run_s(saved):
    run = restored(saved, "camera.refinement=null", "camera.score_threshold=0.2")
    assert run.camera.refinement is None
    assert run.camera.score_threshold == 0.2
    assert (run.camera.channels, run.data.name) == (48, "coco")


def test_a_setting_of_prediction_may_be_added(saved):
    run = restored(saved, "++camera.refinement={_target_: camera.refinement.ColorRefinement, shrink: 0.5}")
    assert run.camera.refinement == {"_target_": "camera.refinement.ColorRefinement", "shrink": 0.5}
    with pytest.raises(ConfigError, match="after training only these can change"):
        restored(saved, "++camera.channels=32")


def test_one_key_of_the_data_set_leaves_the_others(saved):
    """It used to bring the default data set with it."""
    run = restored(saved, "data.val_split=train")
    assert (run.data.name, run.data.root, run.data.val_split) == ("coco", "/coco", "train")
    other = restored(saved, "data=street", "data.source.seed=5")
    assert (other.data.name, other.data.source["seed"]) == ("street", 5)


def test_what_training_depended_on_is_refused(saved):
    with pytest.raises(ConfigError, match=r"'camera.channels=32': after training only these can change: data, "):
        restored(saved, "camera.channels=32")
