"""The vote history as published: four probability rows per point, thresholded when read; k of n counted by hand."""

from collections import Counter

import numpy as np

BACKGROUND, IGNORE = -2, -1


class ProbabilityHistory:
    """(N, 4, C) probabilities of one frame, newest first, -1 where never observed."""

    def __init__(self, num_points: int, num_classes: int) -> None:
        self.prob = np.full((num_points, 4, num_classes), -1.0)

    def push(self, point_index: np.ndarray, prob: np.ndarray) -> None:
        for point, row in zip(point_index, prob):
            self.prob[point] = np.concatenate([row[None], self.prob[point, :3]])

    def agreed(self, at_least: int = 4, of: int = 4) -> np.ndarray:
        votes = np.full(len(self.prob), IGNORE)
        for point, rows in enumerate(self.prob):
            said = Counter(self._vote(row) for row in rows[:of] if (row >= 0).all())
            for vote, count in said.items():
                if count >= at_least and vote != IGNORE:
                    votes[point] = vote
        return votes

    @staticmethod
    def _vote(row: np.ndarray) -> int:
        if row.max() < 0.4:
            return BACKGROUND
        return int(row.argmax()) if row.max() > 0.6 else IGNORE
