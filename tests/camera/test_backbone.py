import pytest
import timm
import torch

from camera.backbone import FeaturePyramid, ImageBackbone
from mwsis.core.errors import ConfigError, WeightMismatchError


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


def test_frozen_affine_keeps_scale_and_shift_of_batch_norms():
    backbone = ImageBackbone("resnet18", norm="frozen_affine").train()
    trained = {name: value.requires_grad for name, value in backbone.body.named_parameters()}
    assert all(wanted is ("bn" not in name and "downsample.1" not in name) for name, wanted in trained.items())
    assert not any(module.training for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("name", "channels", "frozen", "trained"),
    [
        ("resnet50", [512, 1024, 2048], 0, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        ("resnet101", [512, 1024, 2048], 3, {"layer4"}),
        ("convnext_atto", [80, 160, 320], 1, {"stages_1", "stages_2", "stages_3"}),
        ("swin_tiny_patch4_window7_224", [192, 384, 768], 2, {"layers_2", "layers_3"}),
    ],
)
def test_maps_of_other_networks(name, channels, frozen, trained):
    backbone = ImageBackbone(name, frozen_stages=frozen).eval()
    assert {key.split(".")[0] for key, value in backbone.body.named_parameters() if value.requires_grad} == trained
    images, sizes = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]])
    with torch.no_grad():
        maps = backbone(images, sizes)
        plain = backbone.body(backbone.normalise(images, sizes))[-1][0]
    assert [tuple(one.shape[1:]) for one in maps] == [
        (depth, 64 // stride, 96 // stride) for depth, stride in zip(channels, (8, 16, 32), strict=True)
    ]
    cell = plain[1, 2] if name.startswith("swin") else plain[:, 1, 2]
    assert torch.equal(maps[2][0, :, 1, 2], cell)


def test_swin_shifts_windows_on_every_map():
    body = ImageBackbone("swin_tiny_patch4_window7_224").body
    assert body.get_submodule("layers_3.blocks.1").shift_size == (3, 3)


def test_missing_pretrained_weights_are_one_sentence(monkeypatch):
    def offline(*_, **__):
        raise FileNotFoundError("no network\nretrying")

    monkeypatch.setattr(timm, "create_model", offline)
    wanted = r"camera\.pretrained: .* 'resnet50', model.safetensors of timm/resnet50.* FileNotFoundError; run"
    with pytest.raises(ConfigError, match=wanted) as caught:
        ImageBackbone("resnet50", pretrained=True)
    assert "\n" not in str(caught.value)


def test_every_stage_of_a_network_with_nested_stages_can_be_frozen():
    body = ImageBackbone("tf_efficientnet_lite0", frozen_stages=2).body
    frozen = {name.split(".")[1] for name, one in body.named_parameters() if "blocks" in name and not one.requires_grad}
    assert frozen == {"0", "1", "2"}  # strides 2, 4 and 8
    assert not body.get_parameter("conv_stem.weight").requires_grad
    whole = ImageBackbone("tf_efficientnet_lite0", frozen_stages=4).train()
    assert not any(parameter.requires_grad for parameter in whole.body.parameters())
    assert not any(module.training for module in whole.body.modules() if not list(module.children()))


@pytest.mark.parametrize(
    ("name", "style", "key", "key_in_file"),
    [
        ("resnet18", "imagenet", "layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("convnext_atto", "imagenet", "stages_0.blocks.0.conv_dw.weight", "stages.0.blocks.0.conv_dw.weight"),
        ("tf_efficientnet_lite0", "half", "blocks.6.0.conv_pwl.weight", "blocks.6.0.conv_pwl.weight"),
    ],
)
def test_weights_of_a_file(tmp_path, name, style, key, key_in_file):
    whole = timm.create_model(name).eval()
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "weights.pth")
    backbone = ImageBackbone(name, pretrained=str(tmp_path / "weights.pth"), norm="frozen", pixel_style=style).eval()
    assert torch.equal(backbone.body.state_dict()[key], whole.state_dict()[key_in_file])
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96]])
    _, maps = whole.forward_intermediates(backbone.normalise(images, sizes))
    torch.testing.assert_close(backbone(images, sizes)[1], next(one for one in maps if one.shape[-1] == 6))


def test_a_wrong_file_of_weights_is_one_sentence(tmp_path):
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match=r"camera\.pretrained: .*none\.pth: no such file"):
        ImageBackbone("resnet18", pretrained=str(tmp_path / "none.pth"))
    with pytest.raises(WeightMismatchError, match=r"broken\.pth: expected weights of timm's 'resnet18'"):
        ImageBackbone("resnet18", pretrained=str(tmp_path / "broken.pth"))
    with pytest.raises(WeightMismatchError, match=r"names and shapes of 'resnet50': .* of another shape"):
        ImageBackbone("resnet50", pretrained=str(tmp_path / "other.pth"))
    with pytest.raises(ConfigError, match="weights of 'resnet18' expect imagenet, got 'half'"):
        ImageBackbone("resnet18", pretrained=str(tmp_path / "other.pth"), pixel_style="half")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet81"}, "did you mean 'resnet"),
        ({"norm": "layer"}, "camera.norm"),
        ({"norm": "group", "pretrained": True}, "use frozen"),
        ({"pixel_style": "coffee"}, "did you mean 'caffe'"),
        ({"name": "test_vit"}, r"camera\.backbone: expected feature strides 8, 16, 32, got"),
        ({"name": "coat_lite_tiny"}, r"camera\.backbone: .* images of any size"),
        (
            {"name": "swin_tiny_patch4_window7_224", "norm": "group"},
            "with camera.norm 'group' at .* use camera.norm=batch",
        ),
        ({"frozen_stages": 5}, "expected 0 to 4 with 'resnet18', got 5"),
        ({"frozen_stages": -1}, "expected 0 to 4"),
        ({"pretrained": True, "pixel_style": "caffe"}, "weights of 'resnet18' expect imagenet, got 'caffe'"),
        ({"name": "test_resnet", "pretrained": True}, "weights of 'test_resnet' expect half, got 'imagenet'"),
        ({"name": "swinv2_cr_tiny_224", "pretrained": True}, "timm has no weights"),
        ({"name": "resnet18.nonsense", "pretrained": True}, "timm has no weights"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        ImageBackbone(**settings)
