import pytest
import torch

from camera.point_to_mask.instances_from_semantics import (
    cell_centres,
    instances_by_offsets,
    instances_of_components,
    masks_of_points,
    offset_targets,
)
from camera.point_to_mask.points import ImagePoints
from mwsis.core.instances import BACKGROUND, IGNORE
from tests.reference import p2seg as slow


def scene(seed, height=22, width=27, count=25, num_classes=3):
    """Blobs of three classes with holes and unknown pixels, and points of which some lie beside their class."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, num_classes + 1, (height // 4 + 1, width // 4 + 1), generator=generator)
    semantic = coarse.repeat_interleave(4, 0).repeat_interleave(4, 1)[:height, :width].clone()
    semantic[torch.rand(height, width, generator=generator) < 0.15] = 0
    semantic[torch.rand(height, width, generator=generator) < 0.05] = 255
    xy = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    xy[0] = torch.tensor([-3.0, 5.0])  # beyond the map
    labels = torch.randint(0, num_classes, (count,), generator=generator)
    return semantic.to(torch.uint8), ImagePoints(xy, labels), generator


@pytest.mark.parametrize("seed", range(12))
def test_regions_equal_the_slow_form(seed):
    semantic, points, _ = scene(seed)
    found = instances_of_components(semantic, points, min_area=6)
    assert torch.equal(found, slow.instances_of_components(semantic, points.xy, points.labels, 6))
    assert (found >= 0).any()
    assert (found == IGNORE).any()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stride", [1, 4])
def test_groups_equal_the_slow_form(seed, stride):
    semantic, points, generator = scene(seed)
    points = ImagePoints(points.xy * stride, points.labels)
    offsets = 5 * stride * torch.randn(2, *semantic.shape, generator=generator)
    found = instances_by_offsets(semantic, points, offsets, stride)
    assert torch.equal(found, slow.instances_by_offsets(semantic, points.xy, points.labels, offsets, stride))


def test_two_points_in_one_region_are_separated_by_the_perpendicular_bisector():
    semantic = torch.ones(40, 60, dtype=torch.uint8)
    semantic[:5] = 0
    points = ImagePoints(torch.tensor([[10.3, 30.1], [47.2, 12.4]]), torch.tensor([0, 0]))
    instances = instances_of_components(semantic, points)
    centres = cell_centres((40, 60), 1)
    middle, across = points.xy.mean(0), points.xy[1] - points.xy[0]
    beyond = ((centres - middle[:, None, None]) * across[:, None, None]).sum(0) > 0
    assert torch.equal(instances[5:], beyond[5:].long())
    assert bool((instances[:5] == BACKGROUND).all())


def test_offsets_lead_to_the_given_points_and_background_has_no_weight():
    semantic, points, _ = scene(3)
    instances = instances_of_components(semantic, points, min_area=6)
    offsets, weight = offset_targets(instances, points)
    reached = cell_centres(semantic.shape, 1) + offsets
    known = instances >= 0
    torch.testing.assert_close(reached[:, known].T, points.xy[instances[known]])
    assert torch.equal(weight, known.float())
    assert not offsets[:, semantic == 0].any()
    assert not weight[semantic == 0].any()


def test_small_regions_and_those_without_a_point_are_unknown():
    semantic = torch.zeros(30, 30, dtype=torch.uint8)
    semantic[:7, :7] = 1  # 49 pixels, with a point
    semantic[10:17, :10] = 1  # 70, without
    semantic[10:15, 15:25] = 1  # 50, with
    points = ImagePoints(torch.tensor([[3.0, 3.0], [20.0, 12.0]]), torch.tensor([0, 0]))
    instances = instances_of_components(semantic, points)
    assert bool((instances[:7, :7] == IGNORE).all())
    assert bool((instances[10:17, :10] == IGNORE).all())
    assert bool((instances[10:15, 15:25] == 1).all())


def test_regions_touch_at_corners():
    semantic = torch.zeros(20, 20, dtype=torch.uint8)
    semantic[:8, :8] = semantic[8:16, 8:16] = 1
    instances = instances_of_components(semantic, ImagePoints(torch.tensor([[2.0, 2.0]]), torch.tensor([0])))
    assert torch.equal(instances >= 0, semantic == 1)


def test_classes_without_a_point_are_unknown():
    semantic = torch.full((10, 10), 2, dtype=torch.uint8)
    points = ImagePoints(torch.tensor([[5.0, 5.0]]), torch.tensor([0]))
    assert bool((instances_of_components(semantic, points) == IGNORE).all())
    assert bool((instances_by_offsets(semantic, points, torch.zeros(2, 10, 10)) == IGNORE).all())


def test_refinement_follows_the_predicted_offsets_and_reaches_regions_without_a_point():
    semantic = torch.ones(20, 40, dtype=torch.uint8)
    semantic[:, 18:22] = 0
    points = ImagePoints(torch.tensor([[5.0, 10.0], [9.0, 10.0]]), torch.tensor([0, 0]))
    first = instances_of_components(semantic, points)
    assert bool((first[:, 22:] == IGNORE).all())
    to_first = points.xy[0][:, None, None] - cell_centres((20, 40), 1)
    refined = instances_by_offsets(semantic, points, to_first)
    assert bool((refined[semantic == 1] == 0).all())


def dense_prediction(instances, points, num_classes):
    """What a perfect network would say."""
    semantic = torch.where(instances >= 0, points.labels[instances.clamp(min=0)] + 1, 0)
    prob = torch.nn.functional.one_hot(semantic, num_classes + 1).permute(2, 0, 1).float()
    return 0.1 + 0.6 * prob, offset_targets(instances, points)[0]


def test_masks_of_perfect_predictions_are_the_objects():
    instances = torch.full((50, 60), BACKGROUND)
    instances[5:25, 5:20], instances[10:30, 20:40], instances[35:45, 30:55] = 0, 1, 2
    points = ImagePoints(torch.tensor([[9.0, 15.0], [30.0, 20.0], [40.0, 40.0]]), torch.tensor([1, 1, 0]))
    prob, offsets = dense_prediction(instances, points, 2)
    found = masks_of_points(prob, offsets, points)
    for index in range(3):
        assert torch.equal(found.masks.dense(index), instances == index)
    torch.testing.assert_close(found.scores, torch.full((3,), 0.7))
    assert torch.equal(found.weight, found.scores)


def test_a_class_that_no_point_has_gives_way_to_the_next_likely_one():
    prob = torch.tensor([0.1, 0.6, 0.3])[:, None, None].expand(3, 8, 8)
    points = ImagePoints(torch.tensor([[4.0, 4.0]]), torch.tensor([1]))
    found = masks_of_points(prob, torch.zeros(2, 8, 8), points)
    assert bool(found.masks.dense(0).all())
    assert found.scores.tolist() == pytest.approx([0.3])


def test_a_given_map_is_believed_where_it_knows():
    prob = torch.tensor([0.3, 0.6, 0.1])[:, None, None].expand(3, 8, 8)
    points = ImagePoints(torch.tensor([[2.0, 4.0], [6.0, 4.0]]), torch.tensor([0, 1]))
    semantic = torch.full((8, 8), 255, dtype=torch.uint8)
    semantic[:, 5:], semantic[:2] = 2, 0
    found = masks_of_points(prob, torch.zeros(2, 8, 8), points, semantic)
    first, second = found.masks.dense(0), found.masks.dense(1)
    assert bool(first[2:, :5].all())
    assert bool(second[2:, 5:].all())
    assert int(first.sum() + second.sum()) == 6 * 8
    assert found.scores.tolist() == pytest.approx([0.6, 0.1])


def test_a_point_without_a_mask_gets_a_square_of_no_weight():
    prob = torch.tensor([0.8, 0.2])[:, None, None].expand(2, 200, 300)
    points = ImagePoints(torch.tensor([[150.0, 100.0], [0.0, 0.0], [299.9, 199.9]]), torch.tensor([0, 0, 0]))
    found = masks_of_points(prob, torch.zeros(2, 200, 300), points)
    assert found.masks.crop_boxes.tolist() == [[118, 68, 182, 132], [0, 0, 32, 32], [268, 168, 300, 200]]
    assert found.masks.areas().tolist() == [64 * 64, 32 * 32, 32 * 32]
    assert found.scores.tolist() == [0.5] * 3
    assert found.weight.tolist() == [0.0] * 3


def test_no_points():
    points = ImagePoints(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    semantic = torch.ones(6, 6, dtype=torch.uint8)
    assert bool((instances_of_components(semantic, points) == IGNORE).all())
    assert len(masks_of_points(torch.rand(2, 6, 6), torch.zeros(2, 6, 6), points).masks) == 0


def test_p2seg_defect_09_points_in_the_first_row_or_column_count():
    semantic = torch.ones(12, 12, dtype=torch.uint8)
    for xy in ([0.0, 6.0], [6.0, 0.0], [0.0, 0.0]):
        points = ImagePoints(torch.tensor([xy]), torch.tensor([0]))
        assert bool((instances_of_components(semantic, points) == 0).all())
        assert bool((instances_by_offsets(semantic, points, torch.zeros(2, 12, 12)) == 0).all())


def test_p2seg_defect_04_class_0_is_not_background():
    semantic = torch.zeros(12, 24, dtype=torch.uint8)
    semantic[:, 12:] = 1
    points = ImagePoints(torch.tensor([[18.0, 6.0]]), torch.tensor([0]))
    instances = instances_of_components(semantic, points)
    assert bool((instances[:, :12] == BACKGROUND).all())
    assert bool((instances[:, 12:] == 0).all())
