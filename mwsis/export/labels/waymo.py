"""Labels per point as Waymo's semantic segmentation challenge takes them: range images of TOP in one message.

The file is what Waymo's ``compute_segmentation_metrics_main`` and `mwsis.evaluation.waymo_segmentation` read, and the
``inference_results`` of a ``SemanticSegmentationSubmission``, which also wants the account's name.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mwsis.core.errors import ConfigError
from mwsis.core.files import atomic_write
from mwsis.data.source import Source
from mwsis.data.waymo.messages import dataset_pb2, segmentation_metrics_pb2
from mwsis.data.waymo.record import LidarName
from mwsis.export.labels.class_codes import WAYMO_SEGMENTATION
from mwsis.export.labels.exporter import Exporter, LabelledFrame

__all__ = ["WaymoSegmentation"]

FILE = "segmentation.bin"
NUM_RETURNS = 2


class WaymoSegmentation(Exporter):
    """``segmentation.bin``, a ``SegmentationFrameList``; labels of TOP's points, for other points there is no place.

    Args:
        folder: where the file goes.
        source: a Waymo data set.

    Raises:
        ConfigError: another data set has no range images of Waymo's; or it has a class that Waymo has not.

    Source: Waymo Open Dataset, ``segmentation_metrics.proto``; channels (instance id, class) as ``dataset.proto`` has
    them.
    """

    name = "waymo"
    needs = "points"
    owned = (FILE,)
    about = (
        "segmentation.bin: a waymo.open_dataset.SegmentationFrameList, TOP only, both returns; zlib-compressed "
        "MatrixInt32 of (rows, columns, 2): 1 + index of the instance (0 none), class as in segmentation.proto; what "
        "is no object, and what nobody labelled, has class 0"
    )

    def __init__(self, folder: Path, source: Source) -> None:
        super().__init__(folder, source)
        if not source.name.startswith("waymo"):
            raise ConfigError(f"export=waymo: {source.name} has no range images of Waymo's; use kitti or nuscenes")
        WAYMO_SEGMENTATION.of(source.class_names)
        self._message = segmentation_metrics_pb2.SegmentationFrameList()

    def write(self, labelled: LabelledFrame) -> dict[str, Any] | None:
        """Add a frame to the message; None for one without range images of TOP."""
        frame = labelled.frame
        images = label_images(labelled, self.source.class_names)
        if images is None:
            return None
        time = int(frame.frame_id.rpartition("/")[2])
        made = self._message.frames.add(context_name=frame.segment, frame_timestamp_micros=time)
        laser = made.segmentation_labels.add(name=int(LidarName.TOP))
        laser.ri_return1.segmentation_label_compressed = compressed_matrix(images[0])
        laser.ri_return2.segmentation_label_compressed = compressed_matrix(images[1])
        return {"context_name": frame.segment, "frame_timestamp_micros": time, "shape": images[0].shape}

    def close(self) -> None:
        """Write the message."""
        with atomic_write(self.folder / FILE) as unfinished:
            unfinished.write_bytes(self._message.SerializeToString())

    def codes(self) -> dict[str, Any]:
        """Return Waymo's number of each class."""
        return {**super().codes(), "codes": WAYMO_SEGMENTATION.legend(self.source.class_names)}

    def why_left_out(self, count: int) -> str:
        """Say that frames have no range images."""
        return f"{count} frame{'s have' if count != 1 else ' has'} no range image of TOP and is not in it"


def label_images(labelled: LabelledFrame, class_names: tuple[str, ...]) -> np.ndarray[Any, Any] | None:
    """Return labels as range images.

    Args:
        labelled: a frame and labels of its points.
        class_names: names by class index.

    Returns:
        (2, H, W, 2) int32, per return: 1 + index of the instance and Waymo's class, 0 where no point is; None where no
        point is on a beam of TOP.
    """
    points, labels = labelled.frame.points, labelled.points
    assert labels is not None, "an exporter of points needs labels of points"
    on_beam = (points.ring >= 0) & (points.azimuth_column >= 0)
    if not bool(on_beam.any()):
        return None
    size = labelled.frame.lidar
    images = np.zeros((NUM_RETURNS, size.num_rings, size.num_columns, 2), np.int32)
    cell = tuple(part[on_beam].long().numpy() for part in (points.return_index, points.ring, points.azimuth_column))
    codes = WAYMO_SEGMENTATION.encode(labels.semantic_labels[on_beam], class_names)
    images[cell] = np.stack([labels.instance_ids[on_beam].numpy() + 1, codes.numpy()], 1)
    return images


def compressed_matrix(image: np.ndarray[Any, Any]) -> bytes:
    """Return the zlib stream of the ``MatrixInt32`` of an int32 array."""
    matrix = dataset_pb2.MatrixInt32()
    matrix.data.extend(image.ravel().tolist())
    matrix.shape.dims.extend(image.shape)
    return zlib.compress(matrix.SerializeToString())
