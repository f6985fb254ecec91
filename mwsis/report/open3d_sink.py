"""Sweeps as coloured point clouds: a window of open3d, and PLY or PCD files.

The only file that imports open3d, and only when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mwsis.core.errors import ConfigError, DataError
from mwsis.core.files import atomic_write
from mwsis.core.geometry import BOX_EDGES, box_corners
from mwsis.data.label_files import file_stem
from mwsis.evaluation.predictions import FramePrediction
from mwsis.report.pictures import class_colour
from mwsis.report.sweep_layers import Layer, sweep_layers

__all__ = ["CLOUD_FORMATS", "open3d_module", "show_window", "write_clouds"]

CLOUD_FORMATS = ("ply", "pcd")
NEXT_LAYER, NEXT_FRAME = ord("L"), ord("N")


def write_clouds(prediction: FramePrediction, class_names: Sequence[str], folder: Path, ending: str) -> list[Path]:
    """Write each colouring of a sweep as a point cloud and return where they are.

    Args:
        prediction: the frame.
        class_names: names by class index.
        folder: gets a folder of the frame's name, in it ``<layer>.<ending>``.
        ending: of `CLOUD_FORMATS`.

    Raises:
        ConfigError: open3d is not installed.
    """
    o3d = open3d_module()
    paths = []
    for layer in sweep_layers(prediction, class_names):
        path = folder / file_stem(prediction.frame.frame_id) / f"{layer.name}.{ending}"
        with atomic_write(path) as unfinished:
            if not o3d.io.write_point_cloud(str(unfinished), _cloud(o3d, prediction, layer)):
                raise DataError(f"{path}: open3d could not write this file; is the sweep empty?")
        paths.append(path)
    return paths


def show_window(predictions: Sequence[FramePrediction], class_names: Sequence[str], say: Callable[[str], None]) -> None:
    """Show sweeps and true 3D boxes in a window until it is closed: L next colouring, N next frame, Q closes.

    Args:
        predictions: frames, in order.
        class_names: names by class index.
        say: called with the frame and the colouring that are shown, whenever these change.

    Raises:
        ConfigError: open3d is not installed, or there is no display.
    """
    o3d = open3d_module()
    window = o3d.visualization.VisualizerWithKeyCallback()
    if not window.create_window(window_name="mwsis: L colouring, N frame, Q close"):
        raise ConfigError("backend=open3d: no window can be opened here; give out=DIR to write files instead")
    at = [0, 0]

    def draw(move_frame: int = 0, move_layer: int = 0) -> bool:
        at[0] = (at[0] + move_frame) % len(predictions)
        layers = sweep_layers(predictions[at[0]], class_names)
        at[1] = (at[1] + move_layer) % len(layers)
        say(f"{predictions[at[0]].frame.frame_id}: {layers[at[1]].name}")
        first = not move_frame and not move_layer
        window.clear_geometries()
        window.add_geometry(_cloud(o3d, predictions[at[0]], layers[at[1]]), reset_bounding_box=first)
        for lines in _boxes(o3d, predictions[at[0]]):
            window.add_geometry(lines, reset_bounding_box=False)
        return True

    window.register_key_callback(NEXT_LAYER, lambda _: draw(move_layer=1))
    window.register_key_callback(NEXT_FRAME, lambda _: draw(move_frame=1))
    draw()
    window.run()
    window.destroy_window()


def open3d_module() -> Any:
    """Return open3d.

    Raises:
        ConfigError: it is not installed, or a library of the system is missing.
    """
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise ConfigError(f"backend=open3d: {error}; install the extra 'viz', or use backend=png") from None
    return open3d


def _cloud(o3d: Any, prediction: FramePrediction, layer: Layer) -> Any:
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(prediction.frame.points.xyz.double().numpy()))
    cloud.colors = o3d.utility.Vector3dVector(layer.colours / 255.0)
    return cloud


def _boxes(o3d: Any, prediction: FramePrediction) -> list[Any]:
    """Return the edges of the true 3D boxes, in the colours of their classes."""
    truth = prediction.frame.truth
    if truth is None:
        return []
    made = []
    for corners, label in zip(box_corners(truth.boxes3d).double(), truth.box3d_labels.tolist(), strict=True):
        lines = o3d.geometry.LineSet(
            o3d.utility.Vector3dVector(corners.numpy()), o3d.utility.Vector2iVector(np.array(BOX_EDGES))
        )
        lines.paint_uniform_color(np.array(class_colour(label)) / 255.0)
        made.append(lines)
    return made
