"""Maps of classes on disk: one 8-bit PNG per image, made here (`activation_maps.py`), by another network, or by people.

A given folder whose name says that people drew it is refused, unless the configuration declares it; what is then made
of it says so (`export.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camera.point_to_mask.instances_from_semantics import UNKNOWN_CLASS
from camera.point_to_mask.points import PointedImage
from mwsis.core.errors import ConfigError, DataError
from mwsis.core.files import atomic_write
from mwsis.data.image_files import NO_IMAGE

__all__ = ["GROUND_TRUTH", "SOURCES", "SemanticMaps"]

GROUND_TRUTH = "gt"
SOURCES = ("wsss", "sam", GROUND_TRUTH)
"""Who made the maps: a method that learns from image-level labels, SAM asked at the points, or people."""
DRAWN_BY_PEOPLE = re.compile(r"segmentation(class|object)|stuffthingmaps|gtfine|gtcoarse|groundtruth|^gt$")
"""Folders of VOC and SBD, COCO-Stuff, Cityscapes, and what others call theirs; letters and digits only."""


class SemanticMaps:
    """The maps of a folder, ``<file name without ending>.png`` for each image.

    Pixels: 0 background, c + 1 for class c, 255 unknown; grey levels or, as VOC has it, places in a palette.

    Args:
        folder: with the PNG files.
        source: one of `SOURCES`.
        num_classes: C.
        made_here: the run itself makes the maps, in a folder that need not be there yet, whatever its name.

    Raises:
        ConfigError: an unknown source, or a given folder of ground truth that is not declared as such.
        DataError: there is no such folder.

    Source: the released code of P2Seg reads VOC's ``SegmentationClass`` where its paper says image-level labels; hence
    the declaration.
    """

    def __init__(self, folder: str | Path, source: str, num_classes: int, made_here: bool = False) -> None:
        if source not in SOURCES:
            raise ConfigError(f"semantic_source: expected one of {', '.join(SOURCES)}, got '{source}'")
        self.folder, self.source, self.num_classes = Path(folder), source, num_classes
        if not made_here:
            self._check_folder()

    def _check_folder(self) -> None:
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder; expected one with a PNG map of classes for each image")
        names = [part for path in (self.folder.absolute(), self.folder.resolve()) for part in path.parts]
        drawn = [name for name in names if DRAWN_BY_PEOPLE.search(re.sub(r"[^a-z0-9]", "", name.lower()))]
        if drawn and self.source != GROUND_TRUTH:
            raise ConfigError(
                f"semantic={self.folder}: '{drawn[0]}' is a name of ground truth, got semantic_source={self.source}; "
                "declare semantic_source=gt, or rename the folder if no person drew these maps"
            )

    def check(self, images: Iterable[PointedImage]) -> None:
        """Verify that every image has a map of its size, without decoding it.

        Raises:
            DataError: the first that is missing or does not fit.
        """
        for image in images:
            path = self.path_of(image)
            try:
                with Image.open(path, formats=("PNG",)) as header:
                    size, mode = header.size, header.mode
            except FileNotFoundError:
                raise DataError(f"{path}: no such file; expected the map of classes of {image.file_name}") from None
            except NO_IMAGE:
                raise DataError(f"{path}: expected a PNG image, got other bytes; make the map again") from None
            if mode not in ("L", "P") or size != (image.width, image.height):
                wanted = f"8 bits a pixel (mode L or P), {image.width} x {image.height}"
                raise DataError(f"{path}: expected {wanted}, got mode {mode}, {size[0]} x {size[1]}")

    def check_names(self, images: Iterable[PointedImage]) -> None:
        """Verify that each image's map would be a file of its own within the folder.

        Raises:
            DataError: the first that would not.
        """
        taken: dict[Path, str] = {}
        for image in images:
            name = Path(image.file_name)
            if name.is_absolute() or ".." in name.parts:
                raise DataError(
                    f"file_name: expected a name within the folder of images, got '{image.file_name}', whose map of "
                    "classes would be written elsewhere; change the names, or give semantic=FOLDER"
                )
            other = taken.setdefault(self.path_of(image), image.file_name)
            if other != image.file_name:
                raise DataError(
                    f"file_name: '{other}' and '{image.file_name}' would share a map of classes, expected names that "
                    "differ before the ending; rename one"
                )

    def write(self, image: PointedImage, semantic: Tensor) -> None:
        """Write the map of an image, (H, W) uint8; a reader sees it whole or not at all."""
        with atomic_write(self.path_of(image)) as unfinished:
            Image.fromarray(semantic.numpy()).save(unfinished)

    def path_of(self, image: PointedImage) -> Path:
        """Return where the map of an image is."""
        return self.folder / Path(image.file_name).with_suffix(".png")

    def of(self, image: PointedImage) -> Tensor:
        """Return the map of an image, (H, W) uint8.

        Raises:
            DataError: the file is damaged or holds a class that does not exist.
        """
        path = self.path_of(image)
        try:
            with Image.open(path, formats=("PNG",)) as file:
                pixels = np.array(file)
        except NO_IMAGE as error:
            raise DataError(f"{path}: cannot be decoded ({error}); make the map again") from None
        highest = int(pixels[pixels != UNKNOWN_CLASS].max(initial=0))
        if highest > self.num_classes:
            raise DataError(f"{path}: expected 0 to {self.num_classes} (number of classes) or 255, got {highest}")
        return torch.from_numpy(pixels)
