"""Weights of mmdet's CondInst and BoxInst as ours and back: one name for each name, nothing skipped, nothing guessed.

Needs no mmdet: a checkpoint is a dictionary of tensors. `tools/import_weights.py` writes what a training starts from
(`load_camera_weights`). An mmdet network itself as camera branch is `mmdet_segmentor.py`.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from camera.timm_network import PIXEL_STYLES
from mwsis.core.errors import ConfigError, WeightMismatchError
from mwsis.core.files import atomic_write
from mwsis.core.weights import LoadReport, load_weights, read_checkpoint

__all__ = [
    "compare_mmdet",
    "from_mmdet",
    "load_camera_weights",
    "mask_network_width",
    "mmdet_names",
    "network_settings",
    "pixel_style_of",
    "read_mmdet",
    "save_camera_weights",
    "to_mmdet",
]

FORMAT = "mwsis-camera-1"
FEATURES = "mask_head.mask_feature_head"
RULES: tuple[tuple[str, str], ...] = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"pyramid\.laterals\.(\d+)\.(\w+)", r"neck.lateral_convs.\1.conv.\2"),
    (r"pyramid\.outputs\.(\d+)\.(\w+)", r"neck.fpn_convs.\1.conv.\2"),
    (r"head\.class_logits\.(\w+)", r"bbox_head.conv_cls.\1"),
    (r"head\.ltrb\.(\w+)", r"bbox_head.conv_reg.\1"),
    (r"head\.centerness\.(\w+)", r"bbox_head.conv_centerness.\1"),
    (r"mask_branch\.refine\.(\d+)\.0\.(\w+)", FEATURES + r".convs_all_levels.\1.conv\1.conv.\2"),
    (r"mask_branch\.refine\.(\d+)\.1\.(\w+)", FEATURES + r".convs_all_levels.\1.conv\1.bn.\2"),
    (r"mask_branch\.tower\.(\d+)\.0\.(\w+)", FEATURES + r".conv_branch.\1.conv.\2"),
    (r"mask_branch\.tower\.(\d+)\.1\.(\w+)", FEATURES + r".conv_branch.\1.bn.\2"),
    (r"mask_branch\.tower\.\d+\.(\w+)", FEATURES + r".conv_pred.\1"),
    (r"controller\.(\w+)", r"bbox_head.controller.\1"),
)
"""Our name and mmdet's; the three kinds of name that need counting are in `_mmdet_name`."""
SAME_MATHS = {
    ("backbone", "style"): ("pytorch", "pytorch"),
    ("neck", "add_extra_convs"): ("on_output", False),
    ("neck", "relu_before_extra_convs"): (True, False),
    ("bbox_head", "norm_on_bbox"): (True, False),
    ("bbox_head", "centerness_on_reg"): (True, False),
    ("mask_head", "size_of_interest"): (8, 8),
}
"""Settings of mmdet that leave all names and shapes alike and still change what is computed: ours, mmdet's default."""
BACKBONES = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}
"""Blocks of the four stages of a ResNet with bottlenecks."""


def _mmdet_name(name: str) -> str:
    """Return mmdet's name of one of our tensors; `head.scales` stands for its per-level scalars."""
    if found := re.fullmatch(r"pyramid\.downs\.(\d+)\.(\w+)", name):
        return f"neck.fpn_convs.{int(found[1]) + 3}.conv.{found[2]}"
    if found := re.fullmatch(r"head\.(class|box)_tower\.(\d+)\.(\w+)", name):
        tower = {"class": "cls_convs", "box": "reg_convs"}[found[1]]
        layer, part = divmod(int(found[2]), 3)
        return f"bbox_head.{tower}.{layer}.{('conv', 'gn')[part]}.{found[3]}"
    for ours, theirs in RULES:
        if found := re.fullmatch(ours, name):
            return found.expand(theirs)
    raise AssertionError(f"no mmdet name for '{name}'")


def mmdet_names(state: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Return mmdet's names of each tensor of our segmentor: one, or one per pyramid level for ``head.scales``.

    Args:
        state: names and tensors of `camera.segmentor.CondInst`.
    """
    scales = tuple(f"bbox_head.scales.{level}.scale" for level in range(len(state["head.scales"])))
    return {name: scales if name == "head.scales" else (_mmdet_name(name),) for name in state}


def mask_network_width(num_params: int, mask_channels: int) -> int:
    """Return the width of the hidden layers of mask networks with so many numbers; 0 where no width gives it.

    Three layers of width w on ``mask_channels`` features and a position: ``w^2 + (mask_channels + 5) w + 1`` numbers.
    """
    half = mask_channels + 5
    width = (math.isqrt(half * half + 4 * (num_params - 1)) - half) // 2
    return width if width * width + half * width + 1 == num_params else 0


def _controller_order(num_params: int, mask_channels: int) -> Tensor:
    """Return, for each row of our controller, mmdet's row: ours are w b w b w b, mmdet's w w w b b b."""
    width = mask_network_width(num_params, mask_channels)
    assert width, (num_params, mask_channels)
    sizes = [width * (mask_channels + 2), width * width, width, width, width, 1]
    first, second, last, first_bias, second_bias, last_bias = torch.split(torch.arange(num_params), sizes)
    return torch.cat([first, first_bias, second, second_bias, last, last_bias])


def _mask_channels(state: Mapping[str, Tensor]) -> int:
    return next(len(tensor) for name, tensor in state.items() if re.fullmatch(r"mask_branch\.tower\.\d+\.bias", name))


def to_mmdet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of our segmentor under mmdet's names, as mmdet's CondInst and BoxInst load them strictly.

    Args:
        state: ``state_dict()`` of `camera.segmentor.CondInst`.
    """
    weights: dict[str, Tensor] = {}
    for name, theirs in mmdet_names(state).items():
        tensor = state[name]
        if name == "head.scales":
            weights.update(zip(theirs, tensor.unbind()))
        elif name.startswith("controller."):
            order = _controller_order(len(tensor), _mask_channels(state))
            weights[theirs[0]] = tensor[order.argsort()]
        else:
            weights[theirs[0]] = tensor
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}


def from_mmdet(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return mmdet's weights under our names, for `camera.segmentor.CondInst`.

    Args:
        weights: mmdet's ``state_dict``; `compare_mmdet` must fit.
        module: the segmentor they are for.
    """
    own = module.state_dict()
    state: dict[str, Tensor] = {}
    for name, theirs in mmdet_names(own).items():
        if name == "head.scales":
            state[name] = torch.stack([weights[each].reshape(()) for each in theirs])
        elif name.startswith("controller."):
            state[name] = weights[theirs[0]][_controller_order(len(own[name]), _mask_channels(own))]
        else:
            state[name] = weights[theirs[0]]
    return state


def compare_mmdet(weights: Mapping[str, Tensor], module: nn.Module) -> LoadReport:
    """Return how mmdet's weights fit our segmentor, by mmdet's names; nothing is loaded."""
    expected = {name: tuple(tensor.shape) for name, tensor in to_mmdet(module.state_dict()).items()}
    shapes = {name: tuple(weights[name].shape) for name in expected if name in weights}
    return LoadReport(
        matched=tuple(name for name, shape in shapes.items() if shape == expected[name]),
        missing=tuple(name for name in expected if name not in weights),
        unexpected=tuple(name for name in weights if name not in expected),
        wrong_shape=tuple((name, expected[name], shape) for name, shape in shapes.items() if shape != expected[name]),
    )


def network_settings(weights: Mapping[str, Tensor], what: str) -> dict[str, Any]:
    """Return the settings of `camera.segmentor.build_condinst` that mmdet's weights were made with, by their shapes.

    Args:
        weights: mmdet's ``state_dict``.
        what: its name in errors.

    Raises:
        WeightMismatchError: it is no CondInst or BoxInst with a ResNet-50 or -101 and a pyramid.
    """
    blocks = tuple(_count(weights, rf"backbone\.layer{stage}\.(\d+)\.conv3\.weight") for stage in (1, 2, 3, 4))
    wanted = ("bbox_head.conv_cls.weight", "bbox_head.controller.weight", f"{FEATURES}.conv_pred.weight")
    absent = [name for name in wanted if name not in weights]
    if absent or blocks not in BACKBONES:
        got = f"no '{absent[0]}'" if absent else f"a backbone of {blocks} blocks"
        raise WeightMismatchError(
            f"{what}: expected mmdet's CondInst or BoxInst with ResNet-50 or -101 and FPN, got {got}"
        )
    classes, controller, last = (weights[name] for name in wanted)
    width = mask_network_width(len(controller), len(last))
    if not width:
        raise WeightMismatchError(
            f"{what}: bbox_head.controller: expected mask networks of three layers on {len(last)} features, got "
            f"{len(controller)} numbers each"
        )
    return {
        "num_classes": len(classes),
        "backbone": BACKBONES[blocks],
        "channels": classes.shape[1],
        "num_levels": _count(weights, r"bbox_head\.scales\.(\d+)\.scale"),
        "num_convs": _count(weights, r"bbox_head\.cls_convs\.(\d+)\.conv\.weight"),
        "mask_branch_channels": last.shape[1],
        "mask_branch_convs": _count(weights, FEATURES + r"\.conv_branch\.(\d+)\.conv\.weight"),
        "mask_channels": len(last),
        "mask_hidden": width,
    }


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in weights)


def read_mmdet(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of an mmdet 3.x checkpoint and what it says about itself (``meta``; may be empty).

    Raises:
        WeightMismatchError: no such file, or none of mmdet. mmengine's logs and settings in it are left out, unread.
    """
    content = read_checkpoint(path, keep_foreign_out=True)
    weights = content.get("state_dict", content)
    meta = content.get("meta") or {}
    if not isinstance(weights, dict) or not weights or not all(isinstance(each, Tensor) for each in weights.values()):
        raise WeightMismatchError(f"{path}: expected 'state_dict' of an mmdet checkpoint, got keys {list(content)[:5]}")
    return dict(weights), meta if isinstance(meta, dict) else {}


def pixel_style_of(config: str, what: str) -> str | None:
    """Return the pixel style that an mmdet configuration trains with; None where there is none.

    The text is only parsed, never run.

    Args:
        config: ``meta['cfg']`` of a checkpoint.
        what: its name in errors.

    Raises:
        WeightMismatchError: pixels, or ways to use the weights (`SAME_MATHS`), that our network does not have.
    """
    model = _model_of(config)
    if model is None:
        return None
    for (part, key), (expected, default) in SAME_MATHS.items():
        got = model.get(part, {}).get(key, default)
        if got != expected:
            raise WeightMismatchError(
                f"{what}: {part}.{key}: expected {expected!r}, got {got!r}, with which the same weights compute "
                "something else; train with the mmdet network itself (camera.mmdet)"
            )
    pixels = model.get("data_preprocessor", {})
    mean, deviation, bgr_to_rgb = (pixels.get(key) for key in ("mean", "std", "bgr_to_rgb"))
    for name, (rgb_mean, rgb_deviation, swap) in PIXEL_STYLES.items():
        order = slice(None, None, -1 if swap else 1)
        if list(rgb_mean)[order] == mean and list(rgb_deviation)[order] == deviation and swap != bool(bgr_to_rgb):
            return name
    raise WeightMismatchError(
        f"{what}: data_preprocessor: expected the pixels of {' or '.join(PIXEL_STYLES)}, got mean={mean}, "
        f"std={deviation}, bgr_to_rgb={bgr_to_rgb}"
    )


def _model_of(config: str) -> dict[str, Any] | None:
    """Return ``model = dict(...)`` of a configuration's text."""
    try:
        statements = ast.parse(config).body
    except SyntaxError:
        return None
    for node in statements:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "model":
            model = _literal(node.value)
            return model if isinstance(model, dict) else None
    return None


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal or of ``dict(key=literal)``; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def save_camera_weights(path: Path | str, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write weights that a training can start from.

    Args:
        path: the file.
        state: ``state_dict()`` of `camera.segmentor.CondInst`.
        facts: plain values; ``pixel_style`` and ``settings`` (`network_settings`) among them.
    """
    with atomic_write(path) as unfinished:
        torch.save({"format": FORMAT, "model": dict(state), **facts}, unfinished)


def load_camera_weights(module: nn.Module, path: Path | str) -> LoadReport:
    """Fill our segmentor with weights of `save_camera_weights`; a depth output that they lack stays as it is.

    Raises:
        WeightMismatchError: the file is none of these, or its weights are of another network.
        ConfigError: the weights want other pixels than the segmentor gives them.
    """
    content = read_checkpoint(path)
    if content.get("format") != FORMAT:
        raise WeightMismatchError(
            f"{path}: expected a file of tools/import_weights.py (format {FORMAT}), got keys {list(content)[:5]}"
        )
    backbone: Any = module.get_submodule("backbone")
    mean, deviation, swap = PIXEL_STYLES[content["pixel_style"]]
    own = torch.cat([backbone.pixel_mean, backbone.pixel_std]).flatten()
    if backbone.swap_channels != swap or not own.cpu().equal(torch.tensor([*mean, *deviation])):
        raise ConfigError(f"camera.pixel_style: expected {content['pixel_style']}, with which {path} was trained")
    return load_weights(module, _with_depth_output(content["model"], module), str(path))


def _with_depth_output(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return the weights with the module's own depth output where they have none: the last rows of its controller."""
    state, head = dict(weights), cast(Any, module.get_submodule("mask_head"))
    if getattr(head, "depth_gate", None) is None:  # mmdet's own has no such thing
        return state
    for name in ("controller.weight", "controller.bias"):
        own = module.get_parameter(name).detach().cpu()
        if name in state and len(own) - len(state[name]) == head.hidden + 1:
            state[name] = torch.cat([state[name], own[len(state[name]) :]])
    return state
