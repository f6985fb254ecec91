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
