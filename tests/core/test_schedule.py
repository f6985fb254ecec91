from __future__ import annotations

import math

import pytest

from mwsis.core.errors import ConfigError
from mwsis.core.schedule import EMADecay, Ramp, one_cycle


def test_ramp():
    ramp = Ramp(weight=2.0, start=0.25, length=0.5)
    assert [ramp(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0, 0, 1, 2, 2]
    step = Ramp(weight=0.5, start=0.25)
    assert [step(p) for p in (0.2, 0.25, 1.0)] == [0, 0.5, 0.5]
    assert Ramp()(0.0) == 1


@pytest.mark.parametrize("setting", [{"start": 17772}, {"length": -0.1}])
def test_ramp_wants_fractions(setting):
    with pytest.raises(ConfigError, match="fractions of the run"):
        Ramp(**setting)


def test_published_schedule_as_fractions():
    steps_per_epoch, steps = 23_691 // 8 + 1, 71_088
    assert steps_per_epoch * 24 == steps
    pairwise = Ramp(length=3 / 24)
    assert pairwise(8_885 / steps) < 1
    assert pairwise(8_886 / steps) == 1
    pseudo = Ramp(start=6 / 24)
    assert pseudo(17_771 / steps) == 0
    assert pseudo(17_772 / steps) == 1
    correction = Ramp(start=12 / 24)
    assert (correction(35_543 / steps), correction(35_544 / steps)) == (0, 1)


def test_one_cycle():
    rate = [one_cycle(p, 1e-3, 1e-2, 1e-5, 0.1) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert rate == pytest.approx([1e-5, (1e-5 + 1e-3) / 2, 1e-3, (1e-3 + 1e-8) / 2, 1e-8])
    assert one_cycle(0.0, 1e-3, 1e-2, 1e-5, 0.0) == pytest.approx(1e-3)


def test_ema_decay_follows_the_published_formula():
    decay = EMADecay()
    assert decay(0.0) == 0
    for step in (1, 100, 2500, 17_000, 17_300, 71_088):
        published = min(max(1 - math.exp(-step * 2 / 5000), 0), 0.999)
        assert decay(step / 71_088) == pytest.approx(published, abs=1e-12)
    assert decay(17_200 / 71_088) < 0.999 == decay(17_300 / 71_088)


def test_ema_decay_rejects_nonsense():
    with pytest.raises(ConfigError, match="ramp"):
        EMADecay(ramp=0)
