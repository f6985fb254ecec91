"""Encoded images, as every data set has them: which formats are read, and the errors of bytes that are none of them."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mwsis.core.errors import DataError

__all__ = [
    "IMAGE_FORMATS",
    "IMAGE_SUFFIXES",
    "NO_IMAGE",
    "RECORDED_FORMATS",
    "image_size",
    "is_png",
    "size_of_image_file",
]

RECORDED_FORMATS = ("JPEG", "PNG")
"""Of the data sets with a LiDAR, Pillow's names."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""Of files in these."""
IMAGE_FORMATS = (*RECORDED_FORMATS, "WEBP", "BMP")
"""All that are decoded; others that Pillow has start programs (EPS) or open further files."""
PNG_START = b"\x89PNG"
NO_IMAGE: tuple[type[Exception], ...] = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises of bytes that are no image, or one too large to be honest."""


def is_png(encoded: bytes) -> bool:
    """Return whether an image, which is one of `RECORDED_FORMATS`, is a PNG."""
    return encoded.startswith(PNG_START)


def image_size(encoded: bytes, formats: tuple[str, ...] = RECORDED_FORMATS) -> tuple[int, int] | None:
    """Return width and height that the image's header states, pixels; None where it is none of these formats."""
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as header:
            return header.size
    except NO_IMAGE:
        return None


def size_of_image_file(path: Path, encoded: bytes | None = None, *, decode: bool = False) -> tuple[int, int]:
    """Return width and height of an image file.

    Args:
        path: of the image.
        encoded: its bytes, where they have been read already; otherwise no more is read than is needed.
        decode: whether its pixels are decoded, too, to find out whether they can be.

    Raises:
        DataError: it is none of `RECORDED_FORMATS`, or cannot be decoded.
    """
    try:
        with Image.open(path if encoded is None else io.BytesIO(encoded), formats=RECORDED_FORMATS) as image:
            if decode:
                image.load()
            return image.size
    except UnidentifiedImageError:
        num_bytes = path.stat().st_size if encoded is None else len(encoded)
        raise DataError(f"{path}: expected a PNG or JPEG image, got {num_bytes} bytes that are none") from None
    except NO_IMAGE as error:
        raise DataError(f"{path}: the image cannot be decoded ({error}); copy it again") from None
