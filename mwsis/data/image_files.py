"""Encoded images, as every data set has them: which formats are read, and the errors of bytes that are none of them."""

from __future__ import annotations

import io

from PIL import Image

__all__ = ["IMAGE_FORMATS", "NO_IMAGE", "image_size"]

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Of Pillow; others it has start programs (EPS) or open further files."""
NO_IMAGE: tuple[type[Exception], ...] = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises of bytes that are no image, or one too large to be honest."""


def image_size(encoded: bytes) -> tuple[int, int] | None:
    """Return width and height that the image's header states, pixels; None where the bytes are no image."""
    try:
        with Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS) as header:
            return header.size
    except NO_IMAGE:
        return None
