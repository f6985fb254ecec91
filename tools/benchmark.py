"""Time what is fast here against the obvious way to do it, in the same run, after comparing their results.

    uv run tools/benchmark.py suite=decode               Waymo v1 frame, file to arrays: a reader of messages and numpy
    uv run tools/benchmark.py suite=store                random frame of the frame store: .npy files of its arrays
    uv run tools/benchmark.py suite=labels               labels of a street sweep from boxes: the slow twins of tests
    uv run tools/benchmark.py suite=decode json=FILE     also writes the rows

A ratio under 1 says that this project is faster. Times are the best of several, both sides taking turns; other work on
the machine still shows. Inputs are made up, of the size of Waymo's. Exit code: 0 done, 1 results differ, 2 wrong input.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mwsis.core.errors import ConfigError, closest_name
from mwsis.training.commands import run_command, split_arguments

if TYPE_CHECKING:
    import numpy as np

    from mwsis.core.frame import CameraView, Frame
    from mwsis.data.waymo.record import LidarRecord, LidarReturn, WaymoRecord

NO_FILE = "none"
EXIT_DIFFERENT = 1
Arrays = dict[str, "np.ndarray"]


@dataclass(frozen=True)
class Sizes:
    """How much is read.

    Attributes:
        top, other: rows and columns of the range images of TOP, and of the four other LiDARs.
        num_points, num_frames: of the frame store.
        image_bytes: an encoded image, five per frame.
        street, few: rows and columns of the street sweep that is labelled, and of the one the slow twins can bear.
        image_width: of the street's cameras.
        repeats: of each measurement.
    """

    top: tuple[int, int] = (64, 2650)
    other: tuple[int, int] = (200, 600)
    num_points: int = 170_000
    num_frames: int = 8
    image_bytes: int = 400_000
    street: tuple[int, int] = (64, 2650)
    few: tuple[int, int] = (64, 96)
    image_width: int = 384
    repeats: int = 15


@dataclass(frozen=True)
class Row:
    """One comparison; times in ``unit``."""

    name: str
    unit: str
    ours: float
    reference: float
    ratio: float


def main(arguments: list[str]) -> None:
    """Measure a suite, print the table, write the rows."""
    own, unknown = split_arguments(arguments, {"suite": "", "json": NO_FILE})
    if unknown:
        raise ConfigError(f"'{unknown[0].partition('=')[0]}' is not a setting; known: json, suite")
    if own["suite"] not in SUITES:
        raise ConfigError(f"suite={own['suite']}: no such suite{closest_name(own['suite'], SUITES)}")

    from mwsis.core.files import write_json

    with tempfile.TemporaryDirectory() as folder:
        facts, rows = SUITES[own["suite"]](Path(folder), Sizes())
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(table(rows))
    if own["json"] != NO_FILE:
        write_json(own["json"], {"suite": own["suite"], **facts, "rows": [asdict(row) for row in rows]})
        print(f"rows: {own['json']}")


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text."""
    lines = [f"{'name':<44}{'unit':<6}{'ours':>10}{'reference':>12}{'ratio':>8}"]
    for row in rows:
        lines.append(f"{row.name:<44}{row.unit:<6}{row.ours:>10.2f}{row.reference:>12.2f}{row.ratio:>8.2f}")
    return "\n".join(lines)


def best_times(calls: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Return the least time of each call in milliseconds; they take turns, so that all meet the same machine."""
    best = [float("inf")] * len(calls)
    for _ in range(repeats):
        for number, call in enumerate(calls):
            began = time.perf_counter()
            outcome = call()
            best[number] = min(best[number], time.perf_counter() - began)
            del outcome
    return [seconds * 1000 for seconds in best]


def comparison(name: str, ours: float, reference: float) -> Row:
    """Return a row of two times in milliseconds."""
    return Row(name, "ms", ours, reference, ours / reference)


def require_same(ours: Arrays, reference: Arrays) -> None:
    """Stop unless both sides hold the same arrays, bit for bit."""
    differing = ours.keys() ^ reference.keys()
    for name in ours.keys() & reference.keys():
        mine, other = ours[name], reference[name]
        if (mine.dtype, mine.shape, mine.tobytes()) != (other.dtype, other.shape, other.tobytes()):
            differing.add(name)
    if differing:
        print(f"different results: {', '.join(sorted(differing))}", file=sys.stderr)
        raise SystemExit(EXIT_DIFFERENT)


# ---------------------------------------------------------------------------------------------------------------------
# decode
# ---------------------------------------------------------------------------------------------------------------------


def decode_suite(folder: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """Compare reading one Waymo v1 frame, file to arrays, with `read_with_messages`.

    Ours also verifies the file's checksums and builds the record, the reference does neither. ``zlib alone`` is what
    neither can avoid, in one thread.
    """
    from mwsis.data.waymo.record import LidarName
    from mwsis.data.waymo.v1 import DECODE_THREADS, index_segment, read_record, write_segment

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
    import zlib

    import numpy as np
    from waymo_open_dataset import dataset_pb2

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
    from waymo_open_dataset import dataset_pb2

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
    import zlib

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
    import numpy as np

    from mwsis.data.waymo.record import LidarName, WaymoRecord

    rng = np.random.default_rng(0)
    lidars = tuple(_made_up_lidar(rng, name, sizes) for name in LidarName if name != LidarName.UNKNOWN)
    return WaymoRecord("1_000_21_000", 1_550_000_000_000_000, np.eye(4), lidars, (), ())


def _made_up_lidar(rng: np.random.Generator, name: int, sizes: Sizes) -> LidarRecord:
    import numpy as np

    from mwsis.data.waymo.record import LidarName, LidarRecord

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
    import numpy as np

    from mwsis.data.waymo.record import LidarReturn

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


# ---------------------------------------------------------------------------------------------------------------------
# store
# ---------------------------------------------------------------------------------------------------------------------


def store_suite(folder: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """Compare reading frames of a store in random order with one `.npy` file per array, memory-mapped and read.

    Every array is summed on both sides, so every byte is really read; the files are in the page cache.
    """
    import numpy as np

    from mwsis.data.store import FrameStore, write_frames

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
    import numpy as np

    assert frame.truth is not None
    tensors = {**vars(frame.points), **vars(frame.pixels)}
    tensors |= {"semantic_labels": frame.truth.semantic_labels, "instance_ids": frame.truth.instance_ids}
    images = {f"image {view.name}": np.frombuffer(view.image, np.uint8) for view in frame.cameras}
    return {name: tensor.numpy() for name, tensor in tensors.items()} | images


def made_up_frame(number: int, sizes: Sizes) -> Frame:
    """Return random points that look at five cameras, whose images are random bytes."""
    import torch

    from mwsis.core.frame import Frame, FrameTruth, LidarGeometry, PixelMap, PointCloud

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
    import torch

    from mwsis.core.frame import CameraView
    from mwsis.core.geometry import CameraModel
    from mwsis.core.instances import Boxes2D

    focal, distortion = torch.full((4,), 1000.0, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    camera = CameraModel(1920, 1280, focal, distortion, torch.eye(4, dtype=torch.float64))
    image = torch.randint(0, 256, (image_bytes,), generator=generator, dtype=torch.uint8).numpy().tobytes()
    return CameraView(f"camera {number}", camera, image, Boxes2D.empty())


# ---------------------------------------------------------------------------------------------------------------------
# labels
# ---------------------------------------------------------------------------------------------------------------------


def labels_suite(folder: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Row]]:
    """Compare ring segments and labels of a sweep with the published loops, one point at a time, on one thread.

    The loops are the slow twins in ``tests/reference``; they get a sweep with few columns. The rows of the full sweep
    have the budget of a frame as reference: 60 ms for the published labels, 250 ms for ours.
    """
    import torch

    from fusion.default_labels import default_labels
    from fusion.spatial_labels import CLASS_RADII, spatial_labels
    from lidar.rings import ring_segments
    from tests.reference import rings as slow_rings
    from tests.reference import spatial_labels as slow_labels

    def segments_of(frame: Frame) -> Any:
        return ring_segments(frame.points, frame.lidar, frame.pixels.in_any_image)

    def slow(frame: Frame) -> Any:
        segments = slow_rings.ring_segments(frame.points, frame.lidar, frame.pixels.in_any_image.numpy())
        return slow_labels.spatial_labels(frame, segments, True, True, CLASS_RADII)

    torch.set_num_threads(1)
    full, few = (street_frame(*sweep, sizes.image_width) for sweep in (sizes.street, sizes.few))
    made, (semantic, instance) = spatial_labels(few, segments_of(few)), slow(few)
    ours = {"semantic_labels": made.semantic_labels.numpy(), "instance_ids": made.instance_ids.numpy()}
    require_same(ours, {"semantic_labels": semantic, "instance_ids": instance})
    quick, published, default = best_times(
        [
            lambda: spatial_labels(few, segments_of(few)),
            lambda: spatial_labels(full, segments_of(full)),
            lambda: default_labels(full, segments_of(full)),
        ],
        sizes.repeats,
    )
    (loops,) = best_times([lambda: slow(few)], 1)
    facts = {
        "points": len(full.points),
        "boxes": sum(len(view.labels) for view in full.cameras),
        "points of the small sweep": len(few.points),
    }
    return facts, [
        comparison("published, small sweep / loops over points", quick, loops),
        comparison("published, full sweep / 60 ms", published, 60.0),
        comparison("default, full sweep / 250 ms", default, 250.0),
    ]


def street_frame(rows: int, columns: int, image_width: int) -> Frame:
    """Return a frame of the street world."""
    from mwsis.data.street import StreetSource

    sensors = {"lidar_rows": rows, "lidar_columns": columns, "image_width": image_width}
    source = StreetSource(train_segments=1, val_segments=0, **sensors)
    return source.read(source.frame_ids("train")[0])


SUITES = {"decode": decode_suite, "store": store_suite, "labels": labels_suite}

if __name__ == "__main__":
    run_command(main, __doc__ or "")
