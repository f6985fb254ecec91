"""Masks of drawn boxes by a segment-anything network: one box prompt each, judged, and made not to overlap.

What a network is, does not matter here: something that looks at an image and then answers boxes (`Look`); SAM and SAM 2
of transformers are (`load_network`, `pretrained_folder.py`). `tools/masks.py` runs it over a data set, and
`mwsis.data.mask_writer` keeps the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torchvision.ops import box_iou

from camera.pretrained_folder import load_pretrained, read_architecture
from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.core.frame import Frame
from mwsis.core.instances import MaskSet

__all__ = [
    "MIN_PREDICTED_IOU",
    "MIN_TIGHT_IOU",
    "MODELS",
    "SMALL_SIDE",
    "Look",
    "PromptedMasks",
    "check_network",
    "distances_of",
    "load_network",
    "prompted_masks",
    "without_overlaps",
]

MIN_PREDICTED_IOU, MIN_TIGHT_IOU = 0.8, 0.8
"""A mask below either gets weight 0: its box alone is learned from."""
SMALL_SIDE = 64
"""Pixels; a box whose longer side is shorter is shown enlarged."""
CONTEXT = 4
"""Sides of the part of the image that is enlarged, in longer sides of the box."""
STABILITY_OFFSET = 1.0
"""By which the threshold of the logits is moved up and down (SAM's own)."""
BOXES_AT_ONCE = 16
"""Prompts of one image that are answered together; bounds the memory of full-size logits."""
MIN_POINTS = 3
"""LiDAR points on a mask from which its distance is known."""

Ask: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Boxes (G, 4) in pixels of the image to logits (G, H, W), a mask where above 0, and predicted IoU (G,)."""
Look: TypeAlias = Callable[[Tensor], Ask]
"""Image (3, H, W) uint8 to what answers boxes in it."""


@dataclass(frozen=True)
class Model:
    """A kind of network: what its checkpoints call themselves, and its classes in transformers."""

    types: tuple[str, ...]
    processor: str
    network: str
    example: str


MODELS = {
    "sam": Model(("sam",), "SamProcessor", "SamModel", "sam-vit-base"),
    "sam2": Model(("sam2", "sam2_video"), "Sam2Processor", "Sam2Model", "sam2.1-hiera-large"),
}


@dataclass(frozen=True, eq=False)
class PromptedMasks:
    """Masks of an image's boxes, in their order.

    Attributes:
        masks: on the recorded image.
        predicted_iou: (G,) float32 in [0, 1], how good the network takes each to be.
        stability: (G,) float32 in [0, 1], IoU of the mask with itself at a lower and a higher threshold.
        tight_iou: (G,) float32 in [0, 1], IoU of the box around the mask with the box that was drawn.
        overlap: (G,) float32 in [0, 1], share of the mask that another trusted mask claims, too.
    """

    masks: MaskSet
    predicted_iou: Tensor
    stability: Tensor
    tight_iou: Tensor
    overlap: Tensor

    @property
    def weight(self) -> Tensor:
        """(G,) float32: ``predicted_iou * tight_iou``, 0 where either is below its least value."""
        passed = (self.predicted_iou >= MIN_PREDICTED_IOU) & (self.tight_iou >= MIN_TIGHT_IOU)
        return (self.predicted_iou * self.tight_iou).where(passed, 0.0)


def prompted_masks(image: Tensor, boxes: Tensor, look: Look) -> PromptedMasks:
    """Return a mask for each box, as the network gives it.

    Small boxes are prompted one by one, in an enlarged part of the image around them: networks see images reduced to
    about a thousand pixels, where a distant pedestrian has nothing left.

    Args:
        image: (3, H, W) uint8, RGB.
        boxes: (G, 4) float32, x1 y1 x2 y2, pixels of the image.
        look: the network.

    Raises:
        DataError: the network gives NaN or infinity.

    Complexity: one look at the image, one at each small box; `BOXES_AT_ONCE` masks of full size in memory.
    """
    height, width = image.shape[1:]
    crops: list[tuple[list[int], Tensor]] = [([0, 0, 0, 0], torch.zeros(0, 0, dtype=torch.bool))] * len(boxes)
    predicted, stability = torch.zeros(len(boxes)), torch.zeros(len(boxes))
    for rows, (x1, y1, x2, y2) in _parts(boxes, height, width):
        ask = look(image[:, y1:y2, x1:x2])
        origin = torch.tensor([x1, y1, x1, y1])
        for some in torch.split(rows, BOXES_AT_ONCE):
            logits, quality = ask(boxes[some] - origin)
            if not bool(torch.isfinite(quality).all() and torch.isfinite(logits).all()):
                raise DataError("expected finite masks from the network, got NaN or infinity; are its weights whole?")
            for row, one, iou in zip(some.tolist(), logits, quality.tolist(), strict=True):
                extent, bits = MaskSet.tight_crop(one > 0)
                moved = [side + start for side, start in zip(extent, origin.tolist(), strict=True)]
                crops[row] = (moved if bits.numel() else extent, bits)
                predicted[row] = min(max(iou, 0.0), 1.0)
                certain, possible = (one > STABILITY_OFFSET).sum(), (one > -STABILITY_OFFSET).sum()
                stability[row] = certain / possible.clamp(min=1)
    corners = torch.tensor([corners for corners, _ in crops], dtype=torch.int64).reshape(-1, 4)
    masks = MaskSet.from_crops(height, width, corners, [bits for _, bits in crops])
    tight = box_iou(corners.float(), boxes).diagonal().nan_to_num(0.0)
    return PromptedMasks(masks, predicted, stability, tight, torch.zeros(len(boxes)))


def _parts(boxes: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield the boxes (indices) to be prompted in a part of the image, and the part, x1 y1 x2 y2."""
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    rows = torch.arange(len(boxes))
    if len(large := rows[longer >= SMALL_SIDE]):
        yield large, [0, 0, width, height]
    for row in rows[longer < SMALL_SIDE].tolist():
        side = int(torch.ceil(CONTEXT * longer[row]))
        part = []
        for start, end, length in zip(boxes[row, :2].tolist(), boxes[row, 2:].tolist(), (width, height), strict=True):
            least = round((start + end - side) / 2)
            first = max(min(least, length - side), 0)
            part.append((first, min(first + side, length)))
        (x1, x2), (y1, y2) = part
        yield torch.tensor([row]), [x1, y1, x2, y2]


def without_overlaps(found: PromptedMasks, distance: Tensor) -> PromptedMasks:
    """Give each pixel that two trusted masks claim to the nearer object, to the smaller mask where that is not known.

    Args:
        found: masks as predicted; those of weight 0 neither lose nor claim a pixel.
        distance: (G,) float, metres, NaN where it is not known.

    Complexity: O(pairs of masks whose crops meet, times the pixels that they share).
    """
    masks = found.masks
    areas = masks.areas()
    left = [masks.crop(index).clone() for index in range(len(masks))]
    shared = [torch.zeros_like(bits) for bits in left]
    for pair in combinations(found.weight.nonzero()[:, 0].tolist(), 2):
        windows = _common_windows(*(masks.crop_boxes[index].tolist() for index in pair))
        if windows is None:
            continue
        both = masks.crop(pair[0])[windows[0]] & masks.crop(pair[1])[windows[1]]
        for index, window in zip(pair, windows, strict=True):
            shared[index][window] |= both
        keys = distance[list(pair)] if bool(distance[list(pair)].isfinite().all()) else areas[list(pair)]
        loser = int(keys[1] >= keys[0])
        left[pair[loser]][windows[loser]] &= ~both
    overlap = torch.tensor([float(bits.sum()) for bits in shared]) / areas.clamp(min=1)
    corners, crops = [], []
    for (x1, y1, _, _), bits in zip(masks.crop_boxes.tolist(), left, strict=True):
        (a, b, c, d), tight = MaskSet.tight_crop(bits) if bits.numel() else ([0, 0, 0, 0], bits)
        corners.append([x1 + a, y1 + b, x1 + c, y1 + d] if tight.numel() else [0, 0, 0, 0])
        crops.append(tight)
    boxes = torch.tensor(corners, dtype=torch.int64)
    return replace(found, masks=MaskSet.from_crops(masks.height, masks.width, boxes, crops), overlap=overlap)


def _common_windows(one: list[int], other: list[int]) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Return where two crops show the same pixels, rows and columns within each; None where they do not meet."""
    x1, y1 = max(one[0], other[0]), max(one[1], other[1])
    x2, y2 = min(one[2], other[2]), min(one[3], other[3])
    if x1 >= x2 or y1 >= y2:
        return None
    first, second = ((slice(y1 - box[1], y2 - box[1]), slice(x1 - box[0], x2 - box[0])) for box in (one, other))
    return first, second


def distances_of(frame: Frame, camera: int, masks: MaskSet) -> Tensor:
    """Return how far the objects of an image are, (G,) float32: median range of the LiDAR points on each mask, metres.

    NaN where fewer than `MIN_POINTS` fall on it.

    Args:
        frame: with its sweep, which may be empty.
        camera: index of the image.
        masks: of its objects.
    """
    point, slot = (frame.pixels.camera_index == camera).nonzero().unbind(1)
    column, row = frame.pixels.pixel_uv[point, slot].floor().long().unbind(1)
    distance = torch.full((len(masks),), float("nan"))
    for index, (x1, y1, x2, y2) in enumerate(masks.crop_boxes.tolist()):
        inside = (column >= x1) & (column < x2) & (row >= y1) & (row < y2)
        on_mask = masks.crop(index)[row[inside] - y1, column[inside] - x1]
        ranges = frame.points.ranges[point[inside][on_mask]]
        if len(ranges) >= MIN_POINTS:
            distance[index] = ranges.median()
    return distance


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


def check_network(model: str, weights: Path) -> list[Path]:
    """Return the files with the weights of a checkpoint, of its configuration alone.

    Raises:
        ConfigError: there is no such model, or the folder holds another one or none.
    """
    if model not in MODELS:
        raise ConfigError(f"model={model}: no such model{closest_name(model, MODELS)}")
    where, wanted = f"weights={weights}", MODELS[model]
    facts = read_architecture(weights, where, f"a checkpoint for transformers, such as a copy of {wanted.example}")
    kind = str(facts["model_type"])
    if kind not in wanted.types:
        other = next((name for name, one in MODELS.items() if kind in one.types), None)
        raise ConfigError(
            f"{where}: expected {' or '.join(wanted.types)} as its model_type, got '{kind}'"
            + (f"; give model={other}" if other else "")
        )
    files = sorted(weights.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{where}: expected model.safetensors, got no file of that kind; copy the checkpoint again")
    return files


def load_network(model: str, weights: Path) -> Look:
    """Return a network of `MODELS`, whose every tensor is in the checkpoint.

    Raises:
        ConfigError: transformers cannot load it.

    Source: SAM (arXiv 2304.02643), SAM 2 (arXiv 2408.00714), as transformers has them; one mask per box
    (``multimask_output`` off).
    """
    kind = MODELS[model]
    processor, network = load_pretrained(weights, f"weights={weights}", kind.processor, kind.network, strict=True)

    def look(image: Tensor) -> Ask:
        with torch.inference_mode():
            given = processor(images=image.permute(1, 2, 0).numpy(), return_tensors="pt")
            seen = network.get_image_embeddings(given["pixel_values"].to(network.device))
        return lambda boxes: _answers(processor, network, given, seen, (image.shape[1], image.shape[2]), boxes)

    return look


@torch.inference_mode()
def _answers(
    processor: Any, network: Any, given: Any, seen: Any, size: tuple[int, int], boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logits (G, H, W) and predicted IoU (G,) of boxes in an image that was looked at."""
    padded = "reshaped_input_sizes" in given  # SAM keeps an image's ratio and fills up to a square, SAM 2 stretches it
    inner = given["reshaped_input_sizes"][0].tolist() if padded else given["pixel_values"].shape[-2:]
    scale = boxes.new_tensor([inner[1] / size[1], inner[0] / size[0]] * 2)
    prompts = (boxes * scale)[None].to(network.device)
    found = network(image_embeddings=seen, input_boxes=prompts, multimask_output=False)
    more = {"reshaped_input_sizes": [list(inner)]} if padded else {}
    (logits,) = processor.post_process_masks([found.pred_masks[0]], [list(size)], binarize=False, **more)
    return logits[:, 0].float().cpu(), found.iou_scores[0, :, 0].float().cpu()
