"""Small random scenes with two cameras, overlapping boxes, ignore regions and unseen points."""

import torch

from mwsis.core.frame import CameraView, Frame, LidarGeometry, PixelMap, PointCloud
from mwsis.core.geometry import CameraModel
from mwsis.core.instances import Boxes2D


def cloud(xyz: torch.Tensor) -> PointCloud:
    count = len(xyz)
    return PointCloud(
        xyz,
        torch.zeros(count, 2),
        xyz.norm(dim=1),
        torch.zeros(count, dtype=torch.int16),
        torch.arange(count, dtype=torch.int32),
        torch.zeros(count, dtype=torch.int8),
    )


def frame_of(xyz: torch.Tensor, pixels: PixelMap, labels: list[Boxes2D]) -> Frame:
    model = CameraModel(100, 80, torch.ones(4).double(), torch.zeros(5).double(), torch.eye(4).double())
    views = tuple(CameraView(str(index), model, b"", boxes) for index, boxes in enumerate(labels))
    return Frame("scene", "segment", LidarGeometry(1, 2650), cloud(xyz), pixels, views)


def random_boxes(generator: torch.Generator, count: int) -> Boxes2D:
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([60.0, 40.0])
    size = 10 + torch.rand(count, 2, generator=generator) * 40
    ignore = torch.rand(count, generator=generator) < 0.2
    labels = torch.randint(3, (count,), generator=generator)
    return Boxes2D(torch.cat([corner, corner + size], 1), torch.where(ignore, -1, labels), ignore)


def random_scene(seed: int) -> tuple[Frame, torch.Tensor]:
    """Return a frame and its ring segments; half the scenes have points without a segment."""
    generator = torch.Generator().manual_seed(seed)
    count = 150
    xyz = torch.rand(count, 3, generator=generator) * torch.tensor([6.0, 3.0, 1.0])
    camera_index = torch.randint(-1, 2, (count, 2), generator=generator).to(torch.int8)
    pixel_uv = torch.rand(count, 2, 2, generator=generator) * torch.tensor([100.0, 80.0])
    segments = torch.randint(-1 if seed % 2 else 0, 40, (count,), generator=generator)
    labels = [random_boxes(generator, 5), random_boxes(generator, 4)]
    return frame_of(xyz, PixelMap(pixel_uv, camera_index), labels), segments
