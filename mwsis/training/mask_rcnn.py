"""Mask R-CNN as the camera branch of a run (``camera=mask_rcnn``): built from its configuration, or refused in time.

It trains on given masks with losses of its own (`camera.mask_rcnn`), so of all methods only `full` fits it.
"""

from __future__ import annotations

from camera.backbone import ImageBackbone
from camera.mask_rcnn import STRIDES, MaskRCNN
from camera.sources import OfflineMasks
from fusion.step import Method
from mwsis.core.errors import ConfigError
from mwsis.training.config import CameraConfig, RunConfig, instantiated

__all__ = ["build_mask_rcnn", "check_mask_rcnn", "unused_settings"]

OF_CONDINST = (
    *("mask_channels", "mask_hidden", "depth_gate", "prior", "box_bias", "head_convs", "centerness_tower"),
    *("mask_branch_channels", "mask_branch_convs", "random_mask_start", "size_ranges", "masks_per_image"),
    *("box_weight", "projection_weight", "pair_dilation"),
)
"""Settings of `CameraConfig` that Mask R-CNN has no use for."""


def build_mask_rcnn(run: RunConfig, num_classes: int, start: bool) -> MaskRCNN:
    """Return the untrained camera branch.

    Args:
        run: configuration with ``camera.mask_rcnn``.
        num_classes: C.
        start: load ``camera.pretrained``; false where the weights of a checkpoint follow.

    Raises:
        ConfigError, WeightMismatchError: a setting does not fit, or such weights are not there or not its.
    """
    config, own = run.camera, run.camera.mask_rcnn
    assert own is not None
    for name in ("weights", "mmdet"):
        if getattr(config, name) is not None:
            raise ConfigError(f"camera.{name}: that is for CondInst, and Mask R-CNN starts from camera.pretrained")
    body = ImageBackbone(
        config.backbone,
        pretrained=config.pretrained if start else False,
        norm=config.norm,
        frozen_stages=config.frozen_stages,
        pixel_style=config.pixel_style,
        strides=STRIDES,
    )
    return MaskRCNN(
        body,
        num_classes,
        channels=config.channels,
        anchor_sizes=tuple(own.anchor_sizes),
        anchors_per_image=own.anchors_per_image,
        proposals_train=own.proposals_train,
        proposals_test=own.proposals_test,
        boxes_per_image=own.boxes_per_image,
        box_channels=own.box_channels,
        mask_channels=own.mask_channels,
        score_threshold=config.score_threshold,
        nms_iou=config.nms_iou,
        refinement=instantiated(config.refinement, "camera.refinement") if config.refinement else None,
        in_bfloat16=run.trainer.precision == "bf16-camera",
    )


def check_mask_rcnn(method: Method) -> None:
    """Refuse a method that asks for more than given masks.

    Raises:
        ConfigError: it does; the sentence says what to set.
    """
    asked = [f"method.camera_terms.{name}" for name in sorted(method.camera_terms)]
    asked += ["method.copy_paste"] * (method.copy_paste is not None)
    asked += ["method.cscs"] * (method.lidar_to_camera is not None or method.camera_to_lidar is not None)
    asked += ["method.mask_source"] * (type(method.mask_source) is not OfflineMasks)
    if asked:
        raise ConfigError(
            f"camera.mask_rcnn: Mask R-CNN learns given masks with losses of its own and has no mask per location, "
            f"which {asked[0]} is about; set method=full with data.supervision=masks (or data.masks=FILE), or take a "
            "CondInst such as camera=condinst_r50"
        )


def unused_settings(camera: CameraConfig) -> list[str]:
    """Return which settings of CondInst were given to a run with Mask R-CNN, which does not look at them."""
    if camera.mask_rcnn is None:
        return []
    usual = CameraConfig()
    return [f"camera.{name}" for name in OF_CONDINST if getattr(camera, name) != getattr(usual, name)]
