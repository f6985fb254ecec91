"""Class activation maps: where a classifier looks that is told which classes an image shows.

That is all it is told: the classes of the image's points, no place, no box, no mask. It is trained by
`mwsis.training.run.fit` as every other step; `tools/points.py` does so where no folder of maps of classes is given.
What becomes of the activations is `class_maps.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from camera.backbone import ImageBackbone
from camera.point_to_mask.network import content_of, on_recorded_image
from camera.point_to_mask.points import PointedImage
from camera.point_to_mask.samples import COLORS, load_image, padded
from camera.transforms import ResizeCropFlip
from mwsis.core.errors import ConfigError
from mwsis.data.dataset import rounded_up
from mwsis.data.sampler import seeded_generator

__all__ = [
    "ActivationNetwork",
    "ActivationSettings",
    "ActivationStep",
    "LabelledBatch",
    "LabelledSample",
    "LabelledSamples",
    "activations",
    "always_shown",
    "collate_labelled",
]

STRIDE = 8
"""Pixels of a cell of the activations along each axis."""


@dataclass(frozen=True)
class ActivationSettings:
    """How maps of classes are made of image-level labels and points.

    Attributes:
        share: steps of the classifier's training, of those of the training from points.
        scales: of the largest image width, on which activations are computed and averaged, each also mirrored.
        high: activation, of the highest of its class in the image, from which a pixel is of that class.
        low: activation of every class below which a pixel is background; in between it is unknown.
        radius: pixels around a point that are of its class whatever the activation.

    Raises:
        ConfigError: a value out of range.

    Source: scales and thresholds are those of the released code of IRN (CVPR 2019), which trains 5 epochs, 6,600 steps
    of 8 images of VOC. The radius is ours: a disc is a region that instances are made of (50 pixels).
    """

    share: float = 0.15
    scales: Sequence[float] = (0.5, 1.0, 1.5, 2.0)
    high: float = 0.3
    low: float = 0.05
    radius: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ConfigError(f"cam: expected 0 <= low <= high <= 1, got low={self.low}, high={self.high}")
        if self.share <= 0 or not self.scales or min(self.scales) <= 0 or self.radius < 1:
            raise ConfigError("cam: expected share above 0, one or more scales above 0, radius of 1 px or more")


@dataclass(frozen=True, eq=False)
class LabelledSample:
    """One image and the classes that it shows.

    Attributes:
        name: of the image file.
        image: (3, H, W) uint8 RGB.
        present: (C,) float32, 1 for the classes of the image's points, else 0.
    """

    name: str
    image: Tensor
    present: Tensor


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """I images padded right and bottom to one size, with zeros.

    Attributes:
        frame_ids: names of the files.
        images: (I, 3, H, W) uint8 RGB; H and W are multiples of 32.
        sizes: (I, 2) int64, rows and columns of content.
        present: (I, C) float32, 0 or 1.
    """

    frame_ids: tuple[str, ...]
    images: Tensor
    sizes: Tensor
    present: Tensor


class LabelledSamples(Dataset[LabelledSample]):
    """Training images of the classifier, whole: a part of an image need not show what the image shows.

    Args:
        images: their points are asked for their classes alone.
        folder: of the image files.
        num_classes: C.
        widths: pixels to draw from.
        seed: of all draws.
    """

    def __init__(
        self, images: Sequence[PointedImage], folder: Path, num_classes: int, widths: Sequence[int], seed: int
    ) -> None:
        self.images = images
        self.folder = folder
        self.num_classes = num_classes
        self.geometry = ResizeCropFlip(widths)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> LabelledSample:
        """Return the sample of ``(index, position)``, as `ResumableSampler` yields them."""
        index, position = key
        generator = seeded_generator("labelled", self.seed, position)
        image = self.images[index]
        geometry = self.geometry.draw([(image.height, image.width)], [], generator)[0]
        pixels = COLORS(geometry.apply_image(load_image(self.folder, image)), generator)
        present = torch.zeros(self.num_classes)
        present[image.points.classes] = 1
        return LabelledSample(image.file_name, pixels, present)


def collate_labelled(samples: Sequence[LabelledSample]) -> LabelledBatch:
    """Join samples, padded to the largest height and width, rounded up to multiples of 32."""
    sizes = torch.tensor([sample.image.shape[1:] for sample in samples])
    height, width = (rounded_up(int(side)) for side in sizes.amax(0))
    return LabelledBatch(
        tuple(sample.name for sample in samples),
        torch.stack([padded(sample.image, height, width, 0) for sample in samples]),
        sizes,
        torch.stack([sample.present for sample in samples]),
    )


def always_shown(images: Sequence[PointedImage]) -> list[int]:
    """Return the classes that every image shows: what is in none of the others, no classifier can find out."""
    return sorted(set.intersection(*(set(image.points.classes) for image in images)))


class ActivationNetwork(nn.Module):
    """A timm network whose maps are classified cell by cell.

    Args:
        num_classes: C.
        backbone: timm model with maps of stride 8, 16 and 32.
        pretrained, norm, pixel_style: see `camera.backbone.ImageBackbone`.

    Raises:
        ConfigError: no such network, or weights that cannot be had.

    Source: CAM (CVPR 2016): without a bias, the mean of the activations of a class is its logit. *Generalised* to the
    maps of three strides, whose activations are added up: the finest say where a small object is.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str,
        *,
        pretrained: bool | str = False,
        norm: str = "batch",
        pixel_style: str = "imagenet",
    ) -> None:
        super().__init__()
        self.backbone = ImageBackbone(backbone, pretrained=pretrained, norm=norm, pixel_style=pixel_style)
        self.classifiers = nn.ModuleList(
            nn.Conv2d(depth, num_classes, 1, bias=False) for depth in self.backbone.channels
        )

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Return activations, (I, C, H/8, W/8) float32, of images padded right and bottom.

        Args:
            images: (I, 3, H, W) uint8 RGB, H and W multiples of 32.
            sizes: (I, 2) int64, rows and columns of content.
        """
        maps = self.backbone(images, sizes)
        size = maps[0].shape[2:]
        found = [classify(one) for classify, one in zip(self.classifiers, maps, strict=True)]
        return torch.stack([functional.interpolate(one, size, mode="bilinear") for one in found]).sum(0)


class ActivationStep(nn.Module):
    """A classifier of images and what it minimises.

    Args:
        network: trained.
    """

    vote_history: None = None

    def __init__(self, network: ActivationNetwork) -> None:
        super().__init__()
        self.student = nn.ModuleDict({"camera": network})

    def losses(self, batch: LabelledBatch, progress: float, with_lidar: bool = True) -> dict[str, Tensor]:
        """Return the cross entropy of the classes that are there or not, mean over classes and images.

        Args:
            batch: images and their classes.
            progress: share of the run already done; the loss does not depend on it.
            with_lidar: without meaning here.

        Source: CAM (CVPR 2016), global average pooling, here over the cells whose middle is content.
        """
        found = self.student["camera"](batch.images, batch.sizes)
        half = STRIDE // 2
        content = content_of(batch.sizes, *batch.images.shape[2:])[:, None, half::STRIDE, half::STRIDE]
        logits = (found * content).sum((2, 3)) / content.sum((2, 3)).clamp(min=1)
        return {"camera/image_labels": functional.binary_cross_entropy_with_logits(logits, batch.present)}

    @torch.no_grad()
    def update_teacher(self, progress: float) -> None:
        """Do nothing: there is no teacher."""


@torch.no_grad()
def activations(network: ActivationNetwork, image: Tensor, classes: Sequence[int], widths: Sequence[int]) -> Tensor:
    """Return how strongly each pixel speaks for each class that the image shows.

    Args:
        network: in evaluation mode.
        image: (3, H, W) uint8 RGB, as recorded.
        classes: K, those that are there.
        widths: pixels, on which the network sees the image; the activations are averaged.

    Returns:
        (K, H, W) float32 in [0, 1], on the CPU: the positive part, the highest of each class 1; 0 throughout for a
        class without any.

    Source: the released code of IRN (CVPR 2019): scales, mirrored images, highest value.
    """
    device = network.backbone.pixel_mean.device
    size = (int(image.shape[1]), int(image.shape[2]))
    total = torch.zeros(len(classes), *size)
    for width in widths if len(classes) else ():
        pixels = ResizeCropFlip([width]).deterministic([size])[0].apply_image(image)
        batch = collate_labelled([LabelledSample("", one, torch.zeros(0)) for one in (pixels, pixels.flip(-1))])
        found = network(batch.images.to(device), batch.sizes.to(device))[:, list(classes)].cpu()
        content = (int(pixels.shape[1]), int(pixels.shape[2]))
        seen, mirrored = on_recorded_image(found, STRIDE, content, size)
        total += seen + mirrored.flip(-1)
    positive = total.relu()
    return positive / positive.amax((1, 2), keepdim=True).clamp(min=torch.finfo(positive.dtype).tiny)
