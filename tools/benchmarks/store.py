"""Suite ``store``: a random frame of the frame store, against .npy files of its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mwsis.core.frame import CameraView, Frame, FrameTruth, LidarGeometry, PixelMap, PointCloud
from mwsis.core.geometry import CameraModel
from mwsis.core.instances import Boxes2D
from mwsis.data.store import FrameStore, write_frames
from tools.benchmarks.measure import Arrays, Row, best_times, comparison, require_same


@dataclass(frozen=True)
class Sizes:
    """How much is stored: points of a frame, frames, bytes of an encoded image (five per frame)."""

    num_points: int = 170_000
    num_frames: int = 8
    image_bytes: int = 400_000
    repeats: int = 15


def run(folder: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """Compare reading frames of a store in random order with one `.npy` file per array, memory-mapped and read.

    Every array is summed on both sides, so every byte is really read; the files are in the page cache.
    """
    write_frames(folder / "frames.arrow", (made_up_frame(number, sizes) for number in range(sizes.num_frames)))
    store = FrameStore(folder / "frames.arrow")
    for number in range(len(store)):
        for name, array in frame_arrays(store[number]).items():
            np.save(folder / f"{number} {name}.npy", array)
    names = sorted(frame_arrays(store[0]))

    def plain(number: int, mode: Any) -> Arrays:
        return {name: np.load(folder / f"{number} {name}.npy", mmap_mode=mode) for name in names}

    for number in range(len(store)):
        require_same(frame_arrays(store[number]), plain(number, None))
    order = np.random.default_rng(0).permutation(len(store)).tolist()
    in_memory = [plain(number, None) for number in order]
    ours, mapped, copied, floor = (
        milliseconds / len(store)
        for milliseconds in best_times(
            [
                lambda: [total(frame_arrays(store[number])) for number in order],
                lambda: [total(plain(number, "r")) for number in order],
                lambda: [total(plain(number, None)) for number in order],
                lambda: [total(arrays) for arrays in in_memory],
            ],
            sizes.repeats,
        )
    )
    touched = sum(array.nbytes for array in in_memory[0].values())
    facts = {"frames": len(store), "points": sizes.num_points, "megabytes per frame": round(touched / 1e6, 1)}
    return facts, [
        comparison("random frame / memory-mapped .npy files", ours, mapped),
        comparison("random frame / .npy files read", ours, copied),
        comparison("floor: sums alone / memory-mapped .npy", floor, mapped),
    ]


def total(arrays: Arrays) -> float:
    """Return the sum of all numbers, which reads every byte."""
    return sum(float(array.sum()) for array in arrays.values())


def frame_arrays(frame: Frame) -> Arrays:
    """Return what a frame holds per point, and its encoded images, without copying."""
    assert frame.truth is not None
    tensors = {**vars(frame.points), **vars(frame.pixels)}
    tensors |= {"semantic_labels": frame.truth.semantic_labels, "instance_ids": frame.truth.instance_ids}
    images = {f"image {view.name}": np.frombuffer(view.image, np.uint8) for view in frame.cameras}
    return {name: tensor.numpy() for name, tensor in tensors.items()} | images


def made_up_frame(number: int, sizes: Sizes) -> Frame:
    """Return random points that look at five cameras, whose images are random bytes."""
    generator = torch.Generator().manual_seed(number)
    count = sizes.num_points

    def whole(high: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, (count, *shape), generator=generator, dtype=dtype)

    xyz = torch.rand(count, 3, generator=generator) * 100 - 50
    feats = torch.rand(count, 2, generator=generator)
    points = PointCloud(
        xyz, feats, xyz.norm(dim=1), whole(64, torch.int16), whole(2650, torch.int32), whole(2, torch.int8)
    )
    pixels = PixelMap(torch.rand(count, 2, 2, generator=generator) * 1280, whole(5, torch.int8, 2))
    no_box = torch.empty(0, dtype=torch.int64)
    labels = whole(3, torch.int64), whole(99, torch.int64)
    truth = FrameTruth(*labels, torch.empty(0, 7), no_box, no_box, (no_box,) * 5, (None,) * 5)
    cameras = tuple(_made_up_view(camera, sizes.image_bytes, generator) for camera in range(5))
    return Frame(f"frame-{number}", "made-up", LidarGeometry(64, 2650), points, pixels, cameras, truth)


def _made_up_view(number: int, image_bytes: int, generator: Any) -> CameraView:
    focal, distortion = torch.full((4,), 1000.0, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    camera = CameraModel(1920, 1280, focal, distortion, torch.eye(4, dtype=torch.float64))
    image = torch.randint(0, 256, (image_bytes,), generator=generator, dtype=torch.uint8).numpy().tobytes()
    return CameraView(f"camera {number}", camera, image, Boxes2D.empty())
