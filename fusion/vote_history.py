"""What the teacher said about each point the last four times, two bytes a point, and the labels corrected by it.

`VoteHistory` keeps one memory-mapped file for the whole data set plus the changes since the last checkpoint in memory;
the changes travel in the checkpoint, so a run killed at any moment resumes with exactly the votes it had. It never
touches the labels on disk. Next: `spatial_labels.py` (what is corrected), `fusion/segmentor.py` (who calls this).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mwsis.core.errors import ConfigError, DataError
from mwsis.core.files import atomic_write
from mwsis.core.instances import BACKGROUND, IGNORE, PointLabels

__all__ = ["VoteHistory", "correct_labels", "votes_from_prob"]

BACKGROUND_BELOW = 0.4
"""A point whose best class probability is below this is voted background (MWSIS, PVC)."""
CLASS_ABOVE = 0.6
"""A point whose best class probability is above this is voted that class; between the two no vote (MWSIS, PVC)."""
NIBBLE_OF_VOTE = 3
"""Vote -2 (background), -1 (ignore), c is kept as the nibble 1, 2, 3 + c; 0 means never observed."""
MAX_CLASSES = 13
"""Nibbles 3 to 15."""
EVERY_NIBBLE = 0x1111
DEPTH = 4
"""Votes kept of each point (MWSIS, PVC)."""
HEADER = np.dtype([("magic", "<i8"), ("num_points", "<i8"), ("num_frames", "<i8"), ("num_pushes", "<i8")])
MAGIC = 0x53455456_53495357


class VoteHistory:
    """The last `DEPTH` teacher votes of every point of every frame.

    Use: `reset` when a training starts anew, `load_state_dict` when it resumes, `push` after each step; put
    `state_dict` into each checkpoint and call `commit` once that checkpoint is safely on disk. Votes are stored, not
    probabilities: thresholding commutes with storing.

    Args:
        path: the file, made when absent; 2 bytes a point.
        num_points: points of each frame of the data set, in its order.
        num_classes: at most 13.

    Raises:
        ConfigError: more classes than a nibble holds.
        DataError: the file belongs to another data set.

    Source: MWSIS (AAAI 2024), PVC (point-based voting label correction), depth 4. *Corrected*: a point never observed
    has no vote (upstream counts it as background); *simplified*: 2 bytes instead of 48, one file instead of one a
    frame.
    """

    def __init__(self, path: str | Path, num_points: Sequence[int], num_classes: int) -> None:
        if num_classes > MAX_CLASSES:
            raise ConfigError(
                f"num_classes: expected at most {MAX_CLASSES} for the vote history, got {num_classes}; switch the vote "
                "history off"
            )
        self._path = Path(path)
        self._offsets = np.concatenate([[0], np.cumsum(np.asarray(num_points, dtype=np.int64))]).astype(np.int64)
        self._num_classes = num_classes
        self._pending: dict[int, Tensor] = {}
        if not self._path.exists():
            self._create()
        self._open()
        self._num_pushes = self._committed_pushes()
        self._continues = self._num_pushes == 0

    def push(self, frame_index: int, point_index: Tensor, votes: Tensor) -> None:
        """Add the newest vote of some points of one frame; the other points keep theirs.

        Args:
            frame_index: index of the frame in the data set.
            point_index: (n,) int64, distinct rows of the stored frame.
            votes: (n,) int64, class, `BACKGROUND` or `IGNORE` (`votes_from_prob`).

        Raises:
            DataError: the file holds the votes of an earlier run that is neither resumed nor reset.
        """
        if not self._continues:
            raise DataError(
                f"{self._path}: expected an empty vote history for a new training, got one of {self._num_pushes} "
                "updates; resume from its checkpoint or delete the file"
            )
        votes = votes.detach().cpu().to(torch.int32)
        assert not len(votes) or (int(votes.min()) >= BACKGROUND and int(votes.max()) < self._num_classes)
        index = point_index.cpu()
        code = self._code(frame_index)
        code[index] = (code[index] << 4 | (votes + NIBBLE_OF_VOTE)) & 0xFFFF
        self._pending[frame_index] = code.to(torch.int16)
        self._num_pushes += 1

    def agreed(self, frame_index: int, point_index: Tensor, at_least: int = DEPTH, of: int = DEPTH) -> Tensor:
        """Return the vote on which enough of a point's last visits agree.

        Args:
            frame_index: index of the frame in the data set.
            point_index: (n,) int64, rows of the stored frame.
            at_least: visits that must agree; more than half of ``of``, so that one vote at most can win.
            of: newest visits looked at, 1 to `DEPTH`. A visit that never was agrees with nothing.

        Returns:
            (n,) int64 on the device of ``point_index``: class or `BACKGROUND`; `IGNORE` where too few visits agree,
            where there were too few, or where they agree on no vote.

        Complexity: O(n (of - at_least + 1)).

        Source: MWSIS (AAAI 2024), PVC: 4 of 4. *Generalised* to k of n.
        """
        assert of < 2 * at_least <= 2 * of <= 2 * DEPTH
        code = self._code(frame_index)[point_index.cpu()]
        winner = torch.zeros_like(code)
        for age in range(of - at_least + 1):  # a vote that is in none of these nibbles cannot win any more
            nibble = code >> 4 * age & 15
            winner = torch.where(_num_equal(code, nibble, of) >= at_least, nibble, winner)
        votes = torch.where(winner > 0, winner - NIBBLE_OF_VOTE, IGNORE)
        return votes.to(point_index.device, torch.int64)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is not in the file yet, as plain tensors (loadable with ``weights_only=True``)."""
        frames = sorted(self._pending)
        codes = [self._pending[frame] for frame in frames]
        return {
            "frames": torch.tensor(frames, dtype=torch.int64),
            "codes": torch.cat([*codes, torch.zeros(0, dtype=torch.int16)]),
            "num_pushes": torch.tensor(self._num_pushes),
            "committed_pushes": torch.tensor(self._committed_pushes()),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint, whether or not `commit` ran, finished or was cut short after it.

        Args:
            state: what `state_dict` returned.

        Raises:
            DataError: the file is newer or older than the checkpoint, so the votes cannot be restored exactly.
        """
        num_pushes, base = int(state["num_pushes"]), int(state["committed_pushes"])
        found = self._committed_pushes()
        if found not in (base, num_pushes):
            raise DataError(
                f"{self._path}: expected the vote history of update {base} or {num_pushes} that belongs to the "
                f"checkpoint, got that of update {found}; resume from the newest checkpoint of this run"
            )
        frames = state["frames"].tolist()
        sizes = [self._size(frame) for frame in frames]
        if sum(sizes) != len(state["codes"]):
            raise DataError(
                f"{self._path}: expected {sum(sizes)} votes in the checkpoint, got {len(state['codes'])}; resume with "
                "the data set it was made with"
            )
        self._pending = {frame: code.clone() for frame, code in zip(frames, torch.split(state["codes"].cpu(), sizes))}
        self._num_pushes = num_pushes
        self._continues = True

    def commit(self, write: bool = True) -> None:
        """Move the pending votes into the file; call it only after the checkpoint that holds them is on disk.

        Args:
            write: False on all processes but one, after that one has returned: they only drop their pending votes.
        """
        if write and self._pending:
            # The mark goes first: a commit cut short then belongs to this checkpoint, whose votes cover all its frames.
            self._header["num_pushes"] = self._num_pushes
            self._header.flush()
            for frame, code in self._pending.items():
                self._codes[self._offsets[frame] : self._offsets[frame + 1]] = code.numpy().view(np.uint16)
            if isinstance(self._codes, np.memmap):
                self._codes.flush()
        self._pending = {}

    def reset(self) -> None:
        """Forget all votes, in memory and in the file: a training starts anew."""
        self._create()
        self._open()
        self._pending = {}
        self._num_pushes = 0
        self._continues = True

    def _code(self, frame_index: int) -> Tensor:
        """Return the nibbles of one frame, (N,) int32 in 0..0xFFFF, oldest vote in the highest."""
        pending = self._pending.get(frame_index)
        if pending is not None:
            return pending.to(torch.int32) & 0xFFFF
        stored = self._codes[self._offsets[frame_index] : self._offsets[frame_index + 1]]
        return torch.from_numpy(stored.astype(np.int32))

    def _size(self, frame_index: int) -> int:
        return int(self._offsets[frame_index + 1] - self._offsets[frame_index])

    def _committed_pushes(self) -> int:
        return int(self._header["num_pushes"][0])

    def _file_header(self) -> np.ndarray:
        return np.array([(MAGIC, self._offsets[-1], len(self._offsets) - 1, 0)], dtype=HEADER)

    def _create(self) -> None:
        header = self._file_header()
        with atomic_write(self._path) as partial, open(partial, "wb") as file:
            file.write(header.tobytes())
            file.truncate(HEADER.itemsize + 2 * int(self._offsets[-1]))

    def _open(self) -> None:
        total = int(self._offsets[-1])
        size = self._path.stat().st_size
        header = np.memmap(self._path, HEADER, "r+", shape=(1,)) if size >= HEADER.itemsize else None
        expected = self._file_header()
        named = ("magic", "num_points", "num_frames")
        fits = header is not None and all(header[name][0] == expected[name][0] for name in named)
        if header is None or not fits or size != HEADER.itemsize + 2 * total:
            raise DataError(
                f"{self._path}: expected the vote history of {total} points in {len(self._offsets) - 1} frames, got a "
                f"file of {size} bytes that is not it; delete it or train in another folder"
            )
        self._header = header
        # An empty file cannot be mapped; a data set without points needs no map.
        self._codes = (
            np.memmap(self._path, np.uint16, "r+", offset=HEADER.itemsize, shape=(total,))
            if total
            else np.zeros(0, np.uint16)
        )


def _num_equal(code: Tensor, nibble: Tensor, of: int) -> Tensor:
    """Return how many of the lowest ``of`` nibbles of each code equal its ``nibble``."""
    differing = code ^ nibble * EVERY_NIBBLE
    differing |= differing >> 1
    differing |= differing >> 2
    differing &= EVERY_NIBBLE & (1 << 4 * of) - 1  # one bit for each nibble that differs
    return of - (differing * EVERY_NIBBLE >> 12 & 15)


def votes_from_prob(prob: Tensor) -> Tensor:
    """Turn class probabilities into votes.

    Args:
        prob: (N, C) float in [0, 1], independent per class (sigmoid).

    Returns:
        (N,) int64: the best class if above .6, `BACKGROUND` if below .4, else `IGNORE`.

    Source: MWSIS (AAAI 2024), PVC; thresholds from its released code.
    """
    best, label = prob.max(1)
    vote = torch.where(best > CLASS_ABOVE, label, IGNORE)
    return torch.where(best < BACKGROUND_BELOW, BACKGROUND, vote)


def correct_labels(pseudo: PointLabels, votes: Tensor) -> PointLabels:
    """Replace labels by votes, in both directions between object and background.

    Args:
        pseudo: N labels made from 2D boxes.
        votes: (N,) int64, of the teacher (`VoteHistory.agreed`) or of the ring segments (`correct_by_ring_segment`);
            `IGNORE` leaves the label.

    Returns:
        N labels. A relabelled point loses its instance unless its class stays the same; it gains none, so it has no
        centre to vote for; its new label is certain. A point that was `IGNORE` and has a vote becomes supervised.

    Source: MWSIS (AAAI 2024), PVC.
    """
    voted = votes != IGNORE
    changed = voted & (votes != pseudo.semantic_labels)
    return PointLabels(
        torch.where(voted, votes, pseudo.semantic_labels),
        torch.where(changed, -1, pseudo.instance_ids),
        torch.where(changed, 1.0, pseudo.weight),
    )
