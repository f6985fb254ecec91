"""Everything that changes during training, as a function of ``progress``, the finished fraction of the run.

No state and no step counter: a resumed run continues exactly, and a shorter run keeps the shape of its schedules. The
constants of the papers live in `configs/method/`, as fractions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mwsis.core.errors import ConfigError

__all__ = ["EMADecay", "Ramp", "one_cycle"]

PUBLISHED_EMA_RAMP = 2500 / 71088
"""MWSIS: decay 1 - exp(-t * 2 / 5000) with 2 frames on each GPU, 71,088 steps in all."""


@dataclass(frozen=True)
class Ramp:
    """A weight that starts at some point of the run and rises linearly.

    Attributes:
        weight: final value.
        start: progress in [0, 1] before which the value is 0.
        length: fraction of the run over which it rises from 0; 0 means at once.
    """

    weight: float = 1.0
    start: float = 0.0
    length: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1 or not 0 <= self.length <= 1:
            raise ConfigError(
                f"Ramp: expected start and length as fractions of the run in [0, 1], got start={self.start}, "
                f"length={self.length}; divide steps or epochs by those of the whole run"
            )

    def __call__(self, progress: float) -> float:
        """Return the weight at ``progress`` (finished fraction of the run, 0..1)."""
        if progress < self.start:
            return 0.0
        if progress >= self.start + self.length:
            return self.weight
        return self.weight * (progress - self.start) / self.length


def one_cycle(progress: float, peak: float, start_factor: float, final_factor: float, rise: float) -> float:
    """Return the learning rate of one cosine rise followed by one cosine fall.

    Args:
        progress: finished fraction of the run, 0..1.
        peak: highest value, reached at ``progress == rise``.
        start_factor: first value as a multiple of ``peak``.
        final_factor: last value as a multiple of ``peak``.
        rise: fraction of the run spent rising, in [0, 1).

    Returns:
        The learning rate.

    Source: cyclic policy of the SECOND / FSD family; MWSIS's LiDAR branch uses peak 1e-3, start factor 1e-2, final
    factor 1e-5, rise 0.1 (released configuration).
    """
    if progress < rise:
        return peak * _cosine(progress / rise, start_factor, 1.0)
    return peak * _cosine((progress - rise) / (1 - rise), 1.0, final_factor)


def _cosine(fraction: float, first: float, last: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(fraction, 1.0))) / 2


@dataclass(frozen=True)
class EMADecay:
    """The share of itself that the teacher keeps at each step: 0 at first, near 1 later.

    Attributes:
        maximum: upper bound, in [0, 1].
        ramp: fraction of the run after which the decay is 1 - 1/e, > 0. It fixes how the decay grows over the run; the
            memory of the teacher, 1 / (1 - decay), still counts steps.

    Source: MWSIS, ``clip(1 - exp(-t * B / 5000), 0, 0.999)``; as fractions of its 71,088 steps with B = 2 the ramp is
    2500 / 71088. *Generalised* to runs of any length.
    """

    maximum: float = 0.999
    ramp: float = PUBLISHED_EMA_RAMP

    def __post_init__(self) -> None:
        if not 0 <= self.maximum <= 1 or not self.ramp > 0:
            raise ConfigError(
                f"EMADecay: expected maximum in [0, 1] and ramp > 0, got maximum={self.maximum}, ramp={self.ramp}"
            )

    def __call__(self, progress: float) -> float:
        """Return the decay at ``progress`` (finished fraction of the run, 0..1)."""
        return min(self.maximum, -math.expm1(-progress / self.ramp))
