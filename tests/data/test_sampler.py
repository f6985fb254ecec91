from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mwsis.data.sampler import ResumableSampler, seeded_generator


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 2**40), st.integers(0, 45))
def test_resuming_continues_the_same_order(num_frames: int, num_samples: int, seed: int, start: int) -> None:
    whole = list(ResumableSampler(num_frames, num_samples, seed))
    assert [position for _, position in whole] == list(range(num_samples))
    assert list(ResumableSampler(num_frames, num_samples, seed, start)) == whole[start:]


def test_each_epoch_visits_every_frame_in_its_own_order() -> None:
    order = [index for index, _ in ResumableSampler(20, 60, seed=3)]
    epochs = [order[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order != [index for index, _ in ResumableSampler(20, 60, seed=4)]


def test_order_ignores_the_global_generator() -> None:
    torch.manual_seed(0)
    sampler = ResumableSampler(10, 30, seed=1)
    first = list(sampler)
    torch.manual_seed(1)
    assert list(sampler) == first
    assert len(sampler) == 30


def test_replicas_share_the_positions() -> None:
    whole = list(ResumableSampler(7, 31, seed=1, start=4))
    parts = [list(ResumableSampler(7, 31, seed=1, start=4, rank=rank, num_replicas=3)) for rank in range(3)]
    assert sorted((key for part in parts for key in part), key=lambda key: key[1]) == whole


def test_generators_differ_by_the_whole_key() -> None:
    draws = {float(torch.rand((), generator=seeded_generator("sample", *key))) for key in ((0, 1), (1, 0), (0, 10))}
    assert len(draws) == 3
    assert float(torch.rand((), generator=seeded_generator("sample", 0, 1))) in draws
