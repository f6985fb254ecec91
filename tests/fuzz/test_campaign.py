"""A few damaged inputs of every kind; many more: `python -m tests.fuzz.campaign`."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from mwsis.core.errors import DataError
from tests.fuzz.campaign import run_apart, run_case, run_kind
from tests.fuzz.mutations import damaged
from tests.fuzz.readers import READERS, Reader

CASES = 12


@pytest.mark.parametrize("name", [name for name in READERS if READERS[name].files != "nothing"])
def test_undamaged_examples_are_read(tmp_path, name):
    READERS[name].make(tmp_path)
    READERS[name].read(tmp_path, 0)


@pytest.mark.parametrize("name", list(READERS))
def test_damaged_input_is_read_or_refused_in_a_sentence(name):
    outcome = run_apart(name, READERS[name].cases(CASES))
    assert outcome.crashes == []
    assert outcome.counts["refused"] > 0


def test_the_campaign_sees_crashes_and_what_is_left_behind(tmp_path, monkeypatch):
    def fail(root, seed):
        raise KeyError("x")

    monkeypatch.setitem(READERS, "broken", Reader(lambda root: None, "nothing", fail))
    assert run_kind("broken", range(2)).counts == {"crashed": 2}
    untidy = Reader(lambda root: None, "nothing", lambda root, seed: (root / "half").write_text("x"))
    with pytest.raises(AssertionError, match="left something behind"):
        run_case(untidy, tmp_path, 0)


def test_damage_is_a_function_of_the_seed_and_mostly_leaves_json_json():
    content = json.dumps({"images": [{"id": 1, "width": 5}], "name": "x"}).encode()
    made = [damaged(content, seed, True) for seed in range(60)]
    assert made == [damaged(content, seed, True) for seed in range(60)]
    assert len(set(made)) > 40

    def is_json(text):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return False
        return True

    assert 30 <= sum(map(is_json, made)) < 60


def test_the_number_of_pixels_is_bounded_before_they_are_decoded(tmp_path):
    """It used to end in Pillow's own error."""
    from camera.transforms import decode_image

    Image.new("L", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"frame 7: cannot decode the image \(Image size"):
        decode_image((tmp_path / "bomb.png").read_bytes(), "frame 7")


def test_polygons_far_from_the_image_are_refused(tmp_path):
    """They used to end the process inside pycocotools."""
    from mwsis.data.coco import CocoSource
    from tests.data.coco_folder import SETTINGS, coco_folder

    path = coco_folder(tmp_path) / SETTINGS["annotations"]["train"]
    content = json.loads(path.read_bytes())
    content["annotations"][0]["segmentation"] = [[1e308, 0, 5, 5, 0, 9]]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"segmentation: expected pixels near the image, at most 640, got 1e\+308"):
        CocoSource(tmp_path, **SETTINGS).frame_ids("train")


def test_weights_are_never_unpickled(tmp_path):
    from mwsis.core.errors import WeightMismatchError
    from mwsis.core.weights import read_checkpoint

    class Loud:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"model": Loud()}, tmp_path / "a.ckpt")
    with pytest.raises(WeightMismatchError, match="tensors and plain values"):
        read_checkpoint(tmp_path / "a.ckpt")
