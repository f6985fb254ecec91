"""KITTI object detection: the training folder as a data set with 2D boxes for training and 3D boxes as truth.

Reads `image_2`, `velodyne`, `calib` and `label_2`. The vehicle frame is the LiDAR's own. KITTI stores no beams, so they
are recovered by `range_image.py`; it has no masks, so frames carry point truth only. Not read: right images, tracking,
raw drives. Next: `store.py`, where frames go.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.core.frame import CameraView, Frame, FrameTruth, LidarGeometry, PixelMap, PointCloud, PointFeature
from mwsis.core.geometry import CameraModel, points_in_boxes3d, transform_points
from mwsis.core.instances import BACKGROUND, IGNORE, Boxes2D
from mwsis.data.image_files import size_of_image_file
from mwsis.data.range_image import azimuth_columns, ring_problem, rings_from_elevation, rings_from_file_order

__all__ = ["KittiSource"]

READER_VERSION = 1
"""Part of the fingerprint: raise it when the frames read from unchanged files change."""
CLASS_OF_TYPE = {"Car": 0, "Van": 0, "Truck": 0, "Pedestrian": 1, "Cyclist": 2}
IGNORED_TYPES = ("Person_sitting", "DontCare")
"""Their 2D boxes are ignore regions."""
UNUSED_TYPES = ("Tram", "Misc")
"""Neither input nor scored: no 2D box, and the points of their 3D boxes are `IGNORE` in the truth."""
LABEL_FIELDS = (
    "type", "truncated", "occluded", "alpha", "x1", "y1", "x2", "y2",
    "height", "width", "length", "x", "y", "z", "rotation_y",
)  # fmt: skip
CALIB_SIZES = {"P2": 12, "R0_rect": 9, "Tr_velo_to_cam": 12}
FOLDERS = {"image_2": ".png", "velodyne": ".bin", "calib": ".txt", "label_2": ".txt"}
POINT_BYTES = 16
PIXEL_CENTRE = 0.5
"""KITTI counts pixels from the centre of the first one, we from its corner: added to points and boxes alike."""
HDL64 = LidarGeometry(num_rings=64, num_columns=round(360 / 0.173))
"""Velodyne HDL-64E at 10 Hz; azimuth step .173 degrees."""
RECOVERABLE_RINGS = (58, 64)
HDL64_ELEVATIONS_DEG = torch.cat(
    [torch.linspace(2.0, -8.333, 32, dtype=torch.float64), torch.linspace(-8.833, -24.333, 32, dtype=torch.float64)]
)
"""Nominal beams of the HDL-64E: 32 a third of a degree apart, 32 half a degree apart (data sheet)."""
FRAMES_PER_SEGMENT = 100


@dataclass(frozen=True)
class _Calibration:
    projection: Tensor  # P2, (3, 4) float64
    rectified_SE3_vehicle: Tensor  # R0_rect Tr_velo_to_cam, (4, 4) float64


@dataclass(frozen=True)
class _Object:
    kind: str
    box: tuple[float, float, float, float]  # x1 y1 x2 y2, KITTI pixels
    size: tuple[float, float, float]  # height, width, length
    bottom: tuple[float, float, float]  # bottom centre, rectified camera frame (y down)
    rotation_y: float

    @property
    def label(self) -> int:
        return CLASS_OF_TYPE.get(self.kind, IGNORE)


class KittiSource:
    """The labelled frames of a KITTI object folder.

    Pixels: KITTI numbers pixel centres 0, 1, ...; points and 2D boxes are both shifted by +0.5 to this project's
    convention, so which point lies in which box is as in KITTI's own numbers, half-open. A point is in the image where
    its shifted pixel lies inside ``[0, width) x [0, height)``.

    Truth: a point belongs to a 3D box (tested in the rectified camera frame, where KITTI's boxes stand upright) if the
    image shows it; of several boxes the one with the nearest centre wins. The id of an object is the index of its 2D
    box in ``CameraView.labels``. `IGNORE`: points the image does not show (KITTI annotates nothing there), points in
    3D boxes of other types, and points in ignore regions outside every 3D box. ``boxes3d`` are the same boxes with the
    tilt between camera and LiDAR (under a degree) left out.

    Segments: object frames do not say their drive; a segment is a block of frame numbers of one split.

    Args:
        root: the folder that holds ``training``, or ``training`` itself.
        val_frames: ids of the validation frames, or how many frames at the end of the list are, or ``"k/n"``: the
            list's k-th of n parts, k modulo n (cross-validation).
        frames: ids to use at all; default: every frame the folder mentions.

    Raises:
        DataError: there is no such folder, or it holds no frames.
        ConfigError: a frame named here does not exist, or more validation frames are asked for than there are.

    Source: Geiger et al., "Are we ready for autonomous driving?", CVPR 2012, and the object development kit's readme.
    """

    name = "kitti"
    class_names = ("Vehicle", "Pedestrian", "Cyclist")

    def __init__(
        self, root: str | Path, val_frames: int | str | Sequence[str] | None = 2, frames: Sequence[str] | None = None
    ) -> None:
        self.root = _training_folder(Path(root))
        self._frames = _chosen_frames(self.root, frames)
        self._val_frames = _validation_frames(self._frames, 2 if val_frames is None else val_frames)
        self._segment = {frame_id: self._block(frame_id) for frame_id in self._frames}

    def frame_ids(self, split: str) -> list[str]:
        """Return the frames of ``train``, ``val`` or ``all`` (train, then val), each in ascending order.

        Raises:
            DataError: there is no such split.
        """
        train = [frame_id for frame_id in self._frames if frame_id not in self._val_frames]
        val = [frame_id for frame_id in self._frames if frame_id in self._val_frames]
        splits = {"train": train, "val": val, "all": train + val}
        if split not in splits:
            raise DataError(f"{self.root}: no split '{split}'{closest_name(split, splits)}")
        return splits[split]

    def segment_of(self, frame_id: str) -> str:
        """Return the block of frame numbers, within its split, that a frame belongs to.

        Raises:
            DataError: there is no such frame.
        """
        self._require(frame_id)
        return self._segment[frame_id]

    def identity(self) -> str:
        """Return a digest of the reader, the folder and the validation frames."""
        facts = (self.name, READER_VERSION, str(self.root.resolve()), sorted(self._val_frames))
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]

    def fingerprint(self) -> str:
        """Return a digest of settings, labels, calibrations, and the sizes and times of images and sweeps."""
        return self._fingerprint(self._frames)

    def segment_fingerprint(self, segment: str) -> str:
        """Return the same of the frames of one segment."""
        return self._fingerprint([frame_id for frame_id in self._frames if self._segment[frame_id] == segment])

    def unreadable(self, split: str) -> dict[str, str]:
        """Return nothing: files are listed by name, and `check` looks into all of them."""
        self.frame_ids(split)
        return {}

    def _fingerprint(self, frame_ids: Sequence[str]) -> str:
        digest = hashlib.sha256(repr((self.name, READER_VERSION, frame_ids, sorted(self._val_frames))).encode())
        for frame_id in frame_ids:
            for folder in ("label_2", "calib"):
                digest.update(_read_bytes(self._path(folder, frame_id)))
            for folder in ("image_2", "velodyne"):
                state = _require_file(self._path(folder, frame_id)).stat()
                digest.update(f"{folder} {frame_id} {state.st_size} {state.st_mtime_ns}".encode())
        return digest.hexdigest()[:32]

    def check(self) -> None:
        """Verify every chosen frame without reading sweeps or pixels: files, sizes, calibrations, labels, headers.

        Raises:
            DataError: the first thing that is wrong, naming file, line and field.
        """
        for frame_id in self._frames:
            _check_sweep_size(self._path("velodyne", frame_id))
            size_of_image_file(self._path("image_2", frame_id), _read_bytes(self._path("image_2", frame_id)))
            _read_calibration(self._path("calib", frame_id))
            _read_objects(self._path("label_2", frame_id))

    def read(self, frame_id: str) -> Frame:
        """Return one frame with its point truth.

        Raises:
            DataError: there is no such frame, or a file of it is missing, truncated or malformed.
        """
        self._require(frame_id)
        calibration = _read_calibration(self._path("calib", frame_id))
        objects = _read_objects(self._path("label_2", frame_id))
        image_path = self._path("image_2", frame_id)
        image = _read_bytes(image_path)
        camera = _camera_model(calibration, *size_of_image_file(image_path, image))
        points = _read_sweep(self._path("velodyne", frame_id))
        pixel_uv, _, visible = camera.project(points.xyz)
        labels, line_of_box = _boxes2d(objects)
        return Frame(
            frame_id=frame_id,
            segment=self.segment_of(frame_id),
            lidar=HDL64,
            points=points,
            pixels=_pixel_map(pixel_uv, visible),
            cameras=(CameraView("image_2", camera, image, labels),),
            truth=_truth(points.xyz, visible, pixel_uv, objects, line_of_box, labels, calibration),
        )

    def _path(self, folder: str, frame_id: str) -> Path:
        return self.root / folder / f"{frame_id}{FOLDERS[folder]}"

    def _block(self, frame_id: str) -> str:
        split = "val" if frame_id in self._val_frames else "train"
        block = int(frame_id) // FRAMES_PER_SEGMENT if frame_id.isdigit() else 0
        return f"{split}_{block:04d}"

    def _require(self, frame_id: str) -> None:
        if frame_id not in self._segment:
            raise DataError(f"{self.root}: no frame '{frame_id}'{closest_name(frame_id, self._frames)}")


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def _training_folder(root: Path) -> Path:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected the KITTI folder that holds 'training'")
    training = root / "training" if (root / "training").is_dir() else root
    for folder in FOLDERS:
        if not (training / folder).is_dir():
            raise DataError(f"{training}: no folder '{folder}'; expected {', '.join(FOLDERS)}, as KITTI unpacks them")
    return training


def _chosen_frames(root: Path, frames: Sequence[str] | None) -> list[str]:
    present = sorted({path.stem for folder, suffix in FOLDERS.items() for path in (root / folder).glob(f"*{suffix}")})
    if not present:
        raise DataError(f"{root}: no frames; expected files such as velodyne/000000.bin")
    known = set(present)
    for frame_id in frames or ():
        if frame_id not in known:
            raise ConfigError(f"frames: {root} has no frame '{frame_id}'{closest_name(frame_id, present, present[:5])}")
    return present if frames is None else sorted(set(frames))


def _validation_frames(frames: list[str], val_frames: int | str | Sequence[str]) -> frozenset[str]:
    if isinstance(val_frames, str):
        return frozenset(_part(frames, val_frames))
    if isinstance(val_frames, int):
        if not 0 <= val_frames <= len(frames):
            raise ConfigError(f"val_frames: expected 0 to {len(frames)}, the number of frames, got {val_frames}")
        return frozenset(frames[len(frames) - val_frames :])
    for frame_id in val_frames:
        if frame_id not in frames:
            raise ConfigError(f"val_frames: no frame '{frame_id}'{closest_name(frame_id, frames, frames[:5])}")
    return frozenset(val_frames)


def _part(frames: list[str], asked: str) -> list[str]:
    """Return the frames of part ``k/n``, n parts of sizes that differ by one at most."""
    part, slash, parts = asked.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 2 <= int(parts) <= len(frames)):
        raise ConfigError(
            f"val_frames={asked}: expected a list of frames, a number, or a part such as 0/5 of at most {len(frames)}"
        )
    of = int(parts)
    edges = [len(frames) * number // of for number in (int(part) % of, int(part) % of + 1)]
    return frames[edges[0] : edges[1]]


def _require_file(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: no such file; every frame needs one, so add it or leave the frame out with 'frames'")
    return path


def _read_bytes(path: Path) -> bytes:
    return _require_file(path).read_bytes()


def _read_text(path: Path) -> str:
    try:
        return _read_bytes(path).decode("ascii")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected text, got byte {error.object[error.start]} at {error.start}") from None


def _check_sweep_size(path: Path) -> None:
    size = _require_file(path).stat().st_size
    if size == 0 or size % POINT_BYTES:
        raise DataError(
            f"{path}: expected a positive multiple of {POINT_BYTES} bytes (float32 x, y, z, reflectance), "
            f"got {size}; the file is truncated, so copy it again"
        )


def _read_calibration(path: Path) -> _Calibration:
    values: dict[str, Tensor] = {}
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        key, _, rest = line.partition(":")
        if key in CALIB_SIZES:
            values[key] = _numbers(rest.split(), CALIB_SIZES[key], f"{path}: line {number}: {key}")
    for key in CALIB_SIZES:
        if key not in values:
            raise DataError(f"{path}: no key '{key}'; expected {', '.join(CALIB_SIZES)}")
    rectification, camera_SE3_vehicle = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    rectification[:3, :3] = values["R0_rect"].reshape(3, 3)
    camera_SE3_vehicle[:3] = values["Tr_velo_to_cam"].reshape(3, 4)
    return _Calibration(values["P2"].reshape(3, 4), rectification @ camera_SE3_vehicle)


def _numbers(words: list[str], count: int, what: str) -> Tensor:
    try:
        numbers = torch.tensor([float(word) for word in words], dtype=torch.float64)
    except ValueError:
        raise DataError(f"{what}: expected {count} numbers, got '{' '.join(words)}'") from None
    if len(numbers) != count:
        raise DataError(f"{what}: expected {count} numbers, got {len(numbers)}")
    return numbers


def _read_objects(path: Path) -> list[_Object]:
    lines = enumerate(_read_text(path).splitlines(), 1)
    return [_parse_object(line.split(), f"{path}: line {number}") for number, line in lines if line.strip()]


def _parse_object(words: list[str], where: str) -> _Object:
    if len(words) != len(LABEL_FIELDS):
        raise DataError(f"{where}: expected {len(LABEL_FIELDS)} columns, got {len(words)}")
    known = (*CLASS_OF_TYPE, *IGNORED_TYPES, *UNUSED_TYPES)
    if words[0] not in known:
        raise DataError(f"{where}: type: '{words[0]}' is no KITTI type{closest_name(words[0], known)}")
    numbers: dict[str, float] = {}
    for field, word in zip(LABEL_FIELDS[1:], words[1:], strict=True):
        try:
            numbers[field] = float(word)
        except ValueError:
            raise DataError(f"{where}: {field}: expected a number, got '{word}'") from None
        if not math.isfinite(numbers[field]):
            raise DataError(f"{where}: {field}: expected a finite number, got '{word}'")
    for low, high in (("x1", "x2"), ("y1", "y2")):
        if numbers[low] >= numbers[high]:
            raise DataError(f"{where}: {high}: expected more than {low} = {numbers[low]}, got {numbers[high]}")
    return _Object(
        kind=words[0],
        box=(numbers["x1"], numbers["y1"], numbers["x2"], numbers["y2"]),
        size=(numbers["height"], numbers["width"], numbers["length"]),
        bottom=(numbers["x"], numbers["y"], numbers["z"]),
        rotation_y=numbers["rotation_y"],
    )


def _read_sweep(path: Path) -> PointCloud:
    _check_sweep_size(path)
    rows = torch.from_numpy(np.fromfile(path, dtype="<f4").reshape(-1, 4))
    xyz = rows[:, :3].contiguous()
    if not bool(torch.isfinite(rows).all()):
        point = int((~torch.isfinite(rows)).any(1).nonzero()[0])
        raise DataError(f"{path}: point {point}: expected finite numbers, got {rows[point].tolist()}")
    point_feats = torch.zeros(len(rows), len(PointFeature))
    point_feats[:, PointFeature.INTENSITY] = rows[:, 3].tanh()
    return PointCloud(
        xyz=xyz,
        point_feats=point_feats,
        ranges=xyz.norm(dim=1),
        ring=_recover_rings(path, xyz).to(torch.int16),
        azimuth_column=azimuth_columns(xyz, HDL64.num_columns),
        return_index=torch.zeros(len(rows), dtype=torch.int8),
    )


def _recover_rings(path: Path, xyz: Tensor) -> Tensor:
    ring = rings_from_file_order(xyz)
    problem = ring_problem(ring, xyz, num_rings=RECOVERABLE_RINGS, num_columns=HDL64.num_columns)
    if problem is None:
        return ring
    warnings.warn(
        f"{path}: the order of the points gives {problem}, so beams are taken from the elevation, which is less "
        "exact; use the sweeps as KITTI distributes them",
        stacklevel=2,
    )
    return rings_from_elevation(xyz, torch.deg2rad(HDL64_ELEVATIONS_DEG))


# ---------------------------------------------------------------------------------------------------------------------
# Geometry and truth
# ---------------------------------------------------------------------------------------------------------------------


def _camera_model(calibration: _Calibration, width: int, height: int) -> CameraModel:
    """Return P2 as intrinsics and pose: its fourth column is a shift of the camera, K times a translation."""
    projection = calibration.projection
    focal, centre = projection[[0, 1], [0, 1]], projection[:2, 2]
    shift_z = projection[2, 3]
    camera_SE3_rectified = torch.eye(4, dtype=torch.float64)
    camera_SE3_rectified[:2, 3] = (projection[:2, 3] - centre * shift_z) / focal
    camera_SE3_rectified[2, 3] = shift_z
    return CameraModel(
        width=width,
        height=height,
        intrinsics=torch.cat([focal, centre + PIXEL_CENTRE]),
        distortion=torch.zeros(5, dtype=torch.float64),
        camera_SE3_vehicle=camera_SE3_rectified @ calibration.rectified_SE3_vehicle,
    )


def _pixel_map(pixel_uv: Tensor, visible: Tensor) -> PixelMap:
    shown = torch.where(visible[:, None], pixel_uv, torch.zeros_like(pixel_uv))
    return PixelMap(shown[:, None], (visible.to(torch.int8) - 1)[:, None])


def _boxes2d(objects: list[_Object]) -> tuple[Boxes2D, list[int]]:
    """Return the boxes an annotator may be asked for, and the line each comes from."""
    lines = [line for line, item in enumerate(objects) if item.kind not in UNUSED_TYPES]
    boxes = torch.tensor([objects[line].box for line in lines], dtype=torch.float64).reshape(-1, 4) + PIXEL_CENTRE
    labels = torch.tensor([objects[line].label for line in lines], dtype=torch.int64)
    return Boxes2D(boxes.float(), labels, labels == IGNORE), lines


def _truth(
    xyz: Tensor,
    visible: Tensor,
    pixel_uv: Tensor,
    objects: list[_Object],
    line_of_box: list[int],
    labels: Boxes2D,
    calibration: _Calibration,
) -> FrameTruth:
    solid = [line for line, item in enumerate(objects) if item.kind != "DontCare"]  # these have a 3D box
    box_of_line = {line: box for box, line in enumerate(line_of_box)}
    solid_labels = torch.tensor([objects[line].label for line in solid], dtype=torch.int64)
    solid_ids = torch.tensor([box_of_line.get(line, -1) for line in solid], dtype=torch.int64)
    solid_ids = torch.where(solid_labels >= 0, solid_ids, -1)
    owner = _owning_box(xyz, visible, [objects[line] for line in solid], calibration)
    semantic_labels = torch.full((len(xyz),), BACKGROUND)
    semantic_labels[_in_any(pixel_uv, labels.boxes[labels.ignore]) | ~visible] = IGNORE
    owned = owner >= 0
    semantic_labels[owned] = solid_labels[owner[owned]]
    instance_ids = torch.full((len(xyz),), -1)
    instance_ids[owned] = solid_ids[owner[owned]]
    boxes3d = _boxes3d([objects[line] for line in solid], calibration)
    kept = solid_labels >= 0
    return FrameTruth(
        semantic_labels=semantic_labels,
        instance_ids=instance_ids,
        boxes3d=boxes3d[kept],
        box3d_labels=solid_labels[kept],
        box3d_ids=solid_ids[kept],
        box_instance_ids=(torch.where(labels.ignore, -1, torch.arange(len(labels))),),
        images=(None,),
    )


def _in_any(pixel_uv: Tensor, boxes: Tensor) -> Tensor:
    """Return which pixels lie in any of the boxes, (N,) bool, half-open."""
    inside = (pixel_uv[:, None] >= boxes[None, :, :2]) & (pixel_uv[:, None] < boxes[None, :, 2:])
    return inside.all(2).any(1)


def _owning_box(xyz: Tensor, visible: Tensor, objects: list[_Object], calibration: _Calibration) -> Tensor:
    """Return per point the 3D box it lies in, the nearest centre first; -1 none or not in the image."""
    owner = torch.full((len(xyz),), -1)
    if not objects:
        return owner
    seen = visible.nonzero()[:, 0]
    x, y, z = transform_points(calibration.rectified_SE3_vehicle, xyz[seen].double()).unbind(1)
    upright = torch.stack([z, -x, -y], 1)  # forward, left, up along the rectified camera's axes
    boxes = torch.tensor([_upright_box(item) for item in objects], dtype=torch.float64)
    distance = torch.cdist(upright, boxes[:, :3])
    distance = torch.where(points_in_boxes3d(upright, boxes), distance, math.inf)
    nearest, index = distance.min(1)
    owner[seen] = torch.where(nearest < math.inf, index, -1)
    return owner


def _upright_box(item: _Object) -> list[float]:
    """Return a 3D box as centre, length, width, height, yaw in the frame forward, left, up of the rectified camera."""
    height, width, length = item.size
    x, y, z = item.bottom
    return [z, -x, height / 2 - y, length, width, height, -item.rotation_y - math.pi / 2]


def _boxes3d(objects: list[_Object], calibration: _Calibration) -> Tensor:
    """Return (M, 7) float32 boxes of the vehicle frame, upright there."""
    if not objects:
        return torch.zeros(0, 7)
    vehicle_SE3_rectified = torch.linalg.inv(calibration.rectified_SE3_vehicle)
    height, width, length = torch.tensor([item.size for item in objects], dtype=torch.float64).unbind(1)
    centre = torch.tensor([item.bottom for item in objects], dtype=torch.float64)
    centre[:, 1] -= height / 2
    rotation_y = torch.tensor([item.rotation_y for item in objects], dtype=torch.float64)
    heading = torch.stack([rotation_y.cos(), torch.zeros_like(rotation_y), -rotation_y.sin()], 1)
    heading = heading @ vehicle_SE3_rectified[:3, :3].T
    centre = transform_points(vehicle_SE3_rectified, centre)
    yaw = torch.atan2(heading[:, 1], heading[:, 0])
    return torch.cat([centre, torch.stack([length, width, height, yaw], 1)], 1).float()
