"""CIE LAB of sRGB grey levels by scikit-image."""

from __future__ import annotations

import torch
from skimage.color import rgb2lab
from torch import Tensor


def lab_of_rgb(rgb: Tensor) -> Tensor:
    """Return (I, 3, h, w) float32 LAB of (I, 3, h, w) uint8 RGB."""
    return torch.from_numpy(rgb2lab(rgb.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2).float()
