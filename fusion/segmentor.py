"""The two branches side by side: what is trained, averaged into a teacher, saved and exported.

Nothing is computed here. How the branches teach each other is `step.py`; the branches are `camera.segmentor` (or
`camera.mask_rcnn`) and `lidar.segmentor`.
"""

from __future__ import annotations

from torch import nn

from camera.mask_rcnn import MaskRCNN
from camera.segmentor import CondInst
from lidar.segmentor import LidarSegmentor

__all__ = ["MultimodalSegmentor"]


class MultimodalSegmentor(nn.Module):
    """A camera segmentor and a LiDAR segmentor; either may be absent.

    Attributes:
        camera: or None when only the LiDAR branch is trained.
        lidar: or None when only the camera branch is trained.
    """

    def __init__(self, camera: CondInst | MaskRCNN | None, lidar: LidarSegmentor | None) -> None:
        super().__init__()
        assert camera is not None or lidar is not None
        self.camera = camera
        self.lidar = lidar
