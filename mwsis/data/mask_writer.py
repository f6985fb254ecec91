"""Writing a COCO file of masks image by image, so that hours of work survive an interrupt; `given_masks` reads it.

While it grows, images are lines of a hidden file beside it; at the end these become the file, whole or not at all. What
makes masks is elsewhere (`tools/masks.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from mwsis.core.errors import DataError
from mwsis.core.files import write_json
from mwsis.core.frame import CameraView

__all__ = ["MaskWriter"]

Rows: TypeAlias = list[dict[str, Any]]


class MaskWriter:
    """Collects the masks of images; what was collected before by the same maker is kept.

    Args:
        path: the COCO file to be written.
        class_names: become the categories, numbered from 1.
        made_by: what makes the masks, plain values; kept in the file, which holds the masks of one maker.

    Raises:
        DataError: ``path`` holds something else, or masks of another maker, or cannot be written.
    """

    def __init__(self, path: Path | str, class_names: Sequence[str], made_by: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        self._head = {"made_by": dict(made_by), "classes": list(class_names)}
        self._rows: dict[str, tuple[dict[str, Any], Rows]] = {}
        self._order: dict[str, None] = {}
        if self.path.is_dir():
            raise DataError(f"{self.path}: expected a file to be written, got a folder")
        if self.path.exists():
            self._read_file()
        if self.unfinished.exists():
            self._read_lines()

    def _read_file(self) -> None:
        """Take over a finished file."""
        try:
            content = json.loads(self.path.read_bytes())
            self._require_same(
                {"made_by": content["made_by"], "classes": [one["name"] for one in content["categories"]]}
            )
            found: dict[int, Rows] = {image["id"]: [] for image in content["images"]}
            for row in content["annotations"]:
                found[row["image_id"]].append(row)
            self._rows = {_key(image): (image, found[image["id"]]) for image in content["images"]}
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
            raise DataError(f"{self.path}: is there and not a file of this command; give another out=") from None

    def _read_lines(self) -> None:
        """Take over what an interrupted command has left, up to a line that was not written to its end."""
        text = self.unfinished.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        try:
            head, *lines = [json.loads(line) for line in whole.splitlines()] or [self._head]
            self._require_same(head)
            self._rows |= {_key(line["image"]): (line["image"], line["annotations"]) for line in lines}
        except (KeyError, TypeError, json.JSONDecodeError):
            raise DataError(f"{self.unfinished}: is not what this command leaves there; remove it") from None
        if not whole:
            self.unfinished.unlink()
        elif whole != text:
            os.truncate(self.unfinished, len(whole))

    def _require_same(self, head: Any) -> None:
        if head != self._head:
            maker = head["made_by"]
            raise DataError(
                f"{self.path}: holds masks of other classes or made by {maker}; give another out=, or "
                f"remove it and {self.unfinished.name} beside it"
            )

    def has(self, frame_id: str, view: CameraView) -> bool:
        """Return whether the masks of an image are there, made of the boxes that it has now."""
        key = f"{frame_id}/{view.name}"
        if key not in self._rows:
            return False
        objects = view.labels.objects
        drawn = [
            (_bbox(box), label + 1) for box, label in zip(objects.boxes.tolist(), objects.labels.tolist(), strict=True)
        ]
        same = [(row["bbox"], row["category_id"]) for row in self._rows[key][1]] == drawn
        if same:
            self._order[key] = None
        return same

    def add(self, frame_id: str, view: CameraView, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the masks of an image.

        Args:
            frame_id: of its frame.
            view: the image and its boxes.
            rows: for each box of an object, in their order, the fields of its annotation but those that the box
                decides (``id``, ``image_id``, ``bbox``, ``category_id``, ``iscrowd``).

        Raises:
            DataError: the disk is full.
        """
        image = {
            "file_name": f"{frame_id}/{view.name}",
            "width": view.camera.width,
            "height": view.camera.height,
            "frame_id": frame_id,
            "camera": view.name,
        }
        objects = view.labels.objects
        annotations = [
            {"bbox": _bbox(box), "category_id": label + 1, "iscrowd": 0, **row}
            for box, label, row in zip(objects.boxes.tolist(), objects.labels.tolist(), rows, strict=True)
        ]
        self._append({"image": image, "annotations": annotations})
        self._rows[_key(image)] = (image, annotations)
        self._order[_key(image)] = None

    def finish(self) -> list[dict[str, Any]]:
        """Write the images that this command has found or added, in its order, and return their annotations.

        Raises:
            DataError: the disk is full.
        """
        images: Rows = []
        annotations: Rows = []
        for number, (image, rows) in enumerate((self._rows[key] for key in self._order), 1):
            images.append({**image, "id": number})
            for row in rows:
                annotations.append({**row, "id": len(annotations) + 1, "image_id": number})
        categories = [{"id": label, "name": name} for label, name in enumerate(self._head["classes"], 1)]
        content = {"made_by": self._head["made_by"], "images": images, "categories": categories}
        try:
            write_json(self.path, {**content, "annotations": annotations})
        except OSError as error:
            raise self._cannot_write(error) from None
        self.unfinished.unlink(missing_ok=True)
        return annotations

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = [line] if self.unfinished.exists() else [self._head, line]
            with open(self.unfinished, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(one, allow_nan=False) + "\n" for one in lines))
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> DataError:
        return DataError(
            f"{self.path}: cannot be written ({error.strerror}); make room or give another out=, and run the same "
            "command again"
        )


def _key(image: Mapping[str, Any]) -> str:
    return f"{image['frame_id']}/{image['camera']}"


def _bbox(box: Sequence[float]) -> list[float]:
    """Return x, y, width, height of corners."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]
