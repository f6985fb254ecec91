"""tools/masks.py: what it refuses, what it writes, that it continues; with transformers, networks of random weights."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

from camera import pretrained_folder, segment_anything
from mwsis.core.errors import ConfigError
from mwsis.data.given_masks import MaskFile
from mwsis.data.mask_writer import MaskWriter
from mwsis.training.commands import compose_run
from tests.data.coco_folder import coco_folder
from tests.data.frames_for_tests import random_frame
from tools import masks as tool

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")


def checkpoint(folder, model_type, weights=True):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if weights:
        (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_arguments_are_checked_first(refused, tmp_path):
    out, weights = f"out={tmp_path / 'masks.json'}", f"weights={checkpoint(tmp_path / 'sam', 'sam')}"
    assert "'model=...' is required" in refused("masks", out, weights)
    assert "model=sam3: no such model; did you mean 'sam" in refused("masks", out, weights, "model=sam3")
    said = refused("masks", out, "weights=x", "model=sam2")
    assert said == (
        "error: weights=x: config.json cannot be read (No such file or directory); give the folder of a checkpoint for "
        "transformers, such as a copy of sam2.1-hiera-large"
    )
    assert "got 'sam'; give model=sam" in refused("masks", out, weights, "model=sam2")
    dpt = checkpoint(tmp_path / "dpt", "dpt")
    assert refused("masks", out, f"weights={dpt}", "model=sam").endswith("expected sam as its model_type, got 'dpt'")
    bare = checkpoint(tmp_path / "bare", "sam2_video", weights=False)
    assert "expected model.safetensors" in refused("masks", out, f"weights={bare}", "model=sam2")
    assert not (tmp_path / "masks.json").exists()


def test_without_transformers_one_sentence(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained_folder, "find_spec", lambda name: None)
    weights = checkpoint(tmp_path / "sam", "sam")
    said = refused("masks", "model=sam", f"weights={weights}", f"out={tmp_path / 'masks.json'}")
    assert said == "error: tools/masks.py needs transformers, which is not installed; install the extra 'depth'"


def filled(image):
    """Stand in for a network: a box's mask is the box, and it is .9 sure."""

    def ask(boxes):
        height, width = image.shape[1:]
        rows, columns = torch.arange(height)[None, :, None] + 0.5, torch.arange(width)[None, None] + 0.5
        x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
        inside = (columns > x1) & (columns < x2) & (rows > y1) & (rows < y2)
        return inside * 16.0 - 8, torch.full((len(boxes),), 0.9)

    return ask


def test_masks_reach_training_and_an_interrupt_loses_none(tmp_path):
    frames, asked = [random_frame(0), random_frame(1)], []

    def interrupted(image):
        asked.append(image.shape)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return filled(image)

    def writer():
        return MaskWriter(tmp_path / "masks.json", CLASSES, {"model": "sam"})

    with pytest.raises(KeyboardInterrupt):
        tool.write_masks(frames, 2, writer(), interrupted, "sam")
    assert not (tmp_path / "masks.json").exists()
    again = writer()
    assert tool.write_masks(frames, 2, again, interrupted, "sam") == 2
    (row, _) = again.finish()
    assert len(asked) == 3
    assert (row["mask_source"], row["predicted_iou"], row["stability"], row["overlap"]) == ("sam", 0.9, 1.0, 0.0)
    assert row["bbox"] == [3.5, 2.0, 16.75, 15.0]
    file = MaskFile(tmp_path / "masks.json", CLASSES, allow_truth=False)
    for frame in frames:
        first = file.of(frame)[0]
        assert first.weight.tolist() == pytest.approx([0.9 * row["tight_iou"], 0.0], abs=1e-4)
        assert first.masks.crop_boxes[0].tolist() == [4, 2, 20, 17]


def test_the_command_on_a_folder_of_images(run_tool, tmp_path, monkeypatch):
    """Everything but the network is real; the second run makes nothing, another checkpoint is refused."""
    monkeypatch.setattr(pretrained_folder, "find_spec", lambda name: True)
    monkeypatch.setattr(segment_anything, "load_network", lambda model, weights: filled)
    root, weights = coco_folder(tmp_path / "coco"), checkpoint(tmp_path / "sam", "sam")
    own = ("model=sam", f"weights={weights}", f"out={tmp_path / 'masks.json'}")
    arguments = (*own, "data=coco", "method=full", f"data.root={root}", f"data.cache={tmp_path / 'cache'}")
    code, said, _ = run_tool("masks", *arguments)
    assert code == 0
    assert said.endswith("(3 boxes, 3 masks trusted, 3 images new, 3 frames)\n")
    before = (tmp_path / "masks.json").read_bytes()
    made_by = json.loads(before)["made_by"]
    assert made_by["checkpoint"] == "sam"
    assert len(made_by["sha256"]["model.safetensors"]) == 64
    assert "0 images new" in run_tool("masks", *arguments)[1]
    assert (tmp_path / "masks.json").read_bytes() == before
    (weights / "model.safetensors").write_bytes(b"others")
    code, _, complaint = run_tool("masks", *arguments)
    assert code == 2
    assert "holds masks of other classes or made by" in complaint
    config = compose_run([*arguments[len(own) :], f"data.masks={tmp_path / 'masks.json'}"])
    assert config.data.masks == str(tmp_path / "masks.json")


def tiny_sam(folder):
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    decoder = {"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 32}
    prompts = {
        "hidden_size": 32,
        "image_size": 64,
        "patch_size": 8,
        "image_embedding_size": 8,
        "mask_input_channels": 4,
    }
    vision = {"hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 16}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    SamModel(config).save_pretrained(folder)
    sides = {"size": {"longest_edge": 64}, "mask_size": {"longest_edge": 32}}
    squares = {"pad_size": {"height": 64, "width": 64}, "mask_pad_size": {"height": 32, "width": 32}}
    SamProcessor(SamImageProcessor(**sides, **squares)).save_pretrained(folder)


def tiny_sam2(folder):
    import transformers
    from transformers import Sam2Config, Sam2Model, Sam2Processor

    hiera = {"hidden_size": 16, "num_attention_heads": 1, "image_size": [128, 128], "blocks_per_stage": [1, 1, 2, 1]}
    hiera |= {"embed_dim_per_stage": [16, 32, 64, 128], "num_attention_heads_per_stage": [1, 2, 4, 8]}
    hiera |= {"window_size_per_stage": [8, 4, 4, 2], "global_attention_blocks": [3]}
    vision = {"backbone_config": {"model_type": "sam2_hiera_det_model", **hiera}, "fpn_hidden_size": 32}
    vision |= {"backbone_channel_list": [128, 64, 32, 16], "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
    prompts = {"hidden_size": 32, "image_size": 128, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 32}
    Sam2Model(
        Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    ).save_pretrained(folder)
    images = getattr(transformers, "Sam2ImageProcessor", None) or transformers.Sam2ImageProcessorFast  # since version 5
    image = images(size={"height": 128, "width": 128}, mask_size={"height": 32, "width": 32})
    Sam2Processor(image).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="the extra 'depth' is not installed")
@pytest.mark.parametrize(("model", "save"), [("sam", tiny_sam), ("sam2", tiny_sam2)])
def test_a_checkpoint_of_random_weights(run_tool, tmp_path, model, save):
    """A tiny network, saved as users have them: its prompts are where the processor puts them, then the command."""
    torch.manual_seed(0)
    weights = tmp_path / "weights"
    save(weights)
    assert segment_anything.check_network(model, weights) == [weights / "model.safetensors"]
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 20, 80, 88], [0, 0, 120, 90]])
    look = segment_anything.load_network(model, weights)
    logits, sure = look(image)(boxes)
    assert (logits.shape, sure.shape) == ((2, 90, 120), (2,))
    wanted = reference(model, weights, image, boxes)
    torch.testing.assert_close(logits, wanted[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sure, wanted[1], rtol=1e-3, atol=1e-3)
    root, out = coco_folder(tmp_path / "coco"), tmp_path / "masks.json"
    arguments = ("data=coco", "method=full", f"data.root={root}", f"data.cache={tmp_path / 'cache'}", f"out={out}")
    code, said, _ = run_tool("masks", f"model={model}", f"weights={weights}", *arguments)
    assert code == 0
    assert "(3 boxes, " in said
    rows = json.loads(out.read_text())["annotations"]
    assert {row["mask_source"] for row in rows} == {model}
    assert all(0 <= row[name] <= 1 for row in rows for name in ("mask_weight", "stability", "tight_iou", "overlap"))
    MaskFile(out, CLASSES, allow_truth=False)


def reference(model, weights, image, boxes):
    """Ask the network as transformers' documentation does: image and boxes through the processor in one go."""
    import transformers

    kind = segment_anything.MODELS[model]
    processor = getattr(transformers, kind.processor).from_pretrained(weights)
    network = getattr(transformers, kind.network).from_pretrained(weights).eval()
    given = processor(images=image.permute(1, 2, 0).numpy(), input_boxes=[boxes.tolist()], return_tensors="pt")
    with torch.no_grad():
        found = network(**given_inputs(given), multimask_output=False)
    sizes = {"reshaped_input_sizes": given["reshaped_input_sizes"]} if model == "sam" else {}
    logits = processor.post_process_masks(found.pred_masks, given["original_sizes"], binarize=False, **sizes)[0]
    return logits[:, 0], found.iou_scores[0, :, 0]


def given_inputs(given):
    return {name: given[name].float() for name in ("pixel_values", "input_boxes")}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="the extra 'depth' is not installed")
def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    """transformers would make them up at random, and say so in passing."""
    from safetensors.torch import load_file, save_file

    tiny_sam(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    dropped = sorted(name for name in tensors if name.startswith("mask_decoder"))[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != dropped}, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=f"lacks 1 tensors of a SamModel, first '{dropped}'; copy it again"):
        segment_anything.load_network("sam", tmp_path)
    path.write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="transformers cannot load it"):
        segment_anything.load_network("sam", tmp_path)
