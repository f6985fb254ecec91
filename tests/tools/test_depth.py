"""tools/depth.py: what it refuses, what it writes, and that it continues; with transformers, the real thing."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

from camera import pretrained_folder
from mwsis.data.depth_files import DepthFolder, DepthWriter
from tests.data.frames_for_tests import random_frame
from tools import depth as tool


def checkpoint(folder, **facts):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def test_arguments_are_checked_first(refused, tmp_path):
    out = f"out={tmp_path / 'maps'}"
    assert "'model=...' is required" in refused("depth", out)
    assert "kind=metres: expected relative_inverse or metric" in refused("depth", out, "model=x", "kind=metres")
    assert "model=x: config.json cannot be read (No such file" in refused("depth", out, "model=x")
    (tmp_path / "config.json").write_text("[]")
    assert "expected JSON with model_type" in refused("depth", out, f"model={tmp_path}")
    assert not (tmp_path / "maps").exists()


def test_without_transformers_one_sentence(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained_folder, "find_spec", lambda name: None)
    model = checkpoint(tmp_path / "model", model_type="dpt")
    said = refused("depth", f"model={model}", f"out={tmp_path / 'maps'}")
    assert said == "error: tools/depth.py needs transformers, which is not installed; install the extra 'depth'"


@pytest.mark.parametrize(
    ("facts", "kind", "metric"),
    [
        ({"model_type": "dpt"}, "auto", False),
        ({"model_type": "depth_anything"}, "auto", False),
        ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, "auto", True),
        ({"model_type": "zoedepth"}, "auto", True),
        ({"model_type": "dpt"}, "metric", True),
        ({"model_type": "new"}, "relative_inverse", False),
    ],
)
def test_what_a_checkpoint_gives(tmp_path, monkeypatch, facts, kind, metric):
    monkeypatch.setattr(pretrained_folder, "find_spec", lambda name: True)
    model = checkpoint(tmp_path / "small", **facts)
    assert tool.describe(model, kind) == (f"{facts['model_type']} small", metric)


def test_an_unknown_checkpoint_must_be_explained(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained_folder, "find_spec", lambda name: True)
    model = checkpoint(tmp_path / "model", model_type="new")
    assert "give kind=relative_inverse|metric" in refused("depth", f"model={model}", f"out={tmp_path / 'maps'}")


def test_maps_are_written_once_and_in_the_ratio_of_their_image(tmp_path):
    """The predictor's maps are square, as DPT's are; the second run finds the first's and makes what is missing."""
    frames, asked = [random_frame(0), random_frame(1)], []

    def predict(image):
        asked.append(tuple(image.shape))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return torch.arange(24.0 * 24).reshape(24, 24)

    with pytest.raises(KeyboardInterrupt):
        tool.write_maps(frames, 2, DepthWriter(tmp_path, metric=False, made_by="us"), predict)
    assert not json.loads((tmp_path / "depth.json").read_text())["complete"]
    assert tool.write_maps(frames, 2, DepthWriter(tmp_path, metric=False, made_by="us"), predict) == 2
    assert asked == [(3, 30, 48)] * 5
    for frame in frames:
        for view in frame.cameras:
            maps = DepthFolder(tmp_path).of(frame.frame_id, view.name, 30, 48)
            assert maps.value.shape == (19, 30)
            assert float(maps.value[0, 0]) < 10 < 200 < float(maps.value[-1, -1])
    assert tool.write_maps(frames, 2, DepthWriter(tmp_path, metric=False, made_by="us"), predict) == 0


def test_maps_are_never_larger_than_their_image():
    assert tool.in_shape(torch.rand(100, 100), 30, 48).shape == (30, 48)
    torch.testing.assert_close(tool.in_shape(torch.full((7, 9), 2.5), 30, 48), torch.full((6, 10), 2.5))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="the extra 'depth' is not installed")
@pytest.mark.parametrize("metric", [False, True])
def test_a_checkpoint_of_random_weights(run_tool, tmp_path, metric):
    """A tiny Depth-Anything, saved as users have them, through the command, twice, into a training configuration."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 16, 32, 32],
        fusion_hidden_size=16,
        head_hidden_size=8,
        depth_estimation_type="metric" if metric else "relative",
        max_depth=20 if metric else 1,
    )
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path / "model")
    DPTImageProcessor(size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(
        tmp_path / "model"
    )
    arguments = ("experiment=smoke", f"data.cache={tmp_path / 'cache'}", f"model={tmp_path / 'model'}")
    code, said, _ = run_tool("depth", *arguments, f"out={tmp_path / 'maps'}")
    assert code == 0
    assert "10 made, 2 frames" in said
    folder = DepthFolder(tmp_path / "maps")
    assert folder.metric == metric
    assert "0 made" in run_tool("depth", *arguments, f"out={tmp_path / 'maps'}")[1]
    paths = sorted((tmp_path / "maps").rglob("*.png"))
    assert len(paths) == 10
    other = "relative_inverse" if metric else "metric"
    code, _, complaint = run_tool("depth", *arguments, f"out={tmp_path / 'maps'}", f"kind={other}")
    assert code == 2
    assert "give another folder" in complaint
