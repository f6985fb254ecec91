"""timm networks that return feature maps, and the ImageNet weights they start from.

Weights come from timm's cache or the network, or from a file: many training machines reach no network. How pixels are
normalised for them and which maps are used is up to `backbone.py` and `point_to_mask/network.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.constants import HF_HUB_CACHE
from timm.models import load_state_dict
from torch import Tensor, nn

from mwsis.core.errors import ConfigError, WeightMismatchError, closest_name, first_line
from mwsis.core.weights import load_weights

__all__ = ["PIXEL_STYLES", "feature_network"]

PIXEL_STYLES = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False),
    "half": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), False),
    "caffe": ((123.675, 116.28, 103.53), (1.0, 1.0, 1.0), True),
}
"""RGB mean, RGB standard deviation (8-bit grey levels), and whether the network expects BGR."""
COUNTER = "num_batches_tracked"
"""Of a batch norm; the files of some weights lack it."""


def feature_network(name: str, pretrained: bool | str, pixel_style: str = "imagenet", **options: Any) -> Any:
    """Return a timm network that returns a list of feature maps.

    Args:
        name: timm model, such as ``resnet50``; a tag names one of several weights, as in ``resnet50.tv_in1k``.
        pretrained: true for timm's weights, from its cache or the network; a path for a file of weights by timm's
            names, ``.safetensors`` or of ``torch.save``; it may hold more than this network uses, such as a classifier.
        pixel_style: how the images are given to it, one of `PIXEL_STYLES`; of a file, ``caffe`` is believed, since timm
            has no such weights itself.
        **options: of ``timm.create_model``.

    Raises:
        ConfigError: there is no such network, or no such weights, or they want their pixels in another style.
        WeightMismatchError: the file holds other weights.
    """
    if pixel_style not in PIXEL_STYLES:
        raise ConfigError(f"camera.pixel_style: got '{pixel_style}'{closest_name(pixel_style, PIXEL_STYLES)}")
    if not timm.is_model(name):
        raise ConfigError(
            f"camera.backbone: expected a timm model, got '{name}'{closest_name(name, timm.list_models())}"
        )
    file = pretrained if isinstance(pretrained, str) else None
    if file is not None and not Path(file).is_file():
        raise ConfigError(
            f"camera.pretrained: {file}: no such file; give one of timm's weights of '{name}', or true or false"
        )
    if pretrained is True and not timm.is_model_pretrained(name):
        raise ConfigError(
            f"camera.pretrained: timm has no weights of '{name}'; choose another backbone or set it to false"
        )
    if (pretrained is True or (file and pixel_style != "caffe")) and timm.is_model_pretrained(name):
        _require_style(name, pixel_style)
    network = _create(name, pretrained is True, options)
    if file is not None:
        _load_file(network, name, file)
    return network


def _require_style(name: str, pixel_style: str) -> None:
    weights: Any = timm.get_pretrained_cfg(name)
    trained = [255 * value for value in (*weights.mean, *weights.std)]
    fitting = [style for style, (mean, deviation, _) in PIXEL_STYLES.items() if _close(trained, [*mean, *deviation])]
    if pixel_style not in fitting:
        wanted = fitting[0] if fitting else f"mean {weights.mean} and deviation {weights.std}, no style known here"
        raise ConfigError(f"camera.pixel_style: timm's weights of '{name}' expect {wanted}, got '{pixel_style}'")


def _close(first: list[float], second: list[float]) -> bool:
    return all(math.isclose(one, other, abs_tol=1e-3) for one, other in zip(first, second, strict=True))


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, features_only=True, pretrained=pretrained, **options)
    except (OSError, RuntimeError, TypeError, AttributeError) as error:
        if pretrained:
            source: Any = timm.get_pretrained_cfg(name)
            raise ConfigError(
                f"camera.pretrained: expected the weights of '{name}', {source.hf_hub_filename or 'model.safetensors'} "
                f"of {source.hf_hub_id or source.url}, in {HF_HUB_CACHE} or over the network, got "
                f"{type(error).__name__}; run once with network access, copy that folder from a machine that has it, "
                "give the file itself (camera.pretrained=FILE), or set camera.pretrained=false"
            ) from error
        raise ConfigError(
            f"camera.backbone: expected a network with feature maps and a choice of norms, got '{name}' "
            f"({first_line(error)}); use camera.norm=batch, or a backbone such as resnet50, convnext_tiny, "
            "swin_tiny_patch4_window7_224"
        ) from error


def _load_file(network: nn.Module, name: str, file: str) -> None:
    """Fill a network with weights of a file, every tensor it has."""
    try:
        weights: Mapping[str, Tensor] = load_state_dict(file)  # runs nothing that is in the file
    except Exception as error:  # readers raise anything at all on foreign bytes
        raise WeightMismatchError(
            f"camera.pretrained: {file}: expected weights of timm's '{name}', and reading failed ({first_line(error)})"
        ) from error
    own = network.state_dict()
    found = {key: weights.get(_name_in_file(key, weights), own[key] if key.endswith(COUNTER) else None) for key in own}
    load_weights(
        network,
        {key: tensor for key, tensor in found.items() if isinstance(tensor, Tensor)},
        f"camera.pretrained: {file}: expected timm's names and shapes of '{name}'",
    )


def _name_in_file(key: str, weights: Mapping[str, Tensor]) -> str:
    """Return the name of a tensor in the whole model: for feature maps timm may call ``stages.0`` ``stages_0``."""
    child, dot, rest = key.partition(".")
    stem, underscore, number = child.rpartition("_")
    return f"{stem}.{number}{dot}{rest}" if underscore and key not in weights else key
