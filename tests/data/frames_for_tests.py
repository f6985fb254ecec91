"""Small random frames with every optional field filled somewhere, and a source that serves them."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mwsis.core.frame import CameraView, Frame, FrameTruth, ImageTruth, LidarGeometry, PixelMap, PointCloud
from mwsis.core.geometry import CameraModel
from mwsis.core.instances import Boxes2D, MaskSet
from mwsis.data.conversion import Labelling, SplitPlan, convert, jobs_of, plan_split
from mwsis.data.label_cache import FrameLabels, Labeller
from mwsis.data.source import Source
from mwsis.data.workers import Pool


def png(width: int, height: int, seed: int = 0) -> bytes:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def random_frame(
    seed: int, num_points: int = 51, num_cameras: int = 2, segment: str = "drive", size: tuple[int, int] = (30, 48)
) -> Frame:
    """An odd number of points, so that arrays end at odd bytes; camera i is looked at through both slots."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    xyz = (torch.rand(num_points, 3, generator=generator) - 0.5) * torch.tensor([40.0, 40.0, 4.0])
    points = PointCloud(
        xyz=xyz,
        point_feats=torch.rand(num_points, 2, generator=generator),
        ranges=xyz.norm(dim=1),
        ring=torch.randint(-1, 64, (num_points,), generator=generator, dtype=torch.int16),
        azimuth_column=torch.randint(-1, 2000, (num_points,), generator=generator, dtype=torch.int32),
        return_index=torch.randint(0, 2, (num_points,), generator=generator, dtype=torch.int8),
    )
    camera_index = torch.randint(-1, num_cameras, (num_points, 2), generator=generator, dtype=torch.int8)
    pixel_uv = torch.rand(num_points, 2, 2, generator=generator) * torch.tensor([width, height])
    cameras = tuple(_view(index, width, height, seed) for index in range(num_cameras))
    return Frame(
        frame_id=f"{segment}-{seed}",
        segment=segment,
        lidar=LidarGeometry(64, 2650),
        points=points,
        pixels=PixelMap(pixel_uv, camera_index),
        cameras=cameras,
        truth=_truth(num_points, cameras, generator) if seed % 2 == 0 else None,
    )


def _view(index: int, width: int, height: int, seed: int) -> CameraView:
    generator = torch.Generator().manual_seed(seed)
    camera = CameraModel(
        width, height, torch.rand(4, generator=generator).double(), torch.zeros(5).double(), torch.eye(4).double()
    )
    labels = Boxes2D.empty()
    if index == 0:
        boxes = torch.tensor([[3.5, 2.0, 20.25, 17.0], [30.0, 1.0, 47.0, 29.0]])
        labels = Boxes2D(boxes, torch.tensor([1, -1]), torch.tensor([False, True]))
    return CameraView(f"CAM_{index}", camera, png(width, height, seed * 10 + index), labels)


def _truth(num_points: int, cameras: tuple[CameraView, ...], generator: torch.Generator) -> FrameTruth:
    masks = MaskSet.from_id_map(torch.randint(0, 3, (30, 48), generator=generator), torch.tensor([1, 2]))
    image = ImageTruth(cameras[0].labels, masks, torch.tensor([7, -1]))
    return FrameTruth(
        semantic_labels=torch.randint(-2, 3, (num_points,), generator=generator),
        instance_ids=torch.randint(-1, 9, (num_points,), generator=generator),
        boxes3d=torch.rand(3, 7, generator=generator),
        box3d_labels=torch.tensor([0, 1, 2]),
        box3d_ids=torch.tensor([7, 8, 9]),
        box_instance_ids=tuple(torch.arange(len(view.labels)) for view in cameras),
        images=(image, *(None for _ in cameras[1:])),
    )


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Bit for bit, field by field."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        assert one.numpy().tobytes() == other.numpy().tobytes(), where
    elif is_dataclass(one):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}")
    elif isinstance(one, tuple):
        assert len(one) == len(other), where
        for position, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_same(first, second, f"{where}[{position}]")
    else:
        assert one == other, where


@dataclass
class RandomSource:
    """Five frames in two segments."""

    name = "random"
    class_names = ("Vehicle", "Pedestrian", "Cyclist")
    version: int = 0

    def identity(self) -> str:
        return "random"

    def fingerprint(self) -> str:
        return f"random {self.version}"

    def segment_fingerprint(self, segment: str) -> str:
        return self.fingerprint()

    def unreadable(self, split: str) -> dict[str, str]:
        return {}

    def frame_ids(self, split: str) -> list[str]:
        return ["city/a-0", "city/a-1", "city/a-2", "b-3", "b-4"]

    def segment_of(self, frame_id: str) -> str:
        return frame_id.rsplit("-", 1)[0]

    def read(self, frame_id: str) -> Frame:
        return random_frame(int(frame_id[-1]) + self.version, segment=self.segment_of(frame_id))

    def check(self) -> None:
        pass


def unlabelled(frame: Frame) -> FrameLabels:
    return FrameLabels.unlabelled(len(frame.points))


def converted(source: Source, home: Path, labeller: Labeller = unlabelled, settings: str = "") -> SplitPlan:
    """Write the training split of a source, in this process."""
    plan = plan_split(source, "train", home, Labelling(labeller, settings, "key"))
    pool = Pool("processes", 1)
    convert(jobs_of(source, [plan], labeller, pool), [plan], pool, strict=True)
    return plan
