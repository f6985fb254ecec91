"""Masks as COCO results: what `loadRes` of pycocotools reads, beside the list of images that they are on.

For images of a COCO data set the ids are those of its own annotation file, so that the results can be scored against
it. Run-length coding is `mwsis.evaluation.coco_masks`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mwsis.core.files import write_json
from mwsis.core.instances import Detections
from mwsis.data.coco import CocoSource
from mwsis.data.source import Source
from mwsis.evaluation.coco_masks import json_masks
from mwsis.export.labels.exporter import Exporter, LabelledFrame

__all__ = ["CocoResults"]

RESULTS, IMAGES = "results.json", "images.json"


class CocoResults(Exporter):
    """``results.json``, one entry per mask, and ``images.json``, its images and categories.

    Args:
        folder: where the files go.
        source: the data set.

    Source: COCO, "Results format".
    """

    name = "coco"
    needs = "masks"
    owned = (RESULTS, IMAGES)
    about = (
        "results.json: COCO results, each with image_id, category_id, segmentation (compressed run lengths on the "
        "recorded image), bbox (predicted; x, y, width, height) and score; images.json: the images (frame_id, camera) "
        "and categories that the ids are of, loaded by pycocotools before the results"
    )

    def __init__(self, folder: Path, source: Source) -> None:
        super().__init__(folder, source)
        self._images: list[dict[str, Any]] = []
        self._entries: list[dict[str, Any]] = []
        self._categories: dict[str, int] = {}

    def write(self, labelled: LabelledFrame) -> dict[str, Any]:
        """Keep the masks of a frame, encoded."""
        frame, found = labelled.frame, labelled.detections
        assert found is not None, "an exporter of masks needs masks"
        categories = self._category_ids(frame.frame_id)
        ids = []
        for view, detections in zip(frame.cameras, found, strict=True):
            image_id = self._image_id(frame.frame_id)
            ids.append(image_id)
            size = {"height": view.camera.height, "width": view.camera.width}
            name = f"{frame.frame_id}/{view.name}"
            place = {"frame_id": frame.frame_id, "camera": view.name, "file_name": name}
            self._images.append({"id": image_id, **size, **place})
            self._entries += result_rows(detections, image_id, categories)
        return {"image_ids": ids}

    def close(self) -> None:
        """Write both files."""
        categories = [{"id": number, "name": name} for name, number in self._categories.items()]
        write_json(self.folder / IMAGES, {"images": self._images, "annotations": [], "categories": categories})
        write_json(self.folder / RESULTS, self._entries)

    def _image_id(self, frame_id: str) -> int | str:
        if not isinstance(self.source, CocoSource):
            return len(self._images) + 1
        last = frame_id.partition("/")[2]
        return int(last) if last.isdecimal() else last

    def _category_ids(self, frame_id: str) -> list[int]:
        """Return the category of each class, and remember it by name."""
        names = self.source.class_names
        ids = list(range(1, len(names) + 1))
        if isinstance(self.source, CocoSource):
            ids = self.source.category_ids(frame_id.partition("/")[0])
        self._categories |= dict(zip(names, ids, strict=True))
        return ids


def result_rows(detections: Detections, image_id: int | str, categories: list[int]) -> list[dict[str, Any]]:
    """Return the COCO results of one image.

    Args:
        detections: what was found, masks on the CPU.
        image_id: of the image.
        categories: id of the category of each class.
    """
    boxes, scores = detections.boxes.double(), detections.scores.double().tolist()
    corners = boxes.clone()
    corners[:, 2:] -= boxes[:, :2]
    rows = zip(json_masks(detections.masks), corners.tolist(), detections.labels.tolist(), scores, strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": categories[label],
            "segmentation": code,
            "bbox": bbox,
            "score": score,
        }
        for code, bbox, label, score in rows
    ]
