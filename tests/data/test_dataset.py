from __future__ import annotations

import pytest
import torch

from mwsis.core.batch import Sample
from mwsis.core.errors import DataError
from mwsis.core.frame import Frame, PixelMap
from mwsis.core.instances import Boxes2D, PointLabels
from mwsis.data.dataset import FrameDataset, collate
from mwsis.data.label_cache import FrameLabels
from tests.data.frames_for_tests import random_frame


def make_sample(index: int, num_points: int, sizes: list[tuple[int, int]], num_slots: int = 2) -> Sample:
    camera_index = torch.arange(num_points * num_slots).reshape(num_points, num_slots) % (len(sizes) + 1) - 1
    return Sample(
        frame_index=index,
        frame_id=f"f{index}",
        xyz=torch.rand(num_points, 3),
        point_feats=torch.rand(num_points, 2),
        point_index=torch.arange(num_points) * 2,
        ring_segment_id=torch.arange(num_points) - 1,
        pixels=PixelMap(torch.rand(num_points, num_slots, 2), camera_index.to(torch.int8)),
        pseudo=PointLabels(torch.zeros(num_points, dtype=torch.int64), torch.arange(num_points)),
        images=tuple(torch.full((3, *size), index + 1, dtype=torch.uint8) for size in sizes),
        original_sizes=tuple((2 * height, 2 * width) for height, width in sizes),
        labels=tuple(Boxes2D.empty() for _ in sizes),
    )


def test_dataset_never_passes_truth() -> None:
    frames = [random_frame(seed) for seed in (0, 2)]
    assert all(frame.truth is not None for frame in frames)
    seen: list[Frame] = []

    def transform(frame: Frame, labels: FrameLabels, index: int, generator: torch.Generator) -> Sample:
        seen.append(frame)
        return make_sample(index, len(frame.points), [(8, 8)])

    samples = FrameDataset(frames, None, transform, seed=0)
    assert samples[1, 5].frame_index == 1
    _ = samples[0]
    assert [frame.truth for frame in seen] == [None, None]


def test_randomness_depends_on_seed_and_position_alone() -> None:
    frames = [random_frame(seed) for seed in range(3)]

    def draw(frame: Frame, labels: FrameLabels, index: int, generator: torch.Generator) -> Sample:
        return make_sample(int(torch.randint(2**40, (), generator=generator)), 1, [])

    def drawn(seed: int, key: tuple[int, int]) -> int:
        return FrameDataset(frames, None, draw, seed)[key].frame_index

    torch.manual_seed(0)
    assert drawn(0, (0, 7)) == drawn(0, (0, 7)) == drawn(0, (2, 7))
    assert len({drawn(0, (0, 7)), drawn(0, (0, 8)), drawn(1, (0, 7))}) == 3


def test_labels_of_other_frames_are_refused() -> None:
    frames = [random_frame(0)]
    with pytest.raises(DataError, match="expected one per frame"):
        FrameDataset(frames, [], lambda *_: make_sample(0, 1, []), seed=0)
    samples = FrameDataset(frames, [FrameLabels.unlabelled(3)], lambda *_: make_sample(0, 1, []), seed=0)
    with pytest.raises(DataError, match="drive-0: 3 labels for 51 points"):
        samples[0]


def test_collate_counts_on() -> None:
    parts = [make_sample(4, 5, [(20, 40), (33, 10)]), make_sample(9, 0, [(8, 8)]), make_sample(1, 4, [(30, 70)])]
    batch = collate(parts)
    assert batch.frame_index.tolist() == [4, 9, 1]
    assert batch.frame_ids == ("f4", "f9", "f1")
    assert batch.points.batch_offsets.tolist() == [0, 5, 5, 9]
    assert batch.points.batch_index.tolist() == [0] * 5 + [2] * 4
    assert batch.points.ring_segment_id.tolist() == [-1, 0, 1, 2, 3, -1, 4, 5, 6]
    assert batch.image_index.dtype == torch.int64
    for row, (sample, first) in enumerate([(parts[0], 0)] * 5 + [(parts[2], 3)] * 4):
        local = sample.pixels.camera_index[row if row < 5 else row - 5].long()
        assert torch.equal(batch.image_index[row], torch.where(local >= 0, local + first, -1))
    assert batch.pseudo.instance_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]


def test_collate_pads_images_to_multiples_of_32() -> None:
    batch = collate([make_sample(0, 1, [(20, 40), (33, 10)]), make_sample(1, 1, [(30, 70)])])
    images = batch.images
    assert images.images.shape == (3, 3, 64, 96)
    assert images.images.dtype == torch.uint8
    assert images.sizes.tolist() == [[20, 40], [33, 10], [30, 70]]
    assert images.original_sizes.tolist() == [[40, 80], [66, 20], [60, 140]]
    assert images.images[2, :, :30, :70].eq(2).all()
    assert images.images[2].sum() == 2 * 3 * 30 * 70


def test_collate_without_cameras_and_with_uneven_slots() -> None:
    batch = collate([make_sample(0, 2, [], num_slots=1), make_sample(1, 3, [(8, 8)], num_slots=2)])
    assert batch.image_index.shape == (5, 2)
    assert batch.image_index[:2].eq(-1).all()
    empty = collate([make_sample(0, 2, [])])
    assert empty.images.images.shape == (0, 3, 32, 32)
    assert empty.images.sizes.shape == (0, 2)
