"""Ring segments against the published raster rule and where a raster loses points."""

import numpy as np
import pytest
import torch

from lidar.rings import LOCAL, PUBLISHED, ring_segments
from mwsis.core.frame import LidarGeometry, PointCloud
from tests.reference import rings as reference


def sweep(ring, column, returns, ranges) -> PointCloud:
    count = len(ranges)
    return PointCloud(
        torch.zeros(count, 3),
        torch.zeros(count, 2),
        torch.as_tensor(ranges, dtype=torch.float32),
        torch.as_tensor(ring, dtype=torch.int16),
        torch.as_tensor(column, dtype=torch.int32),
        torch.as_tensor(returns, dtype=torch.int8),
    )


def random_sweep(seed: int, lidar: LidarGeometry, filled: float) -> PointCloud:
    """One point per cell: smooth surfaces with jumps and holes, second returns on some cells."""
    rng = np.random.default_rng(seed)
    surface = 8 + 25 * rng.random((lidar.num_rings, 1)) + np.cumsum(rng.normal(0, 0.08, (lidar.num_rings, 1)), axis=1)
    surface = surface + np.cumsum(rng.normal(0, 0.05, (lidar.num_rings, lidar.num_columns)), axis=1)
    surface += 3 * (rng.random(surface.shape) < 0.2)
    second = surface + rng.choice([0.05, 1.5], surface.shape)
    ranges = np.stack([surface, second], 1).clip(1)
    keep = rng.random(ranges.shape) < np.array([filled, 0.3])[None, :, None]
    ring, returns, column = keep.nonzero()
    order = rng.permutation(len(ring))
    return sweep(ring[order], column[order], returns[order], ranges[keep][order])


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = set(zip(one.tolist(), other.tolist()))
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


@pytest.mark.parametrize("rule", [PUBLISHED, LOCAL], ids=["published", "local"])
@pytest.mark.parametrize(("seed", "columns"), [(0, 2650), (1, 300), (2, 2081), (3, 1084)])
def test_equals_the_rule_on_a_range_image(seed, columns, rule):
    lidar = LidarGeometry(num_rings=3, num_columns=columns)
    points = random_sweep(seed, lidar, filled=(0.9, 0.3)[seed % 2])
    segments = ring_segments(points, lidar, rule=rule).numpy()
    assert same_partition(segments, reference.ring_segments(points, lidar, rule=rule))
    assert sorted(set(segments.tolist())) == list(range(segments.max() + 1))


@pytest.mark.parametrize("seed", [7, 8])
def test_unseen_points_are_left_out_as_if_dropped_before(seed):
    lidar = LidarGeometry(num_rings=3, num_columns=500)
    points = random_sweep(seed, lidar, 0.8)
    seen = torch.rand(len(points), generator=torch.Generator().manual_seed(seed)) < 0.5
    segments = ring_segments(points, lidar, seen)
    assert torch.equal(segments[seen], ring_segments(points[seen], lidar))
    assert set(segments[~seen].tolist()) == {-1}
    assert same_partition(segments.numpy(), reference.ring_segments(points, lidar, seen.numpy()))


def test_unseen_far_return_does_not_widen_the_tolerance():
    points = sweep([0] * 3, [10, 11, 40], [0] * 3, [10.0, 10.1, 50.0])
    assert ring_segments(points, LidarGeometry(1, 2650)).tolist() == [0, 0, 1]
    assert ring_segments(points, LidarGeometry(1, 2650), torch.tensor([True, True, False])).tolist() == [0, 1, -1]
    nothing_seen = torch.zeros(3, dtype=torch.bool)
    assert ring_segments(points, LidarGeometry(1, 2650), nothing_seen).tolist() == [-1, -1, -1]


def test_points_without_ring_or_column_have_no_segment():
    points = sweep([-1, 0, 0, 1], [3, -1, 4, 4], [0, 0, 0, 0], [5.0, 5.0, 5.0, 5.0])
    assert ring_segments(points, LidarGeometry(2, 100)).tolist() == [-1, -1, 0, 1]


def test_empty_sweep():
    assert ring_segments(sweep([], [], [], []), LidarGeometry(64, 2650)).shape == (0,)


def test_points_that_share_a_cell_all_get_a_segment():
    points = sweep([0] * 5, [10, 10, 10, 11, 11], [0] * 5, [20.0, 20.02, 30.0, 20.01, 30.01])
    assert ring_segments(points, LidarGeometry(1, 2650)).tolist() == [0, 0, 1, 0, 1]


def test_second_return_joins_the_first_return_of_its_own_firing_before_a_nearer_range_elsewhere():
    lidar = LidarGeometry(1, 2650)
    points = sweep([0, 0, 0], [9, 10, 10], [0, 0, 1], [10.0, 10.08, 10.04])
    chain = sweep([0, 0], [10, 10], [0, 1], [10.0, 10.04])
    assert ring_segments(points, lidar).tolist() == [0, 1, 1]  # 0.08 m exceeds 0.24 * 10.08 / 50
    assert ring_segments(chain, lidar).tolist() == [0, 0]


def test_window_is_an_angle():
    """At 50 m six of 2650 columns are looked back (exclusive); a sensor with half the columns looks back three."""
    for columns, reach in ((2650, 6), (1325, 3)):
        near = sweep([0, 0], [100, 100 + reach - 1], [0, 0], [50.0, 50.0])
        far = sweep([0, 0], [100, 100 + reach], [0, 0], [50.0, 50.0])
        assert ring_segments(near, LidarGeometry(1, columns)).tolist() == [0, 0]
        assert ring_segments(far, LidarGeometry(1, columns)).tolist() == [0, 1]


def test_no_wrap_from_last_to_first_column():
    points = sweep([0, 0], [0, 2649], [0, 0], [20.0, 20.0])
    assert ring_segments(points, LidarGeometry(1, 2650)).tolist() == [0, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_on_gpu():
    lidar = LidarGeometry(8, 2650)
    points = random_sweep(6, lidar, 0.9)
    on_gpu = PointCloud(*(getattr(points, name).cuda() for name in points.__dataclass_fields__))
    assert torch.equal(ring_segments(on_gpu, lidar).cpu(), ring_segments(points, lidar))


def test_local_rule_joins_across_the_seam_and_the_published_does_not():
    lidar = LidarGeometry(num_rings=1, num_columns=300)
    wall = sweep([0] * 4, [0, 1, 298, 299], [0] * 4, [20.0, 20.05, 20.1, 20.05])
    assert ring_segments(wall, lidar, rule=LOCAL).tolist() == [0, 0, 0, 0]
    assert ring_segments(wall, lidar, rule=PUBLISHED).tolist() == [0, 0, 1, 1]


def test_a_wall_all_around_is_one_segment():
    lidar = LidarGeometry(num_rings=2, num_columns=500)
    column = torch.arange(500).repeat(2)
    ring = torch.arange(2).repeat_interleave(500)
    segments = ring_segments(sweep(ring, column, torch.zeros(1000), torch.full((1000,), 15.0)), lidar, rule=LOCAL)
    assert segments.tolist() == [0] * 500 + [1] * 500


def test_local_rule_does_not_look_at_the_rest_of_the_beam():
    lidar = LidarGeometry(num_rings=1, num_columns=2650)
    near = sweep([0, 0], [100, 101], [0, 0], [10.0, 10.2])
    far = sweep([0, 0, 0], [100, 101, 900], [0, 0, 0], [10.0, 10.2, 75.0])
    assert ring_segments(near, lidar).tolist() == [0, 1]
    assert ring_segments(far, lidar).tolist() == [0, 0, 1], "published: the tolerance is that of 75 m"
    for points in (near, far):
        assert ring_segments(points, lidar, rule=LOCAL)[:2].tolist() == [0, 1]
