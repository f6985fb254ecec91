"""Points as sparse masks: against loops, and against the street world's true masks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fusion.correspondence import PointPixelPairs, point_pixel_pairs
from fusion.label_methods import LABEL_METHODS
from fusion.lidar_depth import pixel_depth, unoccluded
from fusion.object_points import LEAST_OVERLAP, object_points
from mwsis.core.instances import BACKGROUND, IGNORE, PointLabels
from tests.reference.object_points import object_points_one_by_one


def objects_of(boxes, labels, image):
    return SimpleNamespace(gt_boxes=boxes, gt_labels=labels, gt_image=image, num_gt=len(boxes))


def scene(seed):
    """Two images of two frames, five objects whose points scatter around their boxes, and points of nothing."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(5, 2, generator=generator) * torch.tensor([60.0, 40.0])
    boxes = torch.cat([corner, corner + 10 + 20 * torch.rand(5, 2, generator=generator)], 1)
    image, labels = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 0, 2, 0])
    owner = torch.randint(-1, 5, (200,), generator=generator)
    frame = torch.where(owner >= 0, image[owner.clamp(min=0)], torch.randint(0, 2, (200,), generator=generator))
    size = (boxes[:, 2:] - boxes[:, :2])[owner.clamp(min=0)]
    uv = boxes[owner.clamp(min=0), :2] + (1.2 * torch.rand(200, 2, generator=generator) - 0.1) * size
    semantic = torch.where(owner >= 0, labels[owner.clamp(min=0)], BACKGROUND)
    semantic[torch.rand(200, generator=generator) < 0.1] = IGNORE
    instance = torch.where(semantic >= 0, owner * 7 % 5, -1)
    pseudo = PointLabels(semantic, instance, torch.rand(200, generator=generator))
    pairs = PointPixelPairs(torch.arange(200), uv, frame)
    return pairs, frame, pseudo, objects_of(boxes, labels, image)


@pytest.mark.parametrize("seed", range(6))
def test_equals_loops(seed):
    pairs, frame, pseudo, objects = scene(seed)
    found = object_points(pairs, frame, pseudo, objects)
    slow = object_points_one_by_one(pairs, frame, pseudo, objects, LEAST_OVERLAP)
    assert found.starts.diff().tolist() == [len(points) for points in slow]
    assert found.starts[-1] > 50
    expected = torch.tensor([row for points in slow for row in points])
    got = torch.cat([found.pixel_uv, found.on_object[:, None], found.weight[:, None]], 1)
    torch.testing.assert_close(got, expected)
    assert 0 < float(found.on_object.mean()) < 1


def test_nothing_to_point_at():
    pairs, frame, pseudo, objects = scene(0)
    none = torch.zeros(0, dtype=torch.int64)
    nobody = objects_of(torch.zeros(0, 4), none, none)
    assert object_points(pairs, frame, pseudo, nobody).starts.tolist() == [0]
    empty = object_points(pairs[none], frame, pseudo, objects)
    assert empty.starts.tolist() == [0] * 6
    background = PointLabels(torch.full((200,), BACKGROUND), torch.full((200,), -1))
    assert len(object_points(pairs, frame, background, objects).pixel_uv) == 0


def test_on_the_street_they_lie_where_the_true_masks_are(street):
    frame = street
    ours = LABEL_METHODS["spg_default"]
    pseudo = ours.recipe(frame, ours.segments(frame), [])
    pairs = point_pixel_pairs(frame.pixels.pixel_uv, frame.pixels.camera_index)
    depth = pixel_depth(frame.points.xyz, frame.pixels.camera_index, list(frame.cameras))
    size = max(view.camera.height for view in frame.cameras), max(view.camera.width for view in frame.cameras)
    seen = pairs[unoccluded(pairs, depth[frame.pixels.camera_index >= 0], len(frame.cameras), *size)]
    views = [view.labels.objects for view in frame.cameras]
    image = torch.cat([torch.full((len(view),), index) for index, view in enumerate(views)])
    boxes, labels = torch.cat([view.boxes for view in views]), torch.cat([view.labels for view in views])
    objects = objects_of(boxes, labels, image)
    found = object_points(seen, torch.zeros(len(frame.points), dtype=torch.int64), pseudo, objects)
    agreed = []
    for g in range(len(boxes)):
        truth = frame.truth.images[int(image[g])]
        overlap = (truth.labels.boxes - boxes[g]).abs().amax(1)
        mask = truth.masks.dense(int(overlap.argmin()))
        rows = slice(int(found.starts[g]), int(found.starts[g + 1]))
        col, row = found.pixel_uv[rows].long().unbind(1)
        agreed.append(mask[row, col] == found.on_object[rows].bool())
    with_points = sum(len(one) > 0 for one in agreed)
    assert with_points > 0.6 * len(boxes)
    assert float(torch.cat(agreed).float().mean()) > 0.85
