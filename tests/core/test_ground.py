from __future__ import annotations

import torch

from mwsis.core.ground import height_above_ground


def sweep(slope: tuple[float, float] = (0.03, -0.02)) -> tuple[torch.Tensor, torch.Tensor]:
    """A tilted road with houses and a noisy surface; returns points and their true heights."""
    generator = torch.Generator().manual_seed(0)
    xy = (torch.rand(6000, 2, generator=generator) - 0.5) * 60
    height = torch.where(xy[:, 1].abs() > 20, torch.rand(6000, generator=generator) * 8, torch.zeros(6000))
    height[:400] = 0.3 + torch.rand(400, generator=generator)  # cars without any ground beneath
    noise = torch.randn(6000, generator=generator) * 0.01
    z = -1.7 + xy @ torch.tensor(slope) + height + noise
    return torch.cat([xy, z[:, None]], 1), height


def test_heights_on_a_tilted_road() -> None:
    xyz, height = sweep()
    assert float((height_above_ground(xyz) - height).abs().max()) < 0.1


def test_the_same_every_time_and_wherever_the_frame_is() -> None:
    xyz, _ = sweep()
    first = height_above_ground(xyz)
    assert torch.equal(first, height_above_ground(xyz))
    assert torch.allclose(first, height_above_ground(xyz + torch.tensor([0.0, 0.0, 30.0])), atol=1e-3)


def test_too_few_points_for_a_plane() -> None:
    assert height_above_ground(torch.zeros(0, 3)).shape == (0,)
    assert height_above_ground(torch.tensor([[1.0, 2.0, 3.0], [1.1, 2.0, 5.0]])).tolist() == [0.0, 2.0]
    far = torch.tensor([[100.0, 0.0, 1.0], [200.0, 0.0, 4.0]])
    assert height_above_ground(far).tolist() == [0.0, 3.0]


def test_a_wall_is_no_ground() -> None:
    wall = torch.cartesian_prod(torch.full((1,), 5.0), torch.arange(-20, 20, 0.1), torch.arange(0, 5, 0.1))
    road = torch.cartesian_prod(torch.arange(0, 5, 0.25), torch.arange(-5, 5, 0.25), torch.zeros(1))
    height = height_above_ground(torch.cat([wall, road]))
    assert float((height - torch.cat([wall, road])[:, 2]).abs().max()) < 0.05
