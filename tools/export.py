"""Write the pretrained 3D backbone of a run for other frameworks, with a check and a guide for each.

    uv run tools/export.py ckpt=RUN/checkpoints/last.ckpt out=DIR
        [to=openpcdet,mmdet3d,sst,det3d,neutral]   frameworks or classes of theirs; left out: all that the network fits
        [weights=teacher|student]
        [in_channels=4]                            for detectors without elongation
        [initial_length=true]                      layers before a norm get the length of fresh ones: what the network
                                                   computes stays, and it learns as fast as a fresh one again
        [recalibrate_bn=N [data=... data.root=...]]   norms measured again on N training frames, all points in range

unet_v2 becomes UNetV2 and VoxelBackBone8x (openpcdet), SparseUNet and SparseEncoder (mmdet3d); res8x_unet becomes
VoxelResBackBone8x (openpcdet), SparseEncoder with residual blocks (mmdet3d), SpMiddleResNetFHD (det3d); fsd_unet
becomes SimpleSparseUNet with its voxel encoder (sst). DIR holds their files, backbone.safetensors, manifest.json,
parity.npz, and per framework verify_<framework>.py and README_<framework>.md.
Exit code: 0 done, 2 wrong input (one sentence says what).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwsis.core.errors import ConfigError
from mwsis.training.commands import compose_run, progress_line, restore_config, run_command, split_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mwsis.core.batch import PointBatch
    from mwsis.core.frame import Frame
    from mwsis.export.folder import ExportFacts
    from mwsis.training.config import RunConfig

COORDINATES = {"KittiSource": "velodyne: x forward, y left, z up, origin in the LiDAR, 1.73 m above the ground"}
"""Of data sets whose vehicle frame has not its origin on the ground."""
OWN = {
    "ckpt": "",
    "out": "",
    "to": "all",
    "weights": "teacher",
    "in_channels": "5",
    "initial_length": "false",
    "recalibrate_bn": "0",
}


def main(arguments: list[str]) -> None:
    """Load and write."""
    own, overrides = split_arguments(arguments, OWN)
    if own["weights"] not in ("teacher", "student"):
        raise ConfigError(f"weights={own['weights']}: expected teacher or student")
    if own["initial_length"] not in ("true", "false"):
        raise ConfigError(f"initial_length={own['initial_length']}: expected true or false")
    for name in ("in_channels", "recalibrate_bn"):
        if not own[name].isdigit():
            raise ConfigError(f"{name}={own[name]}: expected a number")
    num_frames = int(own["recalibrate_bn"])
    if overrides and not num_frames:
        raise ConfigError(
            f"argument '{overrides[0]}': a data set is for recalibrate_bn=N alone, beside {', '.join(OWN)}"
        )
    wanted = [] if own["to"] == "all" else [name for name in own["to"].strip("[]").split(",") if name]
    _check_names(wanted)

    from mwsis.export.targets import adapters_for
    from mwsis.training.checkpoint import read_run_checkpoint
    from mwsis.training.config import typed

    state = read_run_checkpoint(own["ckpt"])
    adapters_for(typed(restore_config(state["config"])).lidar.network, wanted)
    measured_on = frames_to_measure(state, overrides, num_frames) if num_frames else None
    scores = scores_of(Path(own["ckpt"]), state["global_step"], own["weights"])
    export_run(
        state,
        own["ckpt"],
        Path(own["out"]),
        own["weights"],
        scores,
        wanted,
        in_channels=int(own["in_channels"]),
        initial_length=own["initial_length"] == "true",
        measured_on=measured_on,
    )


def _check_names(wanted: list[str]) -> None:
    """Refuse a target that no network fits before anything is read."""
    from mwsis.export.targets import ADAPTERS, adapters_for

    for name in wanted:
        fitting = [adapter for adapter in ADAPTERS if name in (adapter.framework, adapter.target_class)]
        adapters_for(fitting[0].architecture if fitting else ADAPTERS[0].architecture, [name])


def export_run(
    state: dict[str, Any],
    what: str,
    out: Path,
    weights: str,
    metrics: dict[str, Any],
    wanted: list[str] | None = None,
    *,
    in_channels: int = 5,
    initial_length: bool = False,
    measured_on: tuple[str, Iterator[PointBatch]] | None = None,
) -> None:
    """Export the 3D backbone of a checkpoint and print the files.

    Args:
        state: the checkpoint.
        what: its name in errors.
        out: folder.
        weights: ``teacher`` or ``student``.
        metrics: scores for the manifest, which states them where the weights are as they were scored.
        wanted: targets; None for all that the network fits.
        in_channels: 5, or 4 without elongation.
        initial_length: see `mwsis.core.weights.at_initial_length`.
        measured_on: words for frames and these, on which norms are measured again; None to leave them.
    """
    from mwsis.export.folder import export_backbone, licence_note
    from mwsis.export.recalibrate import recalibrate_norms
    from mwsis.training.config import typed
    from mwsis.training.lidar_branch import build_lidar, trained_lidar

    run = typed(restore_config(state["config"]))
    if run.finetune is not None:
        raise ConfigError(f"{what}: a fine-tuned network; export the run that it was pretrained in")
    if "lidar" not in run.method.branches:
        raise ConfigError(f"{what}: method '{run.method.name}' trained no LiDAR branch, there is no backbone to export")
    lidar = trained_lidar(state, run, weights, what)
    notes = {} if in_channels == 5 else {"in_channels": f"{in_channels}: the weights of elongation are left out"}
    if initial_length:
        from mwsis.core.weights import at_initial_length

        at_initial_length(lidar, build_lidar(run, lidar.num_classes, start=False).state_dict())
        notes["initial_length"] = "layers before a norm have the length of fresh ones; what is computed is the same"
    if measured_on is not None:
        words, batches = measured_on
        recalibrate_norms(lidar, batches)
        notes["recalibrated_bn"] = words
    facts = replace(_facts(state, run), weights_of=weights if run.method.ema else "student", notes=notes)
    if not notes:
        facts = replace(facts, metrics={name: value for name, value in metrics.items() if value is not None})
    for path in export_backbone(lidar, out, facts, wanted or (), in_channels):
        print(f"export: {path}")
    print(f"licence: {licence_note(run.data.name)}")


def frames_to_measure(state: dict[str, Any], overrides: list[str], num_frames: int) -> tuple[str, Iterator[PointBatch]]:
    """Return words for N training frames, evenly spread, and their points: all in range, whether on an image or not.

    Raises:
        ConfigError: an override is not about the data set, or it has fewer frames.
    """
    from mwsis.training.config import typed
    from mwsis.training.prepare import build_source, prepare

    trained = typed(restore_config(state["config"]))
    asked = compose_run(overrides) if overrides else None
    run = typed(restore_config(state["config"], asked, overrides))
    data = replace(run.data, point_cloud_range=trained.data.point_cloud_range, only_in_image=False)
    run = replace(run, data=data)
    frames = prepare(run, build_source(run), progress_line).train.frames
    if num_frames > len(frames):
        raise ConfigError(f"recalibrate_bn={num_frames}: {data.name} has {len(frames)} training frames")
    chosen = [index * len(frames) // num_frames for index in range(num_frames)]
    words = f"{num_frames} frames of {data.name} ({data.train_split}), all points in point_cloud_range"
    return words, _points(run, frames, chosen)


def _points(run: RunConfig, frames: Sequence[Frame], chosen: list[int]) -> Iterator[PointBatch]:
    from mwsis.data.dataset import FrameDataset, collate
    from mwsis.training.build import build_transform

    transform = replace(build_transform(run, augment=False), load_images=False)
    samples = FrameDataset(frames, None, transform, seed=0)
    for done, index in enumerate(chosen, 1):
        yield collate([samples[index]]).points
        progress_line("recalibrate", done, len(chosen))


def _facts(state: dict[str, Any], run: RunConfig) -> ExportFacts:
    from mwsis.export.folder import ON_THE_GROUND, ExportFacts
    from mwsis.report.html import provenance
    from mwsis.training.config import labels_used

    return ExportFacts(
        class_names=tuple(state["class_names"]),
        weights_of="teacher",
        step=state["global_step"],
        frames_seen=state["global_step"] * run.trainer.frames_per_step,
        data_set=run.data.name,
        split=run.data.train_split,
        data_fingerprint=state["data_fingerprint"],
        config_hash=hashlib.sha256(state["config"].encode()).hexdigest(),
        seed=run.seed,
        label_type=labels_used(run),
        coordinate_frame=COORDINATES.get(run.data.source["_target_"].rpartition(".")[2], ON_THE_GROUND),
        point_filter=_point_filter(run),
        git_commit=provenance().get("Git commit", ""),
    )


def _point_filter(run: RunConfig) -> str:
    """Say in words which points the network was trained on."""
    recorded = {name: run.data.source[name] for name in ("lidars", "returns") if name in run.data.source}
    said = ["in point_cloud_range"] + ["in at least one image"] * run.data.only_in_image
    return ", ".join(said + [f"{name} {value}" for name, value in recorded.items()])


def scores_of(checkpoint: Path, step: int, weights: str) -> dict[str, Any]:
    """Return the scores that the run of a checkpoint wrote beside it; none where it was not evaluated at that step."""
    path = checkpoint.parent.parent / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if metrics.get("steps") != step:
        return {}
    return (metrics.get("lidar") or {}).get(weights) or {}


if __name__ == "__main__":
    run_command(main, __doc__ or "")
