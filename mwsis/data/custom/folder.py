"""Where the files of one's own recordings are: by the name of the frame, the camera, the split.

A frame is called as its sweep is, without ``sweeps/`` and the suffix: ``drive_1/000042``. The folder part is the drive.
Names come from text files and become paths, so one that would leave the folder is refused here.
"""

from __future__ import annotations

from pathlib import Path

from mwsis.core.errors import DataError, closest_name
from mwsis.data.image_files import IMAGE_SUFFIXES
from mwsis.data.problems import Problems
from mwsis.data.sweep_files import SUFFIXES

__all__ = ["BOXES", "SPLIT_SUFFIX", "Folder"]

SPLIT_SUFFIX = ".txt"
BOXES = "boxes.json"
CALIBRATION = "calibration.json"


class Folder:
    """The files under a root.

    Args:
        root: the folder; it need not be complete.

    Raises:
        DataError: there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; expected one laid out as docs/guides/own_data.md says")

    @property
    def boxes(self) -> Path:
        return self.root / BOXES

    @property
    def boxes3d(self) -> Path:
        return self.root / "truth" / "boxes3d.json"

    def point_truth(self, frame_id: str) -> Path:
        """Return where a frame's point labels are, if it has any."""
        return self.root / "truth" / "points" / f"{frame_id}.label"

    def splits(self) -> list[str]:
        """Return the names of the splits, each a list of frames in a text file."""
        return sorted(path.stem for path in self.root.glob(f"*{SPLIT_SUFFIX}"))

    def frames(self, split: str, problems: Problems) -> list[str]:
        """Return the frames that a split lists, in its order; a line that is wrong is left out.

        Args:
            split: name of the file without its suffix.
            problems: takes a sentence for every line that is wrong.

        Raises:
            DataError: there is no such split.
        """
        if split not in (known := self.splits()):
            expected = closest_name(split, known) if known else "; expected at least train.txt and val.txt"
            raise DataError(f"{self.root}: no split '{split}'{expected}")
        path = self.root / f"{split}{SPLIT_SUFFIX}"
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError as error:
            problems.add(f"{path}: expected UTF-8 text, got byte {error.object[error.start]} at {error.start}")
            return []
        line_of: dict[str, int] = {}
        for number, name in ((number, line.strip()) for number, line in enumerate(lines, 1)):
            where = f"{path}: line {number}"
            if not name or name.startswith("#"):
                continue
            if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name or "\0" in name:
                problems.add(f"{where}: expected a name such as drive_1/000042, got '{name[:80]}'", "lines of splits")
            elif name in line_of:
                problems.add(f"{where}: frame '{name}' again, as in line {line_of[name]}", "lines of splits")
            else:
                line_of[name] = number
        if not line_of:
            problems.add(f"{path}: expected one frame a line, such as drive_1/000042, got none")
        return list(line_of)

    def sweep(self, frame_id: str) -> Path:
        """Return the sweep of a frame.

        Raises:
            DataError: there is none, or several.
        """
        return self._one(self.root / "sweeps", frame_id, SUFFIXES)

    def image(self, camera: str, frame_id: str) -> Path:
        """Return what a camera saw in a frame.

        Raises:
            DataError: there is none, or several.
        """
        return self._one(self.root / "images" / camera, frame_id, IMAGE_SUFFIXES)

    def calibration(self, frame_id: str) -> Path:
        """Return the calibration of a frame: its own, its drive's, or the folder's."""
        parts = frame_id.split("/")
        nested = ("/".join(parts[:depth]) for depth in range(len(parts), 0, -1))
        places = (self.root / "calibration" / f"{name}.json" for name in nested)
        return next((path for path in places if path.is_file()), self.root / CALIBRATION)

    def listed_name(self, image: Path) -> str:
        """Return how an image is called in `BOXES`."""
        return image.relative_to(self.root / "images").as_posix()

    def _one(self, folder: Path, name: str, suffixes: tuple[str, ...]) -> Path:
        found = [path for path in (folder / f"{name}{suffix}" for suffix in suffixes) if path.is_file()]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"{found[0]}: {found[1].name} is there, too; expected one file for frame '{name}'")
        raise DataError(f"{folder / name}: no such file with any of {', '.join(suffixes)}; frame '{name}' needs one")
