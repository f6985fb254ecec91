"""A tiny run, prepared once per session: two frames of the street world and a configuration to match."""

from __future__ import annotations

import pytest

from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from mwsis.training.prepare import build_source, prepare

SIM_AT_ONCE = (
    "method=sim",
    "method.copy_paste.prob=1",
    # sure from the first step, so that prototypes learn and objects are cut out in a tiny run
    "method.mask_source.inner._target_=camera.sources.BoxFill",
    "~method.mask_source.inner.mu",
    "~method.mask_source.inner.use_cls",
)
MASK_RCNN = (
    *("camera=mask_rcnn", "camera.backbone=test_resnet", "camera.pretrained=false", "camera.norm=group"),
    *("camera.frozen_stages=0", "camera.channels=32", "camera.mask_rcnn.anchor_sizes=[8,16,32,64,128]"),
    *("camera.mask_rcnn.anchors_per_image=64", "camera.mask_rcnn.boxes_per_image=64"),
    *("camera.mask_rcnn.proposals_train=200", "camera.mask_rcnn.proposals_test=100"),
    *("camera.mask_rcnn.box_channels=128", "camera.mask_rcnn.mask_channels=32"),
    *("camera.optim.kind=adamw", "camera.optim.lr=1.5e-3", "camera.optim.clip_norm=5"),
)
"""A Mask R-CNN that learns on a CPU."""


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def compose_tiny(tiny_cache):
    def compose(*overrides):
        return typed(compose_run(["experiment=smoke", f"data.cache={tiny_cache}", *overrides]))

    return compose


@pytest.fixture(scope="session")
def prepare_tiny():
    def prepared(run):
        return prepare(run, build_source(run), lambda *progress: None)

    return prepared
