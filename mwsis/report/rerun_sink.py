"""Frames as a rerun recording: cameras with boxes and masks, the sweep in every colouring, 3D boxes, a time line.

The only file that imports rerun, and only when a recording is begun. Everything is in the vehicle frame of its own
moment: frames do not know where the vehicle is in the world. rerun's cameras have no distortion and no rolling shutter,
so points and images agree less than the pixels that the points carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mwsis.core.errors import ConfigError
from mwsis.core.files import atomic_write
from mwsis.core.frame import CameraView, FrameTruth
from mwsis.core.instances import Boxes2D, Detections, MaskSet
from mwsis.data.image_files import is_png
from mwsis.evaluation.predictions import FramePrediction
from mwsis.report.pictures import IGNORE_COLOUR, class_colour
from mwsis.report.sweep_layers import Layer, sweep_layers

__all__ = ["RerunSink", "recording_file"]

VEHICLE = "vehicle"
TIMELINE = "frame"
POINT_RADIUS = 0.04
"""metres"""
MASK_OPACITY = 0.5


class RerunSink:
    """Logs frames to a recording, one step of the time line after the other.

    Args:
        class_names: names by class index.
        title: of the recording.
        min_score: masks and boxes found with less are left out, in [0, 1].

    Raises:
        ConfigError: rerun is not installed.
    """

    def __init__(self, class_names: Sequence[str], title: str, min_score: float = 0.3) -> None:
        self._rr = rerun_module()
        self._class_names, self._min_score = tuple(class_names), min_score
        self.recording = self._rr.RecordingStream(f"mwsis: {title}")
        self._num_frames = 0
        self._layers: dict[str, None] = {}
        self._cameras: dict[str, None] = {}
        self._shown: set[str] = set()
        self._earlier: set[str] = set()

    def begin(self) -> None:
        """Log what is the same in all frames."""
        self._log(VEHICLE, self._rr.ViewCoordinates.FLU, static=True)
        classes = [(row, name, class_colour(row - 1)) for row, name in enumerate(self._class_names, start=1)]
        legend = [(0, "nothing", (0, 0, 0, 0)), *classes, (len(classes) + 1, "ignored", IGNORE_COLOUR)]
        self._log(VEHICLE, self._rr.AnnotationContext(legend), static=True)

    def add(self, prediction: FramePrediction) -> None:
        """Log one frame; what an earlier one had and this has not is gone."""
        frame, rr = prediction.frame, self._rr
        self.recording.set_time(TIMELINE, sequence=self._num_frames)
        self._shown, self._earlier = set(), self._shown
        self._log("frame_id", rr.TextDocument(frame.frame_id))
        if len(frame.points):
            for layer in sweep_layers(prediction, self._class_names):
                self._log_layer(frame.points.xyz, layer)
        if frame.truth is not None:
            self._log_boxes3d(frame.truth)
        for index, view in enumerate(frame.cameras):
            place = f"{VEHICLE}/cameras/{rr.escape_entity_path_part(view.name)}"
            self._cameras[place] = None
            self._log_camera(place, view)
            if frame.truth is not None and (image := frame.truth.images[index]) is not None:
                labels = torch.where(image.labels.ignore, -1, image.labels.labels)
                self._log_masks(f"{place}/gt_masks", image.masks, labels)
            if prediction.detections is not None:
                self._log_detections(place, prediction.detections[index])
        for gone in sorted(self._earlier - self._shown):
            self.recording.log(gone, rr.Clear(recursive=False))
        self._num_frames += 1

    def finish(self) -> None:
        """Log how it is arranged: a 3D view for each colouring of the sweep, beside them the cameras."""
        import rerun.blueprint as rrb

        shared = [f"+ {VEHICLE}/cameras/**", f"+ {VEHICLE}/boxes3d"]
        views = [
            rrb.Spatial3DView(name=name, origin=VEHICLE, contents=[*shared, f"+ {VEHICLE}/sweep/{name}/**"])
            for name in self._layers
        ]
        cameras = [rrb.Spatial2DView(name=place.rpartition("/")[2], origin=place) for place in self._cameras]
        parts = ([rrb.Tabs(*views)] if views else []) + ([rrb.Grid(*cameras)] if cameras else [])
        panels = (rrb.SelectionPanel(state="collapsed"), rrb.BlueprintPanel(state="collapsed"))
        self.recording.send_blueprint(rrb.Blueprint(rrb.Horizontal(*parts), *panels))
        self.recording.flush()

    def _log(self, place: str, what: Any, static: bool = False) -> None:
        if not static:
            self._shown.add(place)
        self.recording.log(place, what, static=static)

    def _log_layer(self, xyz: Tensor, layer: Layer) -> None:
        rr, place = self._rr, f"{VEHICLE}/sweep/{layer.name}"
        if layer.name not in self._layers:
            self._layers[layer.name] = None
            legend = [(row, name or None, colour) for row, (name, colour) in enumerate(layer.palette)]
            self._log(place, rr.AnnotationContext(legend), static=True)
        ids = layer.index.numpy().astype(np.uint16)
        self._log(f"{place}/points", rr.Points3D(xyz.numpy(), class_ids=ids, radii=POINT_RADIUS, show_labels=False))

    def _log_boxes3d(self, truth: FrameTruth) -> None:
        boxes = truth.boxes3d.double().numpy()
        half_turn, zeros = boxes[:, 6] / 2, np.zeros(len(boxes))
        turns = np.stack([zeros, zeros, np.sin(half_turn), np.cos(half_turn)], 1)
        made = self._rr.Boxes3D(
            centers=boxes[:, :3],
            half_sizes=boxes[:, 3:6] / 2,
            quaternions=turns,
            class_ids=self._class_ids(truth.box3d_labels),
            show_labels=False,
        )
        self._log(f"{VEHICLE}/boxes3d", made)

    def _log_camera(self, place: str, view: CameraView) -> None:
        rr, camera = self._rr, view.camera
        vehicle_SE3_camera = torch.linalg.inv(camera.camera_SE3_vehicle).numpy()
        self._log(place, rr.Transform3D(translation=vehicle_SE3_camera[:3, 3], mat3x3=vehicle_SE3_camera[:3, :3]))
        pinhole = rr.Pinhole(
            focal_length=camera.intrinsics[:2].numpy(),
            principal_point=camera.intrinsics[2:].numpy(),
            width=camera.width,
            height=camera.height,
            camera_xyz=rr.ViewCoordinates.RDF,
        )
        self._log(place, pinhole)
        kind = "image/png" if is_png(view.image) else "image/jpeg"
        self._log(f"{place}/image", rr.EncodedImage(contents=view.image, media_type=kind))
        self._log_boxes(f"{place}/boxes", view.labels)

    def _log_boxes(self, place: str, boxes: Boxes2D, names: Sequence[str] | None = None) -> None:
        labels = torch.where(boxes.ignore, -1, boxes.labels)
        ids = self._class_ids(labels)
        format_ = self._rr.Box2DFormat.XYXY
        made = self._rr.Boxes2D(array=boxes.boxes.numpy(), array_format=format_, class_ids=ids, labels=names)
        self._log(place, made)

    def _log_detections(self, place: str, detections: Detections) -> None:
        keep = detections.scores.cpu() >= self._min_score
        labels, scores = detections.labels.cpu()[keep], detections.scores.cpu()[keep].tolist()
        boxes = Boxes2D(detections.boxes.cpu()[keep], labels, torch.zeros(len(labels), dtype=torch.bool))
        names = [f"{self._class_names[label]} {score:.2f}" for label, score in zip(labels.tolist(), scores)]
        self._log_masks(f"{place}/predicted_masks", detections.masks[keep], labels)
        self._log_boxes(f"{place}/predicted_boxes", boxes, names)

    def _log_masks(self, place: str, masks: MaskSet, labels: Tensor) -> None:
        """Log masks as one image of class numbers, small masks over large ones."""
        image = np.zeros((masks.height, masks.width), np.uint8)
        ids = self._class_ids(labels)
        for row in masks.areas().argsort(descending=True, stable=True).tolist():
            x1, y1, x2, y2 = masks.crop_boxes[row].tolist()
            image[y1:y2, x1:x2][masks.crop(row).numpy()] = ids[row]
        self._log(place, self._rr.SegmentationImage(image, opacity=MASK_OPACITY))

    def _class_ids(self, labels: Tensor) -> np.ndarray[Any, Any]:
        """Return the numbers of the legend of (G,) labels: 1 and on the classes, then what is ignored."""
        ids = torch.where(labels >= 0, labels + 1, len(self._class_names) + 1)
        return ids.numpy().astype(np.uint16)


@contextmanager
def recording_file(sink: RerunSink, path: Path) -> Iterator[None]:
    """Write what is logged in this block to a file, whole or not at all."""
    with atomic_write(path) as unfinished:
        sink.recording.save(unfinished)
        yield
        sink.finish()
        sink.recording.disconnect()


def rerun_module() -> Any:
    """Return rerun.

    Raises:
        ConfigError: it is not installed, or too old.
    """
    try:
        import rerun
    except ImportError as error:
        raise ConfigError(f"backend=rerun: {error}; install the extra 'viz', or use backend=png") from None
    if not hasattr(rerun, "set_time"):
        raise ConfigError("backend=rerun: expected rerun-sdk 0.23 or later; install the extra 'viz' again")
    return rerun
