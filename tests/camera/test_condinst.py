import pytest
import torch
from torch.nn import functional

from camera.condinst import (
    Controller,
    DynamicMaskHead,
    MaskBranch,
    aligned_bilinear,
    num_dynamic_params,
    paste_masks,
)
from camera.fcos import Cells, pyramid_locations

SHAPES, STRIDES = [(8, 12), (4, 6), (2, 3)], (8, 16, 32)


def test_parameter_counts():
    assert num_dynamic_params(8) == 169
    assert num_dynamic_params(16) == 233
    assert num_dynamic_params(16, depth=True) == 242
    assert num_dynamic_params(16, hidden=16) == 593


def test_aligned_bilinear_identity_constant_and_placement():
    maps = torch.randn(2, 3, 4, 5)
    assert aligned_bilinear(maps, 1) is maps
    torch.testing.assert_close(aligned_bilinear(torch.full((1, 1, 3, 4), 2.5), 2), torch.full((1, 1, 6, 8), 2.5))
    for factor in (2, 4):
        large = aligned_bilinear(maps, factor)
        assert large.shape == (2, 3, 4 * factor, 5 * factor)
        torch.testing.assert_close(large[..., factor // 2 :: factor, factor // 2 :: factor], maps)
    # but for the replicated first cell, mirrored input gives the mirrored output
    line = aligned_bilinear(maps, 2)[..., 1:, 1:]
    mirrored = aligned_bilinear(maps.flip(2, 3), 2)[..., 1:, 1:].flip(2, 3)
    torch.testing.assert_close(line, mirrored)


def picked_cells():
    return Cells(torch.tensor([0, 0, 2, 2]), torch.tensor([0, 50, 97, 125]))


def test_controller_equals_a_dense_convolution():
    locations = pyramid_locations(SHAPES, STRIDES, torch.device("cpu"))
    maps = [torch.randn(3, 6, *shape) for shape in SHAPES]
    controller = Controller(6, 8)
    torch.nn.init.normal_(controller.weight)
    dense = [functional.conv2d(one, controller.weight, controller.bias, padding=1).flatten(2) for one in maps]
    tower = torch.cat([one.flatten(2) for one in maps], 2).transpose(1, 2)
    cells = picked_cells()
    expected = torch.cat(dense, 2).transpose(1, 2)[cells.image_index, cells.location_index]
    torch.testing.assert_close(controller(tower, locations, cells), expected)


def test_random_start_is_one_network_for_all_objects_and_can_be_switched_off():
    torch.manual_seed(0)
    assert not Controller(6, 16, random_start=False).bias.any()
    bias = Controller(6, 16).bias.detach()
    weights, biases = bias[:144], bias[144:152]
    assert weights.std().item() == pytest.approx((2 / 18) ** 0.5, rel=0.2)
    assert not biases.any()
    assert bias[-1] == 0
    bias = Controller(6, 16, depth=True).bias.detach()
    assert len(bias) == 242
    assert bias[[232, 241]].tolist() == [0, 0]
    assert bias[224:232].all()
    assert bias[233:241].all()


@pytest.mark.parametrize("gate", [None, "half", "product"])
def test_dynamic_head_equals_one_network_per_object(gate):
    depth = gate is not None
    locations = pyramid_locations(SHAPES, STRIDES, torch.device("cpu"))
    scale = (64.0, 128.0, 256.0)
    head = DynamicMaskHead(8, scale, depth_gate=gate)
    feats, cells = torch.randn(3, 8, 8, 12), picked_cells()
    params = torch.randn(4, num_dynamic_params(8, depth=depth))
    found = head(feats, params, locations, cells)
    assert found.logits.shape == (4, 16, 24)
    assert (found.depth is not None) == depth
    rows, cols = torch.meshgrid(torch.arange(8) * 8 + 4, torch.arange(12) * 8 + 4, indexing="ij")
    for k in range(4):
        x, y = locations.xy[cells.location_index[k]]
        unit = scale[int(locations.level[cells.location_index[k]])]
        stack = torch.cat([torch.stack([(x - cols) / unit, (y - rows) / unit]), feats[cells.image_index[k]]])
        w1, b1, w2, b2, w3, b3, *nearness = params[k].split([80, 8, 64, 8, 8, 1] + [8, 1] * depth)
        hidden = functional.conv2d(stack[None], w1.reshape(8, 10, 1, 1), b1).relu()
        hidden = functional.conv2d(hidden, w2.reshape(8, 8, 1, 1), b2).relu()
        expected = functional.conv2d(hidden, w3.reshape(1, 8, 1, 1), b3)
        if depth:
            near = functional.conv2d(hidden, nearness[0].reshape(1, 8, 1, 1), nearness[1]).sigmoid()
            expected = expected * (near if gate == "product" else 0.5 + 0.5 * near)
            torch.testing.assert_close(found.depth[k], aligned_bilinear(near, 2)[0, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.logits[k], aligned_bilinear(expected, 2)[0, 0], rtol=1e-4, atol=1e-4)
    none = Cells(*torch.zeros(2, 0, dtype=torch.int64))
    assert head(feats, params[:0], locations, none).logits.shape == (0, 16, 24)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_mask_branch_shape(norm):
    branch = MaskBranch(16, channels=32, num_convs=1, out_channels=8, norm=norm)
    maps = [torch.randn(2, 16, *shape) for shape in SHAPES]
    assert branch(maps).shape == (2, 8, 8, 12)


@pytest.mark.parametrize("original", [(40, 60), (97, 131), (20, 33)])
def test_pasted_masks_equal_full_size_interpolation(original):
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(5, 1, 4, 5, generator=generator)
    prob = functional.interpolate(coarse, size=(12, 16), mode="bicubic")[:, 0].mul(2).sigmoid()
    prob[0] = 0.1
    size = (40, 60)
    masks = paste_masks(prob, size, original)
    row = ((torch.arange(original[0]) + 0.5) * size[0] / original[0] - 2.5) / 4
    col = ((torch.arange(original[1]) + 0.5) * size[1] / original[1] - 2.5) / 4
    grid_y, grid_x = torch.meshgrid((row + 0.5) / 12 * 2 - 1, (col + 0.5) / 16 * 2 - 1, indexing="ij")
    grid = torch.stack([grid_x, grid_y], -1).expand(5, -1, -1, -1)
    full = functional.grid_sample(prob[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    for index in range(5):
        sure = (full[index] - 0.5).abs() > 1e-5
        assert torch.equal(masks.dense(index)[sure], (full[index] > 0.5)[sure])
    assert masks.crop_boxes[0].tolist() == [0, 0, 0, 0]
    assert len(paste_masks(prob[:0], size, original)) == 0


def test_pasted_masks_at_the_networks_size_equal_the_published_enlargement():
    prob = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(2))
    full = aligned_bilinear(prob[:, None], 4)[:, 0, :45, :60]  # padding is cropped
    masks = paste_masks(prob, (45, 60), (45, 60))
    for index in range(3):
        sure = (full[index] - 0.5).abs() > 1e-5
        assert torch.equal(masks.dense(index)[sure], (full[index] > 0.5)[sure])
