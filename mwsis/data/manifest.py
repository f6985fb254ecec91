"""What was written to a folder of segments: size and checksum of every file, and what could not be written.

`manifest.json` lies beside the files it lists. It is written after them, so a file may be there and not be listed yet,
never the other way round. Next: `conversion.py`, which keeps it.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from mwsis.core.errors import DataError
from mwsis.core.files import write_json
from mwsis.data.store import FORMAT, FilePlan, Segment

__all__ = ["MANIFEST", "Manifest", "file_sha256"]

MANIFEST = "manifest.json"
DONE, SKIPPED = "done", "skipped"
SAVE_EVERY_S = 5.0
READ_BYTES = 1 << 20


class Manifest:
    """The manifest of one folder; entries of another state of a segment are dropped.

    Args:
        plan: what the complete folder holds.

    Raises:
        DataError: there is a ``manifest.json`` that is none.
    """

    def __init__(self, plan: FilePlan) -> None:
        self.plan = plan
        self.path = plan.root / MANIFEST
        self._entries = self._read()
        self._new: dict[str, dict[str, Any]] = {}
        self._saved = time.monotonic()

    def entry(self, segment: Segment) -> dict[str, Any] | None:
        """Return what is known about a segment, or None."""
        return self._new.get(segment.name) or self._entries.get(segment.name)

    def has(self, segment: Segment) -> bool:
        """Return whether a segment is listed as done and its file still has the listed size."""
        entry, path = self.entry(segment), self.plan.path(segment)
        if entry is None or entry["status"] != DONE:
            return False
        return path.is_file() and path.stat().st_size == entry["num_bytes"]

    def done(self, segment: Segment, num_bytes: int, sha256: str) -> None:
        """List a complete file."""
        self._add(segment, {"status": DONE, "num_bytes": num_bytes, "sha256": sha256})

    def skipped(self, segment: Segment, error: str) -> None:
        """List a segment that cannot be read."""
        self._add(segment, {"status": SKIPPED, "error": error})

    def save(self, soon: bool = False) -> None:
        """Write what is new, beside what other processes have written meanwhile.

        Args:
            soon: only if the last time is some seconds ago.
        """
        if not self._new or (soon and time.monotonic() - self._saved < SAVE_EVERY_S):
            return
        self._entries = {**self._read(), **self._new}
        ordered = [self._entries[segment.name] for segment in self.plan.segments if segment.name in self._entries]
        header = {"format": FORMAT, "kind": self.plan.kind}
        write_json(self.path, {**header, "segments": ordered})
        self._new = {}
        self._saved = time.monotonic()

    def _add(self, segment: Segment, facts: dict[str, Any]) -> None:
        names = {"name": segment.name, "file": segment.file, "num_frames": len(segment.frame_ids)}
        self._new[segment.name] = {**names, "fingerprint": self.plan.file_fingerprint(segment), **facts}

    def _read(self) -> dict[str, dict[str, Any]]:
        """Return the entries of the file by name of segment; none where there is no file."""
        wanted = {segment.name: self.plan.file_fingerprint(segment) for segment in self.plan.segments}
        return {name: entry for name, entry in _read(self.path).items() if entry["fingerprint"] == wanted.get(name)}


def file_sha256(path: Path) -> str:
    """Return a file's checksum."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the entries by name of segment; none where the manifest is missing or of another format."""
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        entries = {entry["name"]: entry for entry in manifest["segments"]}
        wanted = {DONE: {"fingerprint", "num_bytes", "sha256"}, SKIPPED: {"fingerprint", "error"}}
        same = manifest["format"] == FORMAT
        fits = not same or all(wanted[entry["status"]] <= set(entry) for entry in entries.values())
    except (ValueError, KeyError, TypeError):
        fits = same = False
    if not fits:
        raise DataError(f"{path}: not the manifest of a converted data set; delete it, and its files are checked again")
    return entries if same else {}
