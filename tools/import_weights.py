"""Make the weights of another framework, or the camera's of another run, something that a training can start from.

    uv run tools/import_weights.py ckpt=FILE from=mmdet out=FILE [pixel_style=imagenet|caffe] [classes=2,0,1]
        [camera=condinst_r50_mwsis] [camera.<key>=...]
    uv run tools/import_weights.py ckpt=RUN/checkpoints/last.ckpt from=mwsis out=FILE [weights=teacher|student]
        [classes=2,0,1]
    uv run tools/train.py camera.weights=FILE ...
    uv run tools/import_weights.py ckpt=FILE from=openpcdet|mmdet3d|sst|det3d out=FILE [partial=true]
    uv run tools/train.py lidar=unet_v2 lidar.weights=FILE ...

mmdet: a 3.x checkpoint of CondInst or BoxInst (ResNet-50 or -101, FPN). The network is the one the file was made with,
or, with camera=..., that of the configuration. Every tensor must be used once; otherwise nothing is written and the
names are listed. classes: rows of the classifier to keep, in the order of the new classes.
openpcdet, mmdet3d, sst, det3d: a detector's checkpoint, either layout of convolutions; its sparse 3D backbone is taken
(which of ours it is, the keys tell), heads and necks are counted and left out. A detector with the encoder alone fills
part of our network: partial=true agrees to that, and the rest starts from random weights.
Exit code: 0 done, 2 wrong input (one sentence says what).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mwsis.core.errors import ConfigError, WeightMismatchError, closest_name
from mwsis.training.commands import compose_run, run_command, split_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from camera.segmentor import CondInst
    from mwsis.core.weights import LoadReport

CAMERA_ORIGINS = ("mmdet", "mwsis")
LIDAR_ORIGINS = ("openpcdet", "mmdet3d", "sst", "det3d")
ORIGINS = CAMERA_ORIGINS + LIDAR_ORIGINS
CAMERA_ONLY = {"pixel_style": "as recorded", "classes": "all", "weights": "teacher"}
CLASSIFIER = {
    "mmdet": ("bbox_head.conv_cls.weight", "bbox_head.conv_cls.bias"),
    "mwsis": ("head.class_logits.weight", "head.class_logits.bias"),
}


def main(arguments: list[str]) -> None:
    """Read, check, translate, write."""
    defaults = {"ckpt": "", "from": "", "out": "", **CAMERA_ONLY, "partial": "false"}
    own, rest = split_arguments(arguments, defaults)
    if own["from"] not in ORIGINS:
        raise ConfigError(f"from={own['from']}: no such framework" + closest_name(own["from"], ORIGINS))
    if own["partial"] not in ("true", "false") or (own["partial"] == "true" and own["from"] in CAMERA_ORIGINS):
        raise ConfigError(f"partial={own['partial']}: expected true or false, and one of {', '.join(LIDAR_ORIGINS)}")
    if own["from"] in LIDAR_ORIGINS:
        for name in [*rest, *(name for name, default in CAMERA_ONLY.items() if own[name] != default)]:
            raise ConfigError(f"from={own['from']}: '{name}' is about cameras; leave it out")
    for argument in rest:
        if not argument.startswith(("camera=", "camera.")):
            raise ConfigError(f"argument '{argument}': expected {', '.join(defaults)} or camera")
    if own["weights"] not in ("teacher", "student"):
        raise ConfigError(f"weights={own['weights']}: expected teacher or student")
    if own["from"] in LIDAR_ORIGINS:
        _import_backbone(own)
    elif own["from"] == "mmdet":
        _import_mmdet(own, rest)
    else:
        _import_run(own, rest)
    print(f"weights: {own['out']}")


def _import_mmdet(own: dict[str, str], rest: list[str]) -> None:
    from camera import mmdet_weights

    what = own["ckpt"]
    weights, meta = mmdet_weights.read_mmdet(what)
    settings = mmdet_weights.network_settings(weights, what)
    style = _pixel_style(mmdet_weights.pixel_style_of(str(meta.get("cfg", "")), what), own["pixel_style"], what)
    settings["num_classes"] = _keep_classes(weights, own)
    network = _configured_network(rest, settings["num_classes"]) if rest else _own_network(settings)
    report = mmdet_weights.compare_mmdet(weights, network)
    if not report.fits:
        _list(report)
        raise WeightMismatchError(f"{what}: {report}; the file was made with {_described(settings)}")
    facts = {"pixel_style": style, "settings": settings, "origin": own["from"]}
    mmdet_weights.save_camera_weights(own["out"], mmdet_weights.from_mmdet(weights, network), facts)
    print(f"weights: {report}; {_described(settings)}, pixel_style={style}")


def _import_backbone(own: dict[str, str]) -> None:
    """Write the sparse 3D backbone of a detector."""
    from lidar.start_weights import save_lidar_weights
    from mwsis.export.importing import read_backbone

    what, partial = own["ckpt"], own["partial"] == "true"
    found = read_backbone(what, own["from"])
    target = f"{found.adapter.target_class} of {own['from']}"
    if not found.report.fits:
        _list(found.report)
        raise WeightMismatchError(f"{what}: {target}, as {found.adapter.architecture}: {found.report}")
    total = len(found.state) + len(found.missing_parts)
    count = f"{len(found.state)} of the {total} tensors of lidar={found.adapter.architecture}"
    if found.missing_parts and not partial:
        raise WeightMismatchError(
            f"{what}: {target} has {count}; give partial=true to start with these and random others"
        )
    facts = {"origin": own["from"], "class": found.adapter.target_class, "partial": bool(found.missing_parts)}
    save_lidar_weights(own["out"], found.adapter.architecture, found.state, facts)
    left_out = ", ".join(f"{part} ({number})" for part, number in found.left_out.items()) or "nothing"
    print(f"weights: {target}: {count}{', partial' if found.missing_parts else ''}; left out: {left_out}")


def _import_run(own: dict[str, str], rest: list[str]) -> None:
    """Write the camera branch of a run's teacher or student."""
    if rest or own["pixel_style"] != "as recorded":
        raise ConfigError("from=mwsis: the run says what its network is; leave camera and pixel_style out")

    from camera.mmdet_weights import save_camera_weights
    from mwsis.training.checkpoint import read_run_checkpoint
    from mwsis.training.commands import restore_config
    from mwsis.training.config import typed
    from mwsis.training.run import load_run

    what = own["ckpt"]
    state = read_run_checkpoint(what)
    run = typed(restore_config(state["config"]))
    if "camera" not in run.method.branches or run.camera.mmdet is not None or run.camera.mask_rcnn is not None:
        raise ConfigError(f"{what}: method '{run.method.name}' trained no CondInst of ours")
    models = dict(zip(("teacher", "student"), load_run(state, run, len(state["class_names"]), what), strict=True))
    camera = models[own["weights"]].camera
    assert camera is not None
    weights = camera.state_dict()
    settings = {"backbone": run.camera.backbone, "num_classes": _keep_classes(weights, own)}
    facts = {"pixel_style": run.camera.pixel_style, "settings": settings, "origin": own["from"]}
    save_camera_weights(own["out"], weights, facts)
    print(f"weights: {own['weights']} of {run.method.name} on {run.data.name}, {state['global_step']} steps")


def _keep_classes(weights: dict[str, Tensor], own: dict[str, str]) -> int:
    """Leave the asked rows of the classifier in place; return how many there are."""
    names = CLASSIFIER[own["from"]]
    if own["classes"] != "all":
        keep = _rows(own["classes"], len(weights[names[0]]))
        weights.update({name: weights[name][keep] for name in names})
    return len(weights[names[0]])


def _pixel_style(recorded: str | None, asked: str, what: str) -> str:
    from camera.timm_network import PIXEL_STYLES

    if asked == "as recorded":
        if recorded is None:
            raise ConfigError(f"{what} does not say which pixels it wants; give pixel_style={'|'.join(PIXEL_STYLES)}")
        return recorded
    if asked not in PIXEL_STYLES:
        raise ConfigError(f"pixel_style={asked}: no such style" + closest_name(asked, PIXEL_STYLES))
    if recorded not in (None, asked):
        raise ConfigError(f"pixel_style={asked}: {what} was trained with {recorded}; leave pixel_style out")
    return asked


def _rows(asked: str, num_classes: int) -> list[int]:
    rows = [int(part) if part.isdigit() else -1 for part in asked.split(",")]
    if not all(0 <= row < num_classes for row in rows) or len(set(rows)) < len(rows):
        raise ConfigError(f"classes={asked}: expected different numbers from 0 to {num_classes - 1}, comma-separated")
    return rows


def _own_network(settings: dict[str, Any]) -> CondInst:
    """Return the untrained network that the shapes of the file describe."""
    from camera.fcos import PUBLISHED_SIZE_RANGES
    from camera.segmentor import build_condinst

    levels = int(settings["num_levels"])
    ranges = PUBLISHED_SIZE_RANGES[: levels - 1] + PUBLISHED_SIZE_RANGES[-1:]
    return build_condinst(norm="frozen", size_ranges=ranges, **settings)


def _configured_network(overrides: list[str], num_classes: int) -> CondInst:
    """Return the untrained camera branch of a configuration."""
    from camera.segmentor import CondInst
    from mwsis.training.build import build_segmentor
    from mwsis.training.config import typed

    run = typed(compose_run(["method=boxinst", *overrides, "camera.pretrained=false"]))
    network = build_segmentor(run, num_classes).camera
    if not isinstance(network, CondInst):
        raise ConfigError("camera: the weights are a CondInst's; take a CondInst such as camera=condinst_r50")
    return network


def _list(report: LoadReport) -> None:
    for name in report.missing:
        print(f"missing      {name}", file=sys.stderr)
    for name in report.unexpected:
        print(f"unexpected   {name}", file=sys.stderr)
    for name, expected, got in report.wrong_shape:
        print(f"wrong shape  {name}: expected {expected}, got {got}", file=sys.stderr)


def _described(settings: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


if __name__ == "__main__":
    run_command(main, __doc__ or "")
