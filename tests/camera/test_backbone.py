import pytest
import timm
import torch

from camera.backbone import FeaturePyramid, ImageBackbone
from mwsis.core.errors import ConfigError


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_pyramid_strides_and_depth(norm):
    backbone = ImageBackbone("resnet18", norm=norm).eval()
    pyramid = FeaturePyramid(backbone.channels, channels=32)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    maps = pyramid(backbone(images, torch.tensor([[64, 96], [60, 80]])))
    assert pyramid.strides == (8, 16, 32, 64, 128)
    assert [tuple(one.shape[1:]) for one in maps] == [(32, 8, 12), (32, 4, 6), (32, 2, 3), (32, 1, 2), (32, 1, 1)]


def test_stride_128_is_made_after_relu():
    pyramid = FeaturePyramid([4, 4, 4], channels=8)
    features = [torch.randn(1, 4, 32, 32), torch.randn(1, 4, 16, 16), torch.randn(1, 4, 8, 8)]
    maps = pyramid(features)
    torch.testing.assert_close(maps[3], pyramid.downs[0](maps[2]))
    torch.testing.assert_close(maps[4], pyramid.downs[1](maps[3].relu()))


def test_pixel_styles():
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[:, 0] = 200
    sizes = torch.tensor([[32, 16]])
    imagenet = ImageBackbone("resnet18").normalise(images, sizes)
    caffe = ImageBackbone("resnet18", pixel_style="caffe").normalise(images, sizes)
    assert imagenet[0, 0, 0, 0] == pytest.approx((200 - 123.675) / 58.395)
    assert caffe[0, :, 0, 0].tolist() == pytest.approx([-103.53, -116.28, 200 - 123.675], rel=1e-5)
    assert not imagenet[..., 16:].any()
    assert not caffe[..., 16:].any()


def test_frozen_stage_and_frozen_statistics():
    backbone = ImageBackbone("resnet18", norm="frozen", frozen_stages=1).train()
    trained = {name.split(".")[0] for name, value in backbone.body.named_parameters() if value.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    before = {name: value.clone() for name, value in backbone.body.named_buffers()}
    backbone(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]]))
    assert all(torch.equal(value, before[name]) for name, value in backbone.body.named_buffers())


def test_missing_pretrained_weights_are_one_sentence(monkeypatch):
    def offline(*_, **__):
        raise FileNotFoundError("no network\nretrying")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError, match=r"camera\.pretrained: .* 'resnet50'") as caught:
        ImageBackbone("resnet50", pretrained=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet81"}, "did you mean 'resnet"),
        ({"norm": "layer"}, "camera.norm"),
        ({"norm": "group", "pretrained": True}, "use frozen"),
        ({"pixel_style": "coffee"}, "did you mean 'caffe'"),
        ({"name": "vit_tiny_patch16_224"}, "camera"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        ImageBackbone(**settings)
