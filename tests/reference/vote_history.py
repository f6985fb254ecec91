"""The vote history as published: four probability rows per point, thresholded when read."""

import numpy as np

BACKGROUND, IGNORE = -2, -1


class ProbabilityHistory:
    """(N, 4, C) probabilities of one frame, newest first, -1 where never observed."""

    def __init__(self, num_points: int, num_classes: int) -> None:
        self.prob = np.full((num_points, 4, num_classes), -1.0)

    def push(self, point_index: np.ndarray, prob: np.ndarray) -> None:
        for point, row in zip(point_index, prob):
            self.prob[point] = np.concatenate([row[None], self.prob[point, :3]])

    def unanimous(self) -> np.ndarray:
        votes = np.full(len(self.prob), IGNORE)
        for point, rows in enumerate(self.prob):
            said = {self._vote(row) for row in rows}
            if (rows >= 0).all() and len(said) == 1:
                votes[point] = said.pop()
        return votes

    @staticmethod
    def _vote(row: np.ndarray) -> int:
        if row.max() < 0.4:
            return BACKGROUND
        return int(row.argmax()) if row.max() > 0.6 else IGNORE
