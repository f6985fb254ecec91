"""Masks that training may see: where they come from, how they reach a batch, and that nothing else does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from camera.transforms import ImageGeometry, ResizeCropFlip
from fusion.transforms import PairedTransform
from lidar.transforms import RotateScaleFlip
from mwsis.core.errors import DataError
from mwsis.core.frame import BoxMasks, ImageTruth
from mwsis.core.instances import Boxes2D, MaskSet
from mwsis.data.dataset import FrameDataset, collate
from mwsis.data.given_masks import MaskFile, TrueMasks
from tests.data.frames_for_tests import assert_same, random_frame
from tests.reference.camera_masks import mask_at_stride_4

NAMES = ("Vehicle", "Pedestrian", "Cyclist")
HEIGHT, WIDTH = 30, 48
TRANSFORM = PairedTransform(ResizeCropFlip([40, 52, 96]), RotateScaleFlip(), (-99.0, -99.0, -9.0, 99.0, 99.0, 9.0))


def blobs(seed: int, count: int = 3) -> list[torch.Tensor]:
    """Full-size masks: a rectangle with holes, something tiny, an empty one."""
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.zeros(HEIGHT, WIDTH, dtype=torch.bool) for _ in range(count)]
    y, x = (int(value) for value in torch.randint(0, 12, (2,), generator=generator))
    masks[0][y : y + 15, x : x + 21] = torch.rand(15, 21, generator=generator) > 0.2
    masks[1][y + 3, x + 20] = True
    return masks


def mask_set(masks: list[torch.Tensor]) -> MaskSet:
    boxes, crops = [], []
    for mask in masks:
        rows, cols = mask.nonzero(as_tuple=True)
        box = [0, 0, 0, 0]
        if len(rows):
            box = [int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1]
        boxes.append(box)
        crops.append(mask[box[1] : box[3], box[0] : box[2]])
    return MaskSet.from_crops(HEIGHT, WIDTH, torch.tensor(boxes), crops)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("size", [(30, 48), (15, 24), (19, 31), (45, 72), (8, 13), (60, 96)])
def test_cells_equal_those_of_the_resized_dense_mask(size: tuple[int, int], flipped: bool) -> None:
    geometry = ImageGeometry(HEIGHT, WIDTH, *size, flipped)
    for seed in range(4):
        masks = blobs(seed)
        weight = torch.tensor([1.0, 0.5, 0.0])
        got = geometry.apply_masks(BoxMasks(mask_set(masks), weight))
        assert (got.masks.height, got.masks.width) == (-(-size[0] // 4), -(-size[1] // 4))
        assert torch.equal(got.weight, weight)
        for index, mask in enumerate(masks):
            assert torch.equal(got.masks.dense(index), mask_at_stride_4(mask, size, flipped)), (seed, index)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("crop", [(0, 0, 48, 30), (8, 4, 40, 24), (5, 7, 42, 29), (20, 0, 23, 30), (30, 20, 48, 30)])
@pytest.mark.parametrize("factor", [1, 2])
def test_cells_equal_those_of_the_cropped_dense_mask(crop: tuple[int, ...], factor: int, flipped: bool) -> None:
    x1, y1, x2, y2 = crop
    part = (factor * x1, factor * y1, factor * x2, factor * y2)
    geometry = ImageGeometry(HEIGHT, WIDTH, factor * HEIGHT, factor * WIDTH, flipped, part)
    for seed in range(4):
        masks = blobs(seed)
        got = geometry.apply_masks(BoxMasks(mask_set(masks), torch.ones(3)))
        for index, mask in enumerate(masks):
            expected = mask_at_stride_4(mask[y1:y2, x1:x2], geometry.size, flipped)
            assert torch.equal(got.masks.dense(index), expected), (seed, index)


def frame_with_masks(seed: int = 0):
    """Three boxes on the first camera: two objects with a mask, one without; the truth lists them in another order."""
    frame = random_frame(seed)
    masks = blobs(seed)
    boxes = [[x1, y1, x2, y2] for x1, y1, x2, y2 in mask_set(masks[:2]).crop_boxes.tolist()]
    labels = Boxes2D(torch.tensor([*boxes, [1, 1, 9, 9]]).float(), torch.tensor([0, 1, 2]), torch.zeros(3).bool())
    truth = ImageTruth(labels[torch.tensor([1, 0])], mask_set([masks[1], masks[0]]), torch.tensor([4, 7]))
    cameras = (replace(frame.cameras[0], labels=labels), *frame.cameras[1:])
    none = torch.zeros(0, dtype=torch.int64)
    truths = replace(frame.truth, images=(truth, None), box_instance_ids=(torch.tensor([7, 4, -1]), none))
    return replace(frame, cameras=cameras, truth=truths), masks


def test_true_masks_are_found_by_instance() -> None:
    frame, masks = frame_with_masks()
    given = TrueMasks().of(frame)
    assert [one.weight.tolist() for one in given] == [[1.0, 1.0, 0.0], []]
    for index in range(2):
        assert torch.equal(given[0].masks.dense(index), masks[index])
    assert [one.weight.tolist() for one in TrueMasks().of(replace(frame, truth=None))] == [[0.0] * 3, []]


def coco(frame, masks, tmp_path, changes=None, image=None, name="masks.json"):
    """A file with the two masks, one as run lengths and one as a polygon, and what ``changes`` make of it."""
    code = coco_mask.encode(np.asfortranarray(masks[0].numpy().astype(np.uint8)))
    code = {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()}
    boxes = frame.cameras[0].labels.boxes
    sizes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    x, y, _, _ = sizes[1]
    square = [x, y, x + 1, y, x + 1, y + 1, x, y + 1]
    common = {"image_id": 3, "iscrowd": 0, "mask_source": "sam2"}
    content = {
        "images": [
            {"id": 3, "width": WIDTH, "height": HEIGHT, **(image or {"file_name": f"{frame.frame_id}/CAM_0.png"})}
        ],
        "categories": [{"id": 5, "name": "Vehicle"}, {"id": 6, "name": "Pedestrian"}, {"id": 9, "name": "Tree"}],
        "annotations": [
            {**common, "id": 1, "category_id": 6, "bbox": sizes[1], "segmentation": [square], "score": 0.5},
            {**common, "id": 2, "category_id": 9, "bbox": sizes[0], "segmentation": [square]},
            {**common, "id": 3, "category_id": 5, "bbox": sizes[0], "segmentation": code, "mask_weight": 0.75},
        ],
    }
    for place, change in (changes or {}).items():
        content["annotations"][place].update(change)
    path = tmp_path / name
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "image", [None, {"file_name": "0003.jpg", "frame_id": "drive-0", "camera": "CAM_0"}], ids=["by name", "by id"]
)
def test_masks_of_a_file_go_to_the_boxes_they_were_made_for(tmp_path, image) -> None:
    frame, masks = frame_with_masks()
    given = MaskFile(coco(frame, masks, tmp_path, image=image), NAMES, allow_truth=False).of(frame)
    assert given[0].weight.tolist() == [0.75, 0.5, 0.0]
    for index in range(2):
        assert torch.equal(given[0].masks.dense(index), masks[index])
    assert len(given) == 2
    assert given[1].weight.tolist() == []


def test_one_camera_is_found_by_the_last_part_of_the_frame(tmp_path) -> None:
    frame, masks = frame_with_masks()
    frame.pixels.camera_index.clamp_(max=0)
    frame = replace(frame, frame_id="train/3", cameras=frame.cameras[:1])
    path = coco(frame, masks, tmp_path, image={"file_name": "000000000003.jpg"})
    assert MaskFile(path, NAMES, allow_truth=False).of(frame)[0].weight.tolist() == [0.75, 0.5, 0.0]


def test_other_boxes_and_classes_get_nothing(tmp_path) -> None:
    frame, masks = frame_with_masks()
    x, y, width, height = 3.0, 3.0, 6.0, 6.0
    far = MaskFile(coco(frame, masks, tmp_path, {2: {"bbox": [x, y, width, height]}}), NAMES, False).of(frame)
    assert far[0].weight.tolist() == [0.0, 0.5, 0.0]
    other = MaskFile(coco(frame, masks, tmp_path, {2: {"category_id": 6}}, name="b.json"), NAMES, False).of(frame)
    assert other[0].weight.tolist() == [0.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask_source": "gt"}, r"annotations\[1\]: mask_source is 'gt'.*needs data.supervision=masks"),
        ({"mask_weight": 1.5}, r"annotations\[1\]: mask_weight \(or score\): expected 0 to 1, got 1.5"),
        ({"segmentation": [[1, 2]]}, r"annotations\[1\]: segmentation: expected polygons"),
        ({"image_id": 99}, r"annotations\[1\]: image_id: no image 99"),
    ],
)
def test_broken_files_are_refused_in_one_sentence(tmp_path, change, said) -> None:
    frame, masks = frame_with_masks()
    path = coco(frame, masks, tmp_path, {1: change})
    with pytest.raises(DataError, match=said):
        MaskFile(path, NAMES, allow_truth=False)
    if "mask_source" in change:
        assert MaskFile(path, NAMES, allow_truth=True).of(frame)[0].weight.tolist() == [0.75, 0.5, 0.0]


def test_files_that_are_no_annotations_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"data.masks=.*none.json: cannot be read \(No such file"):
        MaskFile(tmp_path / "none.json", NAMES, False)
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"half.json: no JSON"):
        MaskFile(tmp_path / "half.json", NAMES, False)
    frame, masks = frame_with_masks()
    path = coco(frame, masks, tmp_path)
    with pytest.raises(
        DataError, match=r"expected categories among \['Car'\], got \['Pedestrian', 'Tree', 'Vehicle'\]"
    ):
        MaskFile(path, ("Car",), False)
    small = replace(frame.cameras[0], camera=replace(frame.cameras[0].camera, width=50))
    with pytest.raises(
        DataError, match=r"masks on \(H, W\) \(30, 50\) for frame drive-0, camera CAM_0, got \(30, 48\)"
    ):
        MaskFile(path, NAMES, False).of(replace(frame, cameras=(small, *frame.cameras[1:])))


def test_masks_that_fit_no_box_are_refused(tmp_path) -> None:
    frame, masks = frame_with_masks()
    path = coco(frame, masks, tmp_path, image={"file_name": "other/CAM_0.png"})
    transform = replace(TRANSFORM, given_masks=MaskFile(path, NAMES, False))
    with pytest.raises(DataError, match=r"masks.json: expected a mask for at least one training box, got none"):
        FrameDataset([frame, random_frame(3)], None, transform, seed=0)
    with pytest.raises(DataError, match="supervision=masks"):
        FrameDataset([random_frame(3)], None, replace(TRANSFORM, given_masks=TrueMasks()), seed=0)


@pytest.mark.parametrize("position", range(6))
def test_masks_travel_with_their_boxes(position: int) -> None:
    frame, masks = frame_with_masks()
    samples = FrameDataset([frame], None, replace(TRANSFORM, given_masks=TrueMasks()), seed=0)
    sample = samples[0, position]
    boxes = sample.labels[0].boxes
    size = tuple(sample.images[0].shape[1:])
    flipped = float(boxes[0, 0]) != pytest.approx(float(frame.cameras[0].labels.boxes[0, 0]) * size[1] / WIDTH)
    for index in range(2):
        assert torch.equal(sample.masks[0].masks.dense(index), mask_at_stride_4(masks[index], size, flipped))
    batch = collate([sample, sample])
    assert len(batch.images.masks) == len(batch.images) == 4
    for one, labels in zip(batch.images.masks, batch.images.labels, strict=True):
        assert len(one.masks) == len(labels)
    assert replace(TRANSFORM, given_masks=TrueMasks()).deterministic().given_masks is None


def poisoned(frame):
    """Masks of all ones wherever a frame can hold any."""
    ones = MaskSet.from_crops(
        HEIGHT, WIDTH, torch.tensor([[0, 0, WIDTH, HEIGHT]] * 3), [torch.ones(HEIGHT, WIDTH).bool()] * 3
    )
    image = replace(frame.truth.images[0], masks=ones[torch.tensor([0, 1])])
    given = (BoxMasks(ones, torch.ones(3)),) * 2
    return replace(frame, truth=replace(frame.truth, images=(image, None)), given_masks=given)


def test_supervised_by_boxes_a_poisoned_mask_changes_no_bit_of_a_batch() -> None:
    frame, _ = frame_with_masks()

    def batch(frame, transform):
        return collate([FrameDataset([frame], None, transform, seed=0)[0, position] for position in range(3)])

    clean = batch(frame, TRANSFORM)
    assert clean.images.masks == ()
    assert_same(clean, batch(poisoned(frame), TRANSFORM))
    asked = replace(TRANSFORM, given_masks=TrueMasks())
    seen = [int(batch(one, asked).images.masks[0].masks.areas().sum()) for one in (frame, poisoned(frame))]
    assert seen[1] > seen[0]  # the poison is one
