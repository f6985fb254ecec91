"""Waymo's own message classes, from its package, of which nothing else is used.

Its wheel asks for TensorFlow 2.13 and old numpy, so it is no dependency that pip could install beside current ones;
this project's uv settings leave these out.
"""

from __future__ import annotations

from mwsis.core.errors import ConfigError

try:
    from waymo_open_dataset import dataset_pb2
    from waymo_open_dataset.protos import metrics_pb2, segmentation_metrics_pb2
except ModuleNotFoundError as error:
    raise ConfigError(
        f"Waymo's message classes are missing ({error}); run pip install --no-deps waymo-open-dataset-tf-2-12-0==1.6.7"
    ) from None

__all__ = ["dataset_pb2", "metrics_pb2", "segmentation_metrics_pb2"]
