"""Masks that a configuration lets training see: ground truth on request, or a COCO file of masks made elsewhere.

Nothing is given unless ``data.supervision=masks|mixed`` or ``data.masks=FILE`` asks for it; then `mwsis.data.dataset`
puts the masks of a frame's boxes beside them (`Frame.given_masks`), and `camera.sources.OfflineMasks` makes targets of
them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.ops import box_iou

from mwsis.core.errors import DataError
from mwsis.core.frame import BoxMasks, CameraView, Frame
from mwsis.core.instances import Boxes2D, MaskSet
from mwsis.data.coco_json import MASKS, Annotation, ListedImage, decoded_mask, read_instances

__all__ = ["GivenMasks", "MaskFile", "MixedMasks", "TrueMasks", "require_masks"]

MATCH_IOU = 0.8
"""Overlap from which a mask's box is taken to be the box it was made for."""
GROUND_TRUTH = "gt"
UNKNOWN = -2
"""Label of a category that is no class of the data set: no box has it."""
Crop = tuple[list[int], Tensor]
"""Crop box x1 y1 x2 y2 in pixels, and its (h, w) bool bits."""
NO_CROP: Crop = ([0, 0, 0, 0], torch.zeros(0, 0, dtype=torch.bool))


class GivenMasks(Protocol):
    """What gives the masks of a frame's boxes to training.

    Attributes:
        what: where they are from, for errors.
    """

    what: str

    def of(self, frame: Frame) -> tuple[BoxMasks, ...]:
        """Return the masks of each camera's boxes; weight 0 where a box has none."""
        ...


def require_masks(given: GivenMasks, frames: Iterable[Frame]) -> None:
    """Look at frames until a box with a mask is found.

    Raises:
        DataError: there is none.
    """
    if not any(bool((one.weight > 0).any()) for frame in frames for one in given.of(frame)):
        raise DataError(
            f"{given.what}: expected a mask for at least one training box, got none; is it of these frames?"
        )


class TrueMasks:
    """Ground-truth masks, found by instance id, weight 1: supervision by masks, an upper bound."""

    what = "data.supervision=masks (ground truth of the data set)"

    def of(self, frame: Frame) -> tuple[BoxMasks, ...]:
        """Return the true mask of each box; none where the data set has no mask of that object in that image."""
        return tuple(self.of_camera(frame, index) for index in range(len(frame.cameras)))

    @staticmethod
    def of_camera(frame: Frame, index: int) -> BoxMasks:
        """Return the same of one camera."""
        view, truth = frame.cameras[index], frame.truth
        image = None if truth is None else truth.images[index]
        if truth is None or image is None:
            return _arranged(view, [], [])
        row_of = {number: row for row, number in enumerate(image.instance_ids.tolist()) if number >= 0}
        rows = [row_of.get(number) for number in truth.box_instance_ids[index].tolist()]
        masks = image.masks
        crops = [None if row is None else (masks.crop_boxes[row].tolist(), masks.crop(row)) for row in rows]
        return _arranged(view, crops, [1.0] * len(rows))


def _arranged(view: CameraView, crops: Sequence[Crop | None], weights: Sequence[float]) -> BoxMasks:
    """Return the masks of an image's boxes, weight 0 where there is none or it is empty; no crops at all: none."""
    pairs = list(zip(crops, weights, strict=True)) or [(None, 0.0)] * len(view.labels)
    kept = [(crop, weight) if crop is not None and bool(crop[1].any()) else (NO_CROP, 0.0) for crop, weight in pairs]
    boxes = torch.tensor([box for (box, _), _ in kept], dtype=torch.int64)
    masks = MaskSet.from_crops(view.camera.height, view.camera.width, boxes, [bits for (_, bits), _ in kept])
    return BoxMasks(masks, torch.tensor([weight for _, weight in kept], dtype=torch.float32))


@dataclass(frozen=True, eq=False)
class _Masked:
    """An image of the file: its annotations, and their weights."""

    image: ListedImage
    annotations: list[Annotation]
    weights: list[float]


class MaskFile:
    """Masks of a COCO file, matched to boxes of the same class by overlap.

    An image of the file belongs to a frame's camera when its ``frame_id`` and ``camera`` are theirs. Where it has none:
    when its ``file_name`` without the ending is ``<frame_id>/<camera name>``; for a frame with one camera also when
    that or its ``id`` is the frame's id or the last part of it. A box takes the annotation of its class (``categories``
    by name) with the best IoU, 0.8 or more. Its weight is ``mask_weight``, else ``score``, else 1. ``mask_source`` says
    who made the mask; without it the mask counts as ``gt``, drawn by a person.

    Args:
        path: the JSON file.
        class_names: of the data set, in order of label.
        allow_truth: masks with the source ``gt`` may be given.

    Raises:
        DataError: the file is missing or is not of this form, or holds masks that may not be given.

    Source: COCO's instance format (`coco_json.py`); the further fields are those of mask exporters. Overlap of 0.8 is
    ours.
    """

    def __init__(self, path: str | Path, class_names: Sequence[str], allow_truth: bool) -> None:
        self.what = f"data.masks={path}"
        self.path = Path(path)
        try:
            state = self.path.stat()
            instances = read_instances(self.path, state.st_size, state.st_mtime_ns)
            content = json.loads(self.path.read_bytes())
        except OSError as error:
            raise DataError(f"{self.what}: cannot be read ({error.strerror}); give the path of a COCO file") from None
        if any(image.supervision is not None for image in instances.images):
            raise DataError(
                f"{self.what}: expected masks made elsewhere, got a data set whose images say 'supervision'"
            )
        if not instances.has_masks:
            raise DataError(f"{self.what}: expected annotations with a segmentation, got none")
        label_of = {name: label for label, name in enumerate(class_names)}
        self._label = {number: label_of[name] for name, number in instances.categories.items() if name in label_of}
        if not self._label:
            known = sorted(instances.categories)
            raise DataError(f"{self.what}: expected categories among {list(class_names)}, got {known}")
        weights = self._weights(content["annotations"], allow_truth)
        self._by_key: dict[str, _Masked] = {}
        for entry, image in zip(content["images"], instances.images, strict=True):
            masked = _Masked(image, instances.annotations[image.id], weights[image.id])
            self._by_key |= dict.fromkeys(_keys(entry), masked)

    def _weights(self, entries: list[dict[str, Any]], allow_truth: bool) -> dict[str, list[float]]:
        """Return the weights of each image's annotations, in the file's order."""
        weights: dict[str, list[float]] = defaultdict(list)
        for place, entry in enumerate(entries):
            where = f"{self.what}: annotations[{place}]"
            weight = entry.get("mask_weight", entry.get("score", 1.0))
            if not isinstance(weight, int | float) or not 0 <= weight <= 1:
                raise DataError(f"{where}: mask_weight (or score): expected 0 to 1, got {weight!r}")
            if not allow_truth and entry.get("mask_source", GROUND_TRUTH) == GROUND_TRUTH:
                raise DataError(
                    f"{where}: mask_source is '{GROUND_TRUTH}' (also where it is missing); training on masks that a "
                    "person drew needs data.supervision=masks"
                )
            weights[str(entry["image_id"])].append(float(weight))
        return weights

    def of(self, frame: Frame) -> tuple[BoxMasks, ...]:
        """Return the masks of each camera's boxes.

        Raises:
            DataError: an image of the file has another size than the frame's, or a mask cannot be decoded.

        Complexity: one bitmap of the size of the image at a time.
        """
        return tuple(self.of_camera(frame, index) for index in range(len(frame.cameras)))

    def boxes(self, image_id: str) -> dict[str, tuple[float, float, float, float]]:
        """Return x, y, width, height, pixels, of an image's masks that are trusted at all, by id of the annotation."""
        masked = self._by_key.get(image_id)
        if masked is None:
            return {}
        pairs = zip(masked.annotations, masked.weights, strict=True)
        return {one.id: one.bbox for one, weight in pairs if weight > 0 and one.bbox is not None}

    def of_camera(self, frame: Frame, index: int) -> BoxMasks:
        """Return the same as `of` of one camera."""
        view = frame.cameras[index]
        keys = [f"{frame.frame_id}/{view.name}"]
        if len(frame.cameras) == 1:
            keys += [frame.frame_id, frame.frame_id.rpartition("/")[2]]
        masked = next((self._by_key[key] for key in keys if key in self._by_key), None)
        if masked is None:
            return _arranged(view, [], [])
        size, own = (view.camera.height, view.camera.width), (masked.image.height, masked.image.width)
        if own != size:
            where = f"frame {frame.frame_id}, camera {view.name}"
            raise DataError(f"{self.what}: expected masks on (H, W) {size} for {where}, got {own}")
        match = self._match(view.labels, masked.annotations)
        crops = [None if row < 0 else MaskSet.tight_crop(self._decoded(masked, row)) for row in match]
        return _arranged(view, crops, [0.0 if row < 0 else masked.weights[row] for row in match])

    def _decoded(self, masked: _Masked, row: int) -> Tensor:
        return torch.from_numpy(decoded_mask(self.path, masked.annotations[row], masked.image))

    def _match(self, labels: Boxes2D, annotations: list[Annotation]) -> list[int]:
        """Return the annotation of each box, -1 none."""
        if not annotations:
            return [-1] * len(labels)
        boxes = torch.tensor([one.bbox for one in annotations])
        boxes[:, 2:] += boxes[:, :2]
        kind = torch.tensor([self._label.get(one.category, UNKNOWN) for one in annotations])
        overlap = box_iou(labels.boxes, boxes) * (labels.labels[:, None] == kind)
        best, row = overlap.max(1)
        return torch.where(best >= MATCH_IOU, row, -1).tolist()


class MixedMasks:
    """What each image has: its own masks where it says so, weight 1, otherwise those of a file, if there is one.

    Masks in the annotations of an image that says boxes or points are never looked at.

    Args:
        file: masks made elsewhere, of images with boxes or points; None: there are none.
    """

    what = "data.supervision=mixed (masks of images that say so, and of data.masks)"

    def __init__(self, file: MaskFile | None) -> None:
        self.file = file

    def of(self, frame: Frame) -> tuple[BoxMasks, ...]:
        """Return the masks of each camera's boxes; none where the image has none.

        Raises:
            DataError: see `MaskFile.of`.
        """
        return tuple(self._of(frame, index) for index in range(len(frame.cameras)))

    def _of(self, frame: Frame, index: int) -> BoxMasks:
        view = frame.cameras[index]
        if view.supervision == MASKS:
            return TrueMasks.of_camera(frame, index)
        return _arranged(view, [], []) if self.file is None else self.file.of_camera(frame, index)


def _keys(entry: dict[str, Any]) -> list[str]:
    """Return the names under which a frame finds an image of the file."""
    if "frame_id" in entry:
        return ["/".join(str(entry[name]) for name in ("frame_id", "camera") if name in entry)]
    return [str(entry["id"]), str(Path(entry["file_name"]).with_suffix(""))]
