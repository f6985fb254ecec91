"""Depth maps on disk: one 16-bit PNG per image and one JSON that says what its numbers are.

A folder holds ``<frame id>/<camera>.png`` and ``depth.json``: ``kind`` (``metric`` or ``relative_inverse``), ``scale``
and ``offset``. A pixel's value is ``scale * number + offset``: metres along the camera's axis, or inverse depth in grey
levels, 0 far to 255 near; the number 0 says that the depth is not known. A map covers the whole recorded image, in any
resolution. `tools/depth.py` writes such folders; what becomes of a map in training is `fusion.depth_maps`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mwsis.core.batch import DepthMaps
from mwsis.core.errors import DataError, closest_name
from mwsis.core.files import atomic_write, write_json
from mwsis.data.image_files import NO_IMAGE

__all__ = ["FACTS_FILE", "GREY_LEVELS", "KINDS", "DepthFolder", "DepthWriter"]

FACTS_FILE = "depth.json"
KINDS = ("metric", "relative_inverse")
GREY_LEVELS = 255.0
"""Largest inverse depth of a relative map."""
METRE_STEPS = 256
"""Numbers per metre in the metric maps that we write, as in KITTI's: up to 256 m."""
MOST = 65535
MODES = ("I;16", "I;16L", "I;16B", "I")
"""What Pillow calls grey PNGs of 16 bits."""


def _map_path(folder: Path, frame_id: str, camera: str) -> Path:
    return folder / frame_id / f"{camera}.png"


class DepthFolder:
    """The maps of a folder.

    Args:
        folder: with ``depth.json`` and a PNG for each image.

    Raises:
        DataError: there is no such folder or its JSON is not of this form, or is of an unfinished folder.

    Source: KITTI's depth PNGs (16 bits, 0 unknown), with scale and offset beside them.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        path = self.folder / FACTS_FILE
        try:
            facts = json.loads(path.read_bytes())
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); give data.depth a folder of depth maps, or lidar"
            ) from None
        except ValueError:
            raise DataError(f"{path}: no JSON; expected kind, scale and offset of the maps") from None
        facts = facts if isinstance(facts, dict) else {}
        kind = facts.get("kind")
        if kind not in KINDS:
            raise DataError(f"{path}: kind: no '{kind}'{closest_name(str(kind), KINDS)}")
        self.metric = kind == "metric"
        self.scale, self.offset = (_number(facts, name, path) for name in ("scale", "offset"))
        if self.scale <= 0:
            raise DataError(f"{path}: scale: expected more than 0, got {self.scale}")
        if not facts.get("complete", True):
            raise DataError(f"{path}: the folder is unfinished; run tools/depth.py with the same settings again")

    def of(self, frame_id: str, camera: str, height: int, width: int) -> DepthMaps:
        """Return the map of an image, (n, m) of any resolution; what is the ground, it does not know.

        Args:
            frame_id: of the frame.
            camera: name of its camera.
            height, width: of the recorded image, pixels; the map must have their ratio.

        Raises:
            DataError: there is no map of that image, it is no 16-bit PNG, or it has another shape than the image.
        """
        path = _map_path(self.folder, frame_id, camera)
        numbers = _read_png(path)
        rows, cols = numbers.shape
        if abs(rows * width - cols * height) > max(height, width):
            raise DataError(f"{path}: expected a map of an image {width} x {height} px, got {cols} x {rows}")
        valid = numbers > 0
        value = numbers.float() * self.scale + self.offset
        if self.metric and bool((value[valid] <= 0).any()):
            least = float(value[valid].min())
            raise DataError(f"{path}: expected metres above 0, got {least:.3g}; check scale and offset")
        return DepthMaps(value.where(valid, 0.0), valid, torch.zeros_like(valid), self.metric)


def _number(facts: dict[str, Any], name: str, path: Path) -> float:
    value = facts.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
        raise DataError(f"{path}: {name}: expected a number, got {value!r}")
    return float(value)


def _read_png(path: Path) -> Tensor:
    """Return (n, m) int32 numbers of a grey PNG with 16 bits."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            mode, numbers = image.mode, np.array(image)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; every training image needs a depth map, see tools/depth.py") from None
    except NO_IMAGE as error:
        raise DataError(f"{path}: cannot be decoded ({error}); make the map again") from None
    if mode not in MODES:
        raise DataError(f"{path}: expected a grey PNG of 16 bits, got mode {mode}; fewer bits make steps of depth")
    return torch.from_numpy(numbers.astype(np.int32))


class DepthWriter:
    """Writes a folder that `DepthFolder` reads; what is there already is kept.

    Args:
        folder: where to.
        metric: the maps are metres, otherwise inverse depth in any unit.
        made_by: what makes them; a folder holds the maps of one maker.

    Raises:
        DataError: the folder holds maps of another kind or maker.
    """

    def __init__(self, folder: Path | str, metric: bool, made_by: str) -> None:
        self.folder = Path(folder)
        step = 1 / METRE_STEPS if metric else GREY_LEVELS / (MOST - 1)
        kind = KINDS[0 if metric else 1]
        self._facts = {"kind": kind, "scale": step, "offset": 0.0 if metric else -step, "made_by": made_by}
        path = self.folder / FACTS_FILE
        if path.exists():
            there = json.loads(path.read_bytes())
            if {name: there.get(name) for name in self._facts} != self._facts:
                other = f"{there.get('kind')} maps made by {there.get('made_by')}"
                raise DataError(f"{self.folder}: holds {other}; give another folder, or remove this one")
        write_json(path, {**self._facts, "complete": False})

    def has(self, frame_id: str, camera: str) -> bool:
        """Return whether the map of an image is there."""
        return _map_path(self.folder, frame_id, camera).exists()

    def add(self, frame_id: str, camera: str, depth: Tensor) -> None:
        """Write the map of an image.

        Args:
            frame_id: of the frame.
            camera: name of its camera.
            depth: (n, m) float: metres, 0 unknown, cut at 255.99; or inverse depth, from which the least becomes 0 and
                the largest 255 grey levels (DPT's own scaling); a constant map becomes 0.

        Raises:
            DataError: a depth is not finite.
        """
        if not bool(torch.isfinite(depth).all()):
            raise DataError(f"frame {frame_id}, camera {camera}: expected finite depths, got NaN or infinity")
        depth = depth.double()
        if self._facts["kind"] == "metric":
            numbers = (depth * METRE_STEPS).round().clamp(0, MOST)
        else:
            low, high = depth.min(), depth.max()
            numbers = 1 + ((depth - low) / (high - low).clamp(min=1e-12) * (MOST - 1)).round()
        with atomic_write(_map_path(self.folder, frame_id, camera)) as unfinished:
            Image.fromarray(numbers.numpy().astype(np.uint16)).save(unfinished)

    def finish(self) -> None:
        """Declare the folder complete."""
        write_json(self.folder / FACTS_FILE, {**self._facts, "complete": True})
