"""Write the pretrained 3D backbone of a run for another framework.

    uv run tools/export.py ckpt=RUN/checkpoints/last.ckpt to=openpcdet out=DIR [weights=teacher|student]

Writes OpenPCDet checkpoints (UNetV2, and its encoder as VoxelBackBone8x), backbone.safetensors and manifest.json.
Exit code: 0 done, 2 wrong input (one sentence says what).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mwsis.core.errors import ConfigError, closest_name
from mwsis.training.commands import restore_config, run_command, split_arguments

TARGETS = ("openpcdet",)
EXPORTED_NETWORKS = ("unet_v2",)


def main(arguments: list[str]) -> None:
    """Load and write."""
    own, rest = split_arguments(arguments, {"ckpt": "", "to": "", "out": "", "weights": "teacher"})
    if rest:
        raise ConfigError(f"argument '{rest[0]}': this command takes ckpt, to, out and weights; see --help")
    if own["to"] not in TARGETS:
        raise ConfigError(f"to={own['to']}: no such target" + closest_name(own["to"], TARGETS))
    if own["weights"] not in ("teacher", "student"):
        raise ConfigError(f"weights={own['weights']}: expected teacher or student")

    from mwsis.training.checkpoint import read_run_checkpoint

    state = read_run_checkpoint(own["ckpt"])
    export_run(state, own["ckpt"], Path(own["out"]), own["weights"], {})


def export_run(state: dict[str, Any], what: str, out: Path, weights: str, metrics: dict[str, Any]) -> None:
    """Export the 3D backbone of a checkpoint and print the files.

    Args:
        state: the checkpoint.
        what: its name in errors.
        out: folder.
        weights: ``teacher`` or ``student``.
        metrics: scores for the manifest; may be empty.
    """
    import hashlib

    from mwsis.export.neutral import ExportFacts, export_backbone
    from mwsis.training.config import typed
    from mwsis.training.evaluate import labels_used
    from mwsis.training.run import load_run

    run = typed(restore_config(state["config"]))
    if "lidar" not in run.method.branches:
        raise ConfigError(f"{what}: method '{run.method.name}' trained no LiDAR branch, there is no backbone to export")
    if run.lidar.network not in EXPORTED_NETWORKS:
        known = ", ".join(EXPORTED_NETWORKS)
        raise ConfigError(f"{what}: lidar.network={run.lidar.network} cannot be exported yet, only {known}")
    models = dict(zip(("teacher", "student"), load_run(state, run, len(state["class_names"]), what), strict=True))
    lidar = models[weights].lidar
    assert lidar is not None
    x, y, z = run.lidar.voxel_size
    x0, y0, z0, x1, y1, z1 = run.data.point_cloud_range
    facts = ExportFacts(
        voxel_size=(x, y, z),
        point_cloud_range=(x0, y0, z0, x1, y1, z1),
        class_names=tuple(state["class_names"]),
        weights_of=weights,
        step=state["global_step"],
        data_set=run.data.name,
        data_fingerprint=state["data_fingerprint"],
        config_hash=hashlib.sha256(state["config"].encode()).hexdigest(),
        seed=run.seed,
        label_type=labels_used(run),
        point_filter="in point_cloud_range" + (" and in at least one image" if run.data.only_in_image else ""),
        metrics={name: value for name, value in metrics.items() if value is not None},
    )
    for path in export_backbone(lidar.backbone, out, facts):
        print(f"export: {path}")


if __name__ == "__main__":
    run_command(main, __doc__ or "")
