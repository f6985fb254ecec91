"""Frames to samples: points and images augmented together, each in its own way, the link between them kept.

The order: points that no camera sees or that lie outside the range go first and by a fixed rule; then the sweep is
turned, scaled and mirrored, then images are resized, cropped and mirrored and the pixels that points carry move with
them. Batching is in `mwsis.data.dataset`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from camera.condinst import MASK_STRIDE
from camera.transforms import ImageGeometry, ResizeCropFlip, decode_image
from fusion.depth_maps import DepthSource
from fusion.lidar_depth import pixel_depth
from lidar.transforms import RotateScaleFlip
from mwsis.core.batch import Sample
from mwsis.core.errors import ConfigError, DataError
from mwsis.core.frame import CameraView, Frame, PixelMap
from mwsis.data.given_masks import GivenMasks
from mwsis.data.label_cache import FrameLabels

__all__ = ["PairedTransform", "in_range"]


def in_range(xyz: Tensor, point_cloud_range: Sequence[float]) -> Tensor:
    """Return which points lie in a crop of space.

    Args:
        xyz: (N, 3) float32, metres.
        point_cloud_range: x0 y0 z0 x1 y1 z1, metres, half-open.

    Returns:
        (N,) bool.
    """
    bounds = xyz.new_tensor(point_cloud_range)
    return ((xyz >= bounds[:3]) & (xyz < bounds[3:])).all(1)


@dataclass(frozen=True)
class PairedTransform:
    """Makes a sample of a frame and its labels; the transform of a `mwsis.data.dataset.FrameDataset`.

    What the LiDAR branch sees depends neither on the cameras loaded nor on the images' augmentation: which points are
    kept is decided over all cameras of the frame, and the sweep's augmentation is drawn first.

    Attributes:
        camera: resizing, cropping and mirroring of images.
        lidar: turning, scaling and mirroring of sweeps.
        point_cloud_range: x0 y0 z0 x1 y1 z1, metres, half-open; points outside are dropped, before and after.
        cameras_per_frame: cameras of a sample, drawn anew each time; ``None`` takes all.
        only_in_image: drop points that none of the sample's cameras sees.
        load_images: ``False`` leaves the images and their boxes out, and the points as they would be with them.
        augment: ``False`` leaves out every draw and loads every camera.
        strong_view: makes of each image the one that the student sees; ``None`` shows both networks the same.
        with_depth: measure how deep each point lies in the cameras that see it.
        given_masks: what gives training the masks of a frame's boxes; asked by `mwsis.data.dataset.FrameDataset`.
            ``None`` for training from boxes and for evaluation.
        depth: what knows how deep the images' cells lie; ``None`` where no method asks, and for evaluation.
        mask_stride: pixels per cell of the masks, as the camera network learns them.

    Raises:
        ConfigError: the range is empty or ``cameras_per_frame`` below 1.

    Source: MWSIS (AAAI 2024), released training pipeline. *Simplified*: no shuffling of points, which nothing here
    depends on. *Corrected*: second-camera pixels are mirrored in u, and v is scaled by its own factor.
    """

    camera: ResizeCropFlip
    lidar: RotateScaleFlip
    point_cloud_range: Sequence[float]
    cameras_per_frame: int | None = None
    only_in_image: bool = True
    load_images: bool = True
    augment: bool = True
    strong_view: Callable[[Tensor, torch.Generator], Tensor] | None = None
    with_depth: bool = False
    given_masks: GivenMasks | None = None
    depth: DepthSource | None = None
    mask_stride: int = MASK_STRIDE

    def __post_init__(self) -> None:
        bounds = list(self.point_cloud_range)
        if len(bounds) != 6 or any(low >= high for low, high in zip(bounds[:3], bounds[3:])):
            raise ConfigError(f"point_cloud_range: expected x0 y0 z0 x1 y1 z1 with x0 < x1 and so on, got {bounds}")
        if self.cameras_per_frame is not None and self.cameras_per_frame < 1:
            raise ConfigError(f"cameras_per_frame: expected 1 or more, or null for all, got {self.cameras_per_frame}")

    def deterministic(self) -> PairedTransform:
        """Return the transform for evaluation: no augmentation, all cameras, the largest image width."""
        return replace(self, augment=False, strong_view=None, given_masks=None, depth=None)

    def __call__(self, frame: Frame, labels: FrameLabels, frame_index: int, generator: torch.Generator) -> Sample:
        """Return the sample.

        Args:
            frame: N points; its truth is never read.
            labels: of the same N points.
            frame_index: of the frame in its data set.
            generator: the only source of randomness; untouched without augmentation.

        Returns:
            A sample of the kept points in their stored order; ``point_index`` is their row in ``frame``.

        Raises:
            DataError: an image cannot be decoded or differs in size from its camera.
        """
        chosen, geometries = self._images(frame.cameras, generator)
        xyz, keep = self._sweep(frame, chosen, generator)
        if not self.load_images:
            chosen, geometries = [], []
        cameras = [frame.cameras[index] for index in chosen]
        images = [
            geometry.apply_image(_decode(frame.frame_id, view))
            for view, geometry in zip(cameras, geometries, strict=True)
        ]
        shown = [geometry.shown(view.labels) for view, geometry in zip(cameras, geometries, strict=True)]
        pixels = _move_pixels(frame.pixels[keep], len(frame.cameras), chosen, geometries)
        return Sample(
            frame_index=frame_index,
            frame_id=frame.frame_id,
            xyz=xyz,
            point_feats=frame.points.point_feats[keep],
            point_index=keep,
            ring_segment_id=labels.ring_segment_id[keep],
            pixels=pixels,
            pseudo=labels.pseudo[keep],
            images=tuple(images),
            original_sizes=tuple((view.camera.height, view.camera.width) for view in cameras),
            labels=tuple(
                geometry.apply_boxes(view.labels[kept])
                for view, geometry, kept in zip(cameras, geometries, shown, strict=True)
            ),
            masks=tuple(
                geometry.apply_masks(frame.given_masks[index][kept], self.mask_stride)
                for index, geometry, kept in zip(chosen, geometries, shown, strict=True)
                if frame.given_masks
            ),
            pixel_depth=pixel_depth(frame.points.xyz[keep], pixels.camera_index, cameras) if self.with_depth else None,
            strong=tuple(self.strong_view(image, generator) for image in images) if self.strong_view else (),
            depth=self.depth.of(frame, chosen, geometries) if self.depth else (),
        )

    def _sweep(self, frame: Frame, cameras: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the kept points' new coordinates and their rows in the frame."""
        kept = in_range(frame.points.xyz, self.point_cloud_range)
        if self.only_in_image:
            kept &= torch.isin(frame.pixels.camera_index, torch.tensor(cameras, dtype=torch.int8)).any(1)
        keep = kept.nonzero()[:, 0]
        xyz = frame.points.xyz[keep]
        if not self.augment:
            return xyz, keep
        xyz = self.lidar(xyz, generator)
        inside = in_range(xyz, self.point_cloud_range)
        return xyz[inside], keep[inside]

    def _images(
        self, cameras: tuple[CameraView, ...], generator: torch.Generator
    ) -> tuple[list[int], list[ImageGeometry]]:
        """Return the sample's cameras, in their order, and the geometry of each."""
        sizes = [(view.camera.height, view.camera.width) for view in cameras]
        if not self.augment:
            return list(range(len(cameras))), self.camera.deterministic(sizes)
        geometries = self.camera.draw(sizes, [view.labels for view in cameras], generator)
        order = torch.randperm(len(cameras), generator=generator)
        chosen = sorted(order[: self.cameras_per_frame].tolist())
        return chosen, [geometries[index] for index in chosen]


def _decode(frame_id: str, view: CameraView) -> Tensor:
    image = decode_image(view.image, f"frame {frame_id}, camera {view.name}")
    expected = (view.camera.height, view.camera.width)
    if tuple(image.shape[-2:]) != expected:
        got = tuple(image.shape[-2:])
        raise DataError(f"frame {frame_id}, camera {view.name}: expected an image of (H, W) {expected}, got {got}")
    return image


def _move_pixels(pixels: PixelMap, num_cameras: int, chosen: list[int], geometries: list[ImageGeometry]) -> PixelMap:
    """Return the pixels on the new images; slots of cameras that were not loaded, and of what is cut off, are empty."""
    position = torch.full((num_cameras + 1,), -1, dtype=torch.int8)  # the last entry is for empty slots: index -1
    position[chosen] = torch.arange(len(chosen), dtype=torch.int8)
    camera_index = position[pixels.camera_index.long()]
    pixel_uv = torch.zeros_like(pixels.pixel_uv)
    for index, geometry in enumerate(geometries):
        here = camera_index == index
        pixel_uv[here] = geometry.apply_uv(pixels.pixel_uv[here])
        camera_index[here & ~geometry.shows(pixel_uv)] = -1
    return PixelMap(pixel_uv, camera_index)
