"""Small mmdet detectors with random weights, and images on which colours of cells have no doubtful rounding."""

from __future__ import annotations

import torch

from mwsis.core.batch import ImageBatch
from mwsis.core.instances import Boxes2D

CONFIG = """
model = dict(
    type='{kind}',
    data_preprocessor=dict(type='{kind}DataPreprocessor' if '{kind}' == 'BoxInst' else 'DetDataPreprocessor',
        mean={mean}, std={std}, bgr_to_rgb={rgb}, pad_size_divisor=32{extra}),
    backbone=dict(type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=128, start_level=1,
        add_extra_convs='on_output', num_outs=5, relu_before_extra_convs=True),
    bbox_head=dict(type='{kind}BboxHead', num_params={num_params}, num_classes=4, in_channels=128, stacked_convs=2,
        feat_channels=128, strides=[8, 16, 32, 64, 128], norm_on_bbox=True, centerness_on_reg=True,
        dcn_on_last_conv=False, center_sampling=True, conv_bias=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0)),
    mask_head=dict(type='{kind}MaskHead', num_layers=3, feat_channels={width}, size_of_interest=8, mask_out_stride=4,
        topk_masks_per_img=64,
        mask_feature_head=dict(in_channels=128, feat_channels=32, start_level=0, end_level=2, out_channels={width},
            mask_stride=8, num_stacked_convs=2, norm_cfg=dict(type='BN', requires_grad=True)),
        loss_mask=dict(type='DiceLoss', use_sigmoid=True, activate=True, eps=5e-6, loss_weight=1.0)),
    test_cfg=dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=1000, mask_thr=0.5))
"""
SETTINGS = {"channels": 128, "num_convs": 2, "mask_branch_channels": 32, "mask_branch_convs": 2, "norm": "frozen"}
"""Of `build_condinst`, for the network of `CONFIG`."""


def config_text(kind="BoxInst", width=8, style="imagenet"):
    """Return a configuration; mask networks of ``width`` on as many features, as mmdet demands."""
    rgb = style == "imagenet"
    return CONFIG.format(
        kind=kind,
        width=width,
        num_params=width * width + (width + 5) * width + 1,
        mean=[123.675, 116.28, 103.53] if rgb else [103.53, 116.28, 123.675],
        std=[58.395, 57.12, 57.375] if rgb else [1.0, 1.0, 1.0],
        rgb=rgb,
        extra=", bottom_pixels_removed=0" if kind == "BoxInst" else "",
    )


def randomise(module, seed=0):
    """Give a detector weights with which it finds something; every running statistic differs from the next."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.data.copy_(1 + 0.1 * noise.abs())
        elif name.endswith("running_mean"):
            tensor.data.copy_(0.1 * noise)
        elif "controller.bias" in name:
            tensor.data.copy_(0.5 * noise)
        elif "controller.weight" in name or "conv_cls.weight" in name:
            tensor.data.copy_(0.05 * noise)
        elif name.endswith(("conv_cls.bias", "conv_reg.bias")):
            tensor.data.copy_(noise - 1 if "cls" in name else noise.abs() + 1)
        elif ".scales." in name:
            tensor.data.copy_(1 + 0.2 * noise)


def scenes():
    """Return two images, the second smaller than the padded size, of cells whose mean grey level ends in one half."""
    generator = torch.Generator().manual_seed(3)
    images = torch.zeros(2, 3, 96, 128, dtype=torch.uint8)
    for image, (height, width) in zip(images, ((96, 128), (80, 96))):
        coarse = torch.randint(20, 200, (3, height // 16, width // 16), generator=generator)
        fine = torch.randint(0, 6, (3, height // 4, width // 4), generator=generator)
        cells = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2) + fine
        image[:, :height, :width] = cells.repeat_interleave(4, 1).repeat_interleave(4, 2).byte()
        image[:, :height, :width:2] += 1
    boxes = ([[8, 12, 70, 60], [60, 20, 110, 90], [30, 40, 64, 80], [90, 4, 120, 24]], [[10, 10, 60, 70]])
    labels = tuple(
        Boxes2D(torch.tensor(each).float(), torch.arange(len(each)), torch.zeros(len(each), dtype=torch.bool))
        for each in boxes
    )
    sizes = torch.tensor([[96, 128], [80, 96]])
    return ImageBatch(images, sizes, sizes, labels)
