"""nuScenes: its key frames from the official JSON tables, without the development kit.

`tables.py` reads the tables, `boxes2d.py` projects 3D boxes into images, `source.py` makes frames.
"""

from mwsis.data.nuscenes.source import NuscenesSource

__all__ = ["NuscenesSource"]
