"""What a data set must offer: a list of frames by split and a way to read one.

Every data set is one class with these members; nothing else in the project knows where frames come from. Formats,
caching and training samples are elsewhere. Next: `mwsis.data.street.source` for a complete example, `store.py` for how
frames are kept on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from mwsis.core.frame import Frame
from mwsis.data.problems import Problems

__all__ = ["Explained", "LabelledImages", "Source"]


@runtime_checkable
class Source(Protocol):
    """A data set that can be read frame by frame.

    Attributes:
        name: short name used in folders and reports.
        class_names: name of class 0, 1, ...; the index is the label everywhere.
    """

    name: str
    class_names: tuple[str, ...]

    def check(self) -> None:
        """Find what is wrong with the data set without reading all of it; called before any work starts.

        Raises:
            DataError: a folder or file is missing or does not hold what its format promises.
        """
        ...

    def identity(self) -> str:
        """Return a short text that names the data set and its settings, whatever happens to its files."""
        ...

    def fingerprint(self) -> str:
        """Return a short text that changes whenever the frames or their labels would change."""
        ...

    def segment_fingerprint(self, segment: str) -> str:
        """Return the same of one segment: it stays when another segment is mended, added or taken away."""
        ...

    def frame_ids(self, split: str) -> list[str]:
        """Return the frames of a split, frames of one segment next to each other and in order of time.

        Segments that cannot be listed are left out, see `unreadable`.

        Raises:
            DataError: the data set has no such split.
        """
        ...

    def unreadable(self, split: str) -> dict[str, str]:
        """Return why, by name, segments of a split cannot be listed.

        Raises:
            DataError: the data set has no such split.
        """
        ...

    def segment_of(self, frame_id: str) -> str:
        """Return the segment (drive) a frame belongs to; a segment never spans two splits meant to be disjoint.

        Raises:
            DataError: there is no such frame.
        """
        ...

    def read(self, frame_id: str) -> Frame:
        """Return one frame, with its ground truth where the data set has any.

        Raises:
            DataError: there is no such frame, or it cannot be decoded.
        """
        ...


@runtime_checkable
class LabelledImages(Protocol):
    """A data set whose images may say one by one what they are labelled with."""

    def labelled_images(self, split: str) -> dict[str, int]:
        """Return how many images have ``masks``, ``boxes`` and ``points``; nothing where no image says.

        ``unknown_extent`` counts those with points of which an object has no box yet.

        Raises:
            DataError: the data set has no such split.
        """
        ...


@runtime_checkable
class Explained(Protocol):
    """A data set that can say everything that is wrong with it, not only the first thing."""

    def problems(self, on_progress: Callable[[int, int], None] | None = None) -> Problems:
        """Return what is wrong, having read every file once.

        Args:
            on_progress: called with frames looked at and frames in all.
        """
        ...
