"""What a training from points is configured by, and the files it begins with, checked before any work starts.

`configs/method/p2seg.yaml` names this class; `tools/points.py` is the command.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from camera.point_to_mask.activation_maps import ActivationNetwork, ActivationSettings, LabelledSamples
from camera.point_to_mask.network import PointNetwork
from camera.point_to_mask.points import ImagePoints, PointedImage, drifted, read_categories, read_points
from camera.point_to_mask.samples import PointSamples
from camera.point_to_mask.semantic_maps import SemanticMaps
from camera.point_to_mask.step import PointLosses
from camera.transforms import ResizeCropFlip
from mwsis.core.errors import ConfigError, DataError
from mwsis.data.coco import annotation_file
from mwsis.data.sampler import seeded_generator

__all__ = ["CLASSES", "PointData", "PointToMask"]

LEARNED_HERE = "wsss"
"""Of `semantic_maps.SOURCES`: maps that were learned from image-level labels."""
CLASSES = ("network", "maps")
"""What says of which class a pixel of a mask is."""


@dataclass(frozen=True, eq=False)
class PointData:
    """The images of a split with their points and maps of classes; to a run it is the data set.

    Attributes:
        path: the COCO file with the points.
        folder: of the images.
        class_names: in the order of the labels.
        categories: of the file, as it has them.
        images: with the points that are trained from.
        maps: of their classes.
    """

    path: Path
    folder: Path
    class_names: tuple[str, ...]
    categories: tuple[Mapping[str, Any], ...]
    images: tuple[PointedImage, ...]
    maps: SemanticMaps

    def fingerprint(self) -> str:
        """Return a digest of the points; it changes whenever they would."""
        digest = hashlib.sha256(repr((self.class_names, self.maps.source)).encode())
        for image in self.images:
            digest.update(f"{image.file_name} {image.width} {image.height} {image.ids}".encode())
            digest.update(image.points.xy.numpy().tobytes() + image.points.labels.numpy().tobytes())
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class PointToMask:
    """Everything that decides how points become masks, beside what every run has.

    Attributes:
        semantic: folder of the maps of classes (`semantic_maps.SemanticMaps`); ``None``: they are made in the run, from
            the classes of each image's points (`activation_maps`).
        semantic_source: who made those of a folder: ``wsss``, ``sam`` or ``gt``.
        classes: ``network``: masks are of the class that the network sees, as published; ``maps``: of that in the maps
            wherever these know one, so that the network only tells objects apart.
        points: ``annotated``, or ``box_centre`` where annotations without a point may have that of their box.
        drift: the annotators' points are moved once and for all, with this standard deviation in pixels: how much do
            worse points cost?
        augment_drift: points are moved anew at each visit in training.
        backbone, pretrained, pixel_style, head_channels, affinity_channels: see `network.PointNetwork`.
        losses: see `step.PointLosses`.
        cam: of the maps that are made in the run, see `activation_maps.ActivationSettings`; their classifier has the
            same backbone.

    Raises:
        ConfigError: a folder without its source or the other way round, no such classes, or a drift is negative.
    """

    semantic: str | None = None
    semantic_source: str | None = None
    classes: str = "network"
    points: str = "annotated"
    drift: float = 0.0
    augment_drift: float = 0.0
    backbone: str = "hrnet_w48"
    pretrained: bool | str = False
    pixel_style: str = "imagenet"
    head_channels: int = 256
    affinity_channels: int = 256
    losses: PointLosses = field(default_factory=PointLosses)
    cam: ActivationSettings = field(default_factory=ActivationSettings)

    def __post_init__(self) -> None:
        if (self.semantic is None) != (self.semantic_source is None):
            absent = "semantic" if self.semantic is None else "semantic_source"
            raise ConfigError(
                f"'method.point_to_mask.{absent}' has no value: semantic=FOLDER goes with semantic_source=wsss|sam|gt; "
                "leave both out to have the maps of classes made in the run"
            )
        if self.classes not in CLASSES:
            raise ConfigError(f"classes: expected one of {', '.join(CLASSES)}, got '{self.classes}'")
        if min(self.drift, self.augment_drift) < 0:
            raise ConfigError("drift, augment_drift: expected 0 or more pixels")

    def read(self, source: Mapping[str, Any], split: str, seed: int, own_maps: Path) -> PointData:
        """Return the points of a split and check that images and given maps are there.

        Args:
            source: the settings of `mwsis.data.coco.CocoSource`: root, annotations, images, classes.
            split: of them.
            seed: of the drift.
            own_maps: folder for maps that the run makes.

        Raises:
            ConfigError, DataError: what is wrong with a file or setting.
        """
        if "annotations" not in source:
            raise ConfigError("data: points are read from files in COCO's format; use data=coco")
        if split not in source["annotations"]:
            raise ConfigError(f"data.train_split: expected one of {sorted(source['annotations'])}, got '{split}'")
        root = Path(source["root"])
        path, folder = annotation_file(root, source["annotations"][split]), root / source["images"][split]
        names, images = read_points(path, source.get("classes"), self.points)
        if self.semantic is not None and self.semantic_source is not None:
            maps = SemanticMaps(self.semantic, self.semantic_source, len(names))
            maps.check(images)
        else:
            maps = SemanticMaps(own_maps, LEARNED_HERE, len(names), made_here=True)
            maps.check_names(images)
        for image in images:
            if not (folder / image.file_name).is_file():
                raise DataError(f"{folder / image.file_name}: no such file, but {path} lists it as image {image.id}")
        moved = tuple(self._moved(image, seed) for image in images)
        return PointData(path, folder, names, read_categories(path), moved, maps)

    def _moved(self, image: PointedImage, seed: int) -> PointedImage:
        generator = seeded_generator("drift", seed, str(image.id))
        xy = drifted(image.points.xy, self.drift, (image.height, image.width), generator)
        return replace(image, points=ImagePoints(xy, image.points.labels))

    def samples(self, found: PointData, geometry: ResizeCropFlip, seed: int) -> PointSamples:
        """Return the training samples."""
        return PointSamples(
            found.images, found.folder, found.maps, geometry, self.losses.min_area, self.augment_drift, seed
        )

    def activation_samples(self, found: PointData, widths: Sequence[int], seed: int) -> LabelledSamples:
        """Return the training samples of the classifier, whole images and their classes."""
        return LabelledSamples(found.images, found.folder, len(found.class_names), widths, seed)

    def activation_network(self, num_classes: int, seed: int, start: bool) -> ActivationNetwork:
        """Return the untrained classifier, see `network`."""
        with torch.random.fork_rng(devices=[]), _own_names():
            torch.manual_seed(seed)
            return ActivationNetwork(
                num_classes,
                self.backbone,
                pretrained=self.pretrained if start else False,
                norm="frozen" if self.pretrained else "batch",
                pixel_style=self.pixel_style,
            )

    def network(self, num_classes: int, seed: int, start: bool) -> PointNetwork:
        """Return the untrained network, a function of the seed; ``start``: with the weights a new run begins with."""
        with torch.random.fork_rng(devices=[]), _own_names():
            torch.manual_seed(seed)
            return PointNetwork(
                num_classes,
                backbone=self.backbone,
                pretrained=self.pretrained if start else False,
                pixel_style=self.pixel_style,
                head_channels=self.head_channels,
                affinity_channels=self.affinity_channels,
            )


@contextmanager
def _own_names() -> Iterator[None]:
    """Call the settings of networks, in what is said of them, what they are called here."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace("camera.", "method.point_to_mask.")) from error
