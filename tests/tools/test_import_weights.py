"""tools/import_weights.py, cameras: mmdet's weights become a start for training, or one sentence says why not."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from camera.mmdet_weights import load_camera_weights, to_mmdet
from camera.segmentor import build_condinst
from fusion.step import PretrainingStep
from mwsis.core.errors import WeightMismatchError
from mwsis.training.build import build_method, build_segmentor, check_start
from mwsis.training.checkpoint import FORMAT
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from tests.camera.mmdet_models import SETTINGS, config_text


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_condinst(4, backbone="resnet50", mask_channels=8, **SETTINGS)


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    """Return a checkpoint as mmdet writes it, without its logs."""
    path = tmp_path_factory.mktemp("mmdet") / "epoch_12.pth"
    torch.save(
        {"meta": {"cfg": config_text("CondInst"), "epoch": 12}, "state_dict": to_mmdet(network.state_dict())}, path
    )
    return path


@pytest.fixture
def command(run_tool):
    """Run the command in this process; return its exit code, what it printed and what it complained about."""
    return partial(run_tool, "import_weights")


def test_the_weights_arrive_where_they_belong(command, checkpoint, network, tmp_path):
    out = tmp_path / "start.pt"
    code, printed, complaint = command(f"ckpt={checkpoint}", "from=mmdet", f"out={out}")
    assert (code, complaint) == (0, "")
    total = len(to_mmdet(network.state_dict()))
    assert f"{total} of {total} tensors match" in printed
    assert "mask_channels=8" in printed
    assert "pixel_style=imagenet" in printed
    fresh = build_condinst(4, backbone="resnet50", mask_channels=8, **SETTINGS)
    load_camera_weights(fresh, out)
    assert all(value.equal(fresh.state_dict()[name]) for name, value in network.state_dict().items())


def test_chosen_classes_keep_their_rows(command, checkpoint, network, tmp_path):
    out = tmp_path / "start.pt"
    assert command(f"ckpt={checkpoint}", "from=mmdet", f"out={out}", "classes=2,0")[0] == 0
    state = torch.load(out, weights_only=True)["model"]
    for name in ("head.class_logits.weight", "head.class_logits.bias"):
        assert state[name].equal(network.state_dict()[name][[2, 0]])


def test_every_key_that_does_not_fit_is_listed(command, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["mask_head.extra"] = content["state_dict"].pop("neck.fpn_convs.4.conv.bias")
    content["state_dict"]["bbox_head.conv_reg.bias"] = torch.zeros(5)
    changed, out = tmp_path / "changed.pth", tmp_path / "start.pt"
    torch.save(content, changed)
    code, _, complaint = command(f"ckpt={changed}", "from=mmdet", f"out={out}")
    assert code == 2
    assert complaint.splitlines()[:3] == [
        "missing      neck.fpn_convs.4.conv.bias",
        "unexpected   mask_head.extra",
        "wrong shape  bbox_head.conv_reg.bias: expected (4,), got (5,)",
    ]
    assert complaint.splitlines()[3].startswith(f"error: {changed}: ")
    assert not out.exists()


def test_a_configuration_that_does_not_fit_is_refused(command, checkpoint, tmp_path):
    out = tmp_path / "start.pt"
    code, _, complaint = command(
        f"ckpt={checkpoint}", "from=mmdet", f"out={out}", "camera=condinst_small", "camera.channels=128"
    )
    assert code == 2
    assert "unexpected   backbone.layer1.0.conv3.weight" in complaint
    assert "the file was made with num_classes=4 backbone=resnet50" in complaint.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["from=mmdetection"], "from=mmdetection: no such framework; did you mean 'mmdet'?"),
        (
            ["from=mmdet", "data=street"],
            "argument 'data=street': expected ckpt, from, out, pixel_style",
        ),
        (["from=mmdet", "classes=4"], "classes=4: expected different numbers from 0 to 3"),
        (["from=mmdet", "classes=a"], "classes=a: expected different numbers"),
        (["from=mmdet", "pixel_style=caffe"], "was trained with imagenet; leave pixel_style out"),
        (["from=mmdet", "pixel_style=cafe"], "pixel_style=cafe: no such style; did you mean 'caffe'?"),
    ],
)
def test_wrong_requests(command, checkpoint, tmp_path, arguments, sentence):
    code, _, complaint = command(f"ckpt={checkpoint}", f"out={tmp_path / 'start.pt'}", *arguments)
    assert code == 2
    assert sentence in complaint.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_say_its_pixels(command, checkpoint, tmp_path):
    silent, out = tmp_path / "silent.pth", tmp_path / "start.pt"
    torch.save(torch.load(checkpoint, weights_only=True)["state_dict"], silent)
    code, _, complaint = command(f"ckpt={silent}", "from=mmdet", f"out={out}")
    assert code == 2
    assert "does not say which pixels it wants; give pixel_style=imagenet|" in complaint
    assert command(f"ckpt={silent}", "from=mmdet", f"out={out}", "pixel_style=caffe")[0] == 0
    assert torch.load(out, weights_only=True)["pixel_style"] == "caffe"


def test_mask_networks_of_another_width_arrive_too(command, tmp_path):
    """mmdet's own BoxInst has 16 features and mask networks of width 16: 593 numbers."""
    torch.manual_seed(0)
    wide = build_condinst(4, backbone="resnet50", mask_channels=16, mask_hidden=16, **SETTINGS)
    assert len(wide.controller.bias) == 593
    checkpoint, out = tmp_path / "wide.pth", tmp_path / "start.pt"
    torch.save({"meta": {"cfg": config_text("BoxInst", 16)}, "state_dict": to_mmdet(wide.state_dict())}, checkpoint)
    code, printed, complaint = command(f"ckpt={checkpoint}", "from=mmdet", f"out={out}")
    assert (code, complaint) == (0, "")
    assert "mask_hidden=16" in printed
    fresh = build_condinst(4, backbone="resnet50", mask_channels=16, mask_hidden=16, **SETTINGS)
    load_camera_weights(fresh, out)
    assert fresh.controller.weight.equal(wide.controller.weight)


@pytest.fixture
def started(command, checkpoint, tmp_path):
    """Return a run that begins with the imported weights."""
    out = tmp_path / "start.pt"
    assert command(f"ckpt={checkpoint}", "from=mmdet", f"out={out}")[0] == 0
    sizes = {"backbone": "resnet50", "channels": 128, "mask_channels": 8, "mask_branch_channels": 32}
    sizes |= {"mask_branch_convs": 2, "head_convs": 2, "norm": "frozen_affine", "weights": out}
    return typed(compose_run(["method=boxinst", *(f"camera.{name}={value}" for name, value in sizes.items())]))


def test_a_training_begins_with_them_and_a_resumed_one_does_not_ask(started, network, tmp_path):
    check_start(started, 4)
    begun = build_segmentor(started, 4).camera.state_dict()
    assert all(value.equal(begun[name]) for name, value in network.state_dict().items())
    (tmp_path / "start.pt").unlink()
    with pytest.raises(WeightMismatchError, match=r"start\.pt"):
        check_start(started, 4)
    build_segmentor(started, 4, start=False)


def test_weights_of_another_network_are_refused_before_the_data_is_read(started):
    with pytest.raises(WeightMismatchError, match=r"class_logits"):
        check_start(started, 3)


def test_the_camera_branch_of_a_run_becomes_a_start(command, tmp_path):
    """The teacher's weights, with the classes of the new data set in their order."""
    run = typed(compose_run(["experiment=smoke", "method=boxinst"]))
    step = PretrainingStep(build_segmentor(run, 3), build_method(run), 3)
    with torch.no_grad():
        for value in step.teacher.module.parameters():
            value.add_(1.0)
    facts = {"config": OmegaConf.to_yaml(OmegaConf.structured(run)), "class_names": ["a", "b", "c"]}
    state = {"format": FORMAT, "global_step": 7, "model": step.state_dict(), "optimisers": {}, "votes": {}, **facts}
    torch.save(state, tmp_path / "last.ckpt")
    out = tmp_path / "start.pt"
    code, printed, _ = command(f"ckpt={tmp_path / 'last.ckpt'}", "from=mwsis", f"out={out}", "classes=2,0")
    assert code == 0
    assert "teacher of boxinst on street, 7 steps" in printed
    fresh = build_segmentor(run, 2).camera
    load_camera_weights(fresh, out)
    taught = step.teacher.module.camera
    assert fresh.head.class_logits.weight.equal(taught.head.class_logits.weight[[2, 0]])
    assert fresh.controller.weight.equal(taught.controller.weight)
    code, _, complaint = command(f"ckpt={tmp_path / 'last.ckpt'}", "from=mwsis", f"out={out}", "camera=condinst_tiny")
    assert code == 2
    assert "the run says what its network is" in complaint
