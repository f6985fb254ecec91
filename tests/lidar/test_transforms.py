from __future__ import annotations

import math

import pytest
import torch

from lidar.transforms import RotateScaleFlip
from mwsis.core.errors import ConfigError


def drawn(transform: RotateScaleFlip, count: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([transform.draw(generator) for _ in range(count)])


def test_draws_stay_within_their_bounds_and_reach_them() -> None:
    matrices = drawn(RotateScaleFlip()).double()
    factors = matrices[:, 2, 2]
    assert 0.95 <= factors.min() < 0.96
    assert 1.04 < factors.max() <= 1.05
    plane = matrices[:, :2, :2]
    assert torch.allclose(torch.linalg.det(plane).abs(), factors**2, atol=1e-6)
    # Mirroring both axes is half a turn: of the direction of x only the line within the wedge is known.
    turn = torch.atan2(plane[:, 1, 0].abs(), plane[:, 0, 0].abs()).rad2deg()
    assert turn.max() <= 45.001
    assert turn.max() > 43
    mirrored_x, mirrored_y = plane[:, 0, 0] < 0, plane[:, 1, 1] < 0
    for mirrored in (mirrored_x, mirrored_y, mirrored_x == mirrored_y):
        assert 0.4 < mirrored.double().mean() < 0.6


def test_distances_scale_by_one_factor() -> None:
    xyz = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    transform = RotateScaleFlip()
    moved = transform(xyz, torch.Generator().manual_seed(5))
    factor = transform.draw(torch.Generator().manual_seed(5))[2, 2]
    assert torch.allclose(torch.pdist(moved), torch.pdist(xyz) * factor, rtol=1e-4)
    assert torch.equal(moved, transform(xyz, torch.Generator().manual_seed(5)))


def test_nothing_to_draw_is_the_identity() -> None:
    assert torch.equal(drawn(RotateScaleFlip(0.0, 0.0, 0.0), 1)[0], torch.eye(3))


def test_a_quarter_turn_is_anticlockwise() -> None:
    class HighestDraw:
        def __call__(self, *args: object, **kwargs: object) -> torch.Tensor:
            return torch.tensor([1.0, 0.5, 1.0, 1.0], dtype=torch.float64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", HighestDraw())
        matrix = RotateScaleFlip(rotation_deg=90).draw(torch.Generator())
    assert torch.allclose(matrix @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)
    assert math.isclose(float(torch.linalg.det(matrix)), 1.0, rel_tol=1e-6)


@pytest.mark.parametrize("setting", [{"rotation_deg": -1}, {"scale": 1.0}, {"scale": -0.1}, {"flip_prob": 1.1}])
def test_settings_are_checked(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        RotateScaleFlip(**setting)
