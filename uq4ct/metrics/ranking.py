"""Answers in the order of a score, for one sample or many weighted resamples at once; equal scores count as one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """Hold the order of n answers from the highest score to the lowest; a tie is a run of equal scores.

    >>> Ranking.by(np.array([0.5, 0.9, 0.5])).sums(np.ones((1, 3)), np.array([1.0, 0.0, 0.0]))[1].tolist()
    [[0.0, 1.0]]
    """

    order: np.ndarray | None  # (n,); None where the answers already stand so
    starts: np.ndarray | None  # place of the first answer of each tie; None where no two scores are equal

    @classmethod
    def by(cls, score: np.ndarray) -> Ranking:
        """Rank by a score (n,), highest first."""
        order = np.argsort(-score, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
        sorted_already = (order[1:] > order[:-1]).all()
        return cls(None if sorted_already else order, None if len(starts) == len(order) else starts)

    def sums(self, weights: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
        """Return how many answers each tie holds, and the sum of each of the values (n,) over them; (draw, tie)."""
        if self.order is not None:
            weights, values = weights[:, self.order], tuple(value[self.order] for value in values)
        columns = [weights, *(weights * value for value in values)]
        return columns if self.starts is None else [np.add.reduceat(column, self.starts, axis=1) for column in columns]


@dataclass(frozen=True)
class RankedDraws:
    """Hold resamples of ranked answers: how many each tie has, and how many of them are right; (draw, tie).

    >>> drawn = RankedDraws.of(Ranking.by(np.array([0.9, 0.5, 0.5])), np.array([1.0, 1.0, 0.0]), np.ones((1, 3)))
    >>> drawn.size_up_to.tolist(), drawn.right_up_to.tolist()
    ([[0.0, 1.0, 3.0]], [[0.0, 1.0, 2.0]])
    """

    size: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, ranking: Ranking, correct: np.ndarray, weights: np.ndarray) -> RankedDraws:
        """Draw by weights (draw, n)."""
        return cls(*ranking.sums(weights, correct))

    @cached_property
    def errors(self) -> np.ndarray:
        """Wrong answers of each tie."""
        return self.size - self.right

    @cached_property
    def size_up_to(self) -> np.ndarray:
        """Answers before each tie, and in all, (draw, tie + 1)."""
        return running_sum(self.size)

    @cached_property
    def right_up_to(self) -> np.ndarray:
        """Right answers before each tie, and in all, (draw, tie + 1)."""
        return running_sum(self.right)

    @property
    def n(self) -> np.ndarray:
        """Number of answers, (draw,)."""
        return self.size_up_to[:, -1]

    @property
    def n_right(self) -> np.ndarray:
        """Number of right answers, (draw,)."""
        return self.right_up_to[:, -1]


def running_sum(values: np.ndarray) -> np.ndarray:
    """Return the sums before each column, and that of all; (draw, tie) -> (draw, tie + 1).

    >>> running_sum(np.array([[1.0, 2.0]])).tolist()
    [[0.0, 1.0, 3.0]]
    """
    sums = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums
