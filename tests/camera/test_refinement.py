import pytest
import torch

from camera.refinement import ColorRefinement
from mwsis.core.errors import ConfigError
from tests.reference.refinement import refined

EVERYWHERE = torch.tensor([[0.0, 0.0, 1e4, 1e4]])


def disc(height, width, radius, centre):
    row, col = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (row - centre[0]) ** 2 + (col - centre[1]) ** 2 < radius**2


@pytest.mark.parametrize("cell", [1, 2, 4])
def test_equals_the_slow_form_where_masks_fill_the_image(cell):
    generator = torch.Generator().manual_seed(cell)
    image = torch.randint(90, 130, (3, 16, 24), dtype=torch.uint8, generator=generator)
    prob = torch.rand(3, 4, 6, generator=generator)
    settings = {"strength": 0.7, "sharpness": 0.2, "color": 0.6, "bin_width": 4.0, "shrink": 0.3}
    settings |= {"iterations": 3, "steps": (1, 3), "cell": cell}
    found = ColorRefinement(**settings)(prob, EVERYWHERE.expand(3, 4), image)
    for one, result in zip(prob, found, strict=True):
        torch.testing.assert_close(result, refined(one, image, **settings), atol=1e-5, rtol=1e-4)


def test_cells_out_of_reach_keep_their_value():
    image = torch.full((3, 64, 128), 128, dtype=torch.uint8)
    image[:, :32] = 90
    prob = torch.full((2, 16, 32), 0.05)
    prob[0, 4, 4] = 0.9
    found = ColorRefinement(cell=4, steps=(2,))(prob, EVERYWHERE.expand(2, 4), image)
    assert torch.equal(found[1], prob[1])  # nothing possible: nothing changes
    changed = (found[0] != prob[0]).nonzero()
    assert changed.amin(0).tolist() == [2, 2]
    assert changed.amax(0).tolist() == [6, 6]


def test_a_blurred_mask_snaps_to_the_colours():
    shape = disc(96, 128, 22, (48, 60))
    image = torch.where(shape, 200, 60).to(torch.uint8).expand(3, -1, -1)
    row, col = torch.meshgrid(torch.arange(24) * 4 + 2, torch.arange(32) * 4 + 2, indexing="ij")
    far = ((row - 44.0) ** 2 + (col - 66.0) ** 2).sqrt()  # too large, and 7 pixels off
    blurred = ((30 - far) / 8).sigmoid()[None]
    found = ColorRefinement()(blurred, EVERYWHERE, image)[0] > 0.5

    def iou(mask):
        wanted = shape[:: 96 // len(mask), :: 96 // len(mask)]
        return float((mask & wanted).sum() / (mask | wanted).sum())

    assert iou(blurred[0] > 0.5) < 0.6
    assert iou(found) > 0.85


def test_a_mask_does_not_leave_the_surroundings_of_its_box():
    image = torch.full((3, 64, 128), 100, dtype=torch.uint8)  # nothing to tell the object from the rest
    prob = torch.full((1, 16, 32), 0.9)
    box = torch.tensor([[40.0, 20.0, 80.0, 40.0]])
    found = ColorRefinement(color=0.0)(prob, box, image)[0]
    row, col = (found > 0.5).nonzero().T
    assert (row.min(), row.max(), col.min(), col.max()) == (16, 43, 32, 87)  # a fifth of 20 and of 40 further
    assert not found[:16].any()


def test_no_masks():
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    assert ColorRefinement()(torch.zeros(0, 8, 8), EVERYWHERE[:0], image).shape == (0, 32, 32)


def test_colours_of_the_object_are_found_beyond_the_reach_of_its_neighbours():
    image = torch.full((3, 64, 64), 60, dtype=torch.uint8)
    image[0, 16:48, 8:56] = 200
    prob = torch.full((1, 16, 16), 0.3)
    prob[:, 6:10, 4:8] = 0.8  # a part of the left half
    without, found = (
        ColorRefinement(color=color, steps=(1,), strength=1e-3, shrink=0.0)(prob, EVERYWHERE, image)[0] > 0.5
        for color in (0.0, 1.0)
    )
    wanted = image[0] == 200
    assert not (without & wanted)[:, 40:].any()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "wrong", [{"cell": 3}, {"color": -1.0}, {"bin_width": 0.0}, {"strength": 0.0}, {"steps": (0, 2)}, {"iterations": 0}]
)
def test_values_out_of_range(wrong):
    with pytest.raises(ConfigError, match="refinement"):
        ColorRefinement(**wrong)
