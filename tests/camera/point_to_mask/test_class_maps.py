import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from camera.point_to_mask.activation_maps import ActivationSettings
from camera.point_to_mask.class_maps import class_map, sharpened, thresholded
from camera.point_to_mask.points import ImagePoints

SETTINGS = ActivationSettings()


def points_of(*rows):
    xy = torch.tensor([row[:2] for row in rows], dtype=torch.float32).reshape(-1, 2)
    return ImagePoints(xy, torch.tensor([row[2] for row in rows], dtype=torch.int64))


def slow_thresholded(found, points, settings):
    """Pixel by pixel, as the docstring says it."""
    size = found.shape[1:]
    semantic = np.zeros(size, dtype=np.uint8)
    for row, column in np.ndindex(*size):
        near = [((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2, label) for (x, y), label in pairs(points)]
        distance, label = min(near, key=lambda one: one[0])
        values = found[:, row, column].tolist()
        if distance <= settings.radius**2:
            semantic[row, column] = label + 1
        elif max(values) >= settings.high:
            semantic[row, column] = points.classes[values.index(max(values))] + 1
        elif max(values) >= settings.low:
            semantic[row, column] = 255
    for value in {label + 1 for label in points.classes}:
        regions, count = ndimage.label(semantic == value, np.ones((3, 3)))
        for number in range(1, count + 1):
            inside = [label + 1 == value and regions[int(y), int(x)] == number for (x, y), label in pairs(points)]
            if not any(inside):
                semantic[regions == number] = 255
    return torch.from_numpy(semantic)


def pairs(points):
    return list(zip(points.xy.tolist(), points.labels.tolist(), strict=True))


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_thresholds_and_points_as_the_slow_twin_has_it(seed, count):
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(count, 2, generator=generator) * torch.tensor([30.0, 20.0])
    points = ImagePoints(xy, torch.randint(0, 4, (count,), generator=generator))
    found = torch.rand(len(points.classes), 20, 30, generator=generator) ** 6
    settings = ActivationSettings(radius=3.0)
    semantic = thresholded(found, points, settings)
    assert semantic.dtype == torch.uint8
    assert torch.equal(semantic, slow_thresholded(found, points, settings))
    assert set(semantic.unique().tolist()) <= {0, 255, *(label + 1 for label in points.classes)}


def test_thresholds():
    found = torch.zeros(2, 20, 60)
    found[0, 10, :6] = torch.tensor([0.0, 0.04, 0.05, 0.29, 0.3, 0.9])
    found[1, 10, :6] = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.4, 0.2])
    found[0, 10, 6:30] = found[1, 11:, 4] = found[1, 19, 4:30] = 0.5  # ways to the points
    points = points_of((30.0, 10.0, 1), (30.0, 18.0, 4))
    assert thresholded(found, points, SETTINGS)[10, :6].tolist() == [0, 0, 255, 255, 5, 2]


def test_pixels_of_points_have_their_class_whatever_the_activation_and_the_colours():
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(2, 41, 59, generator=generator)
    image = torch.randint(0, 256, (3, 41, 59), generator=generator).byte()
    points = points_of((0.0, 0.0, 6), (58.9, 40.9, 2), (20.3, 20.6, 2), (26.0, 20.5, 6), (20.9, 12.0, 6))
    semantic = class_map(found, image, points, SETTINGS)
    column, row = points.xy.floor().long().unbind(1)
    assert torch.equal(semantic[row, column].long(), points.labels + 1)
    assert set(semantic.unique().tolist()) <= {0, 3, 7, 255}
    assert torch.equal(semantic, class_map(found, image, points, SETTINGS))


def test_an_image_without_points_is_background():
    image = torch.randint(0, 256, (3, 9, 13), generator=torch.Generator().manual_seed(0)).byte()
    semantic = class_map(torch.zeros(0, 9, 13), image, points_of(), SETTINGS)
    assert semantic.dtype == torch.uint8
    assert torch.equal(semantic, torch.zeros(9, 13, dtype=torch.uint8))


@pytest.mark.parametrize("size", [(64, 96), (63, 93)])
def test_colours_say_where_a_blurred_activation_ends(size):
    height, width = size
    image = torch.full((3, height, width), 90, dtype=torch.uint8)
    image[:, 20:44, 30:62] = torch.tensor([220, 40, 40], dtype=torch.uint8)[:, None, None]
    truth = torch.zeros(size, dtype=torch.uint8)
    truth[20:44, 30:62] = 1
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    found = (-((rows - 34) ** 2 + (columns - 50) ** 2) / 500).exp()[None]  # off the middle, too
    points = points_of((40.0, 30.0, 0))

    def iou(semantic):
        return float(((semantic == 1) & (truth == 1)).sum() / ((semantic == 1) | (truth == 1)).sum())

    before, after = iou(thresholded(found, points, SETTINGS)), iou(class_map(found, image, points, SETTINGS))
    assert before < 0.7
    assert after > 0.95
    assert sharpened(found, image, points, 5.0).shape == (1, height, width)
