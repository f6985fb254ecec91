"""Each shipped experiment fits together."""

import json
from pathlib import Path

import pytest

from lidar.voxelize import Voxelizer
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from tests.data.coco_folder import coco_folder
from tools import train

EXPERIMENTS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_range_is_a_whole_number_of_its_voxels(name):
    root = [] if name == "smoke" else ["data.root=/nowhere"]
    run = typed(compose_run([f"experiment={name}", *root]))
    assert min(Voxelizer(run.lidar.voxel_size, run.data.point_cloud_range).grid_shape_zyx) >= 1


def test_images_in_cocos_format_are_enough(tmp_path):
    """Camera only, from training to the report: there is no point anywhere."""
    settings = ["trainer.max_steps=2", "trainer.frames_per_step=1", "trainer.report_frames=1", "data.image_widths=[64]"]
    folders = [
        f"data.root={coco_folder(tmp_path / 'coco')}",
        f"data.cache={tmp_path / 'cache'}",
        f"out={tmp_path / 'run'}",
    ]
    train.main(["experiment=coco_mini", *settings, *folders])
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["data"]["train_frames"] == 3
    assert metrics["data"]["val_frames"] == 2
    scores = metrics["camera"]["teacher"]
    assert scores["num_objects"] == 3
    assert scores["mask_ap"] is not None
    assert "lidar" not in metrics
    assert (tmp_path / "run/report.html").is_file()
    assert not (tmp_path / "run/export").exists()
