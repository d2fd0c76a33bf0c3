"""Conformal sets: choices that together hold the gold one with a probability set beforehand, and how large they are.

Fitted on questions of the kind that is asked, which the model was not trained on; under shift nothing is promised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from uq4ct.metrics.answers import Answers

Kind = Literal["lac", "aps"]


def conformal_scores(answers: Answers, kind: Kind = "lac") -> np.ndarray:
    """Return how strange each choice would be as the answer, (n, K); infinite for choices that a row does not have.

    ``lac``: 1 - p_k (Sadinle et al. 2019), the smallest sets. ``aps``: probability of all choices at least as probable,
    k included (Romano et al. 2020), not randomised, so that sets are a little larger and never depend on a draw.

    >>> conformal_scores(Answers.of([[0.5, 0.25, 0.25]], answer=[0]), "aps").tolist()
    [[0.5, 1.0, 1.0]]
    """
    p = answers.probabilities
    if kind == "lac":
        scores = 1.0 - p
    else:
        as_probable = [np.where(p >= p[:, [k]], p, 0.0).sum(axis=1) for k in range(p.shape[1])]
        scores = np.minimum(np.stack(as_probable, axis=1), 1.0)  # the whole row is 1, not 1 + 2e-16
    return np.where(answers.mask, scores, np.inf)


@dataclass(frozen=True)
class ConformalSets:
    """Keep every choice whose score is at most the threshold.

    >>> half = Answers.of([[0.75, 0.25]] * 9, answer=[0] * 9)
    >>> sets = ConformalSets.fit(half, alpha=0.1)
    >>> sets.threshold, sets.measure(half)
    (0.25, {'n': 9, 'coverage': 1.0, 'size': 1.0, 'empty': 0.0, 'singletons': 1.0})
    """

    kind: Kind
    alpha: float
    threshold: float  # infinite where alpha asks for more than so few calibration answers can promise

    @classmethod
    def fit(cls, calibration: Answers, alpha: float = 0.1, kind: Kind = "lac") -> ConformalSets:
        """Take the ceil((n + 1)(1 - alpha))-th smallest score of gold choices: coverage is at least 1 - alpha."""
        if not 0 < alpha < 1:
            raise ValueError(f"alpha lies in (0, 1), got {alpha}")
        n = calibration.n
        gold = conformal_scores(calibration, kind)[np.arange(n), calibration.answer]
        rank = int(np.ceil((n + 1) * (1 - alpha) - 1e-9))  # 0.9 * 10 may be 9.000000000000002
        return cls(kind, alpha, float(np.sort(gold)[rank - 1]) if rank <= n else float("inf"))

    def sets(self, answers: Answers) -> np.ndarray:
        """Return which choices each set holds, (n, K)."""
        return answers.mask & (conformal_scores(answers, self.kind) <= self.threshold + 1e-12)

    def measure(self, answers: Answers) -> dict[str, float]:
        """Return how often a set holds the gold choice, the mean size, and how often it is empty or single."""
        held = self.sets(answers)
        size = held.sum(axis=1)
        return {
            "n": answers.n,
            "coverage": float(held[np.arange(answers.n), answers.answer].mean()),
            "size": float(size.mean()),
            "empty": float((size == 0).mean()),
            "singletons": float((size == 1).mean()),
        }
