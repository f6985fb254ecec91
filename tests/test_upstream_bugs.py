"""Bugs of the published MWSIS code that this project could have had too, one test each, by the numbers of the list.

Each runs the code that training and evaluation run, on input for which the bug would show. The other bugs are tested
where they belong (3, 11, 15, 17) or cannot occur here (4, 5, 13, 16, 18).
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from camera.segmentor import build_condinst
from camera.transforms import ResizeCropFlip
from fusion.correspondence import point_pixel_pairs, points_in_boxes2d
from fusion.distillation import camera_to_lidar, class_maps, lidar_to_camera
from fusion.ring_correction import correct_by_ring_segment
from fusion.segmentor import MultimodalSegmentor
from fusion.spatial_labels import spatial_labels
from fusion.step import Method, PretrainingStep
from fusion.transforms import PairedTransform
from fusion.vote_history import HEADER, VoteHistory, correct_labels
from lidar.point_head import semantic_loss
from lidar.segmentor import PointOutput
from lidar.transforms import RotateScaleFlip
from mwsis.core.batch import ImageBatch, PointBatch
from mwsis.core.frame import PixelMap
from mwsis.core.instances import BACKGROUND, IGNORE, Boxes2D, MaskSet, PointLabels
from mwsis.data.dataset import FrameDataset, collate
from mwsis.data.label_cache import FrameLabels
from mwsis.data.waymo.record import PanopticLabel
from mwsis.training.callbacks import SaveAndStop
from mwsis.training.inference import predict
from tests.camera.test_segmentor import scenes
from tests.data.frames_for_tests import random_frame
from tests.data.test_waymo_frame import frame_of, with_camera
from tests.data.waymo_drive import HEIGHT, WIDTH, make_drive, png
from tests.lidar.test_segmentor import RANGE, make_segmentor

TRANSFORM = PairedTransform(ResizeCropFlip([96]), RotateScaleFlip(), (-15.0, -15.0, -2.0, 15.0, 15.0, 1.5))


def labels_of(frame, num_segments=12):
    """Return labels with every kind of value and short ring segments, a point in ten without one."""
    generator = torch.Generator().manual_seed(len(frame.points))
    rows = torch.arange(len(frame.points))
    kinds = torch.tensor([0, 0, 2, 1, BACKGROUND, IGNORE])
    segments = torch.randint(num_segments, rows.shape, generator=generator)
    kind = torch.where(torch.rand(rows.shape, generator=generator) < 0.7, segments % 6, rows % 6)
    instance_ids = torch.where(kinds[kind] >= 0, segments, -1)
    return FrameLabels(PointLabels(kinds[kind], instance_ids), torch.where(rows % 10 == 0, -1, segments * 5))


def test_bug_01_second_camera_flip_moves_the_column():
    """Upstream mirrored the row, not the column, of points seen by a second camera in a flipped image."""
    frame = random_frame(1, 400)
    sizes = [(view.camera.height, view.camera.width) for view in frame.cameras]
    kinds = set()
    for seed in range(20):
        flipped = [one.flipped for one in TRANSFORM.camera.draw(sizes, [], torch.Generator().manual_seed(seed))]
        sample = TRANSFORM(frame, labels_of(frame), 0, torch.Generator().manual_seed(seed))
        cameras = sample.pixels.camera_index
        both = ((cameras >= 0).all(1) & (cameras[:, 0] != cameras[:, 1])).nonzero()[:, 0]
        assert len(both) > 20
        before, after = frame.pixels.pixel_uv[sample.point_index[both]], sample.pixels.pixel_uv[both]
        mirrored = torch.tensor(flipped)[cameras[both].long()]
        kinds |= {tuple(row) for row in mirrored.tolist()}
        column = torch.where(mirrored, 96 - 2 * before[..., 0], 2 * before[..., 0])
        torch.testing.assert_close(after, torch.stack([column, 2 * before[..., 1]], -1), rtol=0, atol=1e-4)
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


def test_bug_02_second_slot_compares_the_row_with_the_lower_edge():
    """Upstream compared a box's lower edge with the column of pixels in the second slot, not with their row."""
    wide = Boxes2D(torch.tensor([[0.0, 10.0, 100.0, 40.0]]), torch.tensor([0]), torch.tensor([False]))
    rows_and_columns = torch.tensor([[50.0, 60.0], [50.0, 20.0], [20.0, 60.0], [20.0, 20.0]])
    second_slot = torch.stack([torch.zeros(4, 2), rows_and_columns], 1)
    pixels = PixelMap(second_slot, torch.tensor([[-1, 0]] * 4, dtype=torch.int8))
    assert points_in_boxes2d(pixels, [wide]).tolist() == [[1, 0], [3, 0]]


def test_bug_06_an_instance_score_passes_through_one_sigmoid():
    """Upstream took the sigmoid of probabilities, which squeezed every foreground score into (.62, .73)."""
    segmentor = make_segmentor()
    logits = torch.full((4, 3), -9.0)
    logits[:, 2] = torch.tensor([0.5, 2.0, 4.0, 6.0])
    output = PointOutput(logits, torch.zeros(4, 3, 3), torch.ones(4, dtype=torch.bool))
    segmentor.forward = lambda points: output  # type: ignore[method-assign]
    nothing = torch.zeros(4, 2)
    points = PointBatch(torch.zeros(4, 3), nothing, torch.tensor([0, 4]), torch.arange(4), torch.full((4,), -1))
    (found,) = segmentor.predict(points)
    expected = np.mean([1 / (1 + math.exp(-logit)) for logit in (0.5, 2.0, 4.0, 6.0)])
    assert found.scores.tolist() == pytest.approx([expected])
    assert expected > 0.87


def test_bug_07_what_was_never_observed_is_no_vote_for_background(tmp_path):
    """Upstream read visits that never were as probability -1, so as background, and decided for the whole batch."""
    history = VoteHistory(tmp_path / "votes", [3], 3)
    for visit in range(4):
        seen = torch.tensor([0, 1] if visit else [0])
        history.push(0, seen, torch.full((len(seen),), BACKGROUND))
    # Point 0 was seen four times, point 1 three times, point 2 never; each is judged by its own visits.
    pseudo = PointLabels(torch.tensor([0, 1, 2]), torch.tensor([4, 5, 6]))
    for wanted, expected in (((4, 4), [BACKGROUND, 1, 2]), ((3, 4), [BACKGROUND, BACKGROUND, 2])):
        corrected = correct_labels(pseudo, history.agreed(0, torch.arange(3), *wanted))
        assert corrected.semantic_labels.tolist() == expected


def test_bug_08_votes_are_two_bytes_a_point_in_one_file(tmp_path, monkeypatch):
    """Upstream saved 48 bytes a point and step, a file a frame, in the working directory, over those being read."""
    path = tmp_path / "run" / "votes.u16"
    with monkeypatch.context() as patch:
        patch.setattr("mwsis.core.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space"):
            VoteHistory(path, [1000, 500], 13)
    assert list(path.parent.iterdir()) == []  # never a part of a file
    history = VoteHistory(path, [1000, 500], 13)
    for _ in range(4):
        history.push(0, torch.arange(1000), torch.full((1000,), 12))
    history.commit()
    assert [file.name for file in path.parent.iterdir()] == ["votes.u16"]
    assert path.stat().st_size == HEADER.itemsize + 2 * 1500
    assert set(VoteHistory(path, [1000, 500], 13).agreed(0, torch.arange(1000)).tolist()) == {12}


@pytest.mark.parametrize(("rank", "local_rank", "writes"), [(0, 0, True), (1, 1, False), (2, 0, True)])
def test_bug_08_one_process_of_a_machine_writes_the_votes(tmp_path, monkeypatch, rank, local_rank, writes):
    """Upstream's processes and data workers all wrote the same files and slept when they could not read them."""
    history = VoteHistory(tmp_path / "votes", [30], 3)
    history.push(0, torch.arange(30), torch.zeros(30, dtype=torch.int64))
    before = (tmp_path / "votes").read_bytes()
    step = PretrainingStep(MultimodalSegmentor(None, make_segmentor()), Method({}, ema_decay=None), 3, history)
    module = SimpleNamespace(step=step, branch_optimisers={}, steps_done=1, skipped_steps=0)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    SaveAndStop(tmp_path / "last.ckpt", 1, {})._save(module)
    assert ((tmp_path / "votes").read_bytes() != before) == writes
    assert (tmp_path / "last.ckpt").exists() == (rank == 0)
    assert not len(history.state_dict()["frames"])


def test_bug_09_points_in_the_images_carry_the_semantic_loss():
    """Upstream's loss on full labels took the points outside the images, of which none was loaded: it was 0."""
    frame = random_frame(2, 400)
    segments = torch.full((400,), -1)
    pseudo = spatial_labels(frame, segments, rings=False, clustering=False)
    sample = TRANSFORM(frame, FrameLabels(pseudo, segments), 0, torch.Generator().manual_seed(0))
    assert bool(sample.pixels.in_any_image.all())
    logits = torch.zeros(len(sample.xyz), 3, requires_grad=True)
    loss = semantic_loss(logits, sample.pseudo.semantic_labels)
    loss.backward()
    labelled = sample.pseudo.semantic_labels != IGNORE
    assert 0 < int(labelled.sum()) < len(labelled)
    assert float(loss.detach()) > 0
    assert torch.equal(logits.grad.ne(0).all(1), labelled)
    assert torch.equal(logits.grad.ne(0).any(1), labelled)


def test_bug_10_distillation_of_a_batch_is_that_of_its_frames():
    """Upstream took the number of cameras for that of pyramid levels and forgot where a frame's images begin."""
    generator = torch.Generator().manual_seed(0)
    frames = [random_frame(1, 300), random_frame(3, 200, num_cameras=3)]
    plain = TRANSFORM.deterministic()
    samples = [plain(frame, labels_of(frame), index, generator) for index, frame in enumerate(frames)]
    sides = [  # of each frame: maps of its objects, their classes, their images, a prediction for each point
        (
            torch.rand(6, 16, 24, generator=generator),
            torch.tensor([0, 0, 1, 2, 2, 0]),
            torch.arange(6) % len(sample.images),
            torch.randn(len(sample.xyz), 3, generator=generator),
        )
        for sample in samples
    ]

    def distilled(chosen):
        batch, first_image, parts = collate([samples[index] for index in chosen]), 0, []
        for index in chosen:
            maps, labels, images, logits = sides[index]
            parts.append((maps, labels, images + first_image, logits))
            first_image += len(samples[index].images)
        per_gt, labels, images, logits = (torch.cat(column) for column in zip(*parts))
        assert len(batch.images) == first_image
        maps, present = class_maps(per_gt, labels, images, first_image, 3)
        pairs = point_pixel_pairs(batch.pixel_uv, batch.image_index)
        # Undo the means: what each frame adds to the sum over the batch.
        num_supervised = int(present[pairs.image_index].sum())
        to_camera = lidar_to_camera(pairs, maps, present, 4.0, logits.sigmoid(), confident=(1.1, -0.1))
        to_lidar = camera_to_lidar(pairs, maps, present, 4.0, logits, confident=(1.1, -0.1))
        return torch.stack([to_camera, to_lidar]) * num_supervised, num_supervised

    together, count = distilled([0, 1])
    alone = [distilled([0]), distilled([1])]
    assert count == alone[0][1] + alone[1][1]
    assert min(alone[0][1], alone[1][1]) > 200
    torch.testing.assert_close(together, alone[0][0] + alone[1][0], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("num_images", [1, 3])
def test_bug_10_any_number_of_images_and_levels(num_images):
    """Upstream's masks needed five cameras, as many as pyramid levels, and a batch of one frame."""
    torch.manual_seed(0)
    model = build_condinst(2, channels=32, num_convs=1, num_levels=3, size_ranges=(16.0, 32.0, math.inf), norm="group")
    images = scenes(num_images)
    dense = model.dense(images)
    sampled = model.sample(dense, model.assign(dense, images.labels))
    together = model.decode_masks(dense, sampled)
    assert set(sampled.image_index.tolist()) == set(range(num_images))
    for image in range(num_images):
        parts = {name: getattr(images, name) for name in images.__dataclass_fields__}
        alone = ImageBatch(**{name: None if one is None else one[image : image + 1] for name, one in parts.items()})
        dense_alone = model.dense(alone)
        mine = model.sample(dense_alone, model.assign(dense_alone, alone.labels))
        torch.testing.assert_close(
            model.decode_masks(dense_alone, mine), together[sampled.image_index == image], rtol=1e-3, atol=1e-4
        )


def undecided_segmentor():
    """Return an untrained LiDAR branch that finds every class somewhere."""
    segmentor = make_segmentor().eval()
    torch.nn.init.normal_(segmentor.head.classes.weight, std=3.0)
    torch.nn.init.zeros_(segmentor.head.classes.bias)
    return segmentor


def test_bug_12_ring_correction_of_predictions_after_points_were_filtered():
    """Upstream kept ring segments of all points beside predictions of the points in the images: it could not run."""
    frames = [random_frame(1, 400), random_frame(3, 300)]
    labels = [labels_of(frame) for frame in frames]
    model = MultimodalSegmentor(None, undecided_segmentor())
    transform = replace(TRANSFORM, point_cloud_range=RANGE).deterministic()
    plain, corrected = (
        [prediction.points.semantic_labels for prediction in predict(model, frames, labels, transform, classes)]
        for classes in ((), (0, 2))
    )
    for index, prediction in enumerate(predict(model, frames, labels, transform, (0, 2))):
        kept = prediction.point_index
        assert 0 < len(kept) < len(frames[index].points)
        expected = correct_by_ring_segment(plain[index], labels[index].ring_segment_id[kept], (0, 2))
        assert torch.equal(corrected[index], expected)
        assert not torch.equal(corrected[index], plain[index])


def test_bug_12_ring_correction_of_labels_after_points_were_filtered():
    """The same in training: a batch of two filtered frames learns what the two corrected frames say."""
    frames = [random_frame(1, 400), random_frame(3, 300)]
    labels = [labels_of(frame) for frame in frames]
    dataset = FrameDataset(frames, labels, replace(TRANSFORM, point_cloud_range=RANGE), seed=0)
    samples = [dataset[index] for index in (0, 1)]
    batch = collate(samples)
    student = MultimodalSegmentor(None, undecided_segmentor())
    plain, corrected = (
        PretrainingStep(student, Method({}, correct_segments_of=classes, ema_decay=None), 3).eval().losses(batch, 0.0)
        for classes in ((), (0, 2))
    )
    by_frame = [
        correct_by_ring_segment(made.pseudo.semantic_labels[rows], made.ring_segment_id[rows], (0, 2))
        for made, rows in zip(labels, (sample.point_index for sample in samples), strict=True)
    ]
    output = student.lidar(batch.points)
    assert torch.equal(
        corrected["lidar/semantic"], semantic_loss(output.class_logits, torch.cat(by_frame), valid=output.in_range)
    )
    assert not torch.equal(corrected["lidar/semantic"], plain["lidar/semantic"])
    assert not torch.equal(corrected["lidar/vote"], plain["lidar/vote"])  # points have left their instances


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_bug_14_masks_of_more_than_127_instances(dtype):
    """Upstream cast the image of instance ids to int8, where ids above 127 become negative."""
    ids = torch.arange(1, 301)
    id_map = ids.repeat_interleave(2).reshape(20, 30).to(dtype)
    masks = MaskSet.from_id_map(id_map, ids)
    assert len(masks) == 300
    assert masks.areas().tolist() == [2] * 300
    assert all(torch.equal(masks.dense(index), id_map == index + 1) for index in (0, 126, 127, 128, 255, 299))


def test_bug_14_more_than_127_instances_in_a_panoptic_png():
    """The same from the data set's own files: 16-bit images of class times divisor plus instance."""
    values = np.full((HEIGHT, WIDTH), 25_000)
    values[:60, :80] = 2_000 + np.arange(1, 301).reshape(15, 20).repeat(4, 0).repeat(4, 1)  # CAR
    front = frame_of(with_camera(make_drive(), 1, panoptic=PanopticLabel(png(values), 1000)), min_mask_px=0)
    image = front.truth.images[0]
    assert len(image.masks) == 300
    assert image.masks.areas().tolist() == [16] * 300
    assert image.labels.labels.tolist() == [0] * 300
    assert torch.equal(image.masks.dense(299), torch.from_numpy(values == 2_300))
