"""Masks on boxes against slow twins, torchvision's operator on whole bitmaps, and themselves."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from camera.box_masks import map_box_masks, mask_targets, paste_box_masks
from mwsis.core.instances import MaskSet
from tests.reference.box_masks import mask_target, pasted

HEIGHT, WIDTH = 40, 60


def disc(x, y, radius):
    rows, cols = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    return (rows - y) ** 2 + (cols - x) ** 2 < radius**2


DENSE = torch.stack([disc(20, 15, 9), disc(55, 36, 12), torch.ones(HEIGHT, WIDTH).bool(), disc(0, 0, 0.1)])
"""In the image, cut by two of its edges, all of it, and nothing."""
BOXES = torch.tensor(
    [
        *([11.0, 6.0, 29.0, 24.0], [14.3, 2.2, 40.9, 19.7], [20.0, 15.0, 20.5, 15.4]),
        *([43.0, 24.0, 60.0, 40.0], [50.5, 30.0, 59.9, 39.8], [0.0, 0.0, 60.0, 40.0]),
        *([0.0, 0.0, 7.0, 5.0], [3.0, 3.0, 9.0, 9.0]),
    ]
)
INDEX = torch.tensor([0, 0, 0, 1, 1, 1, 2, 3])


def mask_set():
    boxes, crops = zip(*(MaskSet.tight_crop(mask) for mask in DENSE), strict=True)
    return MaskSet.from_crops(HEIGHT, WIDTH, torch.tensor(boxes), list(crops))


@pytest.mark.parametrize("row", range(len(BOXES)))
def test_targets_equal_the_slow_ones(row):
    got = mask_targets(mask_set(), INDEX[row : row + 1], BOXES[row : row + 1], 8)[0]
    torch.testing.assert_close(got, mask_target(DENSE[INDEX[row]], BOXES[row].tolist(), 8), atol=1e-5, rtol=0)


def test_targets_of_crops_equal_those_of_whole_bitmaps():
    got = mask_targets(mask_set(), INDEX, BOXES, 28)
    rois = torch.cat([INDEX[:, None].float(), BOXES], 1)
    torch.testing.assert_close(got, roi_align(DENSE[:, None].float(), rois, 28, aligned=True)[:, 0], atol=1e-5, rtol=0)
    assert got[0, 14, 14] == 1
    assert got[0, 0, 0] == 0
    assert (got[6] == 1).all()  # a mask that goes on beyond the image is whole up to its edge
    assert (got[7] == 0).all()


def test_predictions_are_pasted_where_the_box_is():
    prob = torch.rand(len(BOXES), 7, 7, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([BOXES[:6] + 0.3, torch.tensor([[50.0, 30.0, 70.0, 50.0], [-9.0, -9.0, -2.0, -2.0]])])
    masks, maps = paste_box_masks(prob, boxes, HEIGHT, WIDTH), map_box_masks(prob, boxes, HEIGHT, WIDTH)
    for index, box in enumerate(boxes.tolist()):
        slow = pasted(prob[index], box, HEIGHT, WIDTH)
        torch.testing.assert_close(maps[index], slow, atol=1e-5, rtol=0)
        assert torch.equal(masks.dense(index), maps[index] > 0.5)
    assert masks.areas()[2] <= 1  # a box of half a pixel
    assert masks.crop_boxes[7].tolist() == [0, 0, 0, 0]


def test_a_mask_survives_its_box():
    masks = mask_set()
    again = paste_box_masks(mask_targets(masks, torch.tensor([0, 1]), BOXES[[0, 3]], 28), BOXES[[0, 3]], HEIGHT, WIDTH)
    for index in range(2):
        wrong = (again.dense(index) ^ DENSE[index]).sum()
        assert wrong <= 0.02 * DENSE[index].sum()


def test_nothing_to_do():
    none = torch.zeros(0, 4)
    assert mask_targets(mask_set(), torch.zeros(0, dtype=torch.int64), none, 28).shape == (0, 28, 28)
    assert len(paste_box_masks(torch.zeros(0, 28, 28), none, HEIGHT, WIDTH)) == 0
    assert map_box_masks(torch.zeros(0, 28, 28), none, HEIGHT, WIDTH).shape == (0, HEIGHT, WIDTH)
