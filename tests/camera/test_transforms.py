from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from camera.transforms import ImageGeometry, ResizeCropFlip, decode_image
from mwsis.core.errors import ConfigError, DataError
from mwsis.core.instances import Boxes2D
from tests.data.frames_for_tests import png


def test_bug_15_vertical_pixels_scale_with_the_vertical_factor() -> None:
    """1920x886 at width 1000 is 461 rows high: the factors differ, and pixel centres are at +0.5."""
    geometry = ResizeCropFlip([1000], flip_prob=0.0).draw([(886, 1920)], [], torch.Generator())[0]
    assert (geometry.height, geometry.width) == (461, 1000)
    corners = torch.tensor([[0.0, 0.0], [1920.0, 886.0], [960.0, 443.0]])
    assert geometry.apply_uv(corners).tolist() == [[0.0, 0.0], [1000.0, 461.0], [500.0, 230.5]]
    assert geometry.apply_uv(torch.tensor([[0.5, 885.5]]))[0, 1] == pytest.approx(885.5 * 461 / 886)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("size", [(12, 20), (24, 40)])
def test_a_pixel_keeps_its_colour(flipped: bool, size: tuple[int, int]) -> None:
    """Paint blocks, move image and pixels: every moved pixel lies on the colour of its block."""
    image = torch.arange(12 * 20, dtype=torch.uint8).reshape(1, 12, 20).repeat(3, 1, 1)
    geometry = ImageGeometry(12, 20, *size, flipped)
    moved = geometry.apply_image(image) if size == (12, 20) else image.repeat_interleave(2, 1).repeat_interleave(2, 2)
    if size != (12, 20) and flipped:
        moved = moved.flip(-1)
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(20), indexing="ij")
    pixel_uv = torch.stack([columns, rows], -1).reshape(-1, 2) + 0.5
    u, v = geometry.apply_uv(pixel_uv).unbind(1)
    assert torch.equal(moved[0, v.long(), u.long()], image[0].reshape(-1))


@pytest.mark.parametrize("flipped", [False, True])
def test_a_cropped_pixel_keeps_its_colour(flipped: bool) -> None:
    image = torch.arange(12 * 20, dtype=torch.uint8).reshape(1, 12, 20).repeat(3, 1, 1)
    geometry = ImageGeometry(12, 20, 12, 20, flipped, crop=(3, 2, 16, 9))
    moved = geometry.apply_image(image)
    assert tuple(moved.shape[1:]) == geometry.size == (7, 13)
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(20), indexing="ij")
    uv = geometry.apply_uv(torch.stack([columns, rows], -1).reshape(-1, 2) + 0.5)
    shown = geometry.shows(uv)
    assert int(shown.sum()) == 7 * 13
    u, v = uv[shown].long().unbind(1)
    assert torch.equal(moved[0, v, u], image[0].reshape(-1)[shown])


def test_boxes_are_cut_off_with_their_image() -> None:
    boxes = torch.tensor([[10.0, 5, 30, 25], [0, 0, 21.5, 9], [60, 5, 90, 25], [50, 30, 58, 40]])
    labels = Boxes2D(boxes, torch.arange(4), torch.tensor([False, True, False, False]))
    geometry = ImageGeometry(50, 100, 50, 100, flipped=False, crop=(20, 4, 60, 44))
    shown = geometry.shown(labels)
    assert shown.tolist() == [True, False, False, True]
    moved = geometry.apply_boxes(labels[shown])
    assert moved.boxes.tolist() == [[0, 1, 10, 21], [30, 26, 38, 36]]
    assert moved.labels.tolist() == [0, 3]
    mirrored = replace(geometry, flipped=True).apply_boxes(labels[shown])
    assert mirrored.boxes.tolist() == [[30, 1, 40, 21], [2, 26, 10, 36]]


def test_crops_hold_the_centre_of_an_object() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [90, 40, 100, 50], [40, 10, 50, 30], [60, 20, 80, 22]])
    labels = Boxes2D(boxes, torch.zeros(4, dtype=torch.int64), torch.tensor([False, False, False, True]))
    transform = ResizeCropFlip([200], crop=(32, 48))
    held, starts = torch.zeros(3), set()
    for seed in range(60):
        one, empty, low = transform.draw(
            [(50, 100), (50, 100), (10, 100)],
            [labels, Boxes2D.empty(), Boxes2D.empty()],
            torch.Generator().manual_seed(seed),
        )
        assert one.size == empty.size == (32, 48)
        assert low.size == (20, 48)
        x1, y1, x2, y2 = one.crop
        assert x1 >= 0
        assert x2 <= 200
        assert y1 >= 0
        assert y2 <= 100
        centre = boxes[:3, :2] + boxes[:3, 2:]  # doubled size: twice the mean
        inside = ((centre >= torch.tensor([x1, y1])) & (centre <= torch.tensor([x2, y2]))).all(1)
        assert bool(inside.any())
        held += inside
        starts.add(empty.crop[:2])
    assert float(held.min()) > 10
    assert len(starts) > 50
    assert transform.deterministic([(50, 100)])[0].crop is None


def test_boxes_move_with_their_pixels() -> None:
    labels = Boxes2D(torch.tensor([[10.0, 5.0, 30.0, 25.0]]), torch.tensor([2]), torch.tensor([False]))
    moved = ImageGeometry(50, 100, 25, 50, flipped=True).apply_boxes(labels)
    assert moved.boxes.tolist() == [[35.0, 2.5, 45.0, 12.5]]
    assert moved.labels.tolist() == [2]
    assert len(ImageGeometry(50, 100, 25, 50, flipped=True).apply_boxes(Boxes2D.empty())) == 0


def test_one_width_for_the_frame_and_a_flip_for_each_image() -> None:
    transform = ResizeCropFlip([100, 200, 300])
    draws = [transform.draw([(60, 120)] * 5, [], torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert {geometry.width for geometries in draws for geometry in geometries} == {100, 200, 300}
    assert all(len({geometry.width for geometry in geometries}) == 1 for geometries in draws)
    assert any(0 < sum(geometry.flipped for geometry in geometries) < 5 for geometries in draws)
    assert draws[3] == transform.draw([(60, 120)] * 5, [], torch.Generator().manual_seed(3))
    fixed = transform.deterministic([(60, 120), (90, 120)])
    assert [(geometry.height, geometry.width, geometry.flipped) for geometry in fixed] == [
        (150, 300, False),
        (225, 300, False),
    ]


def test_resizing_is_antialiased_and_stays_uint8() -> None:
    checks = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255).to(torch.uint8).expand(3, 64, 64)
    small = ImageGeometry(64, 64, 16, 16, flipped=False).apply_image(checks)
    assert small.dtype == torch.uint8
    assert small.shape == (3, 16, 16)
    assert (small[:, 2:-2, 2:-2].float() - 127.5).abs().max() < 8


def test_decoding() -> None:
    image = decode_image(png(20, 10), "frame 7")
    assert image.shape == (3, 10, 20)
    assert image.dtype == torch.uint8
    for broken in (b"", b"not an image", png(20, 10)[:200]):
        with pytest.raises(DataError, match="frame 7: cannot decode"):
            decode_image(broken, "frame 7")


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="widths"):
        ResizeCropFlip([])
    with pytest.raises(ConfigError, match="flip_prob"):
        ResizeCropFlip([10], flip_prob=2)
    with pytest.raises(ConfigError, match="crop"):
        ResizeCropFlip([10], crop=(0, 4))
