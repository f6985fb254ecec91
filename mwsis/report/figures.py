"""Pictures as HTML: inside the page, described, with a caption."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor

from mwsis.report.tables import text

__all__ = ["figure"]


def figure(
    picture: Tensor | None, alternative: str, caption: str, missing: str, exact: bool = False, anchor: str = ""
) -> str:
    """Return a figure, or a box with words where there is no picture.

    Args:
        picture: (3, H, W) uint8, or None.
        alternative: what is to be seen, for screen readers; escaped here.
        caption: HTML.
        missing: words in place of the picture; escaped here. Without any, nothing is shown in its place.
        exact: keep single pixels as they are, for flat colours; photographs get large.
        anchor: id of the element, for links; "" = none.
    """
    if picture is None:
        return f'<figure><div class="nothing">{text(missing)}</div></figure>' if missing else ""
    height, width = picture.shape[1:]
    source = _picture_uri(picture, exact)
    name = f' id="{text(anchor)}"' if anchor else ""
    return (
        f'<figure{name}><img src="{source}" width="{width}" height="{height}" alt="{text(alternative)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _picture_uri(picture: Tensor, exact: bool) -> str:
    image = Image.fromarray(np.ascontiguousarray(picture.cpu().numpy().transpose(1, 2, 0)))
    buffer = io.BytesIO()
    if exact:  # single coloured points survive, and on a plain ground it is smaller than one would think
        image.save(buffer, "WEBP", lossless=True, quality=20, method=0)
    else:
        image.save(buffer, "WEBP", quality=86, method=1)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
