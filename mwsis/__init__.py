"""Instance masks in camera images and LiDAR sweeps from 2D boxes, and the pretrained 3D backbone for your detector.

`mwsis.core` is the vocabulary, `mwsis.data` reads and stores frames, `mwsis.evaluation` scores label arrays,
`mwsis.training` wires a run; the models live beside this package in `lidar`, `camera` and `fusion`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"

SIBLINGS = ("lidar", "camera", "fusion")


def check_siblings() -> None:
    """Refuse to work beside foreign packages that share a name with ours.

    Raises:
        ImportError: ``lidar``, ``camera`` or ``fusion`` resolves to another project's package (the package index has
            such), or to none.
    """
    home = Path(__file__).resolve().parent.parent
    for name in SIBLINGS:
        spec = find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if origin is None or origin.parent.parent != home or "mwsis" not in origin.read_text(encoding="utf-8"):
            raise ImportError(
                f"package '{name}' resolves to {origin or 'nothing'}, but mwsis needs its own at {home / name}; "
                f"uninstall the foreign '{name}' package or run from the project folder"
            )


check_siblings()
