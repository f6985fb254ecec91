"""Box prompts: what the network is shown, where its masks lie, what passes the gates, who gets a shared pixel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from camera.segment_anything import PromptedMasks, distances_of, prompted_masks, without_overlaps
from mwsis.core.errors import DataError
from mwsis.core.frame import PixelMap
from mwsis.core.instances import MaskSet
from tests.data.frames_for_tests import random_frame

HEIGHT, WIDTH = 200, 320


class BrightNetwork:
    """Stands in for a network: a box's mask is what is bright in it, as sure as the picture says (green, of 200)."""

    def __init__(self):
        self.shown, self.asked = [], []

    def __call__(self, image):
        self.shown.append(tuple(image.shape[1:]))

        def ask(boxes):
            self.asked.append(len(boxes))
            logits, sure = torch.full((len(boxes), *image.shape[1:]), -8.0), torch.zeros(len(boxes))
            for row, (x1, y1, x2, y2) in enumerate(boxes.long().tolist()):
                window = (slice(max(y1, 0), y2), slice(max(x1, 0), x2))
                logits[row][window] = image[0][window].float() - 100.0
                sure[row] = image[1][window].max() / 200
            return logits, sure

        return ask


def picture(*patches):
    """Each patch: x1 y1 x2 y2, and how sure the network will be."""
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    for (x1, y1, x2, y2), sure in patches:
        image[0, y1:y2, x1:x2] = 250
        image[1, y1:y2, x1:x2] = round(sure * 200)
    return image


def found_in(image, *boxes, network=None):
    return prompted_masks(image, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), network or BrightNetwork())


def test_weights_are_trust_times_tightness_and_nothing_below_the_gates():
    image = picture(
        ([10, 10, 90, 90], 0.9), ([100, 10, 180, 90], 0.795), ([190, 10, 230, 90], 1.0), ([10, 100, 74, 180], 0.8)
    )
    found = found_in(image, [10, 10, 90, 90], [100, 10, 180, 90], [190, 10, 270, 90], [10, 100, 90, 180])
    torch.testing.assert_close(found.predicted_iou, torch.tensor([0.9, 0.795, 1.0, 0.8]))
    torch.testing.assert_close(found.tight_iou, torch.tensor([1.0, 1.0, 0.5, 0.8]))
    torch.testing.assert_close(found.weight, torch.tensor([0.9, 0.0, 0.0, 0.64]))
    assert found.masks.areas().tolist() == [6400, 6400, 3200, 5120]
    assert torch.equal(found.masks.dense(3), image[0].ge(1) & (torch.arange(HEIGHT)[:, None] >= 100))


def test_an_empty_mask_has_no_weight():
    found = found_in(picture(), [10, 10, 90, 90])
    assert (found.masks.areas().tolist(), found.tight_iou.tolist(), found.weight.tolist()) == ([0], [0.0], [0.0])
    assert len(found_in(picture()).masks) == 0


def test_small_boxes_are_shown_enlarged_and_their_masks_lie_where_they_belong():
    network = BrightNetwork()
    boxes = [[300, 2, 316, 22], [150, 100, 170, 112], [10, 10, 90, 90]]
    found = found_in(picture(*((box, 1.0) for box in boxes)), *boxes, network=network)
    assert network.shown == [(HEIGHT, WIDTH), (80, 80), (80, 80)]
    assert found.masks.crop_boxes.tolist() == boxes
    assert found.weight.tolist() == [1.0, 1.0, 1.0]


def test_boxes_beyond_the_image_and_images_smaller_than_the_part():
    image = picture(([0, 0, 20, 10], 1.0))[:, :30, :40]
    found = found_in(image, [-4.0, -2.0, 20.0, 10.0])
    assert found.masks.crop_boxes.tolist() == [[0, 0, 20, 10]]
    torch.testing.assert_close(found.tight_iou, torch.tensor([200 / 288]))


def test_few_masks_of_full_size_at_a_time():
    network = BrightNetwork()
    found_in(picture(), *[[10, 10, 90, 90]] * 37, network=network)
    assert network.asked == [16, 16, 5]
    assert network.shown == [(HEIGHT, WIDTH)]


def test_stability_is_the_share_that_a_moved_threshold_leaves():
    def look(image):
        ramp = (torch.arange(100) / 10 - 4.95)[None, None].expand(1, 80, 100)
        return lambda boxes: (ramp, torch.ones(1))

    found = prompted_masks(picture(), torch.tensor([[0.0, 0, 100, 80]]), look)
    torch.testing.assert_close(found.stability, torch.tensor([40 / 60]))


def test_a_network_that_gives_nan_is_refused():
    def look(image):
        return lambda boxes: (torch.zeros(1, *image.shape[1:]), torch.tensor([float("nan")]))

    with pytest.raises(DataError, match="got NaN or infinity; are its weights whole"):
        prompted_masks(picture(), torch.tensor([[0.0, 0, 100, 80]]), look)


def rectangles(*boxes, sure=None):
    corners = torch.tensor(boxes)
    crops = [torch.ones(y2 - y1, x2 - x1, dtype=torch.bool) for x1, y1, x2, y2 in boxes]
    ones = torch.ones(len(boxes))
    return PromptedMasks(
        MaskSet.from_crops(HEIGHT, WIDTH, corners, crops),
        ones if sure is None else torch.tensor(sure),
        ones,
        ones,
        0 * ones,
    )


def unknown(count):
    return torch.full((count,), float("nan"))


def test_a_shared_pixel_goes_to_the_smaller_mask_or_to_the_nearer_object():
    found = rectangles([0, 0, 20, 10], [10, 0, 16, 5])
    alone = without_overlaps(found, unknown(2))
    assert alone.masks.areas().tolist() == [170, 30]
    torch.testing.assert_close(alone.overlap, torch.tensor([0.15, 1.0]))
    assert not bool((alone.masks.dense(0) & alone.masks.dense(1)).any())
    assert without_overlaps(found, torch.tensor([9.0, float("nan")])).masks.areas().tolist() == [170, 30]
    nearer = without_overlaps(found, torch.tensor([9.0, 12.0]))
    assert nearer.masks.areas().tolist() == [200, 0]
    assert nearer.masks.crop_boxes.tolist()[1] == [0, 0, 0, 0]
    assert torch.equal(nearer.masks.dense(0), found.masks.dense(0))


def test_what_is_cut_off_leaves_a_tight_crop():
    cut = without_overlaps(rectangles([0, 0, 20, 10], [14, 0, 24, 10]), unknown(2))
    assert cut.masks.crop_boxes.tolist() == [[0, 0, 14, 10], [14, 0, 24, 10]]
    torch.testing.assert_close(cut.overlap, torch.tensor([0.3, 0.6]))


def test_masks_that_are_not_trusted_claim_and_lose_nothing():
    found = without_overlaps(rectangles([0, 0, 20, 10], [10, 0, 16, 5], sure=[1.0, 0.5]), unknown(2))
    assert (found.masks.areas().tolist(), found.overlap.tolist()) == ([200, 30], [0.0, 0.0])


def test_the_distance_of_an_object_is_that_of_the_points_on_its_mask():
    frame = random_frame(1, num_points=8)
    uv = torch.zeros(8, 2, 2)
    uv[:, 0] = torch.tensor([[5.5, 5.5], [6.2, 5.0], [7.9, 8.1], [5.0, 9.99], [5.0, 10.0], [5, 5], [30, 5], [30, 6]])
    slots = torch.full((8, 2), -1, dtype=torch.int8)
    slots[:, 0] = torch.tensor([1, 1, 1, 1, 1, 0, 1, 1])
    ranges = torch.tensor([8.0, 10.0, 30.0, 9.0, 1.0, 2.0, 5.0, 5.0])
    frame = replace(frame, pixels=PixelMap(uv, slots), points=replace(frame.points, ranges=ranges))
    masks = rectangles([5, 5, 10, 10], [29, 0, 40, 20], [0, 0, 0, 0]).masks
    distance = distances_of(frame, 1, masks)
    assert float(distance[0]) == 9.0  # the lower of the two in the middle, as torch takes it
    assert distance[1:].isnan().all()
