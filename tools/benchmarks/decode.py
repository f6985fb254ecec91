"""Suite ``decode``: a Waymo v1 frame from the file to arrays, against its message classes and numpy."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from waymo_open_dataset import dataset_pb2

from mwsis.data.waymo.record import LidarName, LidarRecord, LidarReturn, WaymoRecord
from mwsis.data.waymo.v1 import DECODE_THREADS, index_segment, read_record, write_segment
from tools.benchmarks.measure import Arrays, Row, best_times, comparison, require_same


@dataclass(frozen=True)
class Sizes:
    """How much is read: rows and columns of the range images of TOP, and of the four other LiDARs."""

    top: tuple[int, int] = (64, 2650)
    other: tuple[int, int] = (200, 600)
    repeats: int = 15


def run(folder: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """Compare reading one Waymo v1 frame, file to arrays, with `read_with_messages`.

    Ours also verifies the file's checksums and builds the record, the reference does neither. ``zlib alone`` is what
    neither can avoid, in one thread.
    """
    path = folder / "frame.tfrecord"
    write_segment(path, [made_up_record(sizes)])
    (entry,) = index_segment(path)
    top = {LidarName.TOP}
    for wanted in (None, top):
        require_same(record_arrays(read_record(path, entry, wanted)), read_with_messages(path, wanted))
    streams = [part for scan in scans_of(path) for part in scan.values()]
    whole, slow, some, slow_some, index, parse, floor = best_times(
        [
            lambda: read_record(path, entry),
            lambda: read_with_messages(path),
            lambda: read_record(path, entry, top),
            lambda: read_with_messages(path, top),
            lambda: index_segment(path),
            lambda: message_of(path),
            lambda: inflate(streams),
        ],
        sizes.repeats,
    )
    facts = {"threads": DECODE_THREADS, "cores": os.cpu_count(), "megabytes": round(path.stat().st_size / 1e6, 1)}
    return facts, [
        comparison("read a frame / messages and numpy", whole, slow),
        comparison("read TOP / messages and numpy", some, slow_some),
        comparison("index a frame / parse its message", index, parse),
        comparison("floor: zlib alone / messages and numpy", floor, slow),
    ]


def read_with_messages(path: Path, lidars: set[Any] | None = None) -> Arrays:
    """Return the range images of the first frame of a file as the message classes and numpy give them."""
    arrays: Arrays = {}
    for scan in scans_of(path, lidars):
        for name, compressed in scan.items():
            floats = name.endswith(("range_image_compressed", "pose_compressed"))
            kind = dataset_pb2.MatrixFloat if floats else dataset_pb2.MatrixInt32
            matrix = kind.FromString(zlib.decompress(compressed))
            arrays[name] = np.array(matrix.data, np.float32 if floats else np.int32).reshape(matrix.shape.dims)
    return arrays


def message_of(path: Path) -> Any:
    """Return the first frame of a TFRecord file as a message, checksums unseen."""
    content = path.read_bytes()
    return dataset_pb2.Frame.FromString(content[12 : 12 + int.from_bytes(content[:8], "little")])


def scans_of(path: Path, lidars: set[Any] | None = None) -> list[dict[str, bytes]]:
    """Return the compressed images of each return of the first frame by LiDAR, return and field."""
    return [
        {f"{laser.name} {number} {field.name}": content for field, content in scan.ListFields()}
        for laser in message_of(path).lasers
        if lidars is None or laser.name in lidars
        for number, scan in ((1, laser.ri_return1), (2, laser.ri_return2))
    ]


def inflate(streams: list[bytes]) -> None:
    """Decompress each stream and forget it."""
    for stream in streams:
        zlib.decompress(stream)


def record_arrays(record: WaymoRecord) -> Arrays:
    """Return the arrays of a record's range images under the names of `scans_of`."""
    arrays: Arrays = {}
    for lidar in record.lidars:
        for number, scan in enumerate(lidar.returns, 1):
            named = {
                "range_image_compressed": scan and scan.values,
                "camera_projection_compressed": scan and scan.projection,
                "segmentation_label_compressed": scan and scan.segmentation,
                "range_image_pose_compressed": lidar.pixel_pose if number == 1 else None,
            }
            arrays |= {f"{lidar.name:d} {number} {name}": part for name, part in named.items() if part is not None}
    return arrays


def made_up_record(sizes: Sizes) -> WaymoRecord:
    """Return a frame of five LiDARs with two returns each, TOP with poses and labels; nothing else."""
    rng = np.random.default_rng(0)
    lidars = tuple(_made_up_lidar(rng, name, sizes) for name in LidarName if name != LidarName.UNKNOWN)
    return WaymoRecord("1_000_21_000", 1_550_000_000_000_000, np.eye(4), lidars, (), ())


def _made_up_lidar(rng: np.random.Generator, name: int, sizes: Sizes) -> LidarRecord:
    is_top = name == LidarName.TOP
    rows, columns = sizes.top if is_top else sizes.other
    returns = tuple(_made_up_return(rng, rows, columns, hit, is_top) for hit in (0.85, 0.07))
    start = np.array([0.01, 0.02, 1.0, 1000.0, 2000.0, 30.0])
    pose = start + np.cumsum(rng.normal(1e-3, 1e-4, (columns, 6)), axis=0)
    pixel_pose = np.broadcast_to(pose.astype(np.float32), (rows, columns, 6)).copy() if is_top else None
    beams = np.linspace(-0.3, 0.04, rows) if is_top else None
    return LidarRecord(name, np.eye(4), beams, -0.3, 0.04, returns, pixel_pose)


def _made_up_return(rng: np.random.Generator, rows: int, columns: int, hit: float, labelled: bool) -> LidarReturn:
    """Return ground and walls with noise: a smooth range, heavy-tailed intensity, five cameras over 5/7 of a turn."""
    row, column = np.mgrid[:rows, :columns]
    seen = rng.random((rows, columns)) < hit
    ranges = np.clip(2 / np.sin(0.01 + 0.3 * row / rows) * (1 + 0.2 * np.sin(column / 37)), 1, 75)
    intensity = np.exp(rng.normal(-2, 1, seen.shape)).astype(np.float16)
    elongation = np.round(rng.exponential(0.1, seen.shape) * 64) / 64
    values = np.stack([ranges + rng.normal(0, 0.02, seen.shape), intensity, elongation, np.full(seen.shape, -1)], 2)
    camera = 7 * column // columns
    pixel_row = 200 + 900 * row // rows + rng.integers(0, 3, seen.shape)
    pixels = np.stack([camera + 1, column % (columns / 7) * 1920 * 7 // columns, pixel_row], 2)
    projection = np.zeros((rows, columns, 6), np.int32)
    projection[..., :3] = np.where((seen & (camera < 5))[..., None], pixels, 0)
    segmentation = np.stack([column // 90, column // 40 % 22], 2).astype(np.int32) * seen[..., None].astype(np.int32)
    values = np.where(seen[..., None], values, -1).astype(np.float32)
    return LidarReturn(values, projection, segmentation if labelled else None)
