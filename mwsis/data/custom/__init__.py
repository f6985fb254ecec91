"""Your own recordings: a folder of images, sweeps, a calibration and 2D boxes.

The format is `docs/guides/own_data.md`. `source.py` reads frames, `validation.py` explains what is wrong with a folder.
"""

from mwsis.data.custom.source import CustomSource

__all__ = ["CustomSource"]
