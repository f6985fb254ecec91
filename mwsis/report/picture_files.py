"""The pictures of a frame as PNG files: those of a report, nothing extra installed."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from mwsis.core.files import atomic_write
from mwsis.data.label_files import file_stem
from mwsis.report.content import FrameGallery

__all__ = ["write_pictures"]


def write_pictures(gallery: FrameGallery, folder: Path) -> list[Path]:
    """Write a frame's pictures and return where they are.

    Args:
        gallery: the pictures; those it lacks are left out.
        folder: gets a folder of the frame's name, in it ``<camera>_<boxes|prediction|truth|points>.png`` and
            ``birds_eye_<gt|pseudo|predicted>.png``.
    """
    pictures: dict[str, Tensor | None] = {
        f"birds_eye_{made}": getattr(gallery, f"{made}_birds_eye") for made in ("gt", "pseudo", "predicted")
    }
    for row in gallery.cameras:
        kinds = {"boxes": row.boxes, "prediction": row.prediction, "truth": row.truth, "points": row.points}
        pictures |= {f"{file_stem(row.camera)}_{kind}": picture for kind, picture in kinds.items()}
    paths = []
    for name, picture in pictures.items():
        if picture is not None:
            paths.append(folder / file_stem(gallery.frame_id) / f"{name}.png")
            with atomic_write(paths[-1]) as unfinished:
                Image.fromarray(picture.permute(1, 2, 0).numpy()).save(unfinished)
    return paths
