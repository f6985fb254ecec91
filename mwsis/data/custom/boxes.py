"""The 2D boxes of a folder: COCO's format, images found by the name of their file.

What an annotation file says and what is wrong with it is `mwsis.data.coco_json`; here images get their boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mwsis.core.errors import DataError
from mwsis.core.instances import IGNORE, Boxes2D
from mwsis.data.classes import labels_by_category
from mwsis.data.coco import corners_inside, labelled_boxes
from mwsis.data.coco_json import POINTS, Annotation, Instances, ListedImage, read_instances
from mwsis.data.problems import Problems

__all__ = ["ImageBoxes", "ListedBoxes"]


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    """The boxes of one image.

    Attributes:
        image: its entry.
        annotations: those that have a class.
        labelled: their boxes, same order; crowds are to be ignored and keep their class.
    """

    image: ListedImage
    annotations: tuple[Annotation, ...]
    labelled: Boxes2D


class ListedBoxes:
    """An annotation file, by the names of its images.

    Args:
        path: the file.
        groups: the categories of each class.

    Raises:
        DataError: it cannot be read, has no such category, or lists a file twice.
    """

    def __init__(self, path: Path, groups: Mapping[str, Sequence[str]]) -> None:
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected the 2D boxes in COCO's format (tools/boxes.py makes it)")
        state = path.stat()
        self.instances: Instances = read_instances(path, state.st_size, state.st_mtime_ns)
        self.label_of = labels_by_category(self.instances.categories, groups, path)
        self._image_of = {image.file_name: image for image in self.instances.images}
        if len(self._image_of) < len(self.instances.images):
            twice = next(one.file_name for one in self.instances.images if self._image_of[one.file_name] is not one)
            raise DataError(f"{path}: images: expected different file names, got '{twice}' twice")

    @property
    def label_of_name(self) -> dict[str, int]:
        """The label of each category, `IGNORE` of one that is no class."""
        return {name: self.label_of.get(number, IGNORE) for name, number in self.instances.categories.items()}

    @property
    def path(self) -> Path:
        return self.instances.path

    def of(self, name: str, problems: Problems) -> ImageBoxes | None:
        """Return the boxes of an image; None where it is not listed.

        Args:
            name: of its file, relative to ``images``.
            problems: takes a sentence for each box that lies outside, or for the image.
        """
        image = self._image_of.get(name)
        if image is None:
            problems.add(
                f"{self.path}: images: no entry with file_name '{name}', but with '{next(iter(self._image_of))}'; list "
                "every image of every frame, without annotations if it shows no object",
                "images without an entry",
            )
            return None
        if image.supervision == POINTS:
            problems.add(f"{self.path}: image {image.id}: supervision: expected boxes or masks here, got points")
            return None
        kept = []
        for one in self.instances.annotations[image.id]:
            assert one.bbox is not None
            corners = corners_inside(one.bbox, image)
            if corners is None:
                bbox = ", ".join(f"{value:g}" for value in one.bbox)
                problems.add(
                    f"{self.path}: annotation {one.id}: bbox: expected some of it inside image '{name}' of "
                    f"{image.width} x {image.height} pixels, got x, y, width, height {bbox}",
                    "boxes outside of their image",
                )
            elif one.category in self.label_of:
                kept.append((one, corners))
        return ImageBoxes(image, tuple(one for one, _ in kept), labelled_boxes(kept, self.label_of))
