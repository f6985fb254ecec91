"""Each shipped experiment fits together."""

from pathlib import Path

import pytest

from lidar.voxelize import Voxelizer
from mwsis.training.commands import compose_run
from mwsis.training.config import typed

EXPERIMENTS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_range_is_a_whole_number_of_its_voxels(name):
    root = [] if name == "smoke" else ["data.root=/nowhere"]
    run = typed(compose_run([f"experiment={name}", *root]))
    assert min(Voxelizer(run.lidar.voxel_size, run.data.point_cloud_range).grid_shape_zyx) >= 1
