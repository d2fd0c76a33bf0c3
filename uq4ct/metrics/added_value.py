"""Does a score say more about correctness than the confidence does? A likelihood-ratio test of logistic regressions."""

from __future__ import annotations

from math import erfc, sqrt
from typing import NamedTuple

import numpy as np

from uq4ct.metrics.answers import Answers, Undefined

STEPS = 100
FLAT = 1e-7  # curvature per answer below which the likelihood only creeps towards a maximum that does not exist


class AddedValue(NamedTuple):
    """What a score adds: 2 (log-likelihood with it - without it), its p-value, and its coefficient per deviation."""

    lr_statistic: float
    p: float
    coefficient: float


def confidence_logit(answers: Answers) -> np.ndarray:
    """Return log c - log(1 - c) of each answer's confidence, (n,), from log-probabilities, exact where c rounds to 1.

    Raises Undefined where all other choices have probability 0.

    >>> confidence_logit(Answers.of([[0.8, 0.2]], answer=[0])).round(6).tolist()
    [1.386294]
    """
    rows = np.arange(answers.n)
    others = answers.log_probs.copy()
    others[rows, answers.predicted] = -np.inf
    highest = others.max(axis=1, keepdims=True)
    if np.isneginf(highest).any():
        raise Undefined(f"{int(np.isneginf(highest).sum())} of {answers.n} answers have a confidence of exactly 1")
    rest = np.log(np.exp(others - highest).sum(axis=1)) + highest[:, 0]
    return answers.log_probs[rows, answers.predicted] - rest


def added_value(known: np.ndarray, score: np.ndarray, correct: np.ndarray) -> AddedValue:
    """Test whether ``score`` improves logistic regression of correctness on ``known``, say the confidence's logit.

    Correct ~ known against correct ~ known + score; under no added value the statistic is chi-squared with one degree
    of freedom. A positive coefficient means: the higher the score, the likelier right. The test sees straight lines
    in log-odds: a score that is but a bend of ``known`` can pass it. Raises Undefined where nothing can be fitted.

    >>> known, score = np.zeros(8), np.repeat([0.0, 1.0], 4)  # 1 of 4 right against 3 of 4
    >>> round(added_value(known, score, [1, 0, 0, 0, 1, 1, 1, 0]).lr_statistic, 3)
    2.093
    """
    known, score, correct = (np.asarray(values, dtype=np.float64) for values in (known, score, correct))
    if not known.shape == score.shape == correct.shape or known.ndim != 1:
        raise ValueError(f"expected three vectors of one length, got {known.shape}, {score.shape}, {correct.shape}")
    if not (np.isfinite(known).all() and np.isfinite(score).all()):
        raise Undefined("infinite or missing scores")
    if not len(correct) or correct.all() or not correct.any():
        raise Undefined(f"needs right and wrong answers, all {len(correct)} are alike")
    if np.ptp(score) < 1e-12:
        raise Undefined("the score is the same for every answer")
    columns = [np.ones_like(known), *([_standard(known)] if np.ptp(known) >= 1e-12 else [])]
    without, _ = fit_logistic(np.stack(columns, axis=1), correct)
    larger = np.stack([*columns, _standard(score)], axis=1)
    if np.linalg.matrix_rank(larger) < larger.shape[1]:
        raise Undefined("the score is a linear function of what is known already")
    fitted, coefficients = fit_logistic(larger, correct)
    statistic = max(0.0, 2 * (fitted - without))
    return AddedValue(statistic, erfc(sqrt(statistic / 2)), float(coefficients[-1]))


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def fit_logistic(columns: np.ndarray, correct: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the highest log-likelihood and its coefficients, by Newton's steps, halved where they overshoot.

    ``columns`` (n, column) hold the constant too. Raises Undefined where the likelihood has no maximum.

    >>> fit_logistic(np.ones((4, 1)), np.array([1.0, 1.0, 0.0, 0.0]))[1].tolist()
    [0.0]
    """
    coefficients = np.zeros(columns.shape[1])
    best = _log_likelihood(columns, correct, coefficients)
    for _ in range(STEPS):
        fitted = 0.5 + 0.5 * np.tanh(columns @ coefficients / 2)
        curvature = (columns * (fitted * (1 - fitted))[:, None]).T @ columns
        if np.linalg.eigvalsh(curvature)[0] < FLAT * len(correct):
            break
        step = np.linalg.solve(curvature, columns.T @ (correct - fitted))
        while _log_likelihood(columns, correct, coefficients + step) < best - 1e-9:
            step = step / 2
        coefficients = coefficients + step
        best = _log_likelihood(columns, correct, coefficients)
        if np.abs(step).max() < 1e-9:
            return best, coefficients
    raise Undefined("the scores part right from wrong answers, or nearly: logistic regression has no end")


def _log_likelihood(columns: np.ndarray, correct: np.ndarray, coefficients: np.ndarray) -> float:
    odds = columns @ coefficients
    return float(correct @ odds - (np.maximum(odds, 0.0) + np.log1p(np.exp(-np.abs(odds)))).sum())
