"""Make instance masks of the training images from one point per object, for the segmentor to be trained on.

    uv run tools/points.py data=coco data.root=FOLDER out=DIR
    uv run tools/points.py data=coco data.root=FOLDER semantic=MAPS semantic_source=wsss out=DIR
    uv run tools/points.py resume=DIR                        continue what was interrupted (ctrl-C saves first)
    uv run tools/train.py method=full data=coco data.root=FOLDER data.source.annotations.train=DIR/boxes.json \\
        data.masks=DIR/masks.json                            then train on the result (DIR as a whole path); P2Seg's
                                                             kind of network is camera=mask_rcnn
    uv run tools/train.py method=mixed data.supervision=mixed data=coco data.root=FOLDER data.masks=DIR/masks.json
                                                             where only the images that say so have points

semantic         folder of maps of classes, <image name>.png, 8 bits: 0 background, c + 1 class c, 255 unknown. Left
                 out, they are made first: a classifier of images learns which classes have a point in an image, nothing
                 else of the annotations; its class activation maps, sharpened by colours and corrected by the points,
                 become DIR/maps. What every image shows is not learned so, and from random weights little in few steps
semantic_source  who made them: wsss (from image-level labels), sam, or gt (people; the masks are then tagged gt)
classes          network (default): masks are of the class that the network sees; maps: of that in the maps wherever
                 they know one, for maps that are better than what is learned from them
points           annotated ("point": [x, y] in each annotation), or box_centre where one without may have its box's
drift            moves all points once, standard deviation in px: what do worse points cost?

Other settings are key=value as in tools/train.py: seed=0 trainer.max_steps=N trainer.frames_per_step=8
data.image_widths=[...] data.crop=[416,416] method.point_to_mask.backbone=resnet18 camera.optim.lr=5e-4
method.point_to_mask.losses.refine=false method.point_to_mask.cam.share=0.15 (the classifier's steps, of max_steps) ...

DIR holds masks.json, boxes.json, metrics.json, config.yaml, losses.csv, checkpoints/last.ckpt and, where maps were made
in the run, maps/ and cam/, the classifier's training. Where the annotations have masks, metrics.json has the mean IoU
with them (`gt_mask_iou`) for both kinds of classes, and beside it that of masks made without training: a square of 64
px, the pixels of the class nearest to the point, and its watershed. Training never reads them. Exit code: 0 done, 2
wrong input, 3 stopped by a full disk or losses that are not finite, 130 interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mwsis.core.errors import ConfigError
from mwsis.training.commands import compose_run, progress_line, run_command
from tools.train import interrupted, or_exit

if TYPE_CHECKING:
    from camera.point_to_mask.activation_maps import ActivationStep
    from camera.point_to_mask.instances_from_semantics import PointMasks
    from camera.point_to_mask.settings import PointData, PointToMask
    from mwsis.core.instances import MaskSet
    from mwsis.data.coco_json import Instances
    from mwsis.training.config import RunConfig
    from mwsis.training.folder import RunFolder

SHORT = ("semantic", "semantic_source", "classes", "points", "drift", "augment_drift")
"""Settings of `PointToMask` that may be given without its name."""


def main(arguments: list[str]) -> None:
    """Compose, train, export, score."""
    method = [] if any(argument.startswith(("method=", "resume=")) for argument in arguments) else ["method=p2seg"]
    config = compose_run([*method, *(as_override(argument) for argument in arguments)])

    from mwsis.training.config import instantiated
    from mwsis.training.folder import open_run

    if config.resume is not None and len(arguments) > 1:
        raise ConfigError("resume=... takes every setting from the run's config.yaml; remove the others")
    began = time.monotonic()
    run, folder = open_run(config)
    if run.method.point_to_mask is None:
        raise ConfigError(f"method={run.method.name}: expected a method that trains from points, such as p2seg")
    if run.trainer.devices * run.trainer.nodes > 1:
        raise ConfigError("trainer.devices: training from points runs in one process; set trainer.devices=1")
    if run.trainer.score_every:
        raise ConfigError("trainer.score_every: training from points is scored at its end only; leave it out")
    settings: PointToMask = instantiated(run.method.point_to_mask, "method.point_to_mask")
    pointed = settings.read(run.data.source, run.data.train_split, run.seed, folder.root / "maps")
    if not folder.config.exists():
        check_networks(run, settings, len(pointed.class_names))
    if settings.semantic is None:
        make_maps(run, folder, settings, pointed)
    train(run, folder, settings, pointed)
    write_results(run, folder, settings, pointed, began)
    print(f"run: {folder.root}")


def as_override(argument: str) -> str:
    """Return an argument of this command as a setting of the run."""
    return f"method.point_to_mask.{argument}" if argument.partition("=")[0] in SHORT else argument


def check_networks(run: RunConfig, settings: PointToMask, num_classes: int) -> None:
    """Refuse networks that cannot be built, before anything is written.

    Raises:
        ConfigError, WeightMismatchError: why not.
    """
    settings.network(num_classes, run.seed, start=True)
    if settings.semantic is None:
        settings.activation_network(num_classes, run.seed, start=True)


def make_maps(run: RunConfig, folder: RunFolder, settings: PointToMask, pointed: PointData) -> None:
    """Train the classifier of images, or continue, and write the maps of classes that are not there yet.

    Raises:
        KeyboardInterrupt: it was interrupted and can be continued.
    """
    from camera.point_to_mask.activation_maps import ActivationStep, always_shown, collate_labelled
    from mwsis.training.folder import RunFolder
    from mwsis.training.run import fit

    if not folder.config.exists() and pointed.maps.folder.exists():
        raise ConfigError(
            f"out={folder.root}: already holds 'maps', which no run made; give another folder, or name them as "
            f"semantic={pointed.maps.folder} with semantic_source"
        )
    own = RunFolder(folder.root / "cam")
    steps = math.ceil(settings.cam.share * run.trainer.max_steps)
    names = pointed.class_names

    def new_step() -> ActivationStep:
        return ActivationStep(settings.activation_network(len(names), run.seed, start=not own.checkpoint.exists()))

    def whole(said: str) -> str:
        return said.replace(f"resume={own.root}", f"resume={folder.root}")

    folder.keep_config(run)
    if blind := always_shown(pointed.images):
        print(
            f"warning: every image shows {', '.join(names[label] for label in blind)}: where, cannot be learned from "
            "image-level labels; add images without, or give semantic=FOLDER"
        )
    one = replace(run, trainer=replace(run.trainer, max_steps=steps))
    samples = settings.activation_samples(pointed, run.data.image_widths, run.seed)
    if not or_exit(lambda: fit(one, own, pointed, new_step, samples, collate_labelled), whole):  # type: ignore[arg-type]
        interrupted("points", folder)
    write_maps(run, own, settings, pointed, new_step())


def write_maps(run: RunConfig, own: RunFolder, settings: PointToMask, pointed: PointData, step: ActivationStep) -> None:
    """Write the maps of classes that are not there yet, as the trained classifier sees them."""
    import torch

    from camera.point_to_mask.activation_maps import activations
    from camera.point_to_mask.class_maps import class_map
    from camera.point_to_mask.samples import load_image
    from mwsis.training.checkpoint import read_run_checkpoint, restore

    restore(read_run_checkpoint(own.checkpoint), step, str(own.checkpoint))
    on_gpu = run.trainer.accelerator != "cpu" and torch.cuda.is_available()
    network: Any = step.student["camera"].eval().to("cuda" if on_gpu else "cpu")
    widths = [round(scale * max(run.data.image_widths)) for scale in settings.cam.scales]
    for done, image in enumerate(pointed.images, 1):
        if not pointed.maps.path_of(image).exists():
            pixels = load_image(pointed.folder, image)
            found = activations(network, pixels, image.points.classes, widths)
            pointed.maps.write(image, class_map(found, pixels, image.points, settings.cam))
        progress_line("maps", done, len(pointed.images))
    pointed.maps.check(pointed.images)


def train(run: RunConfig, folder: RunFolder, settings: PointToMask, pointed: PointData) -> None:
    """Train, or continue.

    Raises:
        KeyboardInterrupt: it was interrupted and can be continued.
    """
    from camera.point_to_mask.samples import collate_points
    from camera.point_to_mask.step import PointStep
    from camera.transforms import ResizeCropFlip
    from mwsis.training.run import fit

    def new_step() -> PointStep:
        network = settings.network(len(pointed.class_names), run.seed, start=not folder.checkpoint.exists())
        return PointStep(network, settings.losses)

    crop = run.data.crop
    geometry = ResizeCropFlip(run.data.image_widths, crop=(crop[0], crop[1]) if crop else None)
    samples = settings.samples(pointed, geometry, run.seed)
    if not or_exit(lambda: fit(run, folder, pointed, new_step, samples, collate_points)):  # type: ignore[arg-type]
        interrupted("points", folder)


def write_results(run: RunConfig, folder: RunFolder, settings: PointToMask, pointed: PointData, began: float) -> None:
    """Write the masks, their boxes and the scores."""
    from camera.point_to_mask.export import write_boxes, write_masks
    from camera.point_to_mask.step import PointStep
    from mwsis.core.files import write_json
    from mwsis.evaluation.coco_masks import json_masks
    from mwsis.training.checkpoint import read_run_checkpoint, restore

    state = read_run_checkpoint(folder.checkpoint)
    step = PointStep(settings.network(len(pointed.class_names), run.seed, start=False), settings.losses)
    restore(state, step, str(folder.checkpoint))
    found = predictions(run, step.student["camera"].eval(), settings, pointed)  # type: ignore[arg-type]
    chosen = found[settings.classes]
    names, source = pointed.class_names, pointed.maps.source
    maps_from = source if settings.semantic is not None else "made of the points' classes"
    write_masks(folder.root / "masks.json", pointed.images, chosen, names, source, json_masks)
    write_boxes(folder.root / "boxes.json", pointed.images, chosen, pointed.categories)
    weights = [float(weight) for one in chosen for weight in one.weight]
    drawn = annotations_of(pointed)
    scores = {classes: gt_mask_iou(pointed, drawn, (one.masks for one in masks)) for classes, masks in found.items()}
    untrained = {name: gt_mask_iou(pointed, drawn, masks) for name, masks in untrained_masks(pointed).items()}
    metrics: dict[str, Any] = {
        "labels_used": f"one point per object ({settings.points}) and maps of classes ({maps_from})",
        "points": len(weights),
        "masks_of": settings.classes,
        "without_mask": sum(weight == 0 for weight in weights),
        "mean_score": sum(weights) / max(sum(weight > 0 for weight in weights), 1),
        "gt_mask_iou": scores,
        "gt_mask_iou_untrained": untrained,
        "steps": state["global_step"],
        "skipped_steps": state["skipped_steps"],
        "seed": run.seed,
        "wall_s": round(time.monotonic() - began, 1),
    }
    write_json(folder.metrics, metrics)
    rows = {**{f"classes={classes}": score for classes, score in scores.items()}, **untrained}
    said = ", ".join(f"{name} {score:.3f}" for name, score in rows.items() if score is not None)
    print(f"{metrics['points']} points, {metrics['without_mask']} without a mask")
    print(f"mean IoU with gt_ masks: {said}" if said else "no gt_ masks to compare with")


def predictions(run: RunConfig, network: Any, settings: PointToMask, pointed: PointData) -> dict[str, list[PointMasks]]:
    """Return the masks of all points of all images, as the network sees them at the largest width, by their classes."""
    from camera.point_to_mask.instances_from_semantics import masks_of_points
    from camera.point_to_mask.samples import load_image
    from camera.point_to_mask.settings import CLASSES
    from camera.point_to_mask.step import predict_dense
    from camera.transforms import ResizeCropFlip

    found: dict[str, list[PointMasks]] = {classes: [] for classes in CLASSES}
    for done, image in enumerate(pointed.images, 1):
        size = (image.height, image.width)
        geometry = ResizeCropFlip(run.data.image_widths).deterministic([size])[0]
        pixels = geometry.apply_image(load_image(pointed.folder, image))
        prob, offsets = predict_dense(network, settings.losses, pixels, size)
        found["network"].append(masks_of_points(prob, offsets, image.points))
        found["maps"].append(masks_of_points(prob, offsets, image.points, pointed.maps.of(image)))
        progress_line("masks", done, len(pointed.images))
    return found


def annotations_of(pointed: PointData) -> Instances | None:
    """Return the annotations with their masks; None, and a line that says why, where they cannot be read.

    Evaluation alone: training has ended when this reads the annotations' masks.
    """
    from mwsis.core.errors import DataError
    from mwsis.data.coco_json import read_instances

    state = pointed.path.stat()
    try:
        return read_instances(pointed.path, state.st_size, state.st_mtime_ns)
    except DataError as error:  # mostly points alone, without the boxes that this reader expects
        print(f"not scored: {error}")
        return None


def gt_mask_iou(pointed: PointData, instances: Instances | None, masks: Iterable[MaskSet]) -> float | None:
    """Return the mean IoU of the points' masks with the annotations'; without any None, and no mask is asked for."""
    import torch

    from mwsis.data.coco_json import decoded_mask

    if instances is None:
        return None
    overlaps = []
    for image, own in zip(pointed.images, masks, strict=True):
        listed = instances.images[instances.index[str(image.id)]]
        drawn = {one.id: one for one in instances.annotations[listed.id]}
        for index, number in enumerate(image.ids):
            one = drawn.get(str(number))
            if one is None or one.segmentation is None:
                continue
            gt = torch.from_numpy(decoded_mask(pointed.path, one, listed))
            mask = own.dense(index)
            overlaps.append(float((mask & gt).sum() / (mask | gt).sum().clamp(min=1)))
    return sum(overlaps) / len(overlaps) if overlaps else None


def untrained_masks(pointed: PointData) -> dict[str, Iterator[MaskSet]]:
    """Return what the points, the maps of classes and the images give without training, made as it is asked for."""
    from camera.point_to_mask.baselines import nearest_points, squares, watersheds
    from camera.point_to_mask.samples import load_image

    maps, folder = pointed.maps, pointed.folder
    return {
        "square": (squares(one.points, (one.height, one.width)) for one in pointed.images),
        "nearest_point": (nearest_points(maps.of(one), one.points) for one in pointed.images),
        "watershed": (watersheds(load_image(folder, one), maps.of(one), one.points) for one in pointed.images),
    }


if __name__ == "__main__":
    run_command(main, __doc__ or "")
