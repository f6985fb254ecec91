"""The partition equals that of the dense distance matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mwsis.core import clustering
from mwsis.core.clustering import connected_components
from mwsis.core.errors import DataError
from tests.reference import clustering as reference


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_points=st.integers(0, 120),
    num_axes=st.integers(1, 3),
    spread=st.sampled_from([0.3, 1.0, 3.0, 10.0]),
    grouped=st.booleans(),
    lattice=st.sampled_from([None, 0.1, 0.25, 0.6]),
)
def test_equals_brute_force(seed, num_points, num_axes, spread, grouped, lattice):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randn(num_points, num_axes, generator=generator) * spread
    if lattice is not None:  # many distances exactly equal to the radius
        positions = (positions / lattice).round() * lattice
    groups = torch.randint(-2, 3, (num_points,), generator=generator) if grouped else None
    for radius in (0.1, 0.4, 0.6, 0.75):
        ours = connected_components(positions, radius, groups)
        assert torch.equal(ours, reference.connected_components(positions, radius, groups))


def test_a_step_of_exactly_the_radius_does_not_join():
    line = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.5, 0.4999]])
    assert connected_components(line, 0.5).tolist() == [0, 1, 1]


def test_lattice_at_exactly_the_radius_stays_apart_in_every_direction():
    steps = torch.arange(9, dtype=torch.float64) * 0.5
    lattice = torch.cartesian_prod(steps, steps)
    assert connected_components(lattice, 0.5).tolist() == list(range(81))


def test_long_chain_is_one_component():
    chain = torch.stack([torch.arange(5000) * 0.59, torch.zeros(5000)], 1)
    shuffled = chain[torch.randperm(5000, generator=torch.Generator().manual_seed(0))]
    assert int(connected_components(shuffled, 0.6).max()) == 0


def test_groups_are_never_joined():
    same_place = torch.zeros(4, 2)
    assert connected_components(same_place, 1.0, torch.tensor([7, -3, 7, 9])).tolist() == [0, 1, 0, 2]


def test_far_apart_and_far_from_the_origin():
    positions = torch.tensor([[1e12, 0.0], [-1e12, 5.0], [2.5e4, 0.25], [2.5e4, 0.5]], dtype=torch.float64)
    assert connected_components(positions, 0.3).tolist() == [0, 1, 2, 2]


def test_more_cells_than_an_int64_can_number():
    positions = torch.tensor([[1e12, 3e12], [-1e12, 5.0], [2.5e4, 0.25], [2.5e4, 0.5], [2.5e4, 0.7]]).double()
    groups = torch.tensor([2**62, -(2**62), 5, 5, 6])
    assert connected_components(positions, 0.3, groups).tolist() == [0, 1, 2, 2, 3]
    assert connected_components(positions, 0.3).tolist() == [0, 1, 2, 2, 2]


@pytest.mark.parametrize("max_tests", [1, 7, 100])
def test_chunks_do_not_change_the_partition(monkeypatch, max_tests):
    positions = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) * 2
    expected = reference.connected_components(positions, 0.3)
    monkeypatch.setattr(clustering, "MAX_TESTS", max_tests)
    assert torch.equal(connected_components(positions, 0.3), expected)


def test_two_dense_cells_compared_in_chunks():
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(1500, 2, generator=generator) * 0.1
    right = left + torch.tensor([0.65, 0.0])
    apart = connected_components(torch.cat([left, right]), 0.5)
    assert apart.unique().tolist() == [0, 1]
    bridge = torch.tensor([[0.37, 0.05]])
    assert int(connected_components(torch.cat([left, right, bridge]), 0.5).max()) == 0


def test_ids_follow_first_members_and_carry_no_gradient():
    positions = torch.tensor([[9.0, 0.0], [0.0, 0.0], [9.1, 0.0]], requires_grad=True)
    components = connected_components(positions, 1.0)
    assert components.tolist() == [0, 1, 0]
    assert not components.requires_grad


def test_nan_is_refused():
    with pytest.raises(DataError, match="finite"):
        connected_components(torch.tensor([[float("nan"), 0.0]]), 1.0)


@pytest.mark.gpu
def test_cuda_gives_the_same_partition():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    positions = torch.randn(20000, 2, generator=torch.Generator().manual_seed(1)) * 20
    groups = torch.randint(0, 3, (20000,), generator=torch.Generator().manual_seed(2))
    on_device = connected_components(positions.cuda(), 0.4, groups.cuda())
    assert torch.equal(on_device.cpu(), connected_components(positions, 0.4, groups))
