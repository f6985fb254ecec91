"""Names and order of mmdet's weights, by a list of names and shapes written down from mmdet 3.3; mmdet is not needed.

The same with mmdet itself, and equal results, is in `test_mmdet_segmentor.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from camera.condinst import num_dynamic_params
from camera.mmdet_weights import (
    compare_mmdet,
    from_mmdet,
    load_camera_weights,
    mask_network_width,
    network_settings,
    pixel_style_of,
    read_mmdet,
    save_camera_weights,
    to_mmdet,
)
from camera.segmentor import build_condinst
from mwsis.core.errors import ConfigError, WeightMismatchError
from tests.camera.mmdet_models import config_text

KEYS = json.loads((Path(__file__).parent / "mmdet_condinst_keys.json").read_text())
"""Names and shapes of `condinst_r50_fpn_ms-poly-90k_coco_instance.py`."""
SETTINGS = {
    "num_classes": 80,
    "backbone": "resnet50",
    "channels": 256,
    "num_levels": 5,
    "num_convs": 4,
    "mask_branch_channels": 128,
    "mask_branch_convs": 4,
    "mask_channels": 8,
}


def published_weights():
    """Return a state dict in which no two tensors, and no two rows, are equal."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 10**9, shape, generator=generator)
        if name.endswith("num_batches_tracked")
        else torch.randn(shape, generator=generator)
        for name, shape in KEYS.items()
    }


@pytest.fixture(scope="module")
def weights():
    return published_weights()


@pytest.fixture(scope="module")
def network():
    return build_condinst(norm="frozen", **SETTINGS)


def test_every_published_name_is_used_once_and_comes_back_unchanged(weights, network):
    report = compare_mmdet(weights, network)
    assert report.fits
    assert len(report.matched) == len(KEYS)
    ours = from_mmdet(weights, network)
    network.load_state_dict(ours, strict=True)
    back = to_mmdet(network.state_dict())
    assert back.keys() == weights.keys()
    assert all(back[name].equal(weights[name]) and back[name].dtype == weights[name].dtype for name in back)


def test_mask_networks_are_reordered_layer_by_layer(weights, network):
    """mmdet: weights of three layers, then their biases; ours: weights and bias of each layer."""
    rows = from_mmdet(weights, network)["controller.bias"]
    bias = weights["bbox_head.controller.bias"]
    assert len(bias) == num_dynamic_params(8) == 169
    expected = [bias[:80], bias[152:160], bias[80:144], bias[160:168], bias[144:152], bias[168:]]
    assert rows.equal(torch.cat(expected))


@pytest.mark.parametrize(("width", "channels", "numbers"), [(8, 8, 169), (8, 16, 233), (16, 16, 593)])
def test_the_width_follows_from_the_number_of_weights(width, channels, numbers):
    assert numbers == (channels + 2) * width + width + width * width + width + width + 1
    assert mask_network_width(numbers, channels) == width
    assert mask_network_width(numbers + 1, channels) == 0


def test_settings_are_told_by_shapes(weights):
    assert network_settings(weights, "file") == {**SETTINGS, "mask_hidden": 8}


def test_what_does_not_fit_is_named(weights, network):
    changed = dict(weights)
    changed["mask_head.extra"] = changed.pop("neck.fpn_convs.4.conv.bias")
    changed["bbox_head.conv_cls.bias"] = torch.zeros(3)
    report = compare_mmdet(changed, network)
    assert not report.fits
    assert report.missing == ("neck.fpn_convs.4.conv.bias",)
    assert report.unexpected == ("mask_head.extra",)
    assert report.wrong_shape == (("bbox_head.conv_cls.bias", (80,), (3,)),)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("bbox_head.controller.weight"), "got no 'bbox_head.controller.weight'"),
        (lambda state: state.pop("backbone.layer3.5.conv3.weight"), r"got a backbone of \(3, 4, 5, 3\) blocks"),
        (
            lambda state: state.update({"bbox_head.controller.weight": torch.zeros(170, 256, 3, 3)}),
            "expected mask networks of three layers on 8 features, got 170 numbers",
        ),
    ],
)
def test_other_networks_are_refused(weights, change, sentence):
    changed = dict(weights)
    change(changed)
    with pytest.raises(WeightMismatchError, match=sentence):
        network_settings(changed, "file")


class Buffer:
    """Stands for mmengine's log buffers, which its checkpoints hold."""

    def __init__(self):
        self.values = np.arange(3.0)


def test_what_is_not_weights_is_left_out_and_never_run(tmp_path, monkeypatch):
    path = tmp_path / "epoch_12.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "message_hub": {"loss": Buffer()}, "meta": {"cfg": "x"}}, path)
    monkeypatch.setattr(Buffer, "__setstate__", lambda self, state: pytest.fail("it was run"), raising=False)
    state, meta = read_mmdet(path)
    assert state["a"] == 1
    assert meta["cfg"] == "x"
    torch.save({"state_dict": {"a": Buffer()}}, path)
    with pytest.raises(WeightMismatchError, match="expected 'state_dict'"):
        read_mmdet(path)
    path.write_bytes(b"no archive")
    with pytest.raises(WeightMismatchError, match="expected a checkpoint of tensors"):
        read_mmdet(path)
    with pytest.raises(WeightMismatchError, match="no such file"):
        read_mmdet(tmp_path / "absent.pth")
    torch.save({"meta": {}, "state_dict": {"a": 1}}, path)
    with pytest.raises(WeightMismatchError, match="expected 'state_dict'"):
        read_mmdet(path)
    torch.save({"meta": {"cfg": "model = 1", "epoch": 12}, "state_dict": {"a": torch.ones(1)}}, path)
    state, meta = read_mmdet(path)
    assert state["a"] == 1
    assert meta["cfg"] == "model = 1"


class Evil:
    """Runs code where a file is unpickled."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


def test_code_in_a_file_is_not_run(tmp_path):
    path, trace = tmp_path / "epoch_12.pth", tmp_path / "trace"
    torch.save({"state_dict": {"a": torch.ones(1)}, "hook": Evil(f"open({str(trace)!r}, 'w')")}, path)
    assert read_mmdet(path)[0]["a"] == 1
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # so it would have been


@pytest.mark.parametrize("style", ["imagenet", "caffe"])
def test_pixel_style_is_read_from_the_configuration(style):
    assert pixel_style_of(config_text(style=style), "file") == style


def test_a_configuration_is_parsed_and_never_run(tmp_path):
    touched = tmp_path / "touched"
    assert pixel_style_of(f"open({str(touched)!r}, 'w')", "file") is None
    assert pixel_style_of("model = dict(", "file") is None
    assert pixel_style_of("", "file") is None
    assert not touched.exists()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("style='pytorch'", "style='caffe'", r"backbone\.style: expected 'pytorch', got 'caffe'"),
        ("centerness_on_reg=True,", "", r"bbox_head\.centerness_on_reg: expected True, got False"),
        ("std=[58.395", "std=[58.0", "data_preprocessor: expected the pixels of imagenet"),
        ("bgr_to_rgb=True", "bgr_to_rgb=False", "data_preprocessor: expected the pixels of imagenet"),
    ],
)
def test_weights_that_would_compute_something_else_are_refused(old, new, sentence):
    text = config_text()
    assert old in text
    with pytest.raises(WeightMismatchError, match=sentence):
        pixel_style_of(text.replace(old, new), "file")


def test_a_segmentor_starts_from_the_file_with_the_right_pixels(tmp_path):
    path = tmp_path / "start.pt"
    settings = {"backbone": "test_resnet", "channels": 32, "num_convs": 1, "mask_branch_convs": 1, "norm": "frozen"}
    torch.manual_seed(0)
    first = build_condinst(3, pixel_style="caffe", **settings)
    save_camera_weights(path, first.state_dict(), {"pixel_style": "caffe", "settings": {}})
    second = build_condinst(3, pixel_style="caffe", **settings)
    assert not second.controller.weight.equal(first.controller.weight)
    assert load_camera_weights(second, path).fits
    assert all(value.equal(second.state_dict()[name]) for name, value in first.state_dict().items())
    with pytest.raises(ConfigError, match=r"camera\.pixel_style: expected caffe"):
        load_camera_weights(build_condinst(3, **settings), path)
    with pytest.raises(WeightMismatchError, match="of another shape"):
        load_camera_weights(build_condinst(4, pixel_style="caffe", **settings), path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(WeightMismatchError, match=r"expected a file of tools/import_weights\.py"):
        load_camera_weights(first, path)


def test_a_depth_output_starts_anew_on_weights_without_one(tmp_path):
    settings = {"backbone": "test_resnet", "channels": 32}
    torch.manual_seed(0)
    plain = build_condinst(3, **settings)
    save_camera_weights(tmp_path / "start.pt", plain.state_dict(), {"pixel_style": "imagenet"})
    torch.manual_seed(1)
    deep = build_condinst(3, depth_gate="half", **settings)
    before = deep.controller.bias.detach().clone()
    assert load_camera_weights(deep, tmp_path / "start.pt").fits
    assert torch.equal(deep.controller.weight[:233], plain.controller.weight)
    assert torch.equal(deep.controller.bias, torch.cat([plain.controller.bias, before[233:]]))
    assert torch.equal(deep.head.class_logits.weight, plain.head.class_logits.weight)
    save_camera_weights(tmp_path / "deep.pt", deep.state_dict(), {"pixel_style": "imagenet"})
    with pytest.raises(WeightMismatchError, match="controller"):
        load_camera_weights(plain, tmp_path / "deep.pt")
