"""An mmdet CondInst or BoxInst, with any backbone and neck, as the camera branch under our losses and teachers.

mmdet's modules compute the maps; assignment, losses and prediction are ours (`segmentor.py`), so every term, source and
teacher works on them. mmdet is imported when a segmentor is built (extra `mmdet`). To take over the weights only, into
our own network, see `mmdet_weights.py`.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from camera.condinst import MaskOutput
from camera.fcos import Cells, HeadOutput, Locations
from camera.segmentor import CondInst
from mwsis.core.errors import ConfigError
from mwsis.core.losses import sigmoid_focal
from mwsis.core.weights import load_weights

__all__ = ["build_mmdet", "import_mmdet"]

DETECTORS = ("CondInst", "BoxInst")
MASK_STRIDES = (8, 4)


def import_mmdet() -> None:
    """Import mmdet's models; where only mmcv-lite is installed, with our operators in place of mmcv's compiled ones.

    mmdet imports every operator of mmcv at once. Suppression and focal loss work; any other says which it is when it is
    called.

    Raises:
        ConfigError: the extra is not installed.
    """
    absent = [name for name in ("mmdet", "mmengine", "mmcv", "skimage") if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(f"camera.mmdet: '{absent[0]}' is not installed; install the extra 'mmdet'")
    if "mmcv._ext" not in sys.modules and importlib.util.find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = _operators()
    importlib.import_module("mmdet.models")


def _operators() -> types.ModuleType:
    """Return what stands for ``mmcv._ext``, mmcv's compiled operators."""
    module = types.ModuleType("mmcv._ext", "Operators of mmcv without its compiled code.")
    vars(module).update(
        nms=_nms,
        sigmoid_focal_loss_forward=_focal_forward,
        sigmoid_focal_loss_backward=_focal_backward,
        __getattr__=_absent_operator,
    )
    return module


def _absent_operator(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def operator(*_: Any, **__: Any) -> None:
        raise ConfigError(
            f"camera.mmdet: this network needs mmcv's operator '{name}'; install mmcv instead of mmcv-lite"
        )

    return operator


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the rows kept, best first; with ``offset`` 1 a box's last pixel belongs to it."""
    kept: Tensor = nms(boxes + boxes.new_tensor([0, 0, offset, offset]), scores, iou_threshold)
    return kept


def _focal(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Return (N, C) losses of (N,) classes, C for none; ``weight`` (C,) or empty belongs to the true class."""
    num_classes = logits.shape[1]
    wanted = nn.functional.one_hot(target, num_classes + 1)[:, :num_classes].to(logits.dtype)
    loss = sigmoid_focal(logits, wanted, alpha, gamma)
    if weight.numel():
        loss = loss * torch.cat([weight, weight.new_ones(1)])[target][:, None]
    return loss


def _focal_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    output.copy_(_focal(logits, target, weight, gamma, alpha))


def _focal_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        grad_input.copy_(torch.autograd.grad(_focal(leaf, target, weight, gamma, alpha).sum(), leaf)[0])


class _Images(nn.Module):
    """8-bit RGB images to mmdet's normalised input, then backbone and neck; all maps of the pyramid."""

    def __init__(self, detector: Any, in_rgb: bool) -> None:
        super().__init__()
        self.backbone, self.neck = detector.backbone, detector.neck
        self.in_rgb = in_rgb
        pixels = detector.data_preprocessor
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", pixels.mean[None].clone(), persistent=False)
        self.register_buffer("std", pixels.std[None].clone(), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """Return the neck's maps, finest first, of (I, 3, H, W) uint8 RGB images."""
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) < sizes[:, :1].to(images.device)
        cols = torch.arange(width, device=images.device) < sizes[:, 1:].to(images.device)
        ordered = images if self.in_rgb else images.flip(1)
        pixels = (ordered.float() - self.mean) / self.std
        return list(self.neck(self.backbone(pixels * (rows[:, None, :, None] & cols[:, None, None, :]))))


class _Levels(nn.Module):
    """The pyramid is made already; what is left to say is its strides."""

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.strides = strides

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return features


class _Head(nn.Module):
    """mmdet's box head; ``tower_feats`` of its output are the mask networks' numbers of every location."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, pyramid: list[Tensor]) -> HeadOutput:
        """Return the outputs of all levels in one list."""
        classes, sides, centerness, params = self.head(pyramid)
        in_strides = self.head.norm_on_bbox and self.head.training
        if not in_strides:
            sides = [each / stride for each, stride in zip(sides, self.head.strides, strict=True)]
        maps = [
            torch.cat([each.flatten(2).transpose(1, 2) for each in levels], 1)
            for levels in (classes, sides, centerness, params)
        ]
        return HeadOutput(maps[0], maps[1], maps[2][..., 0], maps[3])


class _Picked(nn.Module):
    """The mask networks' numbers at picked locations."""

    def forward(self, params: Tensor, locations: Locations, cells: Cells) -> Tensor:
        return params[cells.image_index, cells.location_index]


class _MaskHead(nn.Module):
    """mmdet's mask networks, applied image by image."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head
        self.mask_channels = int(head.in_channels)

    def forward(self, mask_feats: Tensor, params: Tensor, locations: Locations, cells: Cells) -> MaskOutput:
        """Return K masks of (I, D, H/8, W/8) features and (K, P) numbers."""
        from mmengine.structures import InstanceData

        points, strides = locations.xy[cells.location_index], locations.stride[cells.location_index]
        height, width = (2 * int(side) for side in mask_feats.shape[-2:])
        logits = [params.new_zeros(0, height, width) + params.sum() * 0 + mask_feats.sum() * 0]
        for image, features in enumerate(mask_feats):
            mine = cells.image_index == image
            if mine.any():
                samples = InstanceData(param_preds=params[mine], points=points[mine], strides=strides[mine])
                logits.append(self.head.forward_single(features, samples)[0])
        return MaskOutput(torch.cat(logits))


def build_mmdet(
    config: Path | str,
    num_classes: int,
    *,
    weights: Path | str | None = None,
    pretrained: bool = False,
    **settings: Any,
) -> CondInst:
    """Return a camera segmentor made of the modules that an mmdet configuration describes.

    Args:
        config: an mmdet configuration file whose ``model`` is a CondInst or BoxInst.
        num_classes: C, in place of the configuration's.
        weights: an mmdet checkpoint of that model, all of which must fit.
        pretrained: load the backbone that the configuration names (``init_cfg``) from the network.
        **settings: those of `camera.segmentor.CondInst` that are to differ from the configuration's ``test_cfg``.

    Raises:
        ConfigError: the extra is missing, or the model is another one.
        WeightMismatchError: the weights do not fit.

    Source: mmdet 3.3. Assignment by box centres and GIoU with areas smoothed by one are ours (`fcos.py`), otherwise
    mmdet's numbers: the same weights give the same maps, masks and detections.
    """
    import_mmdet()
    model = _model_config(config)
    model.bbox_head.num_classes = num_classes
    if not pretrained:
        model.backbone.init_cfg = None
    images_in_rgb = bool(model.data_preprocessor.get("bgr_to_rgb", False))  # mmdet reads images as BGR
    detector = _detector(model)
    if weights is not None:
        from camera.mmdet_weights import read_mmdet

        load_weights(detector, read_mmdet(weights)[0], str(weights))
    head, masks = detector.bbox_head, detector.mask_head
    strides = tuple(int(stride) for stride in head.strides)
    branch, masks.mask_feature_head = masks.mask_feature_head, nn.Identity()
    slots: dict[str, Any] = {
        "backbone": _Images(detector, images_in_rgb),
        "pyramid": _Levels(strides),
        "head": _Head(head),
        "mask_branch": branch,
        "controller": _Picked(),
        "mask_head": _MaskHead(masks),
    }
    return CondInst(**slots, **{**_settings(detector), **settings})


def _model_config(config: Path | str) -> Any:
    from mmengine.config import Config

    try:
        model = Config.fromfile(str(config)).model
    except (OSError, AttributeError, SyntaxError) as error:
        raise ConfigError(f"camera.mmdet: {config}: expected an mmdet configuration with 'model' ({error})") from None
    if model.type not in DETECTORS:
        raise ConfigError(
            f"camera.mmdet: {config}: expected a {' or '.join(DETECTORS)}, got {model.type}; other heads "
            "predict no mask per location and assign objects in their own way"
        )
    features = model.mask_head.mask_feature_head
    if (features.get("mask_stride", 4), model.mask_head.get("mask_out_stride", 4)) != MASK_STRIDES:
        raise ConfigError(f"camera.mmdet: {config}: expected mask features at stride 8 and masks at stride 4")
    return model


def _detector(model: Any) -> Any:
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmdet"):
        detector = MODELS.build(model)
        detector.init_weights()
    return detector


def _settings(detector: Any) -> dict[str, Any]:
    """Return the settings of `CondInst` that the configuration decides."""
    test, head = detector.test_cfg, detector.bbox_head
    return {
        "size_ranges": (*(float(upper) for _, upper in head.regress_ranges[:-1]), math.inf),
        "score_threshold": test.score_thr,
        "nms_iou": test.nms.iou_threshold,
        "candidates_per_level": test.nms_pre,
        "max_per_image": test.max_per_img,
        "box_weight": head.loss_bbox.loss_weight,
    }
