"""Does the confidence rank right answers above wrong ones, and what does answering only the surest questions buy?

Ties count as one: every curve is the average over all orders within a tie, so that the order of a file changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from uq4ct.metrics.answers import Answers, Metric, Undefined, feu_of, mean_of


def auroc(score: np.ndarray, correct: np.ndarray) -> float:
    """Return the chance that a right answer has a higher score than a wrong one, ties counting 1/2.

    Raises Undefined when all answers are right or all are wrong; it is never 0.5 by default.

    >>> auroc([0.9, 0.6, 0.6], [1, 1, 0])
    0.75
    """
    score, correct = np.asarray(score, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if correct.all() or not correct.any():
        which = "right" if correct.any() else "wrong"
        raise Undefined(f"needs right and wrong answers, all {len(correct)} are {which}")
    return _once(_auroc_draws, score, correct)


def aurc(score: np.ndarray, correct: np.ndarray) -> float:
    """Return the area under the risk-coverage curve, mean over k of the error rate among the k surest answers.

    >>> round(aurc([0.7] * 10, [1] * 7 + [0] * 3), 6)
    0.3
    """
    return _once(_aurc_draws, score, correct)


def augrc(score: np.ndarray, correct: np.ndarray) -> float:
    """Return the area under the generalized risk-coverage curve, mean over k of (errors among the k surest) / n.

    Unlike AURC it does not overweigh the first few answers (Traub et al. 2024).

    >>> augrc([0.9, 0.8], [1, 0])
    0.25
    """
    return _once(_augrc_draws, score, correct)


def risk_coverage(score: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage k / n and the error rate among the k surest answers, k = 1..n.

    >>> coverage, risk = risk_coverage([0.9, 0.5, 0.5], [1, 1, 0])
    >>> risk.round(3).tolist()
    [0.0, 0.25, 0.333]
    """
    score, correct = np.asarray(score, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    _, group, size = np.unique(-score, return_inverse=True, return_counts=True)
    error_rate = np.bincount(group, weights=1.0 - correct) / size
    k = np.arange(1, len(score) + 1)
    return k / len(score), np.cumsum(np.repeat(error_rate, size)) / k


def accuracy_at_coverage(score: np.ndarray, correct: np.ndarray, coverage: float) -> float:
    """Return the accuracy of the ceil(coverage * n) surest answers.

    >>> accuracy_at_coverage([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0], coverage=0.5)
    1.0
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage lies in (0, 1], got {coverage}")
    kept = int(np.ceil(coverage * len(score) - 1e-9))  # 0.7 * 10 is 7.000000000000001
    return float(1.0 - risk_coverage(score, correct)[1][kept - 1])


def _once(draws: Callable[..., np.ndarray], score: np.ndarray, correct: np.ndarray) -> float:
    """Return the statistic of the sample itself: every item drawn once."""
    return float(draws(np.asarray(score), np.asarray(correct), np.ones((1, len(score))))[0])


def _groups(score: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
    """Sum each (draw, n) column over equal scores, from the surest on; (draw, group)."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    return [np.add.reduceat(column[:, order], starts, axis=1) for column in columns]


def _auroc_draws(score: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    right, wrong = _groups(score, weights * correct, weights * (1 - correct))
    above = np.cumsum(right, axis=1) - right / 2
    with np.errstate(invalid="ignore"):  # a resample may hold right answers only: NaN, left out of the interval
        return (above * wrong).sum(axis=1) / (right.sum(axis=1) * wrong.sum(axis=1))


def _augrc_draws(score: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    size, errors = _groups(score, weights, weights * (1 - correct))
    before = np.cumsum(errors, axis=1) - errors
    return (size * before + errors * (size + 1) / 2).sum(axis=1) / size.sum(axis=1) ** 2


def _aurc_draws(score: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum (E + j e/w) / (W + j) over j = 1..w for each tie: w answers with e errors, after W answers with E errors."""
    size, errors = _groups(score, weights, weights * (1 - correct))
    n = int(weights[0].sum())
    harmonic = np.r_[0.0, np.cumsum(1.0 / np.arange(1, n + 1))]
    end = np.cumsum(size, axis=1).astype(np.int64)
    start = end - size.astype(np.int64)
    slope = harmonic[end] - harmonic[start]
    rate = np.divide(errors, size, out=np.zeros_like(errors), where=size > 0)
    before = np.cumsum(errors, axis=1) - errors
    return (before * slope + rate * (size - start * slope)).sum(axis=1) / n


def coverage_table(answers: Answers, levels: tuple[float, ...] = (0.5, 0.8, 0.9)) -> dict[str, float]:
    """Return the accuracy of the surest answers at some coverages, keyed by the coverage."""
    return {f"{level:g}": accuracy_at_coverage(answers.confidence, answers.correct, level) for level in levels}


METRICS = (
    Metric(
        "auroc",
        "chance that a right answer has higher confidence than a wrong one",
        "higher",
        lambda a, _: auroc(a.confidence, a.correct),
        lambda a, _, weights: _auroc_draws(a.confidence, a.correct, weights),
    ),
    Metric(
        "aurc",
        "area under the risk-coverage curve",
        "lower",
        lambda a, _: aurc(a.confidence, a.correct),
        lambda a, _, weights: _aurc_draws(a.confidence, a.correct, weights),
    ),
    Metric(
        "augrc",
        "area under the generalized risk-coverage curve",
        "lower",
        lambda a, _: augrc(a.confidence, a.correct),
        lambda a, _, weights: _augrc_draws(a.confidence, a.correct, weights),
    ),
    mean_of("feu", "mean functional-level epistemic uncertainty (Eq. 9); it is a confidence", "none", feu_of),
    Metric(
        "feu_auroc",
        "chance that a right answer has higher FEU than a wrong one",
        "higher",
        lambda a, _: auroc(feu_of(a), a.correct),
        lambda a, _, weights: _auroc_draws(feu_of(a), a.correct, weights),
    ),
)
