"""The published configurations piece by piece, and what detection learns from unusual boxes.

The acceptance checks of the camera methods: 1 and 5 in `test_condinst.py`; 2 and 3 in `test_terms.py` and
`tests/core/test_losses.py`; 4 in `test_affinity.py`; 6 and 17 (no samples) in `test_terms.py`; 8 in
`test_prototypes.py`; 9 in `test_sources.py`; 10 in `tests/core/test_ema.py`; 11 and 12 in `test_matching.py` and
`test_sources.py`; 13 in `test_depth_affinity.py`; 15 and 16 in `tests/training/test_run.py`;
17 (two processes, no positives) in `test_fcos.py` and `tests/training/test_ddp.py`.
"""

import math

import pytest
import torch
from torch import nn

from camera.fcos import HeadOutput, assign_objects, detection_losses, pyramid_locations
from camera.segmentor import CondInst, build_condinst
from mwsis.core.batch import ImageBatch
from mwsis.core.instances import Boxes2D
from mwsis.training import build
from mwsis.training.commands import compose_run
from mwsis.training.config import typed
from tests.reference.fcos_targets import assign_one_by_one

SIZE = (128, 160)
STRIDES = (8, 16, 32, 64, 128)
SHAPES = [(math.ceil(SIZE[0] / stride), math.ceil(SIZE[1] / stride)) for stride in STRIDES]
RANGES = (64.0, 128.0, 256.0, 512.0, math.inf)


def published(name: str) -> CondInst:
    small = ["camera.backbone=resnet18", "camera.pretrained=false", "method=boxinst"]
    camera = build.build_segmentor(typed(compose_run([f"camera={name}", *small])), 3).camera
    assert camera is not None
    return camera


def kinds(tower: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in tower]


@pytest.mark.parametrize(
    ("name", "nms_iou", "affine"), [("condinst_r50", 0.6, False), ("condinst_r50_mwsis", 0.5, True)]
)
def test_the_published_configurations_build_the_published_network(name, nms_iou, affine):
    run = typed(compose_run([f"camera={name}"]))
    assert (run.camera.backbone, run.camera.pretrained, run.camera.frozen_stages) == ("resnet50", True, 1)
    assert (run.camera.masks_per_image, run.camera.pair_dilation, run.camera.refinement) == (64, 2, None)
    camera = published(name)
    head, branch = camera.head, camera.mask_branch
    for tower in (head.class_tower, head.box_tower):
        assert kinds(tower) == ["Conv2d", "GroupNorm", "ReLU"] * 4
        assert {(layer.in_channels, layer.out_channels, layer.kernel_size) for layer in tower[::3]} == {
            (256, 256, (3, 3))
        }
        assert {layer.num_groups for layer in tower[1::3]} == {32}
    assert head.scales.tolist() == [1] * 5
    assert not head.ltrb.bias.any()
    torch.testing.assert_close(head.class_logits.bias.sigmoid(), torch.full((3,), 0.01))
    assert camera.pyramid.strides == STRIDES
    assert [kinds(one) for one in branch.refine] == [["Conv2d", "BatchNorm2d", "ReLU"]] * 3
    assert [one[0].out_channels for one in branch.refine] == [128] * 3
    assert [type(one).__name__ for one in branch.tower] == ["Sequential"] * 4 + ["Conv2d"]
    assert (branch.tower[4].out_channels, branch.tower[4].kernel_size) == (16, (1, 1))
    assert camera.controller.weight.shape == (233, 256, 3, 3)
    assert not camera.controller.bias.any()
    assert camera.mask_head.position_scale.tolist() == [64, 128, 256, 512, 1024]
    limits = (camera.score_threshold, camera.nms_iou, camera.candidates_per_level, camera.max_per_image)
    assert limits == (0.05, nms_iou, 1000, 100)
    assert (camera.size_ranges, camera.box_weight) == (RANGES, 1)
    trained = {key for key, value in camera.backbone.body.named_parameters() if value.requires_grad}
    assert any(key.startswith("layer2.0.conv1") for key in trained)
    assert any(key.startswith("layer2.0.bn1") for key in trained) is affine
    assert not any(key.startswith(("conv1", "bn1", "layer1")) for key in trained)


def crowd() -> list[list[float]]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=generator) * 140 - 10
    return torch.cat([corner, corner + torch.rand(300, 2, generator=generator) * 60 + 1], 1).tolist()


UNUSUAL = {
    "nothing in the batch": ([[], []], 0),
    "an image without boxes": ([[[20.0, 20.0, 60.0, 60.0]], []], 4),
    "1 px between locations": ([[[12.0, 12.0, 13.0, 13.0]]], 0),
    "1 px on a location": ([[[11.5, 11.5, 12.5, 12.5]]], 1),
    "outside the image": ([[[-60.0, -50.0, -20.0, -10.0], [300.0, 300.0, 340.0, 350.0]]], 0),
    "half outside": ([[[-20.0, -30.0, 40.0, 50.0]]], None),
    "the same box twice": ([[[20.0, 20.0, 60.0, 60.0]] * 2], 4),
    "300 boxes": ([crowd()], None),
}


@pytest.mark.parametrize("case", UNUSUAL)
@pytest.mark.parametrize("reach", [0.0, 3.0])
def test_unusual_boxes_give_the_right_positives_and_finite_losses(case, reach):
    boxes, count = UNUSUAL[case]
    tensors = [torch.tensor(one).reshape(-1, 4) for one in boxes]
    labels = [Boxes2D(one, torch.ones(len(one)).long(), torch.zeros(len(one)).bool()) for one in tensors]
    locations = pyramid_locations(SHAPES, STRIDES, torch.device("cpu"))
    positives = assign_objects(locations, labels, RANGES)
    expected = [assign_one_by_one(SHAPES, STRIDES, one, RANGES) for one in boxes]
    assert positives.image_index.bincount(minlength=len(boxes)).tolist() == [len(one) for one in expected]
    first = torch.tensor([0, *(len(one) for one in boxes[:-1])]).cumsum(0)[positives.image_index]
    assert positives.location_index.tolist() == [key for one in expected for key in sorted(one)]
    assert (positives.gt_index - first).tolist() == [one[key] for one in expected for key in sorted(one)]
    if count is not None:
        assert len(positives) == count
    shape = (len(boxes), len(locations.xy))
    maps = [torch.randn(*shape, 2), torch.full((*shape, 4), reach), torch.randn(shape)]
    output = HeadOutput(*(one.requires_grad_() for one in maps), torch.zeros(*shape, 1))
    losses = detection_losses(output, locations, positives)
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(one.grad is not None and one.grad.isfinite().all() for one in maps)


def test_a_network_with_depth_trains_its_second_output():
    """Pseudo-Depth's head: 242 numbers, masks and depth from one call, gradients through both."""
    torch.manual_seed(0)
    camera = build_condinst(3, backbone="resnet18", depth_gate="half")
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96]])
    boxes = Boxes2D(torch.tensor([[10.0, 8.0, 50.0, 56.0]]), torch.tensor([1]), torch.tensor([False]))
    batch = ImageBatch(images, sizes, sizes, (boxes,))
    dense = camera.dense(batch)
    found = camera.decode(dense, camera.assign(dense, batch.labels))
    assert found.depth is not None
    assert found.depth.shape == found.logits.shape
    assert bool(((found.depth >= 0) & (found.depth <= 1)).all())
    (found.logits.mean() + found.depth.mean()).backward()
    assert camera.controller.bias.grad is not None
    assert bool(camera.controller.bias.grad[232:].all())
