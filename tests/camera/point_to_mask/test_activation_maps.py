from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from camera.point_to_mask.activation_maps import (
    ActivationNetwork,
    ActivationSettings,
    ActivationStep,
    LabelledBatch,
    LabelledSamples,
    activations,
    always_shown,
    collate_labelled,
)
from camera.point_to_mask.class_maps import class_map
from camera.point_to_mask.points import ImagePoints, PointedImage
from camera.point_to_mask.samples import load_image
from camera.point_to_mask.settings import PointToMask
from mwsis.core.errors import ConfigError

COLORS = ((220, 40, 40), (30, 60, 240))


def points_of(*rows):
    xy = torch.tensor([row[:2] for row in rows], dtype=torch.float32).reshape(-1, 2)
    return ImagePoints(xy, torch.tensor([row[2] for row in rows], dtype=torch.int64))


def two_colors(folder, count=8):
    """Images of a red object, a blue one, both or none on grey, and their true maps of classes."""
    rng = np.random.default_rng(0)
    images, maps = [], []
    for number in range(count):
        pixels, semantic = np.full((72, 128, 3), 90, np.uint8), np.zeros((72, 128), np.uint8)
        pixels += rng.integers(0, 12, pixels.shape).astype(np.uint8)
        rows = []
        for label in (label for label in (0, 1) if number % 4 in ((1, 3), (2, 3))[label]):
            height, width = rng.integers(24, 44, 2)
            y, x = rng.integers(0, 72 - height), 64 * label + rng.integers(0, 64 - width)
            pixels[y : y + height, x : x + width] = COLORS[label]
            semantic[y : y + height, x : x + width] = label + 1
            rows.append((x + width / 2, y + height / 2, label))
        Image.fromarray(pixels).save(folder / f"{number}.png")
        points = points_of(*rows)
        numbers = tuple(range(len(rows)))
        images.append(PointedImage(number, f"{number}.png", 128, 72, points, numbers, numbers))
        maps.append(torch.from_numpy(semantic))
    return images, maps


def network(backbone="mobilenetv3_small_050"):
    torch.manual_seed(0)
    return ActivationNetwork(2, backbone, pretrained=False)


def mean_iou(found, truth):
    """Mean over background and both classes; what is unknown belongs to none."""
    same = [float(((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum()) for c in range(3)]
    return sum(same) / 3


def test_maps_of_two_colors_beat_every_constant_map(tmp_path):
    images, truth = two_colors(tmp_path)
    samples = LabelledSamples(images, tmp_path, 2, [96, 128], seed=0)
    step = ActivationStep(network("resnet10t"))
    optimiser = torch.optim.AdamW(step.parameters(), lr=3e-3)
    for start in range(0, 80, 4):
        optimiser.zero_grad()
        batch = collate_labelled([samples[place % 8, place] for place in range(start, start + 4)])
        step.losses(batch, 0.0)["camera/image_labels"].backward()
        optimiser.step()
    step.eval()
    found = []
    for image in images:
        pixels = load_image(tmp_path, image)
        seen = activations(step.student["camera"], pixels, image.points.classes, [64, 128])
        found.append(class_map(seen, pixels, image.points, ActivationSettings()))
    score = mean_iou(torch.stack(found), torch.stack(truth))
    constant = max(mean_iou(torch.full((8, 72, 128), value), torch.stack(truth)) for value in range(3))
    assert constant < 0.32
    assert score > constant + 0.3


def test_activations_of_a_mirrored_image_are_mirrored(tmp_path):
    two_colors(tmp_path)
    image = torch.from_numpy(np.array(Image.open(tmp_path / "3.png"))).permute(2, 0, 1)[:, :50, :77]
    model = network().eval()
    found = activations(model, image, [1, 0], [40, 77])
    assert found.shape == (2, 50, 77)
    assert found.amin() >= 0
    assert set(found.amax((1, 2)).tolist()) <= {0.0, 1.0}
    assert found.any()
    assert torch.allclose(activations(model, image.flip(-1), [1, 0], [40, 77]).flip(-1), found, atol=1e-4)
    assert torch.equal(activations(model, image, [0], [40, 77])[0], found[1])


def test_samples_know_the_classes_of_points_and_not_their_places(tmp_path):
    images, _ = two_colors(tmp_path)
    elsewhere = [replace(one, points=replace(one.points, xy=one.points.xy * 0 + 1.0)) for one in images]
    samples, moved = (LabelledSamples(own, tmp_path, 2, [64, 96], seed=0) for own in (images, elsewhere))
    assert [samples[index, 5].present.tolist() for index in range(4)] == [[0, 0], [1, 0], [0, 1], [1, 1]]
    for position in range(8):
        one, other = samples[3, position], moved[3, position]
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.present, other.present)
    assert not torch.equal(samples[3, 0].image, samples[3, 1].image)


def test_an_image_that_shows_no_class_has_no_activations(tmp_path):
    two_colors(tmp_path)
    image = torch.from_numpy(np.array(Image.open(tmp_path / "3.png"))).permute(2, 0, 1)
    assert activations(network().eval(), image, [], [64]).shape == (0, 72, 128)


def test_the_loss_is_of_mean_activations_of_content():
    class Known(nn.Module):
        def forward(self, images, sizes):
            return cells

    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(2, 3, 4, 8, generator=generator)
    present = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    sizes = torch.tensor([[32, 64], [20, 37]])  # the second has 2 rows and 5 columns of cells whose middle is content
    batch = LabelledBatch(("a", "b"), torch.zeros(2, 3, 32, 64, dtype=torch.uint8), sizes, present)
    cells[1, :, 2:] = cells[1, :, :, 5:] = 1e6
    logits = torch.stack([cells[0].mean((1, 2)), cells[1, :, :2, :5].mean((1, 2))])
    expected = functional.softplus(torch.where(present > 0, -logits, logits)).mean()
    found = ActivationStep(Known()).losses(batch, 0.0)
    assert list(found) == ["camera/image_labels"]
    assert torch.allclose(found["camera/image_labels"], expected)


def test_classes_that_every_image_shows():
    def shows(*labels):
        numbers = tuple(range(len(labels)))
        return PointedImage(0, "0.png", 9, 9, points_of(*((1.0, 1.0, label) for label in labels)), numbers, numbers)

    assert always_shown([shows(2, 0, 2), shows(0, 1, 2)]) == [0, 2]
    assert always_shown([shows(0), shows()]) == []


def test_settings_out_of_range():
    for wrong in ({"low": 0.4}, {"high": 1.1}, {"share": 0.0}, {"scales": []}, {"scales": [0.0]}, {"radius": 0.5}):
        with pytest.raises(ConfigError, match="cam: expected"):
            ActivationSettings(**wrong)
    with pytest.raises(ConfigError, match=r"method\.point_to_mask\.backbone: expected a timm model, got 'resnet5O'"):
        PointToMask(backbone="resnet5O").activation_network(2, seed=0, start=True)
