import pytest
import timm
import torch

from camera.point_to_mask.network import PointNetwork, content_of
from mwsis.core.errors import ConfigError

SMALL = "mobilenetv3_small_050"


@pytest.mark.parametrize(("backbone", "head"), [(SMALL, 16), ("resnet10t", 8), ("hrnet_w18_small", 8)])
def test_a_cell_for_4_pixels(backbone, head):
    network = PointNetwork(3, backbone=backbone, head_channels=head, affinity_channels=5).eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    output = network(images, torch.tensor([[64, 96], [50, 70]]))
    assert output.class_logits.shape == (2, 4, 16, 24)
    assert output.offsets.shape == (2, 2, 16, 24)
    assert output.features.shape == (2, 5, 16, 24)


def test_hrnet_uses_its_finest_branch_alone():
    network = PointNetwork(20, backbone="hrnet_w18_small")
    assert network.pyramid is None
    assert network.affinity.in_channels == 16
    assert "hrnet_w48" in timm.list_models("hrnet*")


def test_padding_shows_the_mean_colour_whatever_it_holds():
    network = PointNetwork(2, backbone=SMALL, head_channels=8, affinity_channels=4).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    sizes = torch.tensor([[40, 50]])
    before = network(images, sizes)
    images[:, :, 40:], images[:, :, :, 50:] = 9, 200
    assert torch.equal(network(images, sizes).offsets, before.offsets)
    assert content_of(sizes, 64, 64).sum() == 40 * 50


def test_mistakes():
    with pytest.raises(ConfigError, match="expected a timm model, got 'hrnet_w49'; did you mean 'hrnet_w64'"):
        PointNetwork(2, backbone="hrnet_w49")
    with pytest.raises(ConfigError, match="expected feature strides 4, 8, 16, 32"):
        PointNetwork(2, backbone="vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match=r"timm has no weights of 'botnet50ts_256'"):
        PointNetwork(2, backbone="botnet50ts_256", pretrained=True)
