"""From configuration to objects: transforms, models, method. Every number comes from `configs/`."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from camera.condinst import MASK_STRIDE
from camera.copy_paste import CopyPaste
from camera.mask_rcnn import MaskRCNN
from camera.mmdet_segmentor import build_mmdet
from camera.mmdet_weights import load_camera_weights
from camera.segmentor import CondInst, build_condinst
from camera.sources import MaskSource, Refined
from camera.transforms import ResizeCropFlip
from fusion.depth_maps import DepthSource, FileDepth, LidarDepth
from fusion.segmentor import MultimodalSegmentor
from fusion.step import Method, WeightedTerm
from fusion.transforms import PairedTransform
from lidar.point_head import semantic_loss
from lidar.transforms import RotateScaleFlip
from mwsis.core import segment_ops
from mwsis.core.errors import ConfigError
from mwsis.core.schedule import EMADecay, Ramp
from mwsis.data.depth_files import DepthFolder
from mwsis.data.given_masks import GivenMasks, MaskFile, MixedMasks, TrueMasks
from mwsis.training.config import (
    BRANCHES,
    BranchOptimConfig,
    MethodConfig,
    RunConfig,
    TermConfig,
    instantiated,
)
from mwsis.training.lidar_branch import build_lidar, set_bn_momentum
from mwsis.training.mask_rcnn import build_mask_rcnn, check_mask_rcnn
from mwsis.training.prepare import labelled_images, ring_classes

__all__ = [
    "build_method",
    "build_segmentor",
    "build_transform",
    "check_start",
    "check_training",
    "given_masks",
    "optim_settings",
]

CAMERA_SEED = 1
OTHER_LOSSES = ("classification", "box", "centerness", "from_lidar")
"""Of the camera branch, beside its terms."""
REMEDIES = {
    "target": "pseudo masks; give method.mask_source",
    "pasted": "pasted objects; give method.copy_paste",
    "ema_teacher": "a teacher of its own; set method.ema=true",
    "given_masks": "masks of the boxes; set data.supervision=masks (mixed where images say what they have), or "
    "data.masks to a COCO file",
    "lidar": "the LiDAR branch; add it to method.branches",
    "depth": "depth of the images; set data.depth=lidar, or to a folder that tools/depth.py wrote",
    "depth_output": "a network that says how near things are; set camera.depth_gate=half, and no camera.mmdet",
}
"""What a term or source can need that a run may lack, and what to do about it."""


def check_training(run: RunConfig) -> None:
    """Refuse a run whose camera terms need what nothing provides, or whose file of masks is not one.

    Raises:
        ConfigError: a need without provider; the sentence says what to set. Or a run that fine-tunes.
        DataError: see `mwsis.data.given_masks.MaskFile`.
    """
    if run.finetune is not None:
        raise ConfigError("finetune: this trains from 2D boxes; for given labels run tools/finetune.py task=...")
    if run.method.point_to_mask is not None:
        raise ConfigError(f"method={run.method.name}: this trains from 2D boxes; for points run tools/points.py")
    if "camera" not in run.method.branches:
        return
    method = build_method(run)
    if run.camera.mask_rcnn is not None:
        check_mask_rcnn(method)
    provided = {
        "images": True,
        "teacher": True,  # the student itself where there is no other
        "ema_teacher": run.method.ema,
        "lidar": "lidar" in run.method.branches,
        "given_masks": run.data.supervision != "boxes" or run.data.masks is not None,
        "target": method.mask_source is not None,
        "pasted": method.copy_paste is not None,
        "depth": run.data.depth is not None,
        "depth_output": run.camera.depth_gate is not None and run.camera.mmdet is None,
    }
    for where, asker in _asking(run, method).items():
        for need in sorted(asker.needs):
            if not provided.get(need, False):
                remedy = REMEDIES.get(need, f"'{need}', which nothing here provides; known: {', '.join(provided)}")
                raise ConfigError(f"{where} ({type(asker).__name__}) needs {remedy}")
    given_masks(run)
    if _depth_source(run, method) is None and run.data.depth is not None:
        warnings.warn(
            f"data.depth={run.data.depth}: nothing in method '{run.method.name}' looks at depth", stacklevel=2
        )


def _asking(run: RunConfig, method: Method) -> dict[str, Any]:
    """Return the parts of a method that need something, by setting; a source only if somebody asks for its masks."""
    asking: dict[str, Any] = {
        f"method.camera_terms.{name}": weighted.term for name, weighted in method.camera_terms.items()
    }
    wanted = any(weighted.needs_target for weighted in method.camera_terms.values())
    wanted |= run.camera.mask_rcnn is not None
    if method.mask_source is not None and (wanted or method.camera_to_lidar is not None):
        asking["method.mask_source"] = method.mask_source
    if method.copy_paste is not None:
        asking["method.copy_paste"] = method.copy_paste
    return asking


def _depth_source(run: RunConfig, method: Method) -> DepthSource | None:
    """Return what knows the depth of training images; None where no part of the method looks at it.

    Raises:
        DataError: see `mwsis.data.depth_files.DepthFolder`.
    """
    if "camera" not in run.method.branches or not any("depth" in part.needs for part in _asking(run, method).values()):
        return None
    assert run.data.depth is not None
    return LidarDepth() if run.data.depth == "lidar" else FileDepth(DepthFolder(run.data.depth))


def check_start(run: RunConfig, num_classes: int) -> None:
    """Refuse a new run whose first weights are not there or not its; builds the networks once that have any named.

    Mask R-CNN is built in any case, so that settings of it that do not fit are refused here, too.

    Raises:
        ConfigError, WeightMismatchError: see `build_segmentor`.
    """
    named = {
        "camera": any((run.camera.pretrained, run.camera.weights, run.camera.mmdet, run.camera.mask_rcnn)),
        "lidar": run.lidar.weights is not None,
    }
    if branches := [branch for branch in run.method.branches if named[branch]]:
        build_segmentor(replace(run, method=replace(run.method, branches=branches)), num_classes)


def given_masks(run: RunConfig) -> GivenMasks | None:
    """Return what gives training the masks of its boxes; None where it is trained from boxes.

    Raises:
        ConfigError: supervision is mixed, but no image says what it is labelled with.
        DataError: see `mwsis.data.given_masks.MaskFile`.
    """
    file, supervision = None, run.data.supervision
    if run.data.masks is not None:
        names = instantiated(run.data.source, "data.source").class_names
        file = MaskFile(run.data.masks, names, allow_truth=supervision == "masks")
    if supervision == "mixed":
        if not labelled_images(run, instantiated(run.data.source, "data.source")):
            raise ConfigError(
                f"data.supervision=mixed: no training image of data={run.data.name} says what it is labelled with; "
                'expected data=coco and "supervision": "boxes", "points" or "masks" in the entries of \'images\''
            )
        return MixedMasks(file)
    return TrueMasks() if file is None and supervision == "masks" else file


def build_transform(run: RunConfig, augment: bool) -> PairedTransform:
    """Return what turns frames into samples; without augmentation it is deterministic and keeps every camera.

    Raises:
        ConfigError, DataError: with augmentation, which is for training, see `check_training`.
    """
    if augment:
        check_training(run)
    widths = run.data.image_widths if augment else run.data.image_widths[-1:]
    cameras_per_frame = run.data.cameras_per_frame if augment else None
    crop = run.data.crop if augment else None
    return PairedTransform(
        camera=ResizeCropFlip(widths=widths, crop=(crop[0], crop[1]) if crop else None),
        lidar=RotateScaleFlip(rotation_deg=run.data.rotation_deg, scale=run.data.scale_jitter),
        point_cloud_range=tuple(run.data.point_cloud_range),
        cameras_per_frame=cameras_per_frame,
        only_in_image=run.data.only_in_image,
        load_images=not augment or "camera" in run.method.branches,
        augment=augment,
        strong_view=_strong_view(run) if augment else None,
        with_depth=augment and not run.method.cscs.hidden_pairs,
        given_masks=given_masks(run) if augment and "camera" in run.method.branches else None,
        depth=_depth_source(run, build_method(run)) if augment else None,
        mask_stride=MASK_STRIDE if run.camera.mask_rcnn is None else MaskRCNN.mask_stride,
    )


def _strong_view(run: RunConfig) -> Any:
    return instantiated(run.method.strong_view, "method.strong_view") if run.method.strong_view else None


def build_segmentor(run: RunConfig, num_classes: int, start: bool = True) -> MultimodalSegmentor:
    """Return the untrained model; each branch has its own seed, so leaving one out does not change the other.

    Args:
        run: configuration.
        num_classes: C.
        start: load the weights a new run starts from (``camera.pretrained``, ``camera.weights``, ``lidar.weights``);
            false where those of a checkpoint follow.

    Raises:
        ConfigError, WeightMismatchError: a setting does not fit the others, or such weights are not there or not its.
    """
    camera = lidar = None
    segment_ops.use(run.trainer.segment_ops)
    with torch.random.fork_rng(devices=[]):
        if "camera" in run.method.branches:
            torch.manual_seed(run.seed * 10 + CAMERA_SEED)
            camera = _camera(run, num_classes, start)
            set_bn_momentum(camera, run.camera.bn_momentum)
        if "lidar" in run.method.branches:
            lidar = build_lidar(run, num_classes, start)
    return MultimodalSegmentor(camera, lidar)


def _camera(run: RunConfig, num_classes: int, start: bool) -> CondInst | MaskRCNN:
    if run.camera.mask_rcnn is not None:
        return build_mask_rcnn(run, num_classes, start)
    return (_mmdet_camera if run.camera.mmdet else _own_camera)(run, num_classes, start)


def _own_camera(run: RunConfig, num_classes: int, start: bool) -> CondInst:
    config = run.camera
    camera = build_condinst(
        num_classes,
        backbone=config.backbone,
        pretrained=config.pretrained if start and config.weights is None else False,
        norm=config.norm,
        frozen_stages=config.frozen_stages,
        pixel_style=config.pixel_style,
        channels=config.channels,
        box_bias=config.box_bias,
        prior=config.prior,
        num_convs=config.head_convs,
        centerness_tower=config.centerness_tower,
        mask_branch_channels=config.mask_branch_channels,
        mask_branch_convs=config.mask_branch_convs,
        mask_channels=config.mask_channels,
        mask_hidden=config.mask_hidden,
        depth_gate=config.depth_gate,
        random_mask_start=config.random_mask_start,
        size_ranges=(*config.size_ranges, math.inf),
        box_weight=config.box_weight,
        score_threshold=config.score_threshold,
        nms_iou=config.nms_iou,
        in_bfloat16=run.trainer.precision == "bf16-camera",
        refinement=instantiated(config.refinement, "camera.refinement") if config.refinement else None,
    )
    if start and config.weights is not None:
        load_camera_weights(camera, config.weights)
    return camera


def _mmdet_camera(run: RunConfig, num_classes: int, start: bool) -> CondInst:
    """Return the camera branch that an mmdet configuration describes; thresholds and sizes are that configuration's."""
    assert run.camera.mmdet is not None
    if run.camera.weights is not None:
        raise ConfigError("camera.weights: these are for our own network; leave camera.mmdet or camera.weights out")
    if isinstance(run.camera.pretrained, str):
        raise ConfigError("camera.pretrained: with camera.mmdet its configuration names the weights; set it to true")
    return build_mmdet(
        run.camera.mmdet,
        num_classes,
        pretrained=run.camera.pretrained and start,
        box_weight=run.camera.box_weight,
        in_bfloat16=run.trainer.precision == "bf16-camera",
    )


def build_method(run: RunConfig) -> Method:
    """Return the method's terms, sources and schedules.

    Raises:
        ConfigError: a term cannot be made, or the data set has no such class (`ring_classes`).
    """
    segment_classes = ring_classes(run)
    config = run.method
    if taken := sorted(set(config.camera_terms) & set(OTHER_LOSSES)):
        raise ConfigError(
            f"method.camera_terms.{taken[0]}: a loss of that name exists already; name the term otherwise"
        )
    both = "camera" in config.branches and "lidar" in config.branches
    terms = {
        name: WeightedTerm(instantiated(term.term, f"method.camera_terms.{name}"), _ramp(term))
        for name, term in config.camera_terms.items()
        if term.enabled
    }
    return Method(
        camera_terms=terms if "camera" in config.branches else {},
        mask_source=_mask_source(config),
        copy_paste=_copy_paste(run),
        lidar_to_camera=_ramp(config.lidar_to_camera) if both and config.lidar_to_camera.enabled else None,
        camera_to_lidar=_ramp(config.camera_to_lidar) if both and config.camera_to_lidar.enabled else None,
        hidden_pairs=config.cscs.hidden_pairs,
        border_reach=config.cscs.border_reach,
        record_votes_from=config.pvc_record if config.pvc and "lidar" in config.branches else None,
        correct_votes_from=config.pvc_start,
        votes_agreeing=config.pvc_agree,
        votes_looked_at=config.pvc_of,
        correct_segments_of=segment_classes if config.rsc_labels else (),
        masks_per_image=run.camera.masks_per_image,
        semantic=partial(
            semantic_loss,
            gamma=run.lidar.focal_gamma,
            alpha=run.lidar.focal_alpha,
            weight=run.lidar.semantic_weight,
            class_weights=tuple(run.lidar.class_weights),
        ),
        vote_weight=run.lidar.vote_weight,
        ema_decay=EMADecay(_ema_maximum(run), config.ema_ramp) if config.ema else None,
    )


def _mask_source(config: MethodConfig) -> MaskSource | None:
    if not config.mask_source:
        return None
    source: MaskSource = instantiated(config.mask_source, "method.mask_source")
    return Refined(source) if config.refine_masks else source


def _copy_paste(run: RunConfig) -> CopyPaste | None:
    if not run.method.copy_paste or "camera" not in run.method.branches:
        return None
    if run.data.supervision != "boxes" or run.data.masks is not None:
        raise ConfigError(
            "method.copy_paste: pastes where only boxes are known; set it to null to train on given masks"
        )
    pasting: CopyPaste = instantiated(run.method.copy_paste, "method.copy_paste")
    return pasting


def optim_settings(run: RunConfig) -> dict[str, BranchOptimConfig]:
    """Return the optimiser settings of the branches that are trained."""
    return {branch: getattr(run, branch).optim for branch in BRANCHES if branch in run.method.branches}


def _ema_maximum(run: RunConfig) -> float:
    """Return the decay whose memory is ``method.ema_window`` of the run, whatever its length."""
    return 1 - 1 / max(run.method.ema_window * run.trainer.max_steps, 1.0)


def _ramp(term: TermConfig) -> Ramp:
    return Ramp(weight=term.weight, start=term.start, length=term.length)
