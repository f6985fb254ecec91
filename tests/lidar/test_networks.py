"""What holds for every sparse U-Net: its output belongs to the voxels, whatever their order and their company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lidar.blocks import UNet
from lidar.unet_v2 import UNetV2
from tests.lidar import test_fsd_unet, test_res8x_unet, test_unet_v2

CASES = {
    "unet_v2": (lambda: test_unet_v2.randomised(UNetV2(5, test_unet_v2.SHAPE)), test_unet_v2.blob_voxels),
    "res8x_unet": (test_res8x_unet.make_net, test_res8x_unet.blob_voxels),
    "fsd_unet": (test_fsd_unet.make_net, test_fsd_unet.blob_voxels),
}
Case = tuple[str, UNet, Tensor, Tensor]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """A network's name, the network in evaluation mode, voxels of two frames."""
    make, voxels = CASES[request.param]
    return request.param, make().eval(), *voxels()


def assert_close(name: str, found: Tensor, expected: Tensor) -> None:
    atol = 1e-4 * float(expected.abs().max()) if name == "fsd_unet" else 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


def test_output_follows_the_order_of_the_voxels(case: Case) -> None:
    name, net, features, coords = case
    order = torch.randperm(len(coords), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        straight = net(features, coords, 2)
        shuffled = net(features[order], coords[order], 2)
    assert straight.shape == (len(coords), net.out_channels)
    assert_close(name, shuffled, straight[order])


def test_frames_of_a_batch_do_not_touch(case: Case) -> None:
    name, net, features, coords = case
    second = coords[:, 0] == 1
    alone = coords[second].clone()
    alone[:, 0] = 0
    with torch.no_grad():
        together = net(features, coords, 2)[second]
        assert_close(name, net(features[second], alone, 1), together)
