"""Masks as polygons that labelme opens, one JSON file beside each image.

The polygons run along the edges of pixels (`outlines.py`), so filling them gives the mask again.
"""

from __future__ import annotations

from typing import Any

from mwsis.core.files import atomic_write, write_json
from mwsis.core.frame import CameraView
from mwsis.core.instances import Detections
from mwsis.data.image_files import is_png
from mwsis.data.label_files import file_stem
from mwsis.export.labels.exporter import Exporter, LabelledFrame
from mwsis.export.labels.outlines import outlines

__all__ = ["Labelme"]

VERSION = "5.0.0"
"""Of labelme: the first whose shapes have all fields written here."""


class Labelme(Exporter):
    """``images/<frame>_<camera>.json`` and the image itself.

    Source: labelme's JSON, ``labelme/label_file.py`` of version 5.
    """

    name = "labelme"
    needs = "masks"
    owned = ("images",)
    about = (
        "labelme JSON, one per image, beside a copy of the image: polygons along the edges of pixels, corner of the "
        "image at (0, 0); shapes of one group_id are one object (a polygon cannot have a hole, so that a mask with one "
        "is cut beside it); description holds the score"
    )

    def write(self, labelled: LabelledFrame) -> dict[str, Any]:
        """Write the images of a frame and their polygons."""
        frame, found = labelled.frame, labelled.detections
        assert found is not None, "an exporter of masks needs masks"
        files = {}
        for view, detections in zip(frame.cameras, found, strict=True):
            stem = f"{file_stem(frame.frame_id)}_{file_stem(view.name)}"
            image = f"{stem}{'.png' if is_png(view.image) else '.jpg'}"
            with atomic_write(self.folder / "images" / image) as unfinished:
                unfinished.write_bytes(view.image)
            write_json(self.folder / "images" / f"{stem}.json", self._page(view, image, detections))
            files[view.name] = f"images/{stem}.json"
        return {"files": files}

    def _page(self, view: CameraView, image: str, detections: Detections) -> dict[str, Any]:
        shapes = []
        for index, (label, score) in enumerate(zip(detections.labels.tolist(), detections.scores.tolist())):
            left, top = detections.masks.crop_boxes[index, :2].tolist()
            for polygon in outlines(detections.masks.crop(index)):
                shapes.append(
                    {
                        "label": self.source.class_names[label],
                        "points": [[x + left, y + top] for x, y in polygon],
                        "group_id": index,
                        "description": f"score {score:.4f}",
                        "shape_type": "polygon",
                        "flags": {},
                    }
                )
        size = {"imageHeight": view.camera.height, "imageWidth": view.camera.width}
        return {"version": VERSION, "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None, **size}
