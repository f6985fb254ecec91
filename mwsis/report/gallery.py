"""The pictures of one predicted frame: each camera with boxes, masks and points, and the sweep from above, three times.

Also those of the worst objects. Drawing is `pictures.py` and `label_pictures.py`; the page is `html.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from camera.transforms import decode_image
from mwsis.core.instances import PointLabels
from mwsis.evaluation.objects import WorstObject
from mwsis.evaluation.predictions import FramePrediction
from mwsis.report.content import CameraRow, FrameGallery, ObjectPicture
from mwsis.report.label_pictures import draw_object
from mwsis.report.pictures import align_instances, draw_birds_eye, draw_image

__all__ = ["draw_frame", "draw_worst"]


def draw_frame(
    prediction: FramePrediction,
    point_cloud_range: Sequence[float],
    class_names: Sequence[str],
    *,
    split: str,
    predicted_by: str,
) -> FrameGallery:
    """Return the pictures of a frame.

    Args:
        prediction: what the network found, with the frame and the labels made from its boxes.
        point_cloud_range: x0 y0 z0 x1 y1 z1, metres, vehicle frame; what is drawn from above.
        class_names: names by class index.
        split: part of the data set the frame is from.
        predicted_by: the network, ``teacher`` or ``student``.
    """
    cameras = tuple(_camera(prediction, index, class_names) for index in range(len(prediction.frame.cameras)))
    views = _birds_eye_views(prediction, point_cloud_range, class_names)
    return FrameGallery(prediction.frame.frame_id, cameras, *views, split=split, predicted_by=predicted_by)


def draw_worst(worst: Sequence[WorstObject]) -> list[ObjectPicture]:
    """Return the pictures of objects, same order."""
    return [
        ObjectPicture(
            one.score,
            torch.from_numpy(np.array(draw_object(one.frame, one.pairs, one.score))).permute(2, 0, 1).contiguous(),
        )
        for one in worst
    ]


def _camera(prediction: FramePrediction, index: int, class_names: Sequence[str]) -> CameraRow:
    frame = prediction.frame
    view = frame.cameras[index]
    image = decode_image(view.image, f"{frame.frame_id} {view.name}")
    truth = frame.truth.images[index] if frame.truth is not None else None
    pixels = frame.pixels[prediction.point_index]
    point, slot = (pixels.camera_index == index).nonzero(as_tuple=True)
    return CameraRow(
        view.name,
        boxes=draw_image(image, class_names=class_names, boxes=view.labels),
        prediction=None
        if prediction.detections is None
        else draw_image(image, class_names=class_names, detections=prediction.detections[index]),
        truth=None if truth is None else draw_image(image, class_names=class_names, truth=truth),
        points=None
        if not len(point)
        else draw_image(
            image,
            class_names=class_names,
            boxes=view.labels,
            pixel_uv=pixels.pixel_uv[point, slot],
            point_values=prediction.pseudo.semantic_labels[point],
        ),
    )


def _birds_eye_views(
    prediction: FramePrediction, point_cloud_range: Sequence[float], class_names: Sequence[str]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return ground truth, pseudo labels and prediction from above, one object in one colour; None: empty."""
    xyz = prediction.frame.points.xyz[prediction.point_index]
    gt, pseudo, found = prediction.gt_points, prediction.pseudo, prediction.points
    reference = gt.instance_ids if gt is not None else pseudo.instance_ids
    truth = prediction.frame.truth

    def draw(labels: PointLabels, boxes3d: Tensor | None = None) -> Tensor | None:
        if not len(xyz) and (boxes3d is None or not len(boxes3d)):
            return None
        return draw_birds_eye(xyz, labels, point_cloud_range, class_names=class_names, boxes3d=boxes3d)

    return (
        None if gt is None or truth is None else draw(gt, truth.boxes3d),
        draw(PointLabels(pseudo.semantic_labels, align_instances(reference, pseudo.instance_ids))),
        None
        if found is None
        else draw(PointLabels(found.semantic_labels, align_instances(reference, found.instance_ids))),
    )
