"""The paper's run: its numbers, and the same job, tiny, from Waymo files to scores under both protocols."""

from __future__ import annotations

import json

import pytest

from mwsis.core.errors import ConfigError
from mwsis.core.schedule import EMADecay
from mwsis.data.waymo import v1, v2
from mwsis.data.waymo.street import street_records
from mwsis.training import build
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from tools import evaluate, train

STEPS, STEPS_AN_EPOCH = 71088, 2962


def compose(*overrides):
    return typed(compose_run(["data.root=/nowhere", *overrides]))


@pytest.mark.parametrize("experiment", ["mwsis_waymo", "mwsis_waymo_unetv2"])
@pytest.mark.parametrize("trainer", ["gpu", "ddp", "slurm"])
def test_the_published_schedule(experiment, trainer):
    run = compose(f"experiment={experiment}", f"trainer={trainer}")
    assert (run.trainer.max_steps, run.trainer.frames_per_step) == (STEPS, 8)
    assert run.trainer.devices == (1 if trainer == "gpu" else 4)
    assert run.trainer.slurm == (trainer == "slurm")
    steps = {
        "pairwise": run.method.camera_terms["pairwise"].length,
        "ipg": run.method.camera_terms["ipg"].start,
        "cscs": run.method.lidar_to_camera.start,
        "pvc": run.method.pvc_start,
    }
    epochs = {name: share * STEPS / STEPS_AN_EPOCH for name, share in steps.items()}
    assert epochs == {"pairwise": 3, "ipg": 6, "cscs": 6.75, "pvc": 12}
    assert run.method.camera_to_lidar.start == run.method.lidar_to_camera.start
    for term, weight in ((run.method.lidar_to_camera, 0.5), (run.method.camera_to_lidar, 2.0)):
        assert (term.weight, round(term.length * STEPS)) == (weight, 1000)
    decay = EMADecay(build._ema_maximum(run), run.method.ema_ramp)
    assert decay(1.0) == pytest.approx(0.999, abs=1e-7)
    assert decay(1000 / STEPS) == pytest.approx(1 - 2.718281828 ** (-1000 * 2 / 5000), rel=1e-4)
    camera, lidar = run.camera.optim, run.lidar.optim
    assert (camera.kind, camera.lr, camera.momentum, camera.weight_decay, camera.clip_norm) == (
        "sgd",
        0.01,
        0.9,
        1e-4,
        0,
    )
    assert (lidar.kind, lidar.lr, lidar.weight_decay, lidar.clip_norm, lidar.rise) == ("adamw", 1e-3, 0.05, 10, 0.1)


def test_the_published_networks_and_data():
    run = compose("experiment=mwsis_waymo")
    assert run.data.pad_to == [800, 1344]
    assert run.data.image_widths == [960, 1008, 1056, 1104, 1152, 1200]
    assert run.data.cameras_per_frame is None
    assert run.data.point_cloud_range == [-80, -80, -2, 80, 80, 4]
    assert (run.data.rotation_deg, run.data.scale_jitter, run.data.radii) == (45, 0.05, [0.6, 0.1, 0.4])
    assert (run.lidar.voxel_size, run.lidar.hidden, run.lidar.min_points) == ([0.25, 0.25, 0.2], 128, 1)
    assert (run.lidar.focal_gamma, run.lidar.focal_alpha, run.lidar.semantic_weight) == (3, 0.8, 100)
    camera = build.build_segmentor(
        compose("experiment=mwsis_waymo", "camera.pretrained=false", "method=boxinst", "camera.norm=batch"), 3
    ).camera
    assert sum(value.numel() for value in camera.controller.bias) == 233
    assert camera.mask_branch.tower[0][0].weight.shape[:2] == (128, 128)
    assert (camera.nms_iou, camera.score_threshold) == (0.5, 0.05)


def test_precision_is_checked():
    with pytest.raises(ConfigError, match=r"trainer\.precision"):
        compose("experiment=mwsis_waymo", "trainer.precision=16")
    with pytest.raises(ConfigError, match=r"data\.pad_to"):
        compose("experiment=mwsis_waymo", "data.pad_to=[800,1333]")


@pytest.mark.slow
def test_the_job_runs_from_either_version_to_both_protocols(tmp_path):
    for split, folder, num_frames in (("train", "training", 2), ("val", "validation", 1)):
        made = street_records(
            0, split, 0, num_frames, top=(16, 180), side=(4, 16), image_width=192, label_every=1, num_slices=4
        )
        records = list(made)
        v1.write_segment(tmp_path / "waymo_v1" / folder / "segment-0_with_camera_labels.tfrecord", records)
        v2.write_segment(tmp_path / "waymo_v2" / folder, iter(records))
    for version in ("waymo_v1", "waymo_v2"):
        train.main(
            [
                "experiment=mwsis_waymo_smoke",
                f"data={version}",
                f"data.root={tmp_path / version}",
                f"data.cache={tmp_path / 'cache'}",
                f"out={tmp_path / 'run' / version}",
                "trainer.max_steps=4",
                "trainer.log_every=1",
            ]
        )
    out, twin = (tmp_path / "run" / version for version in ("waymo_v1", "waymo_v2"))
    assert (out / "losses.csv").read_bytes() == (twin / "losses.csv").read_bytes()
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (out, twin))
    assert (first["camera"], first["lidar"], first["labels"]) == (second["camera"], second["lidar"], second["labels"])
    assert first["protocol"]["used"] == "ours"
    assert first["data"]["train_frames"] == 2
    for protocol in ("ours", "published"):
        folder = tmp_path / protocol
        evaluate.main([f"ckpt={out / 'checkpoints/last.ckpt'}", f"out={folder}", f"protocol={protocol}"])
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["protocol"]["used"] == protocol
        assert metrics["protocol"]["known"].keys() == {"ours", "published"}
        assert metrics["camera"]["teacher"].keys() >= {"mask_ap"}
        assert metrics["lidar"]["teacher"].keys() >= {"instance_ap", "miou"}
        assert (metrics["data"]["fingerprint"] == first["data"]["fingerprint"]) == (protocol == "ours")
