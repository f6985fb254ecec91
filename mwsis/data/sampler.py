"""The order in which frames are visited: a pure function of seed and position, so that a run can continue anywhere.

Used as the ``sampler`` of a `DataLoader` over `dataset.FrameDataset`, whose keys it yields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

__all__ = ["ResumableSampler", "seeded_generator"]


def seeded_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator whose stream depends on the whole key.

    Args:
        key: what the draws are for and its numbers, e.g. ``("sample", seed, position)``; order counts.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class ResumableSampler(Sampler[tuple[int, int]]):
    """Visits all frames in a new order each epoch.

    Position p of the run belongs to epoch ``p // num_frames`` and takes the frame that epoch's permutation has at
    ``p % num_frames``. Batches may therefore span two epochs.

    Args:
        num_frames: frames of the data set, > 0.
        num_samples: positions of the whole run.
        seed: of the permutations.
        start: first position to yield; a run resumed after k samples starts with k.
        rank, num_replicas: a process of a distributed run takes every ``num_replicas``-th position from ``rank`` on.

    Yields:
        ``(index, position)``: the frame, and a number unique in the run from which its augmentation is drawn.
    """

    def __init__(
        self, num_frames: int, num_samples: int, seed: int, start: int = 0, rank: int = 0, num_replicas: int = 1
    ) -> None:
        assert num_frames > 0
        assert num_samples >= 0
        assert start >= 0
        assert 0 <= rank < num_replicas
        self.num_frames = num_frames
        self.num_samples = num_samples
        self.seed = seed
        self.start = start
        self.rank = rank
        self.num_replicas = num_replicas

    def __len__(self) -> int:
        """Return the positions of this process in the whole run, those before ``start`` included."""
        return len(range(self.rank, self.num_samples, self.num_replicas))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = -1, torch.empty(0)
        for position in range(self.start + self.rank, self.num_samples, self.num_replicas):
            if position // self.num_frames != epoch:
                epoch = position // self.num_frames
                order = torch.randperm(self.num_frames, generator=seeded_generator("order", self.seed, epoch))
            yield int(order[position % self.num_frames]), position
